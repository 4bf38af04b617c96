"""What the softmax kernels of cross_entropy.py and cross_entropy_row.py share, and their plain-torch twins."""

import torch

from .tiles import architecture, tile
from .triton_or_stub import tl, triton

_BLOCK_ELEMENTS = 1 << 18
"""Logits the CPU works through at a time: 1 MB in fp32, so that the passes over them meet the cache."""


# ---- plain torch -----------------------------------------------------------------------------------------------------


def unknown_targets(targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Targets that are in no slice."""
    return (targets < 0) | (targets >= vocab_size)


def local_targets(targets: torch.Tensor, vocab_start: int, real: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each target is in this slice, and its column there (some column when it is not)."""
    local = targets - vocab_start
    return (local >= 0) & (local < real), local.clamp(0, max(0, real - 1))


def gradient_of_terms(
    term: torch.Tensor, inverse: torch.Tensor, local: torch.Tensor, hit: torch.Tensor, extra: torch.Tensor | None
) -> torch.Tensor:
    """Overwrites term [rows, columns], exp(x - max), with p - [column is the target] + extra * p, p = term * inverse.

    In this order: 1 is subtracted from the target's p, which is near 1 where the model is right, before anything is
    rounded. And max is subtracted and the sum divided by one after the other: their joint logarithm, lse, is rounded to
    the size of the logits, which would be a relative error of p.
    """
    target = term.gather(1, local) * inverse
    value = torch.where(hit, target - 1, target)
    if extra is not None:
        value.addcmul_(target, extra)
        inverse = inverse * (1 + extra)
    return term.mul_(inverse).scatter_(1, local, value)


def finite(highest: torch.Tensor) -> torch.Tensor:
    """What to subtract before exp: the maximum, or 0 for a row of -inf, whose terms are then exp(-inf) = 0."""
    return highest.masked_fill(highest == -torch.inf, 0.0)


def row_blocks(logits: torch.Tensor) -> list[slice]:
    """Slices of rows of about `_BLOCK_ELEMENTS`."""
    rows = logits.shape[0]
    step = max(1, _BLOCK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


# ---- Triton ----------------------------------------------------------------------------------------------------------
# Each thread keeps a maximum and a sum of its own for LANES x VECTOR columns at a time, VECTOR of them 16 bytes: the
# loop over a row has no barrier, and one exponential a logit and one more for all of a thread's columns of a block.


@triton.jit
def _join(x, highest, total):
    """Online softmax: a block x [GROUPS, LANES, VECTOR] joins the running maximum and sum [LANES]."""
    joint = tl.maximum(highest, tl.max(tl.max(x, axis=2), axis=0))
    shift = tl.where(joint == float("-inf"), 0.0, joint)
    part = tl.sum(tl.sum(tl.exp(x - shift[None, :, None]), axis=2), axis=0)
    return joint, total * tl.exp(highest - shift) + part


@triton.jit
def row_stats(
    row,  # pointer to [columns]
    columns,
    real,
    ACC: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """Maximum and sum of exp(x - maximum) over the first `real` columns of a row."""
    BLOCK: tl.constexpr = GROUPS * LANES * VECTOR
    column = tl.arange(0, BLOCK)
    highest = tl.full((LANES,), float("-inf"), ACC)
    total = tl.zeros((LANES,), ACC)
    whole = real // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = tl.load(row + start + column, eviction_policy=EVICTION)
        highest, total = _join(tl.reshape(tl.cast(x, ACC), (GROUPS, LANES, VECTOR)), highest, total)
    column += whole
    # columns, unlike real, is a multiple of 16 in any padded vocabulary: loads of 16 bytes
    x = tl.load(row + column, mask=(column < columns) & (whole < real), other=0.0, eviction_policy=EVICTION)
    x = tl.where(column < real, tl.cast(x, ACC), float("-inf"))
    highest, total = _join(tl.reshape(x, (GROUPS, LANES, VECTOR)), highest, total)
    top = tl.max(highest, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(total * tl.exp(highest - shift), axis=0)


@triton.jit
def row_factors(top, total, target, local, real, vocab_size, ignore_index, z_loss, ACC: tl.constexpr):
    """Of one row: (is it read, what exp subtracts, 1 / sum, 2 * z_loss * lse, the target's column or -1)."""
    ignored = target == ignore_index
    live = (target >= 0) & (target < vocab_size) & (target != ignore_index)
    shift = tl.where(live, top, 0.0)
    inverse = tl.where(live, 1.0 / total, tl.where(ignored, 0.0, float("nan")))
    extra = tl.where(live, 2.0 * tl.cast(z_loss, ACC) * (top + tl.log(total)), 0.0)
    inside = live & (local >= 0) & (local < real)
    return live, shift, inverse, extra, tl.cast(tl.where(inside, local, -1), tl.int32)


@triton.jit
def row_gradient(x, column, shift, inverse, extra, hit):
    """p - [column is the target] + extra * p, p = exp(x - shift) * inverse; in this order, see `gradient_of_terms`."""
    probability = tl.exp(x - shift) * inverse
    return tl.where(column == hit, probability - 1.0, probability) + extra * probability


def row_block(kernel: str, logits: torch.Tensor) -> tuple[dict[str, int], int]:
    """(GROUPS, LANES and VECTOR of a block of columns and the number of warps, programs a multiprocessor)."""
    chosen = tile(kernel, logits.shape[1], architecture(logits.device))
    lanes, vector = 32 * chosen.warps, 16 // logits.element_size()
    groups = max(1, chosen.columns // (lanes * vector))
    return {"GROUPS": groups, "LANES": lanes, "VECTOR": vector, "num_warps": chosen.warps}, chosen.programs
