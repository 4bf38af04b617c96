"""What the forward and the backward attention kernels share: how a head is cut, how a block is loaded, which blocks a
query reads."""

import torch

from .tiles import Tile, architecture, tile
from .triton_or_stub import tl, triton

LARGEST_HEAD_DIM = 256


def head_parts(head_dim: int) -> tuple[int, int]:
    """(first, second): a head's columns as two powers of two, second 0 where one suffices.

    Matrix products take powers of two. 96 runs as 64 + 32 instead of being padded to 128, which would be a third more
    work; 256 as 128 + 128, so that Triton keeps the warps of a [128, 128] accumulator along its rows and the
    probabilities in registers. What is still missing (8 of 40 = 32 + 16) is filled with zeros in registers.
    """
    assert 0 < head_dim <= LARGEST_HEAD_DIM
    whole = max(16, triton.next_power_of_2(head_dim))
    if whole == head_dim and whole <= 128:
        return whole, 0
    first = whole // 2
    second = max(16, triton.next_power_of_2(head_dim - first)) if head_dim > first else 0
    if first < 16 or (second == first and whole <= 128):
        return whole, 0
    return first, second


@triton.jit
def _load_part(pointer, row, stride, HEAD_DIM: tl.constexpr, BEGIN: tl.constexpr, SIZE: tl.constexpr):
    """[rows, SIZE] of one head: its columns from BEGIN on; those beyond HEAD_DIM are zero."""
    column = BEGIN + tl.arange(0, SIZE)
    at = pointer + row[:, None] * stride + column[None, :]
    if BEGIN + SIZE <= HEAD_DIM:
        return tl.load(at)
    return tl.load(at, mask=column[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def load_head(
    pointer, row, last_row, stride,
    HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Both parts of rows of one head: [rows, FIRST] and [rows, SECOND]; without a second part the first stands in its
    place and is never read there.

    With CLAMP rows beyond the last are read as the last: cheaper than a masked load, and what they give is never stored
    or is masked out. Without it there are none; the inner loop then only moves its pointer.
    """
    if CLAMP:
        row = tl.minimum(row, last_row)
    first = _load_part(pointer, row, stride, HEAD_DIM, 0, FIRST)
    second = first
    if SECOND:
        second = _load_part(pointer, row, stride, HEAD_DIM, FIRST, SECOND)
    return first, second


@triton.jit
def _store_part(pointer, values, row, last_row, stride, HEAD_DIM: tl.constexpr, BEGIN: tl.constexpr):
    column = BEGIN + tl.arange(0, values.shape[1])
    stored = (row <= last_row)[:, None] & (column[None, :] < HEAD_DIM)
    tl.store(
        pointer + row[:, None] * stride + column[None, :], tl.cast(values, pointer.dtype.element_ty), mask=stored
    )


@triton.jit
def store_head(
    pointer, first, second, row, last_row, stride,
    HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Writes both parts of rows of one head, without rows beyond the last and columns beyond HEAD_DIM."""
    _store_part(pointer, first, row, last_row, stride, HEAD_DIM, 0)
    if SECOND:
        _store_part(pointer, second, row, last_row, stride, HEAD_DIM, FIRST)


@triton.jit
def zeros_head(ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Accumulators for both parts of a head; without a second part one that is never read."""
    return tl.zeros((ROWS, FIRST), tl.float32), tl.zeros((ROWS, SECOND if SECOND else FIRST), tl.float32)


@triton.jit
def dot_heads(a, a_second, b, b_second, start, SECOND: tl.constexpr):
    """start + a b^T over both parts: [rows of a, rows of b]."""
    result = tl.dot(a, tl.trans(b), start, input_precision="ieee")
    if SECOND:
        result = tl.dot(a_second, tl.trans(b_second), result, input_precision="ieee")
    return result


@triton.jit
def dot_rows(weights, x, x_second, sums, sums_second, SECOND: tl.constexpr):
    """sums + weights x, in both parts. weights [rows, columns] float32 are rounded to the dtype of x [columns, dim]."""
    weights = tl.cast(weights, x.dtype)
    sums = tl.dot(weights, x, sums, input_precision="ieee")
    if SECOND:
        sums_second = tl.dot(weights, x_second, sums_second, input_precision="ieee")
    return sums, sums_second


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


@triton.jit
def online_softmax(
    score, top, total, first, j, window, scale_log2,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """A block of scores [ROWS, COLUMNS], unscaled, of queries from position `first` and keys from j on, taken into the
    softmax so far: (its exponentials, new maximum [ROWS], new sum [ROWS], factor of the old output [ROWS]).

    The maximum is not scaled either: exp2 takes scale and maximum in one multiply-add.
    """
    if MASKED:
        behind = (first + tl.arange(0, ROWS))[:, None] - (j + tl.arange(0, COLUMNS))[None, :]
        read = behind >= 0
        if HAS_WINDOW:
            read = read & (behind < window)
        score = tl.where(read, score, float("-inf"))
    new_top = tl.maximum(top, tl.max(score, axis=1))
    reference = new_top
    if MASKED:
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row without a key yet: -inf - -inf is NaN
    p = tl.exp2(score * scale_log2 - (reference * scale_log2)[:, None])
    shrink = tl.exp2((top - reference) * scale_log2)
    return p, new_top, total * shrink + tl.sum(p, axis=1), shrink


@triton.jit
def attend(
    q, q_second, top, total, sums, sums_second, k_pointer, v_pointer, row, last_row, j, first, window, k_stride,
    v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """One block of keys, from position j on, which stands at the pointers: the new (running maximum [ROWS], sum of
    exponentials [ROWS], both parts of the output [ROWS, dim]). `row` [COLUMNS]: the keys' rows from the pointers on."""
    k, k_second = load_head(k_pointer, row, last_row, k_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    score = dot_heads(q, q_second, k, k_second, tl.zeros((ROWS, COLUMNS), tl.float32), SECOND)  # [ROWS, COLUMNS]
    p, top, total, shrink = online_softmax(
        score, top, total, first, j, window, scale_log2, ROWS, COLUMNS, MASKED, HAS_WINDOW
    )
    v, v_second = load_head(v_pointer, row, last_row, v_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    sums, sums_second = sums * shrink[:, None], sums_second * shrink[:, None]
    sums, sums_second = dot_rows(p, v, v_second, sums, sums_second, SECOND)
    return top, total, sums, sums_second


def attention_tile(kernel: str, q: torch.Tensor) -> Tile:
    """Configuration of one attention kernel for q [tokens, heads, head_dim]."""
    table = architecture(q.device)  # first: it refuses a GPU that is too old
    return tile(kernel, q.shape[2], "float32" if q.dtype == torch.float32 else table)


def check_triton_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for float64: GPUs run its products outside the matrix units that these kernels are built on."""
    if dtype == torch.float64:
        raise ValueError("attention in float64 runs on the CPU only; use float32, bfloat16 or float16 on a GPU")
