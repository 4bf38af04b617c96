"""Attention of one new token a sequence over a paged key/value cache (Kwon et al. 2023, arXiv:2309.06180).

out = softmax(scale * q k^T) v over a sequence's cached keys; the cache is pages of a fixed number of keys, and a table
says which pages are a sequence's, in order. Inference only, no gradient.

A sequence is cut into splits that run side by side, each with a softmax of its own; a second kernel merges them by
their log-sum-exp in the order of the splits (Dao et al. 2023, Flash-Decoding): deterministic, and no split waits for
another. All query heads of one kv head are the rows of one block, so that a key is read once for all of them.

Bytes: 2 * keys * kv_heads * head_dim * itemsize, every key and value that is read, once (once for every 64 query heads
of a kv head); with more than one split also the workspace, 8 * sequences * splits * heads * (head_dim + 1), written and
read: 1.6 % of the keys and values at 8 query heads a kv head, bfloat16 and 1,024 keys a split. FLOPs: 4 * keys * heads
* head_dim. Bound by memory: the matrix units compute on 16 rows even where fewer heads share a key.
"""

import torch

from .common import accumulation_dtype, program_count
from .paged_cache import check_pages, check_room, page_tile
from .tiles import architecture, tile
from .triton_or_stub import tl, triton

LEAST_KEYS = 256
"""Keys below which a sequence is not cut further: starting and merging a split would cost more than it gains."""

FULL_KEYS = 1024
"""Keys a split keeps while the GPU is full already: there the workspace counts."""


# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def decode_forward(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as in `decode_attention`, unchecked. Returns (out [sequences, heads, head_dim] in q's dtype,
    lse [heads, sequences], natural logarithm, accumulation dtype; the transpose of a contiguous tensor).

    The GPU path never waits for the device: lengths are read there only.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype), device=q.device)
    run = _triton_decode if q.is_cuda else _torch_decode
    run(q, k_pages, v_pages, block_table, lengths, window, scale, out, lse)
    return out, lse.t()


