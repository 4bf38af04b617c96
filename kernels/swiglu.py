"""SwiGLU on the packed gate/up product: silu(gate) * up (Shazeer 2020, arXiv:2002.05202).

With s = sigmoid(gate): forward gate * s * up; backward d up = dout * gate * s,
d gate = dout * up * s * (1 + gate * (1 - s)); s is computed again, so only gate and up are saved.

Bytes moved for n outputs of 2-byte values: forward 6n, backward 10n (12n when the product is written again). About 6
and 12 operations an output: bound by memory. Deterministic.
"""

import torch
import torch.nn.functional as F

from .common import accumulation_dtype, check_floating
from .triton_or_stub import tl, triton

_BLOCK = 1024


# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def swiglu_forward(gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up. gate_up [tokens, 2 * width], gate first. Returns [tokens, width], in `out` when given."""
    if out is None:
        out = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype, device=gate_up.device)
    run = _triton_forward if gate_up.is_cuda else _torch_forward
    return run(gate_up, out)


def swiglu_backward(
    dout: torch.Tensor, gate_up: torch.Tensor, *, out: torch.Tensor | None = None, product: torch.Tensor | None = None
) -> torch.Tensor:
    """The gradient of gate_up [tokens, 2 * width] from dout [tokens, width].

    `out`, when given, receives it; it may be gate_up itself. `product` [tokens, width], when given, receives
    silu(gate) * up, the forward's output again (the weight gradient of the linear layer that follows needs it).
    """
    out = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    run = _triton_backward if gate_up.is_cuda else _torch_backward
    return run(dout, gate_up, out, product)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_forward(gate_up, out):
    gate, up = gate_up.to(accumulation_dtype(gate_up.dtype)).chunk(2, dim=-1)
    if out.dtype == gate.dtype:
        return torch.mul(F.silu(gate), up, out=out)
    return out.copy_(F.silu(gate).mul_(up))


def _torch_backward(dout, gate_up, out, product):
    wide = gate_up.to(accumulation_dtype(gate_up.dtype))
    gate, up = wide.chunk(2, dim=-1)
    dout = dout.to(wide.dtype)
    silu = F.silu(gate)
    if product is not None:
        torch.mul(silu, up, out=product)
    d_gate, d_up = out.chunk(2, dim=-1)
    # gate and up may be overwritten: all of gate's gradient first
    d_gate.copy_(torch.ops.aten.silu_backward(dout * up, gate))
    torch.mul(dout, silu, out=d_up)
    return out


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _forward_kernel(
    gate_up_pointer,  # [tokens, 2 * width]
    out_pointer,  # [tokens, width]
    width,
    gate_up_stride,
    out_stride,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.cast(tl.program_id(0), tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    row = gate_up_pointer + token * gate_up_stride
    gate = tl.cast(tl.load(row + column, mask=inside, other=0.0), ACC)
    up = tl.cast(tl.load(row + width + column, mask=inside, other=0.0), ACC)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_pointer + token * out_stride + column, tl.cast(product, out_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dout_pointer,  # [tokens, width]
    gate_up_pointer,  # [tokens, 2 * width]
    out_pointer,  # [tokens, 2 * width], may be gate_up
    product_pointer,  # [tokens, width] or unused
    width,
    dout_stride,
    gate_up_stride,
    out_stride,
    product_stride,
    HAS_PRODUCT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.cast(tl.program_id(0), tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    row = gate_up_pointer + token * gate_up_stride
    gate = tl.cast(tl.load(row + column, mask=inside, other=0.0), ACC)
    up = tl.cast(tl.load(row + width + column, mask=inside, other=0.0), ACC)
    dout = tl.cast(tl.load(dout_pointer + token * dout_stride + column, mask=inside, other=0.0), ACC)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    d_gate = dout * up * sigmoid * (1.0 + gate - silu)
    element = out_pointer.dtype.element_ty
    tl.store(out_pointer + token * out_stride + column, tl.cast(d_gate, element), mask=inside)
    tl.store(out_pointer + token * out_stride + width + column, tl.cast(dout * silu, element), mask=inside)
    if HAS_PRODUCT:
        tl.store(product_pointer + token * product_stride + column, tl.cast(silu * up, element), mask=inside)


def _accumulation_type(tensor: torch.Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def _triton_forward(gate_up, out):
    tokens, width = out.shape
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(gate_up):
        _forward_kernel[(tokens, triton.cdiv(width, _BLOCK))](
            gate_up,
            out,
            width,
            gate_up.stride(0),
            out.stride(0),
            ACC=_accumulation_type(gate_up),
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out


def _triton_backward(dout, gate_up, out, product):
    tokens, width = dout.shape
    if dout.numel() == 0:
        return out
    with torch.cuda.device_of(gate_up):
        _backward_kernel[(tokens, triton.cdiv(width, _BLOCK))](
            dout,
            gate_up,
            out,
            product,
            width,
            dout.stride(0),
            gate_up.stride(0),
            out.stride(0),
            0 if product is None else product.stride(0),
            HAS_PRODUCT=product is not None,
            ACC=_accumulation_type(gate_up),
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up [tokens, 2 * width], gate first; differentiable once, works under torch.compile.

    Raises ValueError for a wrong shape, stride or dtype.
    """
    check_floating("gate_up", gate_up, 2)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has {gate_up.shape[1]} columns; gate and up must have the same number")
    return _swiglu_op(gate_up)


@torch.library.custom_op("materia::swiglu", mutates_args=())
def _swiglu_op(gate_up: torch.Tensor) -> torch.Tensor:
    return swiglu_forward(gate_up)


@torch.library.custom_op("materia::swiglu_backward", mutates_args=())
def _swiglu_backward_op(dout: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return swiglu_backward(dout.contiguous(), gate_up)  # an expanded gradient (of y.sum(), say) has stride 0


@_swiglu_op.register_fake
def _(gate_up):
    return torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype, device=gate_up.device)


@_swiglu_backward_op.register_fake
def _(dout, gate_up):
    return torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    return _swiglu_backward_op(dout, *ctx.saved_tensors)


_swiglu_op.register_autograd(_backward, setup_context=_setup)
