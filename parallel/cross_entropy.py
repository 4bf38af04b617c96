"""The head: linear + cross-entropy over a vocabulary split over ranks, without keeping its logits."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy_forward

from .comm import start_all_gather
from .parameter import Weight
from .sequence import SequenceParallel


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Weight, targets: Tensor, sequence: SequenceParallel, need_gradient: bool
    ) -> Tensor:
        tp = sequence.tp
        hidden = sequence.start_gather(hidden).wait()  # [tokens, hidden]
        record = weight.parameters[0].record
        chunk = chunk_rows(len(hidden), len(weight.data), hidden.dtype, buffers=min(tp.size, 2))
        total, dhidden = linear_cross_entropy_forward(
            hidden,
            weight.data,
            targets,
            weight_grad=weight.main_grad if need_gradient else None,
            need_gradient=need_gradient,
            chunk=chunk,
            vocab_start=record.offsets[0],
            vocab_size=record.global_shape[0],
            gather=None if tp.size == 1 else lambda local: start_all_gather(local, tp),
        )
        if need_gradient:
            weight.added()
            ctx.save_for_backward(sequence.start_scatter(dhidden).wait())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # Both gradients were made in the forward pass, while the logits existed.
        (dhidden,) = ctx.saved_tensors
        return dhidden, None, None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Weight, targets: Tensor, sequence: SequenceParallel) -> Tensor:
    """Sum over all tokens of the cross-entropy of hidden @ weight.T, in nats; the same number on every rank of tp.

    hidden `[tokens / tp, hidden]`, weight a slice of the vocabulary's rows, targets int64 `[tokens]`, -100 is ignored.
    Call `.backward()` on the returned sum itself (or a plain sum of such sums): its gradient is taken to be 1, and
    scaling by the batch's token count belongs to the optimizer. One exchange of three numbers a token and rank.
    """
    need_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return _LinearCrossEntropy.apply(hidden, weight, targets, sequence, need_gradient)