def split_count(blocks: int, keys: int, programs: int) -> int:
    """Into how many splits each sequence is cut: from shapes only, so that the host never waits for a length.

    blocks: sequences * blocks of query heads; keys: the most a sequence can hold; programs: how many run at once.
    Enough splits for all programs while each has `LEAST_KEYS` keys, or for four rounds of them (sequences of unlike
    length then even out) while each has `FULL_KEYS`.
    """
    fill = min(triton.cdiv(programs, blocks), keys // LEAST_KEYS)
    even = min(triton.cdiv(4 * programs, blocks), keys // FULL_KEYS)
    return max(1, fill, even)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------

_GATHERED_ELEMENTS = 1 << 26
"""Keys gathered at a time, in elements: 256 MB of float32, and as much for the values."""


def _torch_decode(q, k_pages, v_pages, block_table, lengths, window, scale, out, lse):
    """torch operations, which gather the pages first."""
    if q.shape[0] == 0:
        return
    page_size, kv_heads = k_pages.shape[1:3]
    pages = check_room(lengths, block_table, page_size)
    block_table = block_table[:, :pages]
    step = max(1, _GATHERED_ELEMENTS // max(1, pages * page_size * kv_heads * q.shape[2]))
    for begin in range(0, q.shape[0], step):
        part = slice(begin, begin + step)
        _attend(q[part], k_pages, v_pages, block_table[part], lengths[part], window, scale, out[part], lse[part])


def _attend(q, k_pages, v_pages, block_table, lengths, window, scale, out, lse):
    """`_torch_decode` of some of the sequences, all pages gathered."""
    acc = accumulation_dtype(q.dtype)
    page_size, kv_heads = k_pages.shape[1:3]
    position = torch.arange(block_table.shape[1] * page_size, device=q.device)[None]
    valid = position < lengths[:, None]
    if window is not None:
        valid &= position >= lengths[:, None] - window
    pages = torch.where(valid.unflatten(1, (-1, page_size)).any(-1), block_table, 0)
    keys, values = (cache[pages].flatten(1, 2).to(acc) for cache in (k_pages, v_pages))
    values.masked_fill_(~valid[..., None, None], 0.0)  # a place never written may hold NaN, and 0 * NaN is NaN
    grouped = q.to(acc).unflatten(1, (kv_heads, -1))
    # keys first: torch's small CPU products sum three times less accurately the other way round
    scores = (keys.transpose(1, 2) @ grouped.mT).mT * scale  # [sequences, kv_heads, group, keys]
    scores.masked_fill_(~valid[:, None, None], -torch.inf)
    lse.copy_(scores.logsumexp(-1).flatten(1))
    weights = scores.softmax(-1).masked_fill_((lengths == 0)[:, None, None, None], 0.0)
    out.copy_(torch.einsum("skgt,stkd->skgd", weights, values).flatten(1, 2))


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _splits_of(length, splits, window, COLUMNS: tl.constexpr, LEAST_TILES: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """How a sequence is cut: (first key read, first tile, tiles, tiles a split). Every tile holds a key to read."""
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(length - window, 0)
    first = low // COLUMNS
    tiles = tl.cdiv(length, COLUMNS) - first
    return low, first, tiles, tl.maximum(tl.cdiv(tiles, splits), LEAST_TILES)


@triton.jit(do_not_specialize=["table_pointer", "lengths_pointer", "splits", "table_stride", "window"])
def _decode_kernel(
    q_pointer,  # [sequences, HEADS, HEAD_DIM]
    k_pointer,  # [pages, PAGE_SIZE, HEADS // GROUP, HEAD_DIM]
    v_pointer,  # [pages, PAGE_SIZE, HEADS // GROUP, HEAD_DIM]
    table_pointer,  # [sequences, max_pages]
    lengths_pointer,  # [sequences]
    out_pointer,  # [sequences, splits, HEADS, HEAD_DIM]
    lse_pointer,  # [sequences, splits, HEADS]
    splits,
    table_stride,
    window,
    scale,
    q_stride,
    q_head_stride,
    page_stride,
    key_stride,
    head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """One split of one sequence for up to ROWS query heads of one kv head. Heads vary fastest: their keys lie side by
    side in memory."""
    HEAD_BLOCKS: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    BLOCKS: tl.constexpr = HEADS // GROUP * HEAD_BLOCKS
    block, rest = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    split, sequence = rest % splits, tl.cast(rest // splits, tl.int64)
    length = tl.load(lengths_pointer + sequence)
    low, first, tiles, share = _splits_of(length, splits, window, COLUMNS, LEAST_TILES, HAS_WINDOW)
    if split * share >= tl.maximum(tiles, 1):  # too short for so many splits; the first one also answers for no key
        return
    begin = first + split * share
    end = tl.minimum(begin + share, first + tiles)

    kv_head = block // HEAD_BLOCKS
    head = kv_head * GROUP + block % HEAD_BLOCKS * ROWS + tl.arange(0, ROWS)
    last_head = kv_head * GROUP + GROUP - 1
    column = tl.arange(0, BLOCK_DIM)[None, :]
    at = q_pointer + sequence * q_stride + tl.minimum(head, last_head)[:, None] * q_head_stride + column
    if HEAD_DIM == BLOCK_DIM:
        q = tl.load(at)
    else:
        q = tl.load(at, mask=column < HEAD_DIM, other=0.0)
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    table_pointer += sequence * table_stride
    k_pointer += tl.cast(kv_head, tl.int64) * head_stride
    v_pointer += tl.cast(kv_head, tl.int64) * head_stride

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    # The next page is looked up a tile early: behind a look-up of its own the pipeline would load half as far ahead.
    next_page = tl.load(table_pointer + begin * COLUMNS // PAGE_SIZE, mask=tiles > 0, other=0)
    for j in range(begin * COLUMNS, end * COLUMNS, COLUMNS):
        page = tl.cast(next_page, tl.int64)
        next_page = tl.load(table_pointer + tl.minimum(j + COLUMNS, length - 1) // PAGE_SIZE)
        # Keys that are not read are replaced by the nearest one that is: what else stands there may be NaN.
        row = tl.minimum(tl.arange(0, COLUMNS), length - 1 - j)
        if HAS_WINDOW:
            row = tl.maximum(row, low - j)
        start = page * page_stride + tl.cast(j % PAGE_SIZE, tl.int64) * key_stride
        offset = row[:, None] * key_stride + column
        if HEAD_DIM == BLOCK_DIM:
            k = tl.load(k_pointer + start + offset)
            v = tl.load(v_pointer + start + offset)
        else:
            k = tl.load(k_pointer + start + offset, mask=column < HEAD_DIM, other=0.0)
            v = tl.load(v_pointer + start + offset, mask=column < HEAD_DIM, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")  # [ROWS, COLUMNS]
        key = j + tl.arange(0, COLUMNS)
        read = key < length
        if HAS_WINDOW:
            read = read & (key >= low)
        score = tl.where(read[None, :], score, float("-inf"))
        new_top = tl.maximum(
            top, tl.max(score, axis=1)
        )  # not scaled yet; finite, as every tile holds a key that is read
        p = tl.exp2(score * scale_log2 - (new_top * scale_log2)[:, None])
        shrink = tl.exp2((top - new_top) * scale_log2)
        total = total * shrink + tl.sum(p, axis=1)
        sums = tl.dot(tl.cast(p, v.dtype), v, sums * shrink[:, None], input_precision="ieee")
        top = new_top

    divisor = tl.where(total > 0.0, total, 1.0)
    row = tl.cast(rest, tl.int64) * HEADS + head
    at = out_pointer + row[:, None] * HEAD_DIM + column
    sums = tl.cast(sums / divisor[:, None], out_pointer.dtype.element_ty)
    tl.store(at, sums, mask=(head <= last_head)[:, None] & (column < HEAD_DIM))
    lse = tl.where(total > 0.0, (top * scale_log2 + tl.log2(divisor)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_pointer + row, lse, mask=head <= last_head)


@triton.jit(do_not_specialize=["lengths_pointer", "splits", "window"])
def _merge_kernel(
    partial_pointer,  # [sequences, splits, HEADS, HEAD_DIM]
    partial_lse_pointer,  # [sequences, splits, HEADS]
    lengths_pointer,  # [sequences]
    out_pointer,  # [sequences, HEADS, HEAD_DIM]
    lse_pointer,  # [sequences, HEADS]
    splits,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One head of one sequence: its splits, SPLITS at a time, in order."""
    program = tl.cast(tl.program_id(0), tl.int64)
    sequence, head = program // HEADS, program % HEADS
    length = tl.load(lengths_pointer + sequence)
    _, _, tiles, share = _splits_of(length, splits, window, COLUMNS, LEAST_TILES, HAS_WINDOW)
    used = tl.maximum(tl.cdiv(tiles, share), 1)

    column = tl.arange(0, BLOCK_DIM)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((BLOCK_DIM,), tl.float32)
    for begin in range(0, used, SPLITS):
        split = begin + tl.arange(0, SPLITS)
        row = (sequence * splits + split) * HEADS + head
        lse = tl.load(partial_lse_pointer + row, mask=split < used, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # a sequence without keys: -inf - -inf is NaN
        weight = tl.exp(lse - reference)
        shrink = tl.exp(top - reference)
        at = partial_pointer + row[:, None] * HEAD_DIM + column[None, :]
        out = tl.load(at, mask=(split < used)[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
        total = total * shrink + tl.sum(weight, axis=0)
        sums = sums * shrink + tl.sum(out * weight[:, None], axis=0)
        top = new_top

    divisor = tl.where(total > 0.0, total, 1.0)
    lse = tl.where(total > 0.0, top + tl.log(divisor), float("-inf"))
    tl.store(lse_pointer + program + tl.arange(0, 1), lse)
    sums = tl.cast(sums / divisor, out_pointer.dtype.element_ty)
    tl.store(out_pointer + program * HEAD_DIM + column, sums, mask=column < HEAD_DIM)


def _triton_decode(q, k_pages, v_pages, block_table, lengths, window, scale, out, lse):
    sequences, heads, head_dim = q.shape
    if sequences == 0:
        return
    page_size, kv_heads = k_pages.shape[1:3]
    group, keys = heads // kv_heads, block_table.shape[1] * page_size
    config = page_tile("decode_attention", q, page_size)
    rows = min(config.rows, max(16, triton.next_power_of_2(group)))
    blocks = sequences * kv_heads * triton.cdiv(group, rows)
    splits = split_count(blocks, keys if window is None else min(keys, window), program_count(q, config.programs))
    window = min(window or 0, keys)  # no distance is longer; a huge one would overflow
    partial, partial_lse = out, lse
    if splits > 1:
        partial = torch.empty((sequences, splits, heads, head_dim), dtype=torch.float32, device=q.device)
        partial_lse = torch.empty((sequences, splits, heads), dtype=torch.float32, device=q.device)
    common = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": max(16, triton.next_power_of_2(head_dim)),
        "COLUMNS": config.columns,
        "LEAST_TILES": max(1, LEAST_KEYS // config.columns),
        "HAS_WINDOW": window > 0,
    }
    with torch.cuda.device_of(q):
        _decode_kernel[(blocks * splits,)](
            q,
            k_pages,
            v_pages,
            block_table,
            lengths,
            partial,
            partial_lse,
            splits,
            block_table.stride(0),
            window,
            scale,
            *q.stride()[:2],
            *k_pages.stride()[:3],
            GROUP=group,
            ROWS=rows,
            PAGE_SIZE=page_size,
            **common,
            num_warps=config.warps * rows // 16,
            num_stages=config.stages,
        )
        if splits > 1:
            merge = tile("decode_merge", head_dim, architecture(q.device))
            _merge_kernel[(sequences * heads,)](
                partial, partial_lse, lengths, out, lse, splits, window, **common, SPLITS=merge.rows,
                num_warps=merge.warps, num_stages=merge.stages,
            )  # fmt: skip


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def decode_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Each sequence's newest token attends to the sequence's cached keys, its own included.

    q [sequences, heads, head_dim]; k_pages, v_pages [pages, page_size, kv_heads, head_dim], one layer's cache, views of
    equal strides; block_table int32 [sequences, max_pages]: key j of sequence s stands in page
    `block_table[s, j // page_size]` at `j % page_size` (entries without a key that is read are never used); lengths
    int32 [sequences], number of keys, at most max_pages * page_size. With `window` only the newest `window` keys are
    read. Pages may be shared by sequences. A sequence of length 0 gives 0. `scale` defaults to head_dim ** -0.5.
    page_size is a multiple of 16 (64 or more is best: the GPU reads a page in tiles of up to 64 keys), head_dim a
    multiple of 8 up to 256. No new compilation for other lengths, tables or numbers of sequences.

    Returns [sequences, heads, head_dim] in q's dtype; with `return_lse` also the log-sum-exp [heads, sequences], for
    `merge_attention`: natural logarithm, accumulation dtype, -inf for a sequence of length 0.
    Raises ValueError for a wrong shape, stride, dtype or device.
    """
    check_pages(q, k_pages, v_pages, block_table, lengths, window, scale)
    if block_table.shape[0] != q.shape[0]:
        raise ValueError("block_table and lengths need one row for each row of q: one new token a sequence")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = _decode_attention_op(q, k_pages, v_pages, block_table, lengths, window, scale)
    return (out, lse) if return_lse else out


@torch.library.custom_op("materia::decode_attention", mutates_args=())
def _decode_attention_op(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return decode_forward(q, k_pages, v_pages, block_table, lengths, window=window, scale=scale)


@_decode_attention_op.register_fake
def _(q, k_pages, v_pages, block_table, lengths, window, scale):
    lse = torch.empty(q.shape[:2], dtype=accumulation_dtype(q.dtype), device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse.t()
