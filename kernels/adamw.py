"""AdamW on flat shards (Loshchilov & Hutter 2019, arXiv:1711.05101).

Bytes moved an element, fp32 shards and 2-byte weights: 30 (master, both moments and the gradient read; master, both
moments and the weights written). About 20 operations an element: bound by memory. Deterministic.

Why not `torch._fused_adamw_` on a GPU: it knows neither our gradient scale (it divides by its own, and stores the
result) nor the weights, so a step would be three passes, scaled copy 8, update 28, weights 6: 42 bytes an element
against 30, with a workspace of the shard's size; one call for each range of equal weight decay, two or more a layer
because norms have none; and its arithmetic is partly in float64. This is counted, not timed. On a CPU, where the passes
run over blocks that stay in the cache, torch's step is used.

The weight decay of an element comes from a table of where it changes (4 bytes for each block of elements), so that any
number of ranges is one launch. 4 elements a thread: 16 bytes an access (the 2-byte weights: 8) where n is a multiple of
16 and the shard of the weights begins at a multiple of 16 bytes; else narrower.
"""

import functools
import math
from collections.abc import Sequence

import torch

from .tiles import architecture, tile
from .triton_or_stub import tl, triton

_BLOCK = 1 << 21
"""Elements worked on at once on a CPU: it bounds the workspace, the scaled gradient of one block (8 MB in fp32).
Smaller blocks are no faster, and on a busy machine their many short parallel passes wait for each other."""

Ranges = Sequence[tuple[int, int, float]]


# ---- layer 1: plain function (there is no differentiable one) --------------------------------------------------------


