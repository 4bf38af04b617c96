"""Layers with hand-written gradients: norm -> gather -> linear, SwiGLU -> linear -> scatter, linear -> scatter,
embedding.

Each is one autograd function over the activations only. Weight gradients never pass through autograd: the backward adds
them to `weight.main_grad` in the accumulation dtype, so nothing is rounded to bf16 between micro-batches. What the
backward needs of a norm or SwiGLU is its input; the output is computed again there, which is what keeps a Llama-2-7B
layer at 22.75 bytes a token and hidden channel (bf16).

Under tensor parallelism (arXiv 1909.08053) a rank holds a slice of each weight, and between the linear layers a slice
of the tokens (sequence parallelism, arXiv 2205.05198). On a group of one, gather and scatter are the identity.

Shapes: activations `[tokens, features]`, weights `[out_features, in_features]` as Hugging Face stores them.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.common import add_product
from kernels.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward
from kernels.swiglu import swiglu_backward, swiglu_forward

from .comm import Group, all_gather, reduce_scatter
from .parameter import Weight


class _NormLinear(Function):
    @staticmethod
    def forward(ctx, x: Tensor, norm: Weight, weight: Weight, eps: float, tp: Group) -> Tensor:
        normed, rstd = rmsnorm_forward(x, norm.data, eps)
        ctx.save_for_backward(x, rstd)
        ctx.norm, ctx.weight, ctx.tp = norm, weight, tp
        return all_gather(normed, tp) @ weight.data.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd = ctx.saved_tensors
        dnormed = reduce_scatter(dy @ ctx.weight.data, ctx.tp)
        add_product(ctx.weight.main_grad, dy, all_gather(rmsnorm_apply(x, ctx.norm.data, rstd), ctx.tp))
        dx = rmsnorm_backward(dnormed, x, ctx.norm.data, rstd, weight_grad=ctx.norm.main_grad)
        return dx, None, None, None, None


def norm_linear(x: Tensor, norm: Weight, weight: Weight, eps: float, tp: Group) -> Tensor:
    """RMSNorm(x) of all ranks' tokens @ weight.T: `[tokens / tp, hidden]` -> `[tokens, out / tp]`.

    Saves x and one number a token. The norm's gradient is of this rank's tokens: the optimizer sums it over tp.
    """
    return _NormLinear.apply(x, norm, weight, eps, tp)


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
        return rmsnorm_backward(dy, x, ctx.norm.data, rstd, weight_grad=ctx.norm.main_grad), None, None


def norm(x: Tensor, weight: Weight, eps: float) -> Tensor:
    """RMSNorm(x) alone, as before the head: `[tokens, hidden]`."""
    return _Norm.apply(x, weight, eps)


def _residual_plus_product(residual: Tensor, x: Tensor, weight: Weight, tp: Group) -> Tensor:
    """residual + sum over tp of x @ weight.T; inside the GEMM where there is nothing to sum."""
    if tp.size == 1:
        return torch.addmm(residual, x, weight.data.t())
    return reduce_scatter(x @ weight.data.t(), tp).add_(residual)


class _LinearAdd(Function):
    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Weight, tp: Group) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.tp = weight, tp
        return _residual_plus_product(residual, x, weight, tp)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        whole = all_gather(dy, ctx.tp)
        dx = whole @ ctx.weight.data
        add_product(ctx.weight.main_grad, whole, x)
        return dx, dy, None, None


def linear_add(x: Tensor, residual: Tensor, weight: Weight, tp: Group) -> Tensor:
    """residual + x @ weight.T, summed over tp: `[tokens, in / tp]`, `[tokens / tp, out]` -> `[tokens / tp, out]`.

    Saves x.
    """
    return _LinearAdd.apply(x, residual, weight, tp)


class _SwigluLinearAdd(Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor, residual: Tensor, weight: Weight, tp: Group) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.weight, ctx.tp = weight, tp
        return _residual_plus_product(residual, swiglu_forward(gate_up), weight, tp)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        whole = all_gather(dy, ctx.tp)
        dproduct = whole @ ctx.weight.data
        product = torch.empty_like(dproduct)
        dgate_up = swiglu_backward(dproduct, gate_up, product=product)
        add_product(ctx.weight.main_grad, whole, product)
        return dgate_up, dy, None, None


def swiglu_linear_add(gate_up: Tensor, residual: Tensor, weight: Weight, tp: Group) -> Tensor:
    """residual + SwiGLU(gate_up) @ weight.T, summed over tp: `[tokens, 2 * intermediate / tp]` -> `[tokens / tp,
    hidden]`.

    Saves gate_up.
    """
    return _SwigluLinearAdd.apply(gate_up, residual, weight, tp)


class _Embedding(Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, data: Tensor, weight: Weight, tp: Group) -> Tensor:
        row = tokens - weight.parameters[0].record.offsets[0]
        here = (row >= 0) & (row < data.shape[0])
        row = row.clamp(0, data.shape[0] - 1)
        ctx.save_for_backward(row, here)
        ctx.weight, ctx.tp = weight, tp
        return reduce_scatter(data[row].masked_fill_(~here[:, None], 0.0), tp)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        row, here = ctx.saved_tensors
        main = ctx.weight.main_grad
        dy = all_gather(dy, ctx.tp).to(main.dtype).masked_fill(~here[:, None], 0.0)
        if main.is_cuda:
            # Sorts by row before adding, so the sum's order is fixed; index_add_ uses atomics there.
            main.index_put_((row,), dy, accumulate=True)
        else:
            main.index_add_(0, row, dy)  # sequential on a CPU
        return None, None, None, None


def embedding(tokens: Tensor, weight: Weight, tp: Group) -> Tensor:
    """Rows of the embedding, split by vocabulary: int64 `[tokens]` -> `[tokens / tp, hidden]`. Deterministic gradient.

    Tokens carry no gradient, so the graph starts at the weight: its `data` is passed as a leaf that requires one, and
    gets None back.
    """
    data = weight.data
    if weight.main_grad is not None and torch.is_grad_enabled():
        data = data.detach().requires_grad_()
    return _Embedding.apply(tokens, data, weight, tp)
