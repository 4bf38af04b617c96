"""The rows of the kernel benchmark that are bound by memory: norms, RoPE, SwiGLU, cross-entropy on given logits, AdamW.

`test_kernels.py` measures rows, `tune.py` takes their inputs and figures.
"""

from types import SimpleNamespace

import torch

from bench import peers
from bench.measure import OURS, Work
from bench.row import Goal, Row, in_double, normal, of_copy, with_compile
from kernels import adamw, cross_entropy, cross_entropy_row, rmsnorm, rope, swiglu

EPS = peers.EPS


# ---- RMSNorm ---------------------------------------------------------------------------------------------------------


def norm_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    shape, options = (size["tokens"], size["hidden"]), {"device": device, "dtype": dtype}
    x, residual, dy, dsummed = (normal(*shape, **options, seed=4 * seed + n) for n in range(4))
    weight = normal(shape[1], **options, seed=seed) + 1
    rstd = torch.rsqrt(peers.wide(x).square().mean(1) + EPS)
    return SimpleNamespace(x=x, residual=residual, weight=weight, dy=dy, dsummed=dsummed, rstd=rstd)


def norm_row(hidden: int, add: bool, backward: bool) -> Row:
    """In the backward row of add + RMSNorm, x stands for the sum."""
    name = ("add_" if add else "") + "rmsnorm_" + ("backward" if backward else "forward")
    tensors = 4 if add else 3 if backward else 2
    function = peers.add_rmsnorm if add else peers.rmsnorm

    def forward_arguments(i):
        return (i.x, i.residual, i.weight) if add else (i.x, i.weight)

    def with_pass(x, weight):
        """The sum goes on past the norm, so that a gradient reaches it there too."""
        return (*peers.rmsnorm(x, weight), x.view_as(x)) if add else peers.rmsnorm(x, weight)

    def douts(i):
        return (i.dy, i.dsummed) if add else (i.dy,)

    def exact(i):
        if backward:
            return in_double(with_pass, (i.x, i.weight), douts(i), 2)
        return in_double(function, forward_arguments(i))

    def ours_forward(i):
        def run():
            y, _, *summed = rmsnorm.rmsnorm_forward(i.x, i.weight, EPS, residual=i.residual if add else None)
            return y, *summed

        return Work(run)

    def ours_backward(i):
        total = torch.zeros_like(i.weight, dtype=i.rstd.dtype)

        def run():
            options = {"weight_grad": total, "dsummed": i.dsummed if add else None}
            return rmsnorm.rmsnorm_backward(i.dy, i.x, i.weight, i.rstd, **options), total

        return Work(run, total.zero_)

    if backward:
        plain = with_compile(with_pass, lambda f: peers.backward_of(f, lambda i: (i.x, i.weight), douts, 2))
        liger = peers.liger_add_rmsnorm_backward if add else peers.liger_rmsnorm_backward
    else:
        plain = with_compile(function, lambda f: peers.forward_of(f, forward_arguments))
        liger = peers.liger_add_rmsnorm_forward if add else peers.liger_rmsnorm_forward
    must, aim = (0.75, 0.88) if backward else (0.88, 0.94)
    return Row(
        name=f"{name}-{hidden}",
        size={"tokens": (1 << 27) // hidden, "hidden": hidden},
        tiny={"tokens": 5, "hidden": 96},
        unit="bytes",
        amount=lambda size, item: tensors * item * size["tokens"] * size["hidden"],
        inputs=norm_inputs,
        reference=exact,
        candidates={OURS: ours_backward if backward else ours_forward, **plain, "liger": liger},
        must=(of_copy(must), Goal("liger", 1.0, "Liger's speed")),
        aim=(of_copy(aim),),
    )


# ---- RoPE, SwiGLU ----------------------------------------------------------------------------------------------------


def rope_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """Documents of 4,096 tokens; the gradient is rotated back in the same place as q, k and v forward."""
    tokens, heads, kv_heads, head_dim = (size[key] for key in ("tokens", "heads", "kv_heads", "head_dim"))
    qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, device=device, dtype=dtype, seed=seed)
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(min(tokens, 4096), dtype=torch.float64), frequencies)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = angle.cos().to(device, acc), angle.sin().to(device, acc)
    positions = (torch.arange(tokens, device=device) % len(cos)).int()
    both = (torch.cat((table, table), 1)[positions] for table in (cos, sin))  # as transformers makes them
    cos_both, sin_both = both
    return SimpleNamespace(
        qkv=qkv, cos=cos, sin=sin, positions=positions, cos_both=cos_both, sin_both=sin_both, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim,
    )  # fmt: skip