def adamw_step(
    master: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    gradient: torch.Tensor,
    weights: torch.Tensor,
    *,
    lr: torch.Tensor,
    gradient_scale: torch.Tensor,
    step: torch.Tensor,
    keep: torch.Tensor,
    decay_ranges: Ranges,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step in place, with g = gradient * gradient_scale and t = step (1 at the first step):

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
    master = master (1 - lr * decay) - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps);  weights = master

    master, exp_avg, exp_avg_sq, gradient: flat [n], one dtype (float32 or float64); weights [n], the model's dtype: the
    rounding of master on entry and on return; it may be master itself. lr, gradient_scale, step, keep: one-element
    tensors on the same device, so that a GPU's host never waits. keep = 0 (a bad gradient, for instance) changes
    nothing. decay_ranges: (begin, end, weight decay) within [0, n), disjoint; no decay outside them.
    """
    run = _triton_step if master.is_cuda else _torch_step
    tensors = (master, exp_avg, exp_avg_sq, gradient, weights)
    run(tensors, (lr, gradient_scale, step, keep), decay_ranges, beta1, beta2, eps)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_step(tensors, scalars, decay_ranges, beta1, beta2, eps):
    master, exp_avg, exp_avg_sq, gradient, weights = tensors
    lr, gradient_scale, step, keep = scalars
    if not keep.item():
        return
    step = step.reshape(()).to(torch.float32)
    for begin, end, decay in _blocks(master.numel(), decay_ranges, _BLOCK):
        part = slice(begin, end)
        torch._fused_adamw_(
            [master[part]],
            [gradient[part] * gradient_scale.to(master.dtype)],
            [exp_avg[part]],
            [exp_avg_sq[part]],
            [],
            [step],
            lr=lr.reshape(()),
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        if weights.data_ptr() != master.data_ptr():
            weights[part].copy_(master[part])


def _spans(n: int, decay_ranges: Ranges) -> list[tuple[int, int, float]]:
    """All of [0, n) as (begin, end, decay), none empty."""
    spans, position = [], 0
    for begin, end, decay in sorted(decay_ranges):
        assert position <= begin <= end <= n, f"decay ranges overlap or leave [0, {n}): {decay_ranges}"
        spans += [(position, begin, 0.0), (begin, end, decay)]
        position = end
    spans.append((position, n, 0.0))
    return [span for span in spans if span[0] < span[1]]


def _blocks(n: int, decay_ranges: Ranges, size: int) -> list[tuple[int, int, float]]:
    """[0, n) as blocks (begin, end, decay) of at most `size` elements, each with one weight decay."""
    spans = _spans(n, decay_ranges)
    return [(at, min(at + size, end), decay) for begin, end, decay in spans for at in range(begin, end, size)]


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _one_minus_power(LOG_BASE: tl.constexpr, exponent):
    """1 - base^exponent, base = e^LOG_BASE < 1. Where the power is near 1 the difference would lose the digits that
    matter (0.999 at step 1: one part in 10^4 in fp32), so there a series of -(e^u - 1)."""
    u = exponent * LOG_BASE
    series = 1.0 + u / 9.0
    for i in tl.static_range(8, 1, -1):
        series = 1.0 + u / i * series
    near = -0.5 if u.dtype == tl.float32 else -0.015625
    return tl.where(u > near, -u * series, 1.0 - tl.exp(u))


@triton.jit
def _step_kernel(
    master_pointer,  # [n], as exp_avg, exp_avg_sq and gradient
    exp_avg_pointer,
    exp_avg_sq_pointer,
    gradient_pointer,
    weights_pointer,  # [n] or unused (it is master)
    lr_pointer,  # [1], as gradient_scale, step and keep
    gradient_scale_pointer,
    step_pointer,
    keep_pointer,
    span_pointer,  # [programs]: in which span of equal weight decay the program begins
    ends_pointer,  # [spans], ascending, the last is n
    decays_pointer,  # [spans]
    n,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    acc = master_pointer.dtype.element_ty
    begin = tl.cast(tl.program_id(0), tl.int64) * BLOCK
    at = begin + tl.arange(0, BLOCK)
    inside = at < n
    master = tl.load(master_pointer + at, mask=inside, other=0.0)
    exp_avg = tl.load(exp_avg_pointer + at, mask=inside, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sq_pointer + at, mask=inside, other=0.0)
    gradient = tl.load(gradient_pointer + at, mask=inside, other=0.0)
    lr = tl.cast(tl.load(lr_pointer), acc)
    step = tl.cast(tl.load(step_pointer), acc)

    scaled = gradient * tl.cast(tl.load(gradient_scale_pointer), acc)
    exp_avg = BETA1 * exp_avg + (1 - BETA1) * scaled
    exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * scaled * scaled
    size = lr / _one_minus_power(LOG_BETA1, step)
    correction = tl.sqrt(_one_minus_power(LOG_BETA2, step))
    update = size * exp_avg / (tl.sqrt(exp_avg_sq) / correction + EPS)

    # After the rest: the compiler would move loads whose values are needed later behind this loop.
    span = tl.load(span_pointer + tl.program_id(0))
    decayed = master - lr * tl.load(decays_pointer + span) * master
    end = tl.load(ends_pointer + span)
    while end < tl.minimum(begin + BLOCK, n):  # hardly ever: a block in which the decay changes
        span += 1
        decayed = tl.where(at >= end, master - lr * tl.load(decays_pointer + span) * master, decayed)
        end = tl.load(ends_pointer + span)
    master = decayed - update

    # Masked by `keep` as the last thing, so that the loads above did not wait for it.
    written = at < tl.where(tl.load(keep_pointer) != 0, n, 0)
    tl.store(master_pointer + at, master, mask=written)
    tl.store(exp_avg_pointer + at, exp_avg, mask=written)
    tl.store(exp_avg_sq_pointer + at, exp_avg_sq, mask=written)
    if HAS_WEIGHTS:
        tl.store(weights_pointer + at, tl.cast(master, weights_pointer.dtype.element_ty), mask=written)


def _triton_step(tensors, scalars, decay_ranges, beta1, beta2, eps):
    master, exp_avg, exp_avg_sq, gradient, weights = tensors
    lr, gradient_scale, step, keep = scalars
    n = master.numel()
    if n == 0:
        return
    tiling = tile("adamw", n, architecture(master.device))
    table = _decay_table(n, tuple(decay_ranges), tiling.columns, master.dtype, master.device)
    has_weights = weights.data_ptr() != master.data_ptr()
    with torch.cuda.device_of(master):
        _step_kernel[(triton.cdiv(n, tiling.columns),)](
            master,
            exp_avg,
            exp_avg_sq,
            gradient,
            weights if has_weights else None,
            lr,
            gradient_scale,
            step,
            keep.view(torch.uint8) if keep.dtype == torch.bool else keep,
            *table,
            n,
            LOG_BETA1=math.log(max(beta1, 1e-300)),
            LOG_BETA2=math.log(max(beta2, 1e-300)),
            BETA1=beta1,
            BETA2=beta2,
            EPS=eps,
            HAS_WEIGHTS=has_weights,
            BLOCK=tiling.columns,
            num_warps=tiling.warps,
        )


@functools.lru_cache(maxsize=64)
def _decay_table(
    n: int, decay_ranges: tuple[tuple[int, int, float], ...], block: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(span in which each block of [0, n) begins, int32; ends of the spans, int64; their decays).

    Kept between steps: copying it to a GPU would wait for the GPU. 4 bytes for each `block` elements.
    """
    spans = _spans(n, decay_ranges)
    ends = torch.tensor([end for _, end, _ in spans], dtype=torch.int64, device=device)
    begins = torch.arange(0, n, block, dtype=torch.int64, device=device)
    decays = torch.tensor([decay for *_, decay in spans], dtype=dtype, device=device)
    return torch.searchsorted(ends, begins, right=True, out_int32=True), ends, decays
