"""Layers with hand-written gradients, split over tp: norm -> gather -> linear -> inner -> linear -> scatter -> add, the
norm alone, and the embedding.

`residual_layer` is one autograd function for a whole branch of the residual stream, attention or MLP: what differs is
`inner`. Under tensor parallelism (arXiv 1909.08053) a rank holds a slice of each weight, and between the layers a share
of the tokens (sequence.py). One function instead of three, because what the backward pass computes again and what it
exchanges belong together: the weight gradient needs the gathered norm output anyway, so recomputing the first linear
layer from it repeats no exchange.

Weight gradients never pass through autograd: the backward adds them to `weight.main_grad` in the accumulation dtype, so
nothing is rounded to bf16 between micro-batches. The norm's output and the inner function's output are computed again
in the backward pass, which is what keeps a Llama-2-7B layer at 22.75 bytes a token and hidden channel (bf16).

Shapes: activations `[tokens, features]`, weights `[out_features, in_features]` as Hugging Face stores them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward
from kernels.swiglu import swiglu_backward, swiglu_forward

from .parameter import Weight
from .sequence import Exchange, SequenceParallel


class Inner(Protocol):
    """What lies between a branch's two linear layers; acts on this rank's features of all tokens."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The first linear layer's output, which may be overwritten -> (the second one's input, what to save)."""

    def backward(self, dy: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Gradient of the forward's output -> (gradient of its input, the forward's output again)."""


class Swiglu:
    """`Inner` of the MLP: `[tokens, 2 * intermediate]` -> `[tokens, intermediate]`. Saves its input."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return swiglu_forward(x), (x,)

    def backward(self, dy: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        product = torch.empty_like(dy)
        return swiglu_backward(dy, saved[0], product=product), product


@dataclass(frozen=True)
class Branch:
    """The weights and settings of one branch of the residual stream."""

    norm: Weight
    first: Weight
    second: Weight
    eps: float
    sequence: SequenceParallel
    recompute: bool = False
    """Keep only the branch's input, and compute all else again in the backward pass."""


class _ResidualLayer(Function):
    @staticmethod
    def forward(ctx, x: Tensor, branch: Branch, inner: Inner) -> Tensor:
        normed, rstd = rmsnorm_forward(x, branch.norm.data, branch.eps)
        y, saved = inner.forward(branch.sequence.gather_linear(normed, branch.first.data))
        ctx.branch, ctx.inner = branch, inner
        if branch.recompute:
            ctx.save_for_backward(x)
        else:
            ctx.save_for_backward(x, rstd, *saved)
        return branch.sequence.linear_scatter_add(y, branch.second.data, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        return _residual_layer_backward(dy.contiguous(), x, saved, ctx.branch, ctx.inner), None, None


def residual_layer(x: Tensor, branch: Branch, inner: Inner) -> Tensor:
    """x + inner(RMSNorm(x) @ first.T) @ second.T, of all ranks' tokens: `[tokens / tp, hidden]` -> the same.

    Saves x, one number a token and what `inner` saves; x alone with `recompute`. FLOPs: 2 * tokens * weights / tp in
    the forward pass, twice that in the backward pass, plus inner's; with `recompute` the first linear layer and inner
    once more. Exchanges over tp, in bytes of the gathered tensor: forward a gather and a scatter; backward two gathers
    and a scatter, and when the weight gradients are put off two gathers more. Deterministic.
    """
    return _ResidualLayer.apply(x, branch, inner)


def _residual_layer_backward(dy: Tensor, x: Tensor, saved: list[Tensor], branch: Branch, inner: Inner) -> Tensor:
    """The gradient of x. Every exchange runs beside work that does not need it:

    gather of dy: the weight gradient that the layer behind left; gather of the normed input: the second linear layer's
    input gradient; scatter of the input's gradient: the second layer's weight gradient.
    """
    sequence, gradients = branch.sequence, branch.first.gradients
    rstd = None if branch.recompute else saved.pop(0)
    gathering_dy = sequence.start_gather(dy)
    if rstd is None:
        normed, rstd = rmsnorm_forward(x, branch.norm.data, branch.eps)
    else:
        normed = rmsnorm_apply(x, branch.norm.data, rstd)
    # Put-off weight gradients gather their operands themselves: held whole, these would cost tp times the memory.
    gathering_normed = sequence.start_gather(normed) if branch.recompute or not gradients.hold else None
    if not gradients.hold:
        gradients.run_pending()
    dy_whole = gathering_dy.wait()
    dproduct = dy_whole @ branch.second.data
    if branch.recompute:
        _, saved = inner.forward(gathering_normed.wait() @ branch.first.data.t())
    dhidden, product = inner.backward(dproduct, tuple(saved))
    scattering = sequence.start_scatter(dhidden @ branch.first.data)
    if not gradients.hold:
        branch.second.add_gradient(dy_whole, product)
    dx = rmsnorm_backward(scattering.wait(), x, branch.norm.data, rstd, weight_grad=branch.norm.main_grad, dsummed=dy)
    branch.norm.added()
    if gradients.hold:
        gradients.pending.append(partial(_weight_gradients, branch, dy, product, normed, dhidden))
    elif sequence.tp.size == 1:
        branch.first.add_gradient(dhidden, gathering_normed.wait())
    else:
        gradients.pending.append(partial(_first_gradient, branch, dhidden, gathering_normed))
    return dx


def _first_gradient(branch: Branch, dhidden: Tensor, gathering_normed: Exchange) -> None:
    branch.first.add_gradient(dhidden, gathering_normed.wait())


def _weight_gradients(branch: Branch, dy: Tensor, product: Tensor, normed: Tensor, dhidden: Tensor) -> None:
    """Both linear layers' weight gradients, put off. Holds, in bytes a token and hidden channel of a 7B MLP 2 + 5.375 +
    2 + 10.75 and of its attention 2 + 2 + 2 + 6: 32.1, all divided by tp.
    """
    gathering_dy, gathering_normed = branch.sequence.start_gather(dy), branch.sequence.start_gather(normed)
    branch.second.add_gradient(gathering_dy.wait(), product)
    branch.first.add_gradient(dhidden, gathering_normed.wait())


class _Norm(Function):
    @staticmethod
    def forward(ctx, x: Tensor, norm: Weight, eps: float) -> Tensor:
        normed, rstd = rmsnorm_forward(x, norm.data, eps)
        ctx.save_for_backward(x, rstd)
        ctx.norm = norm
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd = ctx.saved_tensors
        dx = rmsnorm_backward(dy, x, ctx.norm.data, rstd, weight_grad=ctx.norm.main_grad)
        ctx.norm.added()
        return dx, None, None


def norm(x: Tensor, weight: Weight, eps: float) -> Tensor:
    """RMSNorm(x) alone, as before the head: `[tokens, hidden]`.

    The gradient of the gain is of this rank's tokens: the optimizer sums it over tp.
    """
    return _Norm.apply(x, weight, eps)


class _Embedding(Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, data: Tensor, weight: Weight, sequence: SequenceParallel) -> Tensor:
        row = tokens - weight.parameters[0].record.offsets[0]
        here = (row >= 0) & (row < data.shape[0])
        row = row.clamp(0, data.shape[0] - 1)
        ctx.save_for_backward(row, here)
        ctx.weight, ctx.sequence = weight, sequence
        return sequence.start_scatter(data[row].masked_fill_(~here[:, None], 0.0)).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        row, here = ctx.saved_tensors
        main = ctx.weight.main_grad
        gathering = ctx.sequence.start_gather(dy.contiguous())
        if not ctx.weight.gradients.hold:
            ctx.weight.gradients.run_pending()
        dy = gathering.wait().to(main.dtype).masked_fill(~here[:, None], 0.0)
        if main.is_cuda:
            # Sorts by row before adding, so the sum's order is fixed; index_add_ uses atomics there.
            main.index_put_((row,), dy, accumulate=True)
        else:
            main.index_add_(0, row, dy)  # sequential on a CPU
        ctx.weight.added()
        return None, None, None, None


def embedding(tokens: Tensor, weight: Weight, sequence: SequenceParallel) -> Tensor:
    """Rows of the embedding, split by vocabulary: int64 `[tokens]` -> `[tokens / tp, hidden]`. Deterministic gradient.

    Tokens carry no gradient, so the graph starts at the weight: its `data` is passed as a leaf that requires one, and
    gets None back.
    """
    data = weight.data
    if weight.main_grad is not None and torch.is_grad_enabled():
        data = data.detach().requires_grad_()
    return _Embedding.apply(tokens, data, weight, sequence)
