"""RMSNorm, with the residual addition before it fused in (Zhang & Sennrich 2019, arXiv:1910.07467).

y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), everything between load and store in the accumulation dtype.

Bytes moved for T tokens of H 2-byte values: forward 4TH, with residual 8TH; backward 6TH, with residual 8TH. Beside
them: rstd, 4T; the weight, 2H a program; partial weight gradients, 8H a program, written and read within the cache.
About 4 and 9 operations a value: bound by memory. Rows stay on the chip between the two passes over them. Above 32 KB a
row (backward: 24 KB) registers spill; 65,536 values is the limit.
Saved for backward: the norm's input and rstd [tokens]. Deterministic: each program adds up the weight gradient of its
own rows, and these partial sums are added in a fixed order; how many there are depends on the GPU, dx does not.

Programs loop over rows while later rows are loaded: Triton's software pipeline copies `stages` - 1 tiles of `rows` rows
ahead into shared memory, asynchronously and 16 bytes a thread. In flight on a multiprocessor: programs x rows x bytes
of a row x tensors read x (stages - 1), a tile less while one is reduced. Memory needs bandwidth x latency in flight:
about 20 KB a multiprocessor on an H100 (3.35 TB/s x 0.8 us / 132), 30 KB on an H200, 15 KB on an A100. The table keeps
32 KB or more, during a reduction too, where registers and shared memory allow.
"""

import torch

from .chunks import load_row, store_chunk
from .common import accumulation_dtype, check_alike, check_floating, program_count
from .tiles import architecture, tile
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
    run = _triton_forward if x.is_cuda else _torch_forward
    return run(x, weight, 0.0, None, torch.empty(x.shape, dtype=x.dtype, device=x.device), rstd)[0]


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


def _torch_forward(x, weight, eps, residual, out, rstd=None):
    summed = x if residual is None else x + residual
    wide = summed.to(accumulation_dtype(x.dtype))
    if rstd is None:
        rstd = wide.square().mean(-1).add_(eps).rsqrt_()  # mean adds in pairs; a norm of 5120 values loses 3 bits
    if wide.dtype == out.dtype:
        torch.mul(wide, rstd[:, None], out=out).mul_(weight)
    else:
        out.copy_((wide * rstd[:, None]).mul_(weight))
    return (out, rstd) if residual is None else (out, rstd, summed)


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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_RSTD: tl.constexpr,  # rstd is given; only y is computed
):
    acc = rstd_pointer.dtype.element_ty
    column = tl.arange(0, COLUMNS)[None, :]
    weight = load_row(weight_pointer, column, column >= 0, HIDDEN, COLUMNS)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, rows, step, num_stages=STAGES):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        x = load_row(x_pointer + row * x_stride, column, inside, HIDDEN, COLUMNS)  # chunks of [ROWS, COLUMNS]
        if HAS_RESIDUAL:
            residual = load_row(residual_pointer + row * residual_stride, column, inside, HIDDEN, COLUMNS)
            summed = ()
            for i in tl.static_range(len(x)):
                total = tl.cast(tl.cast(x[i], acc) + tl.cast(residual[i], acc), x_pointer.dtype.element_ty)
                store_chunk(summed_pointer + row * HIDDEN, total, column, inside, i, HIDDEN, COLUMNS)
                summed += (total,)
            x = summed
        if HAS_RSTD:
            rstd = tl.load(rstd_pointer + row, mask=inside, other=0.0)
        else:
            squares = tl.zeros((ROWS, COLUMNS), dtype=acc)
            for i in tl.static_range(len(x)):
                squares += tl.cast(x[i], acc) * tl.cast(x[i], acc)
            mean = tl.sum(squares, axis=1, keep_dims=True) / HIDDEN
            rstd = 1.0 / tl.sqrt(mean + tl.cast(eps, acc))
            tl.store(rstd_pointer + row, rstd, mask=inside)
        for i in tl.static_range(len(x)):
            y = tl.cast(x[i], acc) * rstd * tl.cast(weight[i], acc)
            store_chunk(y_pointer + row * y_stride, y, column, inside, i, HIDDEN, COLUMNS)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    dy_pointer,  # [rows, HIDDEN]
    x_pointer,  # [rows, HIDDEN]
    weight_pointer,  # [HIDDEN]
    rstd_pointer,  # [rows]
    dsummed_pointer,  # [rows, HIDDEN] or unused
    dx_pointer,  # [rows, HIDDEN], may be dy or dsummed
    partial_pointer,  # [programs, HIDDEN] or unused
    rows,
    dy_stride,
    x_stride,
    dsummed_stride,
    dx_stride,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_SUMMED: tl.constexpr,
    HAS_WEIGHT_GRAD: tl.constexpr,
):
    acc = rstd_pointer.dtype.element_ty
    column = tl.arange(0, COLUMNS)[None, :]
    weight = load_row(weight_pointer, column, column >= 0, HIDDEN, COLUMNS)
    partial = ()
    for _ in tl.static_range(len(weight)):
        partial += (tl.zeros((ROWS, COLUMNS), dtype=acc),)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, rows, step, num_stages=STAGES):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)[:, None]
        inside = row < rows
        dy = load_row(dy_pointer + row * dy_stride, column, inside, HIDDEN, COLUMNS)  # chunks of [ROWS, COLUMNS]
        x = load_row(x_pointer + row * x_stride, column, inside, HIDDEN, COLUMNS)
        if HAS_SUMMED:
            dsummed = load_row(dsummed_pointer + row * dsummed_stride, column, inside, HIDDEN, COLUMNS)
        rstd = tl.load(rstd_pointer + row, mask=inside, other=0.0)
        products = tl.zeros((ROWS, COLUMNS), dtype=acc)
        for i in tl.static_range(len(x)):
            products += tl.cast(dy[i], acc) * tl.cast(weight[i], acc) * (tl.cast(x[i], acc) * rstd)
        mean = tl.sum(products, axis=1, keep_dims=True) / HIDDEN
        added = ()
        for i in tl.static_range(len(x)):
            wide = tl.cast(dy[i], acc)
            normed = tl.cast(x[i], acc) * rstd
            dx = rstd * (wide * tl.cast(weight[i], acc) - normed * mean)
            if HAS_SUMMED:
                dx += tl.cast(dsummed[i], acc)
            store_chunk(dx_pointer + row * dx_stride, dx, column, inside, i, HIDDEN, COLUMNS)
            added += (partial[i] + wide * normed,)
        if HAS_WEIGHT_GRAD:
            partial = added
    if HAS_WEIGHT_GRAD:
        for i in tl.static_range(len(partial)):
            total = tl.sum(partial[i], axis=0, keep_dims=True)
            store_chunk(partial_pointer + tl.program_id(0) * HIDDEN, total, column, column >= 0, i, HIDDEN, COLUMNS)


