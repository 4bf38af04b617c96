"""Cross-entropy of logits over a vocabulary that may be split over ranks.

loss = lse - target logit + z_loss * lse^2, lse = log(sum(exp(logits))); everything in the accumulation dtype, results
are SUMS over tokens. z_loss is PaLM's auxiliary loss that keeps the softmax's normaliser near 1 (arXiv:2204.02311,
section 5). Two local pieces, `stats` and `gradient`, with one exchange of three numbers a row and rank between them
(`merge_stats`), so that every rank holds only its slice of the vocabulary. The running maximum and sum of `stats` are
the online softmax of Milakov & Gimelshein (arXiv:1805.02867).

Bytes moved for n 2-byte logits: `stats` 2n, `gradient` 4n, both together 6n; rows of ignored tokens are not read.
`losses_and_gradient` (cross_entropy_row.py) does both in one launch where the vocabulary is not split. About 6
operations and one exponential a logit and pass: bound by memory. Saved by `cross_entropy` for its backward: the logits
(its input) and three numbers a row. Deterministic: every sum has a fixed order.
"""

import torch

from .common import accumulation_dtype, check_device, check_floating
from .cross_entropy_parts import (
    finite,
    gradient_of_terms,
    local_targets,
    row_block,
    row_blocks,
    row_factors,
    row_gradient,
    row_stats,
    unknown_targets,
)
from .tiles import architecture, tile
from .triton_or_stub import tl, triton

IGNORE_INDEX = -100
"""Target of a token that has no loss (torch's convention)."""

# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def stats(logits: torch.Tensor, targets: torch.Tensor, vocab_start: int, vocab_size: int) -> torch.Tensor:
    """What one slice of the vocabulary adds to the softmax of each row: [tokens, 3] in the accumulation dtype.

    logits [tokens, columns], column c is vocabulary entry `vocab_start + c`; entries from the true `vocab_size` on are
    padding and left out. targets [tokens] int64, global. Columns of the result: max, sum of exp(logit - max), the
    target's logit (0 when the target is not in this slice). A slice with no real entry gives (-inf, 0, 0). A target
    that is in no slice gives (-inf, 0, NaN) and its row is not read: it is ignored, or wrong and must not pass for a
    loss.
    """
    run = _triton_stats if logits.is_cuda else _torch_stats
    return run(logits, targets, vocab_start, real_columns(logits, vocab_start, vocab_size), vocab_size)


def merge_stats(gathered: torch.Tensor) -> torch.Tensor:
    """`stats` of all slices [ranks, tokens, 3] -> of the whole vocabulary [tokens, 3], added in rank order."""
    highest = gathered[..., 0].amax(0)
    total = torch.zeros_like(highest)
    target = torch.zeros_like(highest)
    for part in gathered:
        total += part[:, 1] * torch.exp(part[:, 0] - highest)
        target += part[:, 2]
    return torch.stack((highest, total, target), dim=1)


def losses(
    merged: torch.Tensor, targets: torch.Tensor, ignore_index: int = IGNORE_INDEX, z_loss: float = 0.0
) -> torch.Tensor:
    """Loss of each token [tokens]: lse - target logit + z_loss * lse^2 with lse = max + log(sum); 0 where ignored."""
    log_sum = merged[:, 1].log()
    loss = log_sum - (merged[:, 2] - merged[:, 0])  # the two logits first: lse would be rounded to their size
    if z_loss:
        loss += z_loss * (merged[:, 0] + log_sum).square()
    return loss.masked_fill_(targets == ignore_index, 0.0)


def gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    merged: torch.Tensor,
    vocab_start: int,
    vocab_size: int,
    *,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
    scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """d (sum of losses) / d logits, times the one-element tensor `scale` when given; returned and written to `out`.

    p * (1 + 2 * z_loss * lse) - [column is the target]; 0 in ignored rows and in columns that are padding, NaN in rows
    of a wrong target. Without `out` the logits themselves are overwritten.
    """
    out = logits if out is None else out
    real = real_columns(logits, vocab_start, vocab_size)
    run = _triton_gradient if logits.is_cuda else _torch_gradient
    return run(logits, targets, merged, vocab_start, real, vocab_size, ignore_index, z_loss, scale, out)