def rope_row(backward: bool) -> Row:
    turn = rope.rope_backward if backward else rope.rope_forward

    def ours(i):
        packed = i.qkv.clone()
        return Work(
            lambda: (turn(packed, i.cos, i.sin, i.positions, i.heads, i.kv_heads),), lambda: packed.copy_(i.qkv)
        )

    def arguments(i):
        """The tables in the model's dtype, as transformers has them; the gradient is the turn by the negative angle."""
        sine = -i.sin_both if backward else i.sin_both
        return i.qkv, i.cos_both.to(i.qkv.dtype), sine.to(i.qkv.dtype), i.heads, i.kv_heads

    def exact(i):
        sine = -i.sin_both if backward else i.sin_both
        return in_double(peers.rotate, (i.qkv, i.cos_both, sine, i.heads, i.kv_heads))

    return Row(
        name="rope_backward" if backward else "rope_forward",
        size={"tokens": 32768, "heads": 32, "kv_heads": 8, "head_dim": 128},
        tiny={"tokens": 7, "heads": 4, "kv_heads": 2, "head_dim": 16},
        unit="bytes",
        amount=lambda size, item: 2 * item * size["tokens"] * (size["heads"] + size["kv_heads"]) * size["head_dim"],
        inputs=rope_inputs,
        reference=exact,
        candidates={
            OURS: ours,
            **with_compile(peers.rotate, lambda f: peers.forward_of(f, arguments)),
            "liger": peers.liger_rope(backward),
        },
        must=(of_copy(0.85),),
        aim=(of_copy(0.92),),
    )


def swiglu_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    tokens, width = size["tokens"], size["width"]
    options = {"device": device, "dtype": dtype}
    gate_up = normal(tokens, 2 * width, **options, seed=2 * seed)
    return SimpleNamespace(gate_up=gate_up, dout=normal(tokens, width, **options, seed=2 * seed + 1))


def swiglu_row(backward: bool) -> Row:
    def ours(i):
        if backward:
            return Work(lambda: (swiglu.swiglu_backward(i.dout, i.gate_up),))
        return Work(lambda: (swiglu.swiglu_forward(i.gate_up),))

    def arguments(i):
        return (i.gate_up,)

    def douts(i):
        return (i.dout,)

    if backward:
        plain = with_compile(peers.swiglu, lambda f: peers.backward_of(f, arguments, douts, 1))
    else:
        plain = with_compile(peers.swiglu, lambda f: peers.forward_of(f, arguments))
    tensors = 5 if backward else 3
    return Row(
        name="swiglu_backward" if backward else "swiglu_forward",
        size={"tokens": 8192, "width": 14336},
        tiny={"tokens": 5, "width": 48},
        unit="bytes",
        amount=lambda size, item: tensors * item * size["tokens"] * size["width"],
        inputs=swiglu_inputs,
        reference=lambda i: in_double(peers.swiglu, (i.gate_up,), (i.dout,) if backward else None, 1),
        candidates={
            OURS: ours,
            **plain,
            "liger": peers.liger_swiglu_backward if backward else peers.liger_swiglu_forward,
        },
        must=(of_copy(0.85),),
        aim=(of_copy(0.92),),
    )


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


def logits_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    logits = normal(size["tokens"], size["vocabulary"], device=device, dtype=dtype, seed=seed)
    generator = torch.Generator(device).manual_seed(seed)
    targets = torch.randint(size["vocabulary"], (size["tokens"],), generator=generator, device=device)
    return SimpleNamespace(logits=logits, targets=targets)


