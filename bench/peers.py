"""What the operators are compared with: plain torch, SDPA, torch's varlen attention, Liger-Kernel, each as a function
that prepares a run on one set of inputs. A peer that is not installed or refuses raises; `measure.prepare` names it.
"""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.measure import Work, deterministic

EPS = 1e-5
LARGEST_SCORES = 8 << 30
"""Bytes of attention scores beyond which plain torch is not tried."""
MOST_DOCUMENTS = 64
"""Beyond, plain torch's attention would be tens of thousands of launches."""


def wide(x: torch.Tensor) -> torch.Tensor:
    """In the accumulation dtype."""
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


# ---- plain torch, as Hugging Face writes a Llama ---------------------------------------------------------------------


def rmsnorm(x, weight):
    normed = wide(x) * torch.rsqrt(wide(x).square().mean(-1, keepdim=True) + EPS)
    return (weight * normed.to(x.dtype),)


def add_rmsnorm(x, residual, weight):
    summed = x + residual
    return (*rmsnorm(summed, weight), summed)


def rotate(qkv, cos, sin, heads: int, kv_heads: int):
    """cos and sin [tokens, head_dim], each half the same; v as it came."""
    head_dim = cos.shape[1]
    q, k, v = qkv.unflatten(1, (-1, head_dim)).split([heads, kv_heads, kv_heads], 1)
    turned = []
    for x in (q, k):
        first, second = x.chunk(2, -1)
        turned.append(x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None])
    return (torch.cat((*turned, v), 1).flatten(1),)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return (F.silu(gate) * up,)


def cross_entropy(logits, targets):
    return (F.cross_entropy(wide(logits), targets, reduction="sum"),)


def linear_cross_entropy(hidden, weight, targets):
    return cross_entropy(F.linear(hidden, weight), targets)