def real_columns(logits: torch.Tensor, vocab_start: int, vocab_size: int) -> int:
    """How many of this slice's columns are no padding; they come first."""
    return min(logits.shape[1], max(0, vocab_size - vocab_start))


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_stats(logits, targets, vocab_start, real, vocab_size):
    result = logits.new_zeros((logits.shape[0], 3), dtype=accumulation_dtype(logits.dtype))
    result[:, 0] = -torch.inf
    for rows in row_blocks(logits) if real else ():
        wide = logits[rows, :real].to(result.dtype)
        highest = wide.amax(1, keepdim=True)
        result[rows, 0:1] = highest
        result[rows, 1] = (wide - finite(highest)).exp_().sum(1)
    inside, local = local_targets(targets, vocab_start, real)
    if real:
        result[:, 2] = torch.where(inside, logits.gather(1, local[:, None])[:, 0].to(result.dtype), 0.0)
    unknown = unknown_targets(targets, vocab_size)
    for column, value in enumerate((-torch.inf, 0.0, torch.nan)):
        result[:, column].masked_fill_(unknown, value)
    return result


def _torch_gradient(logits, targets, merged, vocab_start, real, vocab_size, ignore_index, z_loss, scale, out):
    top, total = merged[:, 0:1], merged[:, 1:2]
    ignored = (targets == ignore_index)[:, None]
    wrong = unknown_targets(targets, vocab_size)[:, None] & ~ignored
    shift = top.masked_fill(ignored, torch.inf)  # exp(x - inf) = 0: ignored rows need no pass of their own
    inverse = total.reciprocal().masked_fill_(ignored, 0.0).masked_fill_(wrong, torch.nan)
    extra = (2 * z_loss * (top + total.log())).masked_fill_(ignored, 0.0) if z_loss else None
    inside, local = (x[:, None] for x in local_targets(targets, vocab_start, real))
    hit = inside & ~ignored
    for rows in row_blocks(logits) if real else ():
        place = out[rows, :real]
        term = place if place.dtype == merged.dtype else place.new_empty(place.shape, dtype=merged.dtype)
        torch.sub(logits[rows, :real], shift[rows], out=term).exp_()
        gradient_of_terms(term, inverse[rows], local[rows], hit[rows], None if extra is None else extra[rows])
        if scale is not None:
            term.mul_(scale)
        if term is not place:
            place.copy_(term)
    out[:, real:] = 0
    return out


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["real", "vocab_start", "vocab_size"])
def _stats_kernel(
    logits_pointer,  # [tokens, columns]
    targets_pointer,  # [tokens]
    result_pointer,  # [tokens, 3]
    columns,
    real,
    vocab_start,
    vocab_size,
    logits_stride,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    acc = result_pointer.dtype.element_ty
    token = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets_pointer + token)
    local = target - vocab_start
    known = (target >= 0) & (target < vocab_size)
    row = logits_pointer + token * logits_stride
    inside = (local >= 0) & (local < real) & known
    picked = tl.where(inside, tl.cast(tl.load(row + local, mask=inside), acc), 0.0)
    read = tl.where(known, real, 0)
    top, total = row_stats(row, columns, read, acc, GROUPS, LANES, VECTOR, EVICTION="")
    result = result_pointer + token * 3
    tl.store(result, top)
    tl.store(result + 1, total)
    tl.store(result + 2, tl.where(known, picked, float("nan")))


@triton.jit(do_not_specialize=["real", "vocab_start", "vocab_size", "ignore_index"])
def _gradient_kernel(
    logits_pointer,  # [tokens, columns]
    targets_pointer,  # [tokens]
    merged_pointer,  # [tokens, 3]
    scale_pointer,  # one element or unused
    out_pointer,  # [tokens, columns], may be the logits
    columns,
    real,
    vocab_start,
    vocab_size,
    ignore_index,
    z_loss,
    logits_stride,
    out_stride,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    acc = merged_pointer.dtype.element_ty
    token = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets_pointer + token)
    top, total = tl.load(merged_pointer + token * 3), tl.load(merged_pointer + token * 3 + 1)
    live, shift, inverse, extra, hit = row_factors(
        top, total, target, target - vocab_start, real, vocab_size, ignore_index, z_loss, acc
    )
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.cast(tl.load(logits_pointer + token * logits_stride + column, mask=inside & live, other=0.0), acc)
    value = tl.where(column < real, row_gradient(x, column, shift, inverse, extra, hit), 0.0)
    if HAS_SCALE:
        value *= tl.cast(tl.load(scale_pointer), acc)
    tl.store(out_pointer + token * out_stride + column, tl.cast(value, out_pointer.dtype.element_ty), mask=inside)