def row_by_row(i: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient computed in float64, 256 rows at a time; the gradient is kept in float32, for its size."""
    loss = torch.zeros((), dtype=torch.float64, device=i.logits.device)
    gradient = torch.empty(i.logits.shape, device=i.logits.device)
    for rows, targets, out in zip(i.logits.split(256), i.targets.split(256), gradient.split(256), strict=True):
        log_p = rows.double().log_softmax(1)
        loss -= log_p.gather(1, targets[:, None]).sum()
        out.copy_(log_p.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(targets, dtype=log_p.dtype)[:, None]))
    return loss, gradient


def given_logits_row() -> Row:
    def ours(i):
        logits, entries = i.logits.clone(), i.logits.shape[1]

        def run():
            return cross_entropy_row.losses_and_gradient(logits, i.targets, entries).sum(), logits

        return Work(run, lambda: logits.copy_(i.logits))

    def ours_split(i):
        logits, entries = i.logits.clone(), i.logits.shape[1]

        def run():
            merged = cross_entropy.stats(logits, i.targets, 0, entries)
            loss = cross_entropy.losses(merged, i.targets).sum()
            return loss, cross_entropy.gradient(logits, i.targets, merged, 0, entries)

        return Work(run, lambda: logits.copy_(i.logits))

    plain = with_compile(peers.cross_entropy, lambda f: peers.both_of(f, lambda i: (i.logits, i.targets), 1))
    return Row(
        name="cross_entropy-128k",
        size={"tokens": 8192, "vocabulary": 128256},
        tiny={"tokens": 5, "vocabulary": 300},
        unit="bytes",
        amount=lambda size, item: 2 * item * size["tokens"] * size["vocabulary"],
        inputs=logits_inputs,
        reference=row_by_row,
        candidates={OURS: ours, f"{OURS}-two-launches": ours_split, **plain, "liger": peers.liger_cross_entropy},
        must=(Goal("copy", 0.85 * 4 / 6, "85% of copy at 6 B/logit"),),
        aim=(Goal("copy", 0.85, "85% of copy at 4 B/logit"),),
    )


# ---- AdamW -----------------------------------------------------------------------------------------------------------

BETAS, ADAM_EPS, RATE, DECAY = (0.9, 0.95), 1e-8, 1e-3, 0.1


def adamw_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """Shards in float32 (float64 for float64), weights in `dtype`, a quarter of the elements without decay."""
    n = size["elements"]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    master, moment, square, gradient = (normal(n, device=device, dtype=acc, seed=4 * seed + k) for k in range(4))
    number = {name: torch.full((1,), value, device=device, dtype=acc) for name, value in
              {"lr": RATE, "gradient_scale": 0.5, "step": 10.0}.items()}  # fmt: skip
    return SimpleNamespace(
        master=master, exp_avg=moment * 0.1, exp_avg_sq=square.square() * 0.1, gradient=gradient,
        weights=master.to(dtype), keep=torch.ones(1, dtype=torch.bool, device=device), ranges=[(n // 4, n, DECAY)],
        **number,
    )  # fmt: skip


def adamw_copies(i: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """What a step overwrites. It is not brought back between runs: a step is as much work on any values."""
    return tuple(x.clone() for x in (i.master, i.exp_avg, i.exp_avg_sq, i.weights))


def ours_adamw(i: SimpleNamespace) -> Work:
    master, moment, square, weights = adamw_copies(i)

    def run():
        adamw.adamw_step(
            master, moment, square, i.gradient, weights, lr=i.lr, gradient_scale=i.gradient_scale, step=i.step,
            keep=i.keep, decay_ranges=i.ranges, beta1=BETAS[0], beta2=BETAS[1], eps=ADAM_EPS,
        )  # fmt: skip
        return master, moment, square, weights

    return Work(run)


def fused_adamw(i: SimpleNamespace) -> Work:
    """torch's step of the same job: gradients scaled, one call for each weight decay, weights rounded."""
    master, moment, square, weights = adamw_copies(i)
    n, quarter = master.numel(), i.ranges[0][0]

    def run():
        gradient = i.gradient * i.gradient_scale
        for part, decay in ((slice(0, quarter), 0.0), (slice(quarter, n), DECAY)):
            torch._fused_adamw_(
                [master[part]], [gradient[part]], [moment[part]], [square[part]], [], [i.step[0].float()], lr=i.lr[0],
                beta1=BETAS[0], beta2=BETAS[1], weight_decay=decay, eps=ADAM_EPS, amsgrad=False, maximize=False,
            )  # fmt: skip
        weights.copy_(master)
        return master, moment, square, weights

    return Work(run)


def plain_adamw(master, moment, square, gradient, decay, rate, scale, step):
    """The formula, out of place."""
    gradient = gradient * scale
    moment = BETAS[0] * moment + (1 - BETAS[0]) * gradient
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
    update = moment / (1 - BETAS[0] ** step) / ((square / (1 - BETAS[1] ** step)).sqrt() + ADAM_EPS)
    return master * (1 - rate * decay) - rate * update, moment, square


def adamw_reference(i: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    decay = torch.zeros_like(i.master, dtype=torch.float64)
    decay[i.ranges[0][0] :] = DECAY
    state = (i.master, i.exp_avg, i.exp_avg_sq, i.gradient)
    master, moment, square = plain_adamw(
        *(x.double() for x in state), decay, *(x.double() for x in (i.lr, i.gradient_scale, i.step))
    )
    return master, moment, square, master


def adamw_row() -> Row:
    def eager(i):
        decay = torch.zeros_like(i.master)
        decay[i.ranges[0][0] :] = DECAY

        def run():
            state = (i.master, i.exp_avg, i.exp_avg_sq, i.gradient)
            master, moment, square = plain_adamw(*state, decay, i.lr, i.gradient_scale, i.step)
            return master, moment, square, master.to(i.weights.dtype)

        return Work(run)

    return Row(
        name="adamw",
        size={"elements": 1 << 26},
        tiny={"elements": 1000},
        unit="bytes",
        amount=lambda size, item: (28 + item) * size["elements"],
        inputs=adamw_inputs,
        reference=adamw_reference,
        candidates={OURS: ours_adamw, "eager": eager, "torch-fused": fused_adamw},
        must=(Goal("torch-fused", 1.0, "torch's fused AdamW"),),
        aim=(of_copy(0.92),),
    )


NORMS = ((False, False), (True, False), (False, True), (True, True))
"""(with the residual added, backward)."""
MEMORY_ROWS = (
    *(norm_row(hidden, add, backward) for add, backward in NORMS for hidden in (4096, 8192)),
    *(row(backward) for row in (rope_row, swiglu_row) for backward in (False, True)),
    given_logits_row(),
    adamw_row(),
)
