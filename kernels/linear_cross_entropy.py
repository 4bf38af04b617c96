"""A linear layer and cross-entropy of its product, in chunks of rows, so that the logits never exist whole.

Formulas as in cross_entropy.py; the gradients are made in the forward pass, while a chunk's logits exist. FLOPs for n
tokens, width h and v entries: 2nhv, three times that with gradients. Bytes beside those of the matrix products: 4 to 6
a 2-byte logit in the softmax kernels, and 8 a weight and chunk where the product's epilogue adds the weight's gradient
to its buffer in float32. Deterministic.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from .common import accumulation_dtype, add_product, check_alike, check_floating
from .cross_entropy import IGNORE_INDEX, check_targets, gradient, losses, merge_stats, stats
from .cross_entropy_row import losses_and_gradient

_LOGITS_BYTES = 800 << 20
"""All buffers of logits together: below 1 GB, with room for what cuBLAS keeps (32 MB on Hopper)."""

_FEWEST_ROWS, _MOST_ROWS = 2048, 8192
"""Adding to the weight's gradient reads and writes 8 bytes a weight and chunk, beside 6 FLOPs a weight and row in the
three products: on an H200 about 12 % of their time at 2,048 rows and 3 % at 8,192, estimated from 780 TFLOP/s and
4.3 TB/s; more rows would gain little."""


class Exchange(Protocol):
    """A started exchange of `stats` between ranks."""

    def wait(self) -> torch.Tensor:
        """The result, [ranks, rows, 3], in rank order."""


# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def chunk_rows(tokens: int, vocabulary: int, dtype: torch.dtype, buffers: int) -> int:
    """Rows of a chunk: as many as `buffers` chunks of logits of `dtype` may have in 839 MB, 2,048 to 8,192, then as
    even as possible over the chunks, in multiples of 256 (rows of a matrix tile).

    So all buffers together have at most max(839 MB, buffers * 2048 rows).
    """
    fitting = _LOGITS_BYTES // (buffers * max(1, vocabulary) * dtype.itemsize)
    rows = min(_MOST_ROWS, max(_FEWEST_ROWS, fitting // 256 * 256))
    chunks = max(1, -(-tokens // rows))
    return max(_FEWEST_ROWS, -(-tokens // (chunks * 256)) * 256)


def linear_cross_entropy_forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight_grad: torch.Tensor | None = None,
    need_gradient: bool,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
    chunk: int | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    gather: Callable[[torch.Tensor], Exchange] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of the losses of logits = hidden @ weight^T, `chunk` rows at a time (by default `chunk_rows`).

    For a vocabulary split over ranks weight holds the rows from `vocab_start` on, `vocab_size` is the whole
    vocabulary's, `chunk` the same on every rank, and `gather` starts taking `stats` [1, rows, 3] to those of all ranks:
    one exchange a chunk, which the next chunk's product and stats hide. The loss is then the whole vocabulary's, the
    gradient of hidden this slice's part of it, to be summed over the ranks.

    hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64, contiguous. Returns (sum of losses, a
    scalar in the accumulation dtype; gradient of that sum with respect to hidden, or None). With `need_gradient` the
    weight's gradient is added to `weight_grad` [vocabulary, width], accumulation dtype; without it nothing but the loss
    is computed. Workspace: one buffer of chunk * vocabulary logits in hidden's dtype, two with `gather`, and a few
    numbers a row. No host synchronisation.
    """
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    vocab_size = vocabulary if vocab_size is None else vocab_size
    options = {"ignore_index": ignore_index, "z_loss": z_loss}
    total = hidden.new_zeros((), dtype=accumulation_dtype(hidden.dtype))
    dhidden = torch.empty_like(hidden) if need_gradient else None
    chunk = chunk or chunk_rows(tokens, vocabulary, hidden.dtype, 1 if gather is None else 2)
    buffers = [hidden.new_empty((min(chunk, tokens), vocabulary)) for _ in range(1 if gather is None else 2)]

    def product(number: int) -> tuple[slice, torch.Tensor]:
        rows = slice(number * chunk, min((number + 1) * chunk, tokens))
        logits = buffers[number % len(buffers)][: rows.stop - rows.start]
        return rows, torch.mm(hidden[rows], weight.t(), out=logits)

    def add_gradients(rows: slice, dlogits: torch.Tensor) -> None:
        torch.mm(dlogits, weight, out=dhidden[rows])
        if weight_grad is not None:
            add_product(weight_grad, dlogits, hidden[rows])

    def finish(rows: slice, logits: torch.Tensor, exchange: Exchange) -> None:
        merged = merge_stats(exchange.wait())
        total.add_(losses(merged, targets[rows], **options).sum())
        if need_gradient:
            add_gradients(rows, gradient(logits, targets[rows], merged, vocab_start, vocab_size, **options))

    started = None
    for number in range(-(-tokens // chunk)):
        rows, logits = product(number)
        if gather is not None:
            local = stats(logits, targets[rows], vocab_start, vocab_size)
            exchange = gather(local[None])
            if started is not None:
                finish(*started)  # now: the exchange it waits for ran beside the product and stats just issued
            started = rows, logits, exchange
        elif need_gradient:
            total += losses_and_gradient(logits, targets[rows], vocab_size, **options).sum()
            add_gradients(rows, logits)
        else:
            total += losses(stats(logits, targets[rows], 0, vocab_size), targets[rows], **options).sum()
    if started is not None:
        finish(*started)
    return total, dhidden


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Sum of the cross-entropy losses of hidden [tokens, width] @ weight [vocabulary, width]^T, a scalar.

    targets int64 [tokens], `ignore_index` where there is no loss. The logits never exist whole (see
    `linear_cross_entropy_forward`). Differentiable once with respect to hidden and weight; the gradients are computed
    in the forward pass, if autograd asks for any. Works under torch.compile. Raises ValueError for a wrong
    shape, stride, dtype or device.
    """
    check_floating("hidden", hidden, 2)
    check_floating("weight", weight, 2)
    check_alike("weight", weight, "hidden", hidden)
    check_targets(targets, "hidden", hidden)
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} columns but hidden has {hidden.shape[1]}")
    if weight.shape[0] == 0:
        raise ValueError("weight has no rows; the vocabulary needs at least one entry")
    # decided here: inside a custom operator grad mode always reads as off
    grad = torch.is_grad_enabled()
    return _linear_cross_entropy_op(
        hidden, weight, targets, grad and hidden.requires_grad, grad and weight.requires_grad, ignore_index, z_loss
    )[0]


@torch.library.custom_op("materia::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy_op(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    need_dhidden: bool,
    need_dweight: bool,
    ignore_index: int,
    z_loss: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    acc = accumulation_dtype(hidden.dtype)
    dweight = torch.zeros(weight.shape if need_dweight else (0,), dtype=acc, device=weight.device)
    loss, dhidden = linear_cross_entropy_forward(
        hidden,
        weight,
        targets.contiguous(),
        weight_grad=dweight if need_dweight else None,
        need_gradient=need_dhidden or need_dweight,
        ignore_index=ignore_index,
        z_loss=z_loss,
    )
    return loss, dhidden if need_dhidden else hidden.new_empty(0), dweight


@_linear_cross_entropy_op.register_fake
def _(hidden, weight, targets, need_dhidden, need_dweight, ignore_index, z_loss):
    acc = accumulation_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=acc),
        torch.empty(hidden.shape if need_dhidden else (0,), dtype=hidden.dtype, device=hidden.device),
        torch.empty(weight.shape if need_dweight else (0,), dtype=acc, device=weight.device),
    )


def _setup(ctx, inputs, output):
    ctx.need_dhidden, ctx.need_dweight = inputs[3:5]
    ctx.dtype = inputs[1].dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx, dloss, _ddhidden, _ddweight):
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("linear_cross_entropy is differentiable once; its gradient was made in the forward pass")
    dhidden, dweight = ctx.saved_tensors
    # rounded as it is multiplied: no float32 product of the weight's size
    return (
        torch.mul(dhidden, dloss, out=torch.empty_like(dhidden)) if ctx.need_dhidden else None,
        torch.mul(dweight, dloss, out=torch.empty_like(dweight, dtype=ctx.dtype)) if ctx.need_dweight else None,
        *[None] * 5,
    )


_linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
