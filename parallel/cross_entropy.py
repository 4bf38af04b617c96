"""The head: linear + cross-entropy over a vocabulary split over ranks, without keeping its logits."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.common import accumulation_dtype, add_product
from kernels.cross_entropy import gradient, losses, merge_stats, stats

from .comm import Group, all_gather, reduce_scatter
from .parameter import Weight

CHUNK = 2048
"""Tokens whose logits exist at once. Fewer would spend more time on reading and writing the weight's float32 gradient.
"""


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Weight, targets: Tensor, tp: Group, need_gradient: bool) -> Tensor:
        hidden = all_gather(hidden, tp)  # [tokens, hidden]
        record = weight.parameters[0].record
        place = record.offsets[0], record.global_shape[0]  # first row of this rank's slice, size of the vocabulary
        total = hidden.new_zeros((), dtype=accumulation_dtype(hidden.dtype))
        dhidden = torch.empty_like(hidden) if need_gradient else None
        for begin in range(0, hidden.shape[0], CHUNK):
            rows = slice(begin, begin + CHUNK)
            logits = hidden[rows] @ weight.data.t()  # [chunk, vocabulary / tp]
            merged = merge_stats(all_gather(stats(logits, targets[rows], *place)[None], tp))
            total += losses(merged, targets[rows]).sum()
            if need_gradient:
                dlogits = gradient(logits, targets[rows], merged, *place)
                torch.mm(dlogits, weight.data, out=dhidden[rows])
                add_product(weight.main_grad, dlogits, hidden[rows])
        if need_gradient:
            ctx.save_for_backward(reduce_scatter(dhidden, tp))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # Both gradients were made in the forward pass, while the logits existed.
        (dhidden,) = ctx.saved_tensors
        return dhidden, None, None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Weight, targets: Tensor, tp: Group) -> Tensor:
    """Sum over all tokens of the cross-entropy of hidden @ weight.T, in nats; the same number on every rank of tp.

    hidden `[tokens / tp, hidden]`, weight a slice of the vocabulary's rows, targets int64 `[tokens]`, -100 is ignored.
    Call `.backward()` on the returned sum itself (or a plain sum of such sums): its gradient is taken to be 1, and
    scaling by the batch's token count belongs to the optimizer. One exchange of three numbers a token and rank.
    """
    need_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return _LinearCrossEntropy.apply(hidden, weight, targets, tp, need_gradient)
