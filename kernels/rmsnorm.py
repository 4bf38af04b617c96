"""RMSNorm, with the residual addition before it fused in (Zhang & Sennrich 2019, arXiv:1910.07467).

y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), everything between load and store in the accumulation dtype.

Bytes moved for T tokens of H 2-byte values: forward 4TH, with residual 8TH; backward 6TH, with residual 8TH (rstd, the
weight and its partial gradients are small beside them). About 4 and 9 operations a value: bound by memory.
Saved for backward: the norm's input and rstd [tokens]. Deterministic: each program adds up the weight gradient of its
own rows, and these partial sums are added in a fixed order.
"""

import torch

from .common import accumulation_dtype, check_alike, check_floating, program_count
from .triton_or_stub import tl, triton

_LARGEST_HIDDEN = 1 << 16  # a row lives in one program's registers


# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def rmsnorm_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """RMSNorm of x, or of x + residual.

    x, residual [tokens, hidden], weight [hidden]; `out`, when given, receives y. Returns (y, rstd), or with a residual
    (y, rstd, summed): y and summed = x + residual have x's dtype, rstd [tokens] the accumulation dtype.
    The norm is taken of `summed` as rounded to x's dtype, which is what the backward pass will read.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    run = _triton_forward if x.is_cuda else _torch_forward
    return run(x, weight, eps, residual, out)


