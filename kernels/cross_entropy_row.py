"""Cross-entropy and its gradient in one launch, for a vocabulary that is not split: a row is read, and read again.

Formulas as in cross_entropy.py. Bytes moved for n 2-byte logits: two reads and a write, 6n, but a row's second read
finds it in the L2 cache as long as multiprocessors x programs x bytes a row fit there: then 4n from and to memory.
A program has a row at a time, so at 128k 2-byte logits (256 KB a row) one program a multiprocessor holds 34 MB of the
50 MB of an H100 (60 MB, H200) and 28 MB of the 40 MB of an A100; the table of tiles halves the programs whenever the
row doubles, so shorter rows hold the same sum. Longer rows, or 4-byte logits of 128k entries, exceed it and move up to
6n. Rows of ignored tokens are not read. Deterministic.
"""

import torch

from .common import accumulation_dtype, program_count
from .cross_entropy import IGNORE_INDEX, losses, real_columns
from .cross_entropy_parts import (
    finite,
    gradient_of_terms,
    local_targets,
    row_block,
    row_blocks,
    row_factors,
    row_gradient,
    row_stats,
)
from .triton_or_stub import tl, triton

# ---- layer 1: plain function -----------------------------------------------------------------------------------------


def losses_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    *,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """`losses` [tokens] of a vocabulary that is not split, overwriting the logits with `gradient`, in one launch.

    logits [tokens, columns]; columns from `vocab_size` on are padding. NaN where the target is wrong.
    """
    run = _triton_losses_and_gradient if logits.is_cuda else _torch_losses_and_gradient
    return run(logits, targets, real_columns(logits, 0, vocab_size), ignore_index, z_loss)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_losses_and_gradient(logits, targets, real, ignore_index, z_loss):
    """One exponential a logit: the gradient scales the terms of the sum."""
    acc = accumulation_dtype(logits.dtype)
    ignored = targets == ignore_index
    inside, local = local_targets(targets, 0, real)
    result = logits.new_empty(len(targets), dtype=acc)
    for rows in row_blocks(logits):
        place = logits[rows, :real]
        wide = place.to(acc)  # the logits themselves if that is their dtype
        highest = wide.amax(1, keepdim=True)
        target = wide.gather(1, local[rows, None]).masked_fill_(~inside[rows, None], torch.nan)
        term = wide.sub_(finite(highest)).exp_()
        total = term.sum(1, keepdim=True)
        merged = torch.cat((highest, total, target), dim=1)
        result[rows] = losses(merged, targets[rows], ignore_index, z_loss)
        extra = (2 * z_loss * (highest + total.log())).masked_fill_(ignored[rows, None], 0.0) if z_loss else None
        inverse = (
            total.reciprocal_().masked_fill_(~inside[rows, None], torch.nan).masked_fill_(ignored[rows, None], 0.0)
        )
        gradient_of_terms(term, inverse, local[rows, None], ~ignored[rows, None], extra)
        if term is not place:
            place.copy_(term)
    logits[:, real:] = 0
    return result


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "real", "ignore_index"])
def _losses_and_gradient_kernel(
    logits_pointer,  # [rows, columns], overwritten
    targets_pointer,  # [rows]
    losses_pointer,  # [rows]
    rows,
    columns,
    real,
    ignore_index,
    z_loss,
    logits_stride,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    acc = losses_pointer.dtype.element_ty
    element = logits_pointer.dtype.element_ty
    BLOCK: tl.constexpr = GROUPS * LANES * VECTOR
    for token in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(token, tl.int64)
        row = logits_pointer + at * logits_stride
        target = tl.load(targets_pointer + at)
        live = (target >= 0) & (target < real) & (target != ignore_index)
        # before the sums over the program's threads, whose barriers end before any of them overwrites the row
        picked = tl.cast(tl.load(row + target, mask=live), acc)  # used only where live
        top, total = row_stats(row, columns, tl.where(live, real, 0), acc, GROUPS, LANES, VECTOR, EVICTION="evict_last")
        lse = top + tl.log(total)
        loss = tl.log(total) - (picked - top) + tl.cast(z_loss, acc) * lse * lse
        ignored = target == ignore_index
        tl.store(losses_pointer + at, tl.where(live, loss, tl.where(ignored, 0.0, float("nan"))))
        live, shift, inverse, extra, hit = row_factors(
            top, total, target, target, real, real, ignore_index, z_loss, acc
        )
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < columns
            x = tl.load(row + column, mask=inside & live, other=0.0, eviction_policy="evict_first")
            value = row_gradient(tl.cast(x, acc), column, shift, inverse, extra, hit)
            value = tl.where(column < real, value, 0.0)
            tl.store(row + column, tl.cast(value, element), mask=inside, eviction_policy="evict_first")


def _triton_losses_and_gradient(logits, targets, real, ignore_index, z_loss):
    rows, columns = logits.shape
    result = torch.empty(rows, dtype=accumulation_dtype(logits.dtype), device=logits.device)
    if rows == 0:
        return result
    block, programs = row_block("cross_entropy_row", logits)
    with torch.cuda.device_of(logits):
        _losses_and_gradient_kernel[(min(rows, program_count(logits, programs)),)](
            logits, targets, result, rows, columns, real, ignore_index, z_loss, logits.stride(0), **block
        )
    return result
