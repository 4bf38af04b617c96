"""Rotary position embedding on the packed q, k, v product (Su et al. 2021, arXiv:2104.09864).

Each pair (a, b) = (i, i + head_dim / 2) of a q or k head (the convention of Hugging Face weights) is turned by the
angle of its token's position: (a cos - b sin, b cos + a sin). The backward pass turns by the opposite angle, so nothing
is saved.

Bytes moved for T tokens of 2-byte values: 4 T (heads + kv_heads) head_dim each way (q and k read and written; v is
never touched; cos and sin stay in the cache: every head's threads read their own, 4 bytes a pair, which a warp's
heads share). Three operations a value: bound by memory. Deterministic.

A program holds whole tokens, 16 KB of their values at 20 heads of 128 and more; a thread's accesses are 16 bytes where
rows begin at a multiple of 16 values. The compiler keeps two chunks of heads ahead of the stores, 8 KB a program of 4
warps, and 12 programs (registers) are resident: 96 KB in flight a multiprocessor.
"""

import torch

from .common import check_device, check_floating
from .tiles import architecture, tile
from .triton_or_stub import tl, triton

_CHUNKS = 8
"""Most chunks that the heads of a token are cut into. Each is a power of two of heads; with so many at most one lane
in five is idle (40 heads are 5 x 8, not 64)."""

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


@triton.jit(do_not_specialize=["tokens", "max_positions"])
def _rotate_kernel(
    qkv_pointer,  # [tokens, (heads + 2 * kv_heads) * 2 * HALF]
    cos_pointer,  # [max_positions, HALF]
    sin_pointer,  # [max_positions, HALF]
    positions_pointer,  # [tokens]
    tokens,
    max_positions,
    row_stride,
    HEADS: tl.constexpr,  # q and k heads together
    HALF: tl.constexpr,  # head_dim // 2
    TOKENS: tl.constexpr,  # of a program
    BLOCK_HEADS: tl.constexpr,  # of a chunk
    BLOCK_HALF: tl.constexpr,
    INVERSE: tl.constexpr,
):
    # A tile [TOKENS * BLOCK_HEADS, BLOCK_HALF]: its rows are the tokens' heads, so that the threads that hold a pair's
    # values also hold its cos and sin, and nothing passes through shared memory.
    row = tl.arange(0, TOKENS * BLOCK_HEADS)[:, None]
    head = row % BLOCK_HEADS
    token = tl.program_id(0) * TOKENS + row // BLOCK_HEADS
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (token < tokens) & (pair < HALF)
    position = tl.cast(tl.load(positions_pointer + token, mask=token < tokens, other=0), tl.int64)
    first = qkv_pointer + tl.cast(token, tl.int64) * row_stride + head * (2 * HALF) + pair
    a, b = (), ()  # a tile for each chunk of heads: loads are under way before the first result is needed
    for start in tl.static_range(0, HEADS, BLOCK_HEADS):
        mask = inside
        if start + BLOCK_HEADS > HEADS:
            mask = inside & (start + head < HEADS)
        a += (tl.load(first + start * (2 * HALF), mask=mask, other=0.0),)
        b += (tl.load(first + start * (2 * HALF) + HALF, mask=mask, other=0.0),)
    # A position beyond the table gives NaN, which shows; whatever lies behind the table would not.
    known = inside & (position >= 0) & (position < max_positions)
    cos = tl.load(cos_pointer + position * HALF + pair, mask=known, other=float("nan"))
    sin = tl.load(sin_pointer + position * HALF + pair, mask=known, other=float("nan"))
    if INVERSE:
        sin = -sin
    for chunk in tl.static_range(len(a)):
        start = chunk * BLOCK_HEADS
        mask = inside
        if start + BLOCK_HEADS > HEADS:
            mask = inside & (start + head < HEADS)
        left, right = tl.cast(a[chunk], cos.dtype), tl.cast(b[chunk], cos.dtype)
        turned_left = tl.cast(left * cos - right * sin, qkv_pointer.dtype.element_ty)
        turned_right = tl.cast(right * cos + left * sin, qkv_pointer.dtype.element_ty)
        tl.store(first + start * (2 * HALF), turned_left, mask=mask)
        tl.store(first + start * (2 * HALF) + HALF, turned_right, mask=mask)


def _triton_rotate(qkv, cos, sin, positions, heads, kv_heads, inverse):
    if qkv.shape[0] == 0:
        return qkv
    assert positions.is_contiguous()
    tokens, half, rotated = qkv.shape[0], cos.shape[1], heads + kv_heads
    tiling = tile("rope", 2 * half, architecture(qkv.device))
    block_half = triton.next_power_of_2(half)
    block_heads = triton.next_power_of_2(triton.cdiv(rotated, _CHUNKS))
    program_tokens = max(1, tiling.rows * tiling.columns // (block_heads * block_half))
    with torch.cuda.device_of(qkv):
        _rotate_kernel[(triton.cdiv(tokens, program_tokens),)](
            qkv,
            cos,
            sin,
            positions,
            tokens,
            cos.shape[0],
            qkv.stride(0),
            HEADS=rotated,
            HALF=half,
            TOKENS=program_tokens,
            BLOCK_HEADS=block_heads,
            BLOCK_HALF=block_half,
            INVERSE=inverse,
            num_warps=tiling.warps,
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