def rmsnorm_apply(x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """The norm's output again, to the bit, from its input x [tokens, hidden] and the saved rstd [tokens]."""
    run = _triton_apply if x.is_cuda else _torch_apply
    return run(x, weight, rstd)


def rmsnorm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    weight_grad: torch.Tensor | None = None,
    dsummed: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """dx = rstd * (dy * weight - n * mean(dy * weight * n)) with n = x * rstd, plus `dsummed` when given.

    x is the norm's input (`summed` when there was a residual) and dsummed the gradient that reaches it past the norm:
    the result is then the gradient of both x and residual. weight_grad [hidden], accumulation dtype, gets
    sum over tokens of dy * n added. `out` receives dx; it may be dy or dsummed.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    run = _triton_backward if x.is_cuda else _torch_backward
    return run(dy, x, weight, rstd, weight_grad, dsummed, out)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_forward(x, weight, eps, residual, out):
    summed = x if residual is None else x + residual
    wide = summed.to(accumulation_dtype(x.dtype))
    rstd = torch.linalg.vector_norm(wide, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    if wide.dtype == out.dtype:
        torch.mul(wide, rstd[:, None], out=out).mul_(weight)
    else:
        out.copy_((wide * rstd[:, None]).mul_(weight))
    return (out, rstd) if residual is None else (out, rstd, summed)


def _torch_apply(x, weight, rstd):
    return (x.to(rstd.dtype) * rstd[:, None]).mul_(weight).to(x.dtype)


def _torch_backward(dy, x, weight, rstd, weight_grad, dsummed, out):
    dy = dy.to(rstd.dtype)
    normed = x.to(rstd.dtype) * rstd[:, None]
    product = dy * normed
    if weight_grad is not None:
        weight_grad.add_(product.sum(0))
    mean = torch.mv(product, weight.to(rstd.dtype)).div_(x.shape[-1])
    dx = torch.mul(dy, weight, out=product).addcmul_(normed, mean[:, None], value=-1)
    if dsummed is None:
        return torch.mul(dx, rstd[:, None], out=out)
    return torch.addcmul(dsummed.to(rstd.dtype), dx, rstd[:, None], out=out)


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_pointer,  # [rows, HIDDEN]
    residual_pointer,  # [rows, HIDDEN] or unused
    weight_pointer,  # [HIDDEN]
    y_pointer,  # [rows, HIDDEN]
    summed_pointer,  # [rows, HIDDEN] or unused
    rstd_pointer,  # [rows]
    rows,
    eps,
    x_stride,
    residual_stride,
    y_stride,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_RSTD: tl.constexpr,  # rstd is given; only y is computed
):
    acc = rstd_pointer.dtype.element_ty
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    weight = tl.cast(tl.load(weight_pointer + column, mask=inside, other=0.0), acc)  # [BLOCK]
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64)
        x = tl.load(x_pointer + at * x_stride + column, mask=inside, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_pointer + at * residual_stride + column, mask=inside, other=0.0)
            x = tl.cast(tl.cast(x, acc) + tl.cast(residual, acc), x.dtype)
            tl.store(summed_pointer + at * HIDDEN + column, x, mask=inside)
        wide = tl.cast(x, acc)
        if HAS_RSTD:
            rstd = tl.load(rstd_pointer + at)
        else:
            mean = tl.sum(wide * wide, axis=0) / HIDDEN
            rstd = 1.0 / tl.sqrt(mean + tl.cast(eps, acc))
            tl.store(rstd_pointer + at, rstd)
        y = wide * rstd * weight
        tl.store(y_pointer + at * y_stride + column, tl.cast(y, y_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def _backward_kernel(
    dy_pointer,  # [rows, HIDDEN]
    x_pointer,  # [rows, HIDDEN]
    weight_pointer,  # [HIDDEN]
    rstd_pointer,  # [rows]
    dsummed_pointer,  # [rows, HIDDEN] or unused
    dx_pointer,  # [rows, HIDDEN]
    partial_pointer,  # [programs, HIDDEN] or unused
    rows,
    rows_per_program,
    dy_stride,
    x_stride,
    dsummed_stride,
    dx_stride,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SUMMED: tl.constexpr,
    HAS_WEIGHT_GRAD: tl.constexpr,
):
    acc = rstd_pointer.dtype.element_ty
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    weight = tl.cast(tl.load(weight_pointer + column, mask=inside, other=0.0), acc)  # [BLOCK]
    partial = tl.zeros((BLOCK,), dtype=acc)
    first = tl.program_id(0) * rows_per_program
    for row in range(first, tl.minimum(first + rows_per_program, rows)):
        at = tl.cast(row, tl.int64)
        dy = tl.cast(tl.load(dy_pointer + at * dy_stride + column, mask=inside, other=0.0), acc)
        x = tl.cast(tl.load(x_pointer + at * x_stride + column, mask=inside, other=0.0), acc)
        rstd = tl.load(rstd_pointer + at)
        normed = x * rstd
        scaled = dy * weight
        mean = tl.sum(scaled * normed, axis=0) / HIDDEN
        dx = rstd * (scaled - normed * mean)
        if HAS_SUMMED:
            dx += tl.cast(tl.load(dsummed_pointer + at * dsummed_stride + column, mask=inside, other=0.0), acc)
        tl.store(dx_pointer + at * dx_stride + column, tl.cast(dx, dx_pointer.dtype.element_ty), mask=inside)
        if HAS_WEIGHT_GRAD:
            partial += dy * normed
    if HAS_WEIGHT_GRAD:
        tl.store(partial_pointer + tl.program_id(0) * HIDDEN + column, partial, mask=inside)


def _warps(block: int) -> int:
    """16 values a thread: enough loads in flight, few enough registers."""
    return min(16, max(1, block // 512))


def _triton_forward(x, weight, eps, residual, out):
    rstd = torch.empty(x.shape[0], dtype=accumulation_dtype(x.dtype), device=x.device)
    summed = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_forward(x, weight, eps, residual, out, summed, rstd, has_rstd=False)
    return (out, rstd) if residual is None else (out, rstd, summed)


def _triton_apply(x, weight, rstd):
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_forward(x, weight, 0.0, None, out, None, rstd, has_rstd=True)
    return out


def _launch_forward(x, weight, eps, residual, out, summed, rstd, has_rstd):
    rows, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    with torch.cuda.device_of(x):
        _forward_kernel[(max(1, min(rows, program_count(x, 8))),)](
            x,
            residual,
            weight,
            out,
            summed,
            rstd,
            rows,
            eps,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            out.stride(0),
            HIDDEN=hidden,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            HAS_RSTD=has_rstd,
            num_warps=_warps(block),
        )


def _triton_backward(dy, x, weight, rstd, weight_grad, dsummed, out):
    rows, hidden = x.shape
    programs = max(1, min(rows, program_count(x, 2)))
    partial = None if weight_grad is None else torch.empty((programs, hidden), dtype=rstd.dtype, device=x.device)
    block = triton.next_power_of_2(hidden)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            dy,
            x,
            weight,
            rstd,
            dsummed,
            out,
            partial,
            rows,
            triton.cdiv(rows, programs),
            dy.stride(0),
            x.stride(0),
            0 if dsummed is None else dsummed.stride(0),
            out.stride(0),
            HIDDEN=hidden,
            BLOCK=block,
            HAS_SUMMED=dsummed is not None,
            HAS_WEIGHT_GRAD=weight_grad is not None,
            num_warps=_warps(block),
        )
    if weight_grad is not None:
        weight_grad.add_(partial.sum(0))
    return out


# ---- layer 2: public operators ---------------------------------------------------------------------------------------


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of x [tokens, hidden] with weight [hidden]; differentiable once, works under torch.compile.

    Raises ValueError for a wrong shape, stride, dtype or device.
    """
    _check(x, weight)
    return _rmsnorm_op(x, weight, eps)[0]


def add_rmsnorm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm of x + residual, x + residual), both [tokens, hidden]; otherwise as `rmsnorm`."""
    _check(x, weight)
    check_floating("residual", residual, 2)
    check_alike("residual", residual, "x", x)
    if residual.shape != x.shape:
        raise ValueError("x and residual must have one shape")
    y, _, summed = _add_rmsnorm_op(x, residual, weight, eps)
    return y, summed


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    check_floating("x", x, 2)
    check_floating("weight", weight, 1)
    check_alike("weight", weight, "x", x)
    if weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight has {weight.shape[0]} entries but x has {x.shape[1]} columns")
    if x.shape[1] > _LARGEST_HIDDEN:
        raise ValueError(f"x has {x.shape[1]} columns; at most {_LARGEST_HIDDEN} are supported")


@torch.library.custom_op("materia::rmsnorm", mutates_args=())
def _rmsnorm_op(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return rmsnorm_forward(x, weight, eps)


@torch.library.custom_op("materia::add_rmsnorm", mutates_args=())
def _add_rmsnorm_op(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rmsnorm_forward(x, weight, eps, residual=residual)


@torch.library.custom_op("materia::rmsnorm_backward", mutates_args=())
def _rmsnorm_backward_op(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, dsummed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    # an expanded gradient (of y.sum(), say) has stride 0
    dy, dsummed = dy.contiguous(), None if dsummed is None else dsummed.contiguous()
    weight_grad = torch.zeros(weight.shape, dtype=rstd.dtype, device=weight.device)
    dx = rmsnorm_backward(dy, x, weight, rstd, weight_grad=weight_grad, dsummed=dsummed)
    return dx, weight_grad.to(weight.dtype)


@_rmsnorm_op.register_fake
def _(x, weight, eps):
    rstd = torch.empty(x.shape[0], dtype=accumulation_dtype(x.dtype), device=x.device)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), rstd


@_add_rmsnorm_op.register_fake
def _(x, residual, weight, eps):
    rstd = torch.empty(x.shape[0], dtype=accumulation_dtype(x.dtype), device=x.device)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, rstd, torch.empty_like(y)


@_rmsnorm_backward_op.register_fake
def _(dy, x, weight, rstd, dsummed):
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, torch.empty(weight.shape, dtype=weight.dtype, device=x.device)


def _setup(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])


def _setup_add(ctx, inputs, output):
    _, rstd, summed = output
    ctx.save_for_backward(summed, inputs[2], rstd)


def _backward(ctx, dy, _drstd):
    dx, weight_grad = _rmsnorm_backward_op(dy, *ctx.saved_tensors, None)
    return dx, weight_grad, None


def _backward_add(ctx, dy, _drstd, dsummed):
    dx, weight_grad = _rmsnorm_backward_op(dy, *ctx.saved_tensors, dsummed)
    return dx, dx, weight_grad, None


_rmsnorm_op.register_autograd(_backward, setup_context=_setup)
_add_rmsnorm_op.register_autograd(_backward_add, setup_context=_setup_add)
