"""SwiGLU on the packed gate/up product: silu(gate) * up (Shazeer 2020, arXiv:2002.05202).

With s = sigmoid(gate): forward gate * s * up; backward d up = dout * gate * s,
d gate = dout * up * s * (1 + gate * (1 - s)); s is computed again, so only gate and up are saved.

Bytes moved for n outputs of 2-byte values: forward 6n, backward 10n (12n when the product is written again). About 6
and 12 operations an output: bound by memory. Deterministic.

Every tile of the table's rows x columns values is a program; its loads are 4 (backward 6) bytes a value, and so many
programs are resident (10 to 16 of 4 warps) that a multiprocessor has 60 KB or more of loads in flight. Accesses are 16
bytes a thread where the width is a multiple of 16 values; else as wide as the alignment allows.
"""

import torch
import torch.nn.functional as F

from .common import accumulation_dtype, check_floating
from .tiles import architecture, tile
from .triton_or_stub import tl, triton

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


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    gate_up_pointer,  # [tokens, 2 * WIDTH]
    out_pointer,  # [tokens, WIDTH]
    tokens,
    gate_up_stride,
    out_stride,
    WIDTH: tl.constexpr,  # fixed per model; with it the compiler knows how far gate and up are aligned
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, column, inside = _tile_of_program(tokens, WIDTH, ROWS, COLUMNS)
    gate_pointers = gate_up_pointer + token * gate_up_stride + column  # [ROWS, COLUMNS]
    gate = tl.cast(tl.load(gate_pointers, mask=inside, other=0.0), ACC)
    up = tl.cast(tl.load(gate_pointers + WIDTH, mask=inside, other=0.0), ACC)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_pointer + token * out_stride + column, tl.cast(product, out_pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    dout_pointer,  # [tokens, WIDTH]
    gate_up_pointer,  # [tokens, 2 * WIDTH]
    out_pointer,  # [tokens, 2 * WIDTH], may be gate_up
    product_pointer,  # [tokens, WIDTH] or unused
    tokens,
    dout_stride,
    gate_up_stride,
    out_stride,
    product_stride,
    WIDTH: tl.constexpr,
    HAS_PRODUCT: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token, column, inside = _tile_of_program(tokens, WIDTH, ROWS, COLUMNS)
    gate_pointers = gate_up_pointer + token * gate_up_stride + column  # [ROWS, COLUMNS]
    gate = tl.cast(tl.load(gate_pointers, mask=inside, other=0.0), ACC)
    up = tl.cast(tl.load(gate_pointers + WIDTH, mask=inside, other=0.0), ACC)
    dout = tl.cast(tl.load(dout_pointer + token * dout_stride + column, mask=inside, other=0.0), ACC)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    d_gate = dout * up * sigmoid * (1.0 + gate - silu)
    element = out_pointer.dtype.element_ty
    out_pointers = out_pointer + token * out_stride + column
    tl.store(out_pointers, tl.cast(d_gate, element), mask=inside)
    tl.store(out_pointers + WIDTH, tl.cast(dout * silu, element), mask=inside)
    if HAS_PRODUCT:
        tl.store(product_pointer + token * product_stride + column, tl.cast(silu * up, element), mask=inside)


@triton.jit
def _tile_of_program(tokens, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(token [ROWS, 1], column [1, COLUMNS], whether inside [ROWS, COLUMNS]); neighbours share rows."""
    across = tl.cdiv(WIDTH, COLUMNS)
    first = tl.cast(tl.program_id(0) // across, tl.int64) * ROWS
    token = first + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return token, column, (token < tokens) & (column < WIDTH)


def _shape(kernel: str, width: int, device: torch.device) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: as many values as the table says, as wide as leaves at most a 16th idle.

    A width of 11008 is 10.75 x 1024 columns (2 % idle; 5.4 x 2048 would be 10 %), its eighth 10.75 x 128. Not narrower
    than a line of 128 bytes.
    """
    tiling = tile(kernel, width, architecture(device))
    columns = min(tiling.columns, max(64, triton.next_power_of_2(width)))
    while columns > 64 and 16 * triton.cdiv(width, columns) * columns > 17 * width:
        columns //= 2
    return tiling.rows * tiling.columns // columns, columns, tiling.warps


def _accumulation_type(tensor: torch.Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def _triton_forward(gate_up, out):
    tokens, width = out.shape
    if out.numel() == 0:
        return out
    rows, columns, warps = _shape("swiglu_forward", width, out.device)
    with torch.cuda.device_of(gate_up):
        _forward_kernel[(triton.cdiv(tokens, rows) * triton.cdiv(width, columns),)](
            gate_up,
            out,
            tokens,
            gate_up.stride(0),
            out.stride(0),
            WIDTH=width,
            ACC=_accumulation_type(gate_up),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
        )
    return out


def _triton_backward(dout, gate_up, out, product):
    tokens, width = dout.shape
    if dout.numel() == 0:
        return out
    rows, columns, warps = _shape("swiglu_backward", width, out.device)
    with torch.cuda.device_of(gate_up):
        _backward_kernel[(triton.cdiv(tokens, rows) * triton.cdiv(width, columns),)](
            dout,
            gate_up,
            out,
            product,
            tokens,
            dout.stride(0),
            gate_up.stride(0),
            out.stride(0),
            0 if product is None else product.stride(0),
            WIDTH=width,
            HAS_PRODUCT=product is not None,
            ACC=_accumulation_type(gate_up),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
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