@triton.jit(do_not_specialize=["programs"])
def _weight_grad_kernel(
    partial_pointer,  # [programs, HIDDEN]
    weight_grad_pointer,  # [HIDDEN]
    programs,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds the programs' partial sums; COLUMNS columns belong to one program, so the order of the sum is fixed."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=weight_grad_pointer.dtype.element_ty)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (column < HIDDEN)[None, :]
        total += tl.load(partial_pointer + row[:, None] * HIDDEN + column[None, :], mask=inside, other=0.0)
    before = tl.load(weight_grad_pointer + column, mask=column < HIDDEN, other=0.0)
    tl.store(weight_grad_pointer + column, before + tl.sum(total, axis=0), mask=column < HIDDEN)


def _configuration(kernel: str, x: torch.Tensor) -> tuple[int, dict[str, int]]:
    """How many programs share x's rows, and the launch options for rows of this size in bytes."""
    tiling = tile(kernel, x.shape[1] * x.element_size(), architecture(x.device))
    programs = max(1, min(triton.cdiv(x.shape[0], tiling.rows), program_count(x, tiling.programs)))
    shape = {"HIDDEN": x.shape[1], "ROWS": tiling.rows, "COLUMNS": tiling.columns, "STAGES": tiling.stages}
    return programs, shape | {"num_warps": tiling.warps}


def _triton_forward(x, weight, eps, residual, out, rstd=None):
    has_rstd = rstd is not None
    if not has_rstd:
        rstd = torch.empty(x.shape[0], dtype=accumulation_dtype(x.dtype), device=x.device)
    summed = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs, options = _configuration("rmsnorm_forward", x)
    with torch.cuda.device_of(x):
        _forward_kernel[(programs,)](
            x,
            residual,
            weight,
            out,
            summed,
            rstd,
            x.shape[0],
            eps,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            out.stride(0),
            HAS_RESIDUAL=residual is not None,
            HAS_RSTD=has_rstd,
            **options,
        )
    return (out, rstd) if residual is None else (out, rstd, summed)


def _triton_backward(dy, x, weight, rstd, weight_grad, dsummed, out):
    hidden = x.shape[1]
    programs, options = _configuration("rmsnorm_backward", x)
    partial = None if weight_grad is None else torch.empty((programs, hidden), dtype=rstd.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(programs,)](
            dy,
            x,
            weight,
            rstd,
            dsummed,
            out,
            partial,
            x.shape[0],
            dy.stride(0),
            x.stride(0),
            0 if dsummed is None else dsummed.stride(0),
            out.stride(0),
            HAS_SUMMED=dsummed is not None,
            HAS_WEIGHT_GRAD=weight_grad is not None,
            **options,
        )
        if weight_grad is not None:
            tiling = tile("rmsnorm_weight_grad", hidden, architecture(x.device))
            shape = {"HIDDEN": hidden, "ROWS": tiling.rows, "COLUMNS": tiling.columns}
            grid = (triton.cdiv(hidden, tiling.columns),)
            _weight_grad_kernel[grid](partial, weight_grad, programs, **shape, num_warps=tiling.warps)
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
