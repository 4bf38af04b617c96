"""Rotary position embedding on the packed q, k, v product (Su et al. 2021, arXiv:2104.09864).

Each pair (a, b) = (i, i + head_dim / 2) of a q or k head (the convention of Hugging Face weights) is turned by the
angle of its token's position: (a cos - b sin, b cos + a sin). The backward pass turns by the opposite angle, so nothing
is saved.

Bytes moved for T tokens of 2-byte values: 4 T (heads + kv_heads) head_dim each way (q and k read and written; v is
never touched, cos and sin stay in the cache). Three operations a value: bound by memory. Deterministic.
"""

import torch

from .common import check_device, check_floating
from .triton_or_stub import tl, triton

# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def rope_forward(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, heads: int, kv_heads: int
) -> torch.Tensor:
    """Rotates q and k IN PLACE and returns `qkv`.

    qkv [tokens, (heads + 2 * kv_heads) * head_dim]: all q heads, all k heads, all v heads; rows may have gaps between
    them. cos, sin [max_positions, head_dim // 2], float32 (float64 for float64). positions [tokens], int32 or int64,
    contiguous, below max_positions (beyond: IndexError on a CPU, NaN on a GPU).
    """
    return _rotate(qkv, cos, sin, positions, heads, kv_heads, inverse=False)


def rope_backward(
    dqkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, heads: int, kv_heads: int
) -> torch.Tensor:
    """The gradient of `rope_forward`, IN PLACE on dqkv, which is returned. Shapes as there."""
    return _rotate(dqkv, cos, sin, positions, heads, kv_heads, inverse=True)


def _rotate(qkv, cos, sin, positions, heads, kv_heads, inverse):
    run = _triton_rotate if qkv.is_cuda else _torch_rotate
    return run(qkv, cos, sin, positions, heads, kv_heads, inverse)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_rotate(qkv, cos, sin, positions, heads, kv_heads, inverse):
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    sign = -1.0 if inverse else 1.0
    first, second = qkv.unflatten(1, (-1, head_dim))[:, : heads + kv_heads].chunk(2, dim=-1)
    cos = cos.index_select(0, positions)[:, None]
    sin = sin.index_select(0, positions)[:, None]
    a, b = first.to(cos.dtype), second.to(cos.dtype)
    turned = (a * cos).addcmul_(b, sin, value=-sign)
    second.copy_((b * cos).addcmul_(a, sin, value=sign))
    first.copy_(turned)
    return qkv


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _rotate_kernel(
    qkv_pointer,  # [tokens, (heads + 2 * kv_heads) * 2 * HALF]
    cos_pointer,  # [max_positions, HALF]
    sin_pointer,  # [max_positions, HALF]
    positions_pointer,  # [tokens]
    max_positions,
    row_stride,
    HEADS: tl.constexpr,  # q and k heads together
    HALF: tl.constexpr,  # head_dim // 2
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    INVERSE: tl.constexpr,
):
    token = tl.cast(tl.program_id(0), tl.int64)
    position = tl.cast(tl.load(positions_pointer + token), tl.int64)
    pair = tl.arange(0, BLOCK_HALF)
    # A position beyond the table gives NaN, which shows; whatever lies behind the table would not.
    known = (pair < HALF) & (position >= 0) & (position < max_positions)
    cos = tl.load(cos_pointer + position * HALF + pair, mask=known, other=float("nan"))[None, :]
    sin = tl.load(sin_pointer + position * HALF + pair, mask=known, other=float("nan"))[None, :]
    if INVERSE:
        sin = -sin
    head = tl.arange(0, BLOCK_HEADS)
    inside = (head[:, None] < HEADS) & (pair[None, :] < HALF)
    first = qkv_pointer + token * row_stride + head[:, None] * (2 * HALF) + pair[None, :]  # [BLOCK_HEADS, BLOCK_HALF]
    a = tl.cast(tl.load(first, mask=inside, other=0.0), cos.dtype)
    b = tl.cast(tl.load(first + HALF, mask=inside, other=0.0), cos.dtype)
    tl.store(first, tl.cast(a * cos - b * sin, qkv_pointer.dtype.element_ty), mask=inside)
    tl.store(first + HALF, tl.cast(b * cos + a * sin, qkv_pointer.dtype.element_ty), mask=inside)


def _triton_rotate(qkv, cos, sin, positions, heads, kv_heads, inverse):
    if qkv.shape[0] == 0:
        return qkv
    assert positions.is_contiguous()
    half = cos.shape[1]
    block_heads, block_half = triton.next_power_of_2(heads + kv_heads), triton.next_power_of_2(half)
    with torch.cuda.device_of(qkv):
        _rotate_kernel[(qkv.shape[0],)](
            qkv,
            cos,
            sin,
            positions,
            cos.shape[0],
            qkv.stride(0),
            HEADS=heads + kv_heads,
            HALF=half,
            BLOCK_HEADS=block_heads,
            BLOCK_HALF=block_half,
            INVERSE=inverse,
            num_warps=min(8, max(1, block_heads * block_half // 512)),  # 16 pairs a thread
        )
    return qkv


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def rope(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, heads: int, kv_heads: int
) -> torch.Tensor:
    """As `rope_forward`, but on a copy: differentiable once with respect to qkv, works under torch.compile.

    Raises ValueError for a wrong shape, stride, dtype or device.
    """
    check_floating("qkv", qkv, 2)
    width = heads + 2 * kv_heads
    if qkv.shape[1] % width or qkv.shape[1] // width % 2:
        raise ValueError(f"qkv has {qkv.shape[1]} columns, which is not {width} heads of one even head_dim")
    head_dim = qkv.shape[1] // width
    for name, table in (("cos", cos), ("sin", sin)):
        check_floating(name, table, 2)
        check_device(name, table, "qkv", qkv)
        if table.shape[1] != head_dim // 2 or not table.is_contiguous():
            raise ValueError(f"{name} must be contiguous [max_positions, {head_dim // 2}]")
        if table.dtype != (torch.float64 if qkv.dtype == torch.float64 else torch.float32):
            raise ValueError(f"{name} must be float32 (float64 for float64), got {table.dtype}")
    check_device("positions", positions, "qkv", qkv)
    if positions.shape != qkv.shape[:1] or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError("positions must be int32 or int64 [tokens], one for each row of qkv")
    return _rope_op(qkv, cos, sin, positions.contiguous(), heads, kv_heads, False)


@torch.library.custom_op("materia::rope", mutates_args=())
def _rope_op(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    inverse: bool,
) -> torch.Tensor:
    copy = qkv.clone(memory_format=torch.contiguous_format)
    return _rotate(copy, cos, sin, positions, heads, kv_heads, inverse)


@_rope_op.register_fake
def _(qkv, cos, sin, positions, heads, kv_heads, inverse):
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)


def _setup(ctx, inputs, output):
    _, cos, sin, positions, *ctx.constants = inputs
    ctx.save_for_backward(cos, sin, positions)


def _backward(ctx, dqkv):
    heads, kv_heads, inverse = ctx.constants
    return _rope_op(dqkv, *ctx.saved_tensors, heads, kv_heads, not inverse), None, None, None, None, None, None


_rope_op.register_autograd(_backward, setup_context=_setup)
