"""Layers with hand-written gradients: norm -> linear, SwiGLU -> linear, linear, embedding, and linear + cross-entropy.

Each is one autograd function over the activations only. Weight gradients never pass through autograd: the backward adds
them to `weight.main_grad` in the accumulation dtype, so nothing is rounded to bf16 between micro-batches. What the
backward needs of a norm or SwiGLU is its input; the output is computed again there, which is what keeps a Llama-2-7B
layer at 22.75 bytes a token and hidden channel (bf16).

Shapes: activations `[tokens, features]`, weights `[out_features, in_features]` as Hugging Face stores them.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.cross_entropy import linear_cross_entropy_forward
from kernels.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward
from kernels.swiglu import swiglu_backward, swiglu_forward

from .parameter import Weight


def add_weight_gradient(weight: Weight, dy: Tensor, x: Tensor) -> None:
    """main_grad += dy.T @ x, summed in the accumulation dtype.

    dy `[tokens, out]`, x `[tokens, in]`. On CUDA the GEMM reads bf16 and adds into float32 in place; CPU matmul has no
    mixed output, so the operands are widened first.
    """
    main = weight.main_grad
    if main.dtype == dy.dtype:
        main.addmm_(dy.t(), x)
    elif main.is_cuda:
        torch.addmm(main, dy.t(), x, out_dtype=main.dtype, out=main)
    else:
        main.addmm_(dy.t().to(main.dtype), x.to(main.dtype))


class _NormLinear(Function):
    @staticmethod
    def forward(ctx, x: Tensor, norm: Weight, weight: Weight, eps: float) -> Tensor:
        normed, rstd = rmsnorm_forward(x, norm.data, eps)
        ctx.save_for_backward(x, rstd)
        ctx.norm, ctx.weight = norm, weight
        return normed @ weight.data.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd = ctx.saved_tensors
        dnormed = dy @ ctx.weight.data
        add_weight_gradient(ctx.weight, dy, rmsnorm_apply(x, ctx.norm.data, rstd))
        dx = rmsnorm_backward(dnormed, x, ctx.norm.data, rstd, weight_grad=ctx.norm.main_grad)
        return dx, None, None, None


def norm_linear(x: Tensor, norm: Weight, weight: Weight, eps: float) -> Tensor:
    """RMSNorm(x) @ weight.T: `[tokens, hidden]` -> `[tokens, out]`. Saves x and one number a token."""
    return _NormLinear.apply(x, norm, weight, eps)


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


class _LinearAdd(Function):
    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Weight) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return torch.addmm(residual, x, weight.data.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dx = dy @ ctx.weight.data
        add_weight_gradient(ctx.weight, dy, x)
        return dx, dy, None


def linear_add(x: Tensor, residual: Tensor, weight: Weight) -> Tensor:
    """residual + x @ weight.T, the sum taken inside the GEMM: `[tokens, in]`, `[tokens, out]` -> `[tokens, out]`. Saves
    x.
    """
    return _LinearAdd.apply(x, residual, weight)


class _SwigluLinearAdd(Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor, residual: Tensor, weight: Weight) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.weight = weight
        return torch.addmm(residual, swiglu_forward(gate_up), weight.data.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        dproduct = dy @ ctx.weight.data
        product = torch.empty_like(dproduct)
        dgate_up = swiglu_backward(dproduct, gate_up, product=product)
        add_weight_gradient(ctx.weight, dy, product)
        return dgate_up, dy, None


def swiglu_linear_add(gate_up: Tensor, residual: Tensor, weight: Weight) -> Tensor:
    """residual + SwiGLU(gate_up) @ weight.T: `[tokens, 2 * intermediate]` -> `[tokens, hidden]`. Saves gate_up."""
    return _SwigluLinearAdd.apply(gate_up, residual, weight)


class _Embedding(Function):
    @staticmethod
    def forward(ctx, tokens: Tensor, data: Tensor, weight: Weight) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight = weight
        return data[tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        main = ctx.weight.main_grad
        if main.is_cuda:
            # Sorts by row before adding, so the sum's order is fixed; index_add_ uses atomics there.
            main.index_put_((tokens,), dy.to(main.dtype), accumulate=True)
        else:
            main.index_add_(0, tokens, dy.to(main.dtype))  # sequential on a CPU
        return None, None, None


def embedding(tokens: Tensor, weight: Weight) -> Tensor:
    """Rows of the embedding: int64 `[tokens]` -> `[tokens, hidden]`. Deterministic gradient.

    Tokens carry no gradient, so the graph starts at the weight: its `data` is passed as a leaf that requires one, and
    gets None back.
    """
    data = weight.data
    if weight.main_grad is not None and torch.is_grad_enabled():
        data = data.detach().requires_grad_()
    return _Embedding.apply(tokens, data, weight)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Weight, targets: Tensor, need_gradient: bool) -> Tensor:
        loss, dhidden = linear_cross_entropy_forward(
            hidden,
            weight.data,
            targets,
            weight_grad=weight.main_grad if need_gradient else None,
            need_gradient=need_gradient,
        )
        if need_gradient:
            ctx.save_for_backward(dhidden)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # The gradient was computed, and dW added, in the forward pass: the sum of losses must be what is
        # differentiated.
        (dhidden,) = ctx.saved_tensors
        return dhidden, None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Weight, targets: Tensor) -> Tensor:
    """Sum over tokens of the cross-entropy of hidden @ weight.T; targets int64 `[tokens]`, -100 is ignored.

    Call `.backward()` on the returned sum itself (or a plain sum of such sums): its gradient is taken to be 1, and
    scaling by the batch's token count belongs to the optimizer.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled() and hidden.requires_grad)
