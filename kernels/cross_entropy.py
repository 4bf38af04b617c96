"""Cross-entropy over a vocabulary that may be split, and the linear layer before it without keeping its logits.

loss = lse - target logit + z_loss * lse^2, lse = log(sum(exp(logits))); everything in the accumulation dtype. Two local
pieces, `stats` and `gradient`, with one exchange of three numbers a row and rank between them (`merge_stats`), so that
every rank holds only its slice of the vocabulary. Results are SUMS over tokens; the caller divides.

Bytes moved for n 2-byte logits: `stats` 2n, `gradient` 4n. Deterministic.

The Triton version is not written yet; torch operations on every device.
"""

from collections.abc import Callable

import torch

from .common import accumulation_dtype, add_product, check_alike, check_device, check_floating

IGNORE_INDEX = -100
"""Target of a token that has no loss (torch's convention)."""

_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits worked through at a time: on the CPU 1 MB in fp32, so that the passes over them meet the cache; on a GPU
128 MB, which bounds the float32 copies."""


def stats(logits: torch.Tensor, targets: torch.Tensor, vocab_start: int, vocab_size: int) -> torch.Tensor:
    """What one slice of the vocabulary adds to the softmax of each row: [tokens, 3] in the accumulation dtype.

    logits [tokens, columns], column c is vocabulary entry `vocab_start + c`; entries from the true `vocab_size` on are
    padding and left out. targets [tokens] int64, global. Columns of the result: max, sum of exp(logit - max), the
    target's logit (0 when the target is not in this slice, NaN when it is in none: an ignored target, or a wrong one,
    which must not pass for a loss). A slice with no real entry gives (-inf, 0, 0) where the target is known.
    """
    result = logits.new_zeros((logits.shape[0], 3), dtype=accumulation_dtype(logits.dtype))
    real = min(logits.shape[1], max(0, vocab_size - vocab_start))
    unknown = (targets < 0) | (targets >= vocab_size)
    if real == 0:
        result[:, 0] = -torch.inf
        result[:, 2].masked_fill_(unknown, torch.nan)
        return result
    for rows in _row_blocks(logits):
        wide = logits[rows, :real].to(result.dtype)
        highest = wide.amax(1, keepdim=True)
        result[rows, 0:1] = highest
        result[rows, 1] = (wide - highest).exp_().sum(1)
    local = targets - vocab_start
    inside = (local >= 0) & (local < real)
    picked = logits.gather(1, local.clamp(0, real - 1)[:, None])[:, 0]
    result[:, 2] = torch.where(inside, picked.to(result.dtype), 0.0).masked_fill_(unknown, torch.nan)
    return result


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
    """Loss of each token [tokens]: lse - target logit + z_loss * lse^2 with lse = max + log(sum); 0 where ignored.

    z_loss: PaLM's auxiliary loss that keeps the softmax's normaliser near 1 (arXiv:2204.02311, section 5).
    """
    lse = merged[:, 0] + merged[:, 1].log()
    loss = lse - merged[:, 2]
    if z_loss:
        loss += z_loss * lse.square()
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
) -> torch.Tensor:
    """Overwrites `logits` with d (sum of losses) / d logits and returns it.

    p * (1 + 2 * z_loss * lse) - [column is the target]; 0 in ignored rows and in columns that are padding.
    """
    real = min(logits.shape[1], max(0, vocab_size - vocab_start))
    ignored = targets == ignore_index
    lse = merged[:, 0] + merged[:, 1].log()
    shift = lse.masked_fill(ignored, torch.inf)[:, None]  # exp(x - inf) = 0: ignored rows need no pass of their own
    growth = (1 + 2 * z_loss * lse)[:, None]
    local = targets - vocab_start
    hit = ((local >= 0) & (local < real) & ~ignored).to(lse.dtype).neg_()
    hit.masked_fill_(((targets < 0) | (targets >= vocab_size)) & ~ignored, torch.nan)  # a wrong target
    hit = hit[:, None]
    local = local.clamp(0, max(0, real - 1))[:, None]
    for rows in _row_blocks(logits) if real else ():
        block = logits[rows, :real]
        probability = block if block.dtype == lse.dtype else block.to(lse.dtype)
        probability.sub_(shift[rows]).exp_()
        if z_loss:
            probability.mul_(growth[rows])
        probability.scatter_add_(1, local[rows], hit[rows])
        if probability is not block:
            block.copy_(probability)
    logits[:, real:] = 0
    return logits


def linear_cross_entropy_forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight_grad: torch.Tensor | None = None,
    need_gradient: bool,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
    chunk: int = 2048,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of the losses of logits = hidden @ weight^T, `chunk` rows at a time, so that the logits never exist whole.

    For a vocabulary split over ranks weight holds the rows from `vocab_start` on, `vocab_size` is the whole
    vocabulary's, and `gather` takes `stats` [1, chunk, 3] to those of all ranks [ranks, chunk, 3]: one exchange a
    chunk. The loss is then the whole vocabulary's, the gradient of hidden this slice's part of it, to be summed over
    the ranks.

    hidden [tokens, width], weight [vocabulary, width], targets [tokens] int64. Returns (sum of losses, a scalar in the
    accumulation dtype; gradient of that sum with respect to hidden, or None). With `need_gradient` the gradients are
    made here, while the logits exist: the weight's is added to `weight_grad` [vocabulary, width], accumulation dtype.
    Without it nothing but the loss is computed. Workspace: chunk * vocabulary logits, and at most 3 * 128 MB of
    float32 copies.
    FLOPs: 2 * tokens * vocabulary * width, three times that with gradients.
    """
    place = vocab_start, weight.shape[0] if vocab_size is None else vocab_size
    total = hidden.new_zeros((), dtype=accumulation_dtype(hidden.dtype))
    dhidden = torch.empty_like(hidden) if need_gradient else None
    for begin in range(0, hidden.shape[0], chunk):
        rows = slice(begin, begin + chunk)
        logits = hidden[rows] @ weight.t()
        merged = stats(logits, targets[rows], *place)
        if gather is not None:
            merged = merge_stats(gather(merged[None]))
        total += losses(merged, targets[rows], ignore_index, z_loss).sum()
        if not need_gradient:
            continue
        dlogits = gradient(logits, targets[rows], merged, *place, ignore_index=ignore_index, z_loss=z_loss)
        torch.mm(dlogits, weight, out=dhidden[rows])
        if weight_grad is not None:
            add_product(weight_grad, dlogits, hidden[rows])
    return total, dhidden


def _row_blocks(logits: torch.Tensor) -> list[slice]:
    """Slices of rows of about `_BLOCK_ELEMENTS`."""
    rows = logits.shape[0]
    step = max(1, _BLOCK_ELEMENTS[logits.device.type] // max(1, logits.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


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
    check_device("targets", targets, "hidden", hidden)
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} columns but hidden has {hidden.shape[1]}")
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1]:
        raise ValueError("targets must be int64 [tokens], one for each row of hidden")
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
        targets,
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
    return (
        (dhidden * dloss).to(ctx.dtype) if ctx.need_dhidden else None,
        (dweight * dloss).to(ctx.dtype) if ctx.need_dweight else None,
        *[None] * 5,
    )


_linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