def _triton_stats(logits, targets, vocab_start, real, vocab_size):
    tokens, columns = logits.shape
    result = torch.empty((tokens, 3), dtype=accumulation_dtype(logits.dtype), device=logits.device)
    if tokens == 0:
        return result
    block, _ = row_block("cross_entropy_stats", logits)
    with torch.cuda.device_of(logits):
        _stats_kernel[(tokens,)](
            logits, targets, result, columns, real, vocab_start, vocab_size, logits.stride(0), **block
        )
    return result


def _triton_gradient(logits, targets, merged, vocab_start, real, vocab_size, ignore_index, z_loss, scale, out):
    tokens, columns = logits.shape
    if logits.numel() == 0:
        return out
    chosen = tile("cross_entropy_gradient", columns, architecture(logits.device))
    with torch.cuda.device_of(logits):
        _gradient_kernel[(tokens, triton.cdiv(columns, chosen.columns))](
            logits,
            targets,
            merged,
            scale,
            out,
            columns,
            real,
            vocab_start,
            vocab_size,
            ignore_index,
            z_loss,
            logits.stride(0),
            out.stride(0),
            HAS_SCALE=scale is not None,
            BLOCK=chosen.columns,
            num_warps=chosen.warps,
        )
    return out


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = IGNORE_INDEX, z_loss: float = 0.0
) -> torch.Tensor:
    """Sum of the cross-entropy losses of logits [tokens, vocabulary], a scalar in the accumulation dtype.

    targets int64 [tokens], `ignore_index` where there is no loss; a target outside the vocabulary makes the sum NaN.
    The logits stay as they are; their gradient is computed in the backward pass, into a buffer of its own (6 bytes a
    2-byte logit forward and backward). Differentiable once, works under torch.compile. Raises ValueError for a wrong
    shape, stride, dtype or device.
    """
    check_floating("logits", logits, 2)
    check_targets(targets, "logits", logits)
    if logits.shape[1] == 0:
        raise ValueError("logits has no columns; the vocabulary needs at least one entry")
    return _cross_entropy_op(logits, targets, ignore_index, z_loss)[0]


def check_targets(targets: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """Raise ValueError unless targets are one int64 for each row of `like`, on its device."""
    check_device("targets", targets, like_name, like)
    if targets.dtype != torch.int64 or targets.shape != like.shape[:1]:
        raise ValueError(f"targets must be int64 [tokens], one for each row of {like_name}")


@torch.library.custom_op("materia::cross_entropy", mutates_args=())
def _cross_entropy_op(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    targets = targets.contiguous()
    merged = stats(logits, targets, 0, logits.shape[1])
    return losses(merged, targets, ignore_index, z_loss).sum(), merged


@torch.library.custom_op("materia::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward_op(
    dloss: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    merged: torch.Tensor,
    ignore_index: int,
    z_loss: float,
) -> torch.Tensor:
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    options = {"ignore_index": ignore_index, "z_loss": z_loss, "scale": dloss, "out": out}
    return gradient(logits, targets.contiguous(), merged, 0, logits.shape[1], **options)


@_cross_entropy_op.register_fake
def _(logits, targets, ignore_index, z_loss):
    acc = accumulation_dtype(logits.dtype)
    return logits.new_empty((), dtype=acc), logits.new_empty((logits.shape[0], 3), dtype=acc)


@_cross_entropy_backward_op.register_fake
def _(dloss, logits, targets, merged, ignore_index, z_loss):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup(ctx, inputs, output):
    logits, targets, ctx.ignore_index, ctx.z_loss = inputs
    ctx.save_for_backward(logits, targets, output[1])


def _backward(ctx, dloss, _dmerged):
    dlogits = _cross_entropy_backward_op(dloss, *ctx.saved_tensors, ctx.ignore_index, ctx.z_loss)
    return dlogits, None, None, None


_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
