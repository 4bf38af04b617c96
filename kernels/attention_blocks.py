"""What the forward and the backward attention kernels share: how a block is loaded and which blocks a query reads."""

import torch

from .tiles import Tile, architecture, tile
from .triton_or_stub import tl, triton


@triton.jit
def load_rows(pointer, row, last_row, stride, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """[rows, BLOCK_DIM] of one head. Rows beyond the last are read as the last: cheaper than a masked load, and what
    they give is never stored or is masked out. Columns beyond HEAD_DIM are zero."""
    column = tl.arange(0, BLOCK_DIM)
    at = pointer + tl.minimum(row, last_row)[:, None] * stride + column[None, :]
    if HEAD_DIM == BLOCK_DIM:
        return tl.load(at)
    return tl.load(at, mask=column[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def key_ranges(first, last, window, COLUMNS: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Blocks of keys that queries at positions first..last read, as (begin, full_begin, full_end).

    All keys of a block in [full_begin, full_end) are read by all queries; those in [begin, full_begin) cross the
    window's edge, those from full_end to `last` the diagonal.
    """
    begin, full_begin = 0, 0
    if HAS_WINDOW:
        begin = tl.maximum(first - window + 1, 0) // COLUMNS * COLUMNS
        full_begin = tl.cdiv(tl.maximum(last - window + 1, 0), COLUMNS) * COLUMNS
    full_end = tl.maximum((first + 1) // COLUMNS * COLUMNS, begin)
    return begin, tl.minimum(full_begin, full_end), full_end


def block_dim(head_dim: int) -> int:
    """Columns a kernel keeps of a head: a power of two, and at least the 16 that a matrix instruction needs."""
    return max(16, triton.next_power_of_2(head_dim))


def attention_tile(kernel: str, q: torch.Tensor) -> Tile:
    """Configuration of one attention kernel for q [tokens, heads, head_dim]."""
    table = architecture(q.device)  # first: it refuses a GPU that is too old
    return tile(kernel, q.shape[2], "float32" if q.dtype == torch.float32 else table)


def check_triton_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for float64: GPUs run its products outside the matrix units that these kernels are built on."""
    if dtype == torch.float64:
        raise ValueError("attention in float64 runs on the CPU only; use float32, bfloat16 or float16 on a GPU")