def attention(q, k, v, bounds: Sequence[int]):
    """Causal, document by document, query head by query head."""
    group = q.shape[1] // k.shape[1]
    documents = []
    for begin, end in itertools.pairwise(bounds):
        hidden = torch.ones(end - begin, end - begin, dtype=torch.bool, device=q.device).triu(1)
        heads = []
        for head in range(q.shape[1]):
            scores = q[begin:end, head] @ k[begin:end, head // group].t() * q.shape[2] ** -0.5
            weights = wide(scores).masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
            heads.append(weights @ v[begin:end, head // group])
        documents.append(torch.stack(heads, 1))
    return (torch.cat(documents),)


# ---- ways of running a function --------------------------------------------------------------------------------------


def forward_of(function: Callable, arguments: Callable[[SimpleNamespace], tuple]) -> Callable[[SimpleNamespace], Work]:
    """A run is function(*arguments)."""

    def prepare(inputs):
        given = arguments(inputs)
        return Work(lambda: function(*given))

    return prepare


def backward_of(
    function: Callable,
    arguments: Callable[[SimpleNamespace], tuple],
    gradients: Callable[[SimpleNamespace], tuple],
    leaves: int,
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Callable[[SimpleNamespace], Work]:
    """A run is autograd's backward pass with respect to the first `leaves` arguments; the forward pass runs once."""

    def prepare(inputs):
        given = list(arguments(inputs))
        given[:leaves] = [x.detach().requires_grad_() for x in given[:leaves]]
        outputs, douts = function(*given), gradients(inputs)

        def run():
            with around():
                return torch.autograd.grad(outputs, given[:leaves], douts, retain_graph=True)

        return Work(run)

    return prepare


def both_of(function: Callable, arguments: Callable[[SimpleNamespace], tuple], leaves: int):
    """A run is the forward pass and autograd's backward pass of its one scalar: (scalar, gradients)."""

    def prepare(inputs):
        given = list(arguments(inputs))
        given[:leaves] = [x.detach().requires_grad_() for x in given[:leaves]]

        def run():
            (loss,) = function(*given)
            return loss.detach(), *torch.autograd.grad(loss, given[:leaves])

        return Work(run)

    return prepare


def compiled(function: Callable) -> Callable:
    """torch.compile, compiled anew for each row; its backward pass may run more than once."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    return torch.compile(function, fullgraph=True, dynamic=False)


# ---- attention -------------------------------------------------------------------------------------------------------


def check_plain_attention(inputs: SimpleNamespace) -> None:
    """Raise where plain torch is no peer: its scores would not fit, or it would spend its time on launches."""
    lengths = [end - begin for begin, end in itertools.pairwise(inputs.bounds)]
    scores = inputs.q.shape[1] * max(lengths) ** 2 * 4
    if inputs.q.is_cuda and scores > LARGEST_SCORES:
        raise MemoryError(f"plain torch would keep {scores / 2**30:.0f} GB of scores")
    if len(lengths) > MOST_DOCUMENTS:
        raise NotImplementedError(f"plain torch would take {len(lengths)} documents one by one")


def sdpa(backend: SDPBackend) -> Callable:
    """scaled_dot_product_attention of one document, [tokens, heads, head_dim] in and out."""

    def run(q, k, v, bounds):
        if len(bounds) != 2:
            raise NotImplementedError("SDPA knows no packed documents")
        with sdpa_kernel(backend):
            batch = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return (out[0].transpose(0, 1),)

    return run


def varlen(q, k, v, bounds):
    """torch.nn.attention.varlen; `bounds` is built into a tensor once a set of inputs (see `varlen_arguments`)."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = bounds
    names = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if q.shape[1] != k.shape[1] and "enable_gqa" in names:
        causal["enable_gqa"] = True
    return (varlen_attn(q, k, v, starts, starts, longest, longest, **causal),)


def varlen_arguments(inputs: SimpleNamespace) -> tuple:
    bounds = torch.tensor(inputs.bounds, dtype=torch.int32, device=inputs.q.device)
    return inputs.q, inputs.k, inputs.v, (bounds, int(bounds.diff().max()))


SDPA = {"sdpa-flash": sdpa(SDPBackend.FLASH_ATTENTION), "sdpa-cudnn": sdpa(SDPBackend.CUDNN_ATTENTION)}


def attention_peers(
    arguments: Callable[[SimpleNamespace], tuple], backward: bool
) -> dict[str, Callable[[SimpleNamespace], Work]]:
    """SDPA, varlen and, where its scores fit, plain torch."""

    def way(function, arguments, around=contextlib.nullcontext):
        if backward:
            return backward_of(function, arguments, lambda inputs: (inputs.dout,), 3, around)
        return forward_of(function, arguments)

    def eager(inputs):
        check_plain_attention(inputs)
        return way(attention, arguments)(inputs)

    candidates = {name: way(function, arguments) for name, function in SDPA.items()}
    if backward:
        candidates["sdpa-flash-deterministic"] = way(SDPA["sdpa-flash"], arguments, deterministic)
    return {**candidates, "varlen": way(varlen, varlen_arguments), "eager": eager}


# ---- Liger-Kernel ----------------------------------------------------------------------------------------------------


def liger_rmsnorm_forward(inputs):
    from liger_kernel.ops.rms_norm import rms_norm_forward

    return Work(lambda: rms_norm_forward(inputs.x, inputs.weight, EPS, 0.0, "llama", False)[:1])


def liger_add_rmsnorm_forward(inputs):
    from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

    return Work(lambda: fused_add_rms_norm_forward(inputs.x, inputs.residual, inputs.weight, EPS, 0.0, "llama")[:2])


def liger_rmsnorm_backward(inputs):
    from liger_kernel.ops.rms_norm import calculate_settings, rms_norm_backward

    settings = calculate_settings(inputs.x.shape[1])
    same = (inputs.x, inputs.weight, inputs.rstd, 0.0, 0, *settings, False, False)
    return Work(lambda: rms_norm_backward(inputs.dy, *same))


def liger_add_rmsnorm_backward(inputs):
    from liger_kernel.ops.fused_add_rms_norm import calculate_settings, fused_add_rms_norm_backward

    settings = calculate_settings(inputs.x.shape[1])
    same = (inputs.dsummed, inputs.x, inputs.weight, inputs.rstd, 0.0, 0, *settings, 2, False)

    def run():
        dx, _, weight_grad = fused_add_rms_norm_backward(inputs.dy, *same)
        return dx, weight_grad

    return Work(run)


def liger_rope(inverse: bool):
    """On q and k as it takes them, not packed: the copy into a packed result, for the check, is part of no run."""

    def prepare(inputs):
        from liger_kernel.ops import rope

        turn = rope.rope_backward if inverse else rope.rope_forward
        heads = inputs.qkv.unflatten(1, (-1, inputs.head_dim))[None]
        q, k, v = (x.contiguous() for x in heads.split([inputs.heads, inputs.kv_heads, inputs.kv_heads], 2))
        saved = q.clone(), k.clone()
        tables = inputs.cos_both[None], inputs.sin_both[None]

        def run():
            turn(q.transpose(1, 2), k.transpose(1, 2), *tables)  # in place
            return (Packed(q, k, v),)

        def reset():
            q.copy_(saved[0])
            k.copy_(saved[1])

        return Work(run, reset)

    return prepare


class Packed:
    """q, k, v that look like the packed tensor when they are compared."""

    def __init__(self, *parts: torch.Tensor):
        self.parts = parts

    @property
    def shape(self) -> torch.Size:
        return self.whole().shape

    def whole(self) -> torch.Tensor:
        return torch.cat(self.parts, 2)[0].flatten(1)

    def split(self, rows: int) -> tuple[torch.Tensor, ...]:
        return self.whole().split(rows)


def liger_swiglu_forward(inputs):
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

    return Work(lambda: swiglu_fused_gate_up_forward(inputs.gate_up)[1:])


def liger_swiglu_backward(inputs):
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

    return Work(lambda: (swiglu_fused_gate_up_backward(inputs.gate_up, inputs.dout, in_place=False),))


def liger_cross_entropy(inputs):
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    logits = inputs.logits.clone().requires_grad_()

    def run():
        loss, *_, gradient = cross_entropy_forward(logits, inputs.targets, None, -100, 0.0, 0.0, "sum", None, False)
        return loss.detach(), gradient.detach()

    return Work(run, lambda: logits.data.copy_(inputs.logits))


def liger_linear_cross_entropy(inputs):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def loss(hidden, weight, targets):
        options = (None, None, -100, 0.0, 0.0, "sum")
        result = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, *options)
        return (result[0] if isinstance(result, tuple) else result,)

    return both_of(loss, lambda i: (i.hidden, i.weight, i.targets), 2)(inputs)
