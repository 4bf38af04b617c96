"""Attention of a sequence's newest tokens over its paged key/value cache: prompts whose prefix is cached already.

The new tokens of all sequences are packed documents; their keys and values have been written to the pages before
(`write_pages`), behind those of the prefix. Query i of n new ones reads all keys but the last n - 1 - i, with a window
w only the newest w of these: `attention` with other keys than the queries' own, which stand in pages instead of end to
end (Kwon et al. 2023, arXiv:2309.06180). Inference only, no gradient.

FLOPs: 4 * heads * head_dim for each query and key it reads. Bytes: q and out once; k and v once for every block of
queries and kv head that reads them, mostly from the cache; one look-up in the table for each block of keys. Bound by
matrix products beyond some 200 new tokens. Deterministic: each program writes its own rows.
"""

from collections.abc import Sequence

import torch

from .attention import attention_forward
from .attention_blocks import attend, head_parts, key_ranges, load_head, store_head, zeros_head
from .common import check_device
from .documents import Documents
from .paged_cache import check_pages, check_room, page_tile
from .triton_or_stub import tl, triton

# ---- layer 1: plain function -----------------------------------------------------------------------------------------


def paged_prefill_forward(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    documents: Documents,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Arguments and result as in `paged_prefill`, unchecked."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    run = _triton_prefill if q.is_cuda else _torch_prefill
    run(q, k_pages, v_pages, block_table, lengths, documents, window, scale, out)
    return out


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_prefill(q, k_pages, v_pages, block_table, lengths, documents, window, scale, out):
    """Gathers the pages, then attention with other keys than the queries' own."""
    page_size = k_pages.shape[1]
    check_room(lengths, block_table, page_size)
    keys = Documents.build([0, *lengths.cumsum(0).tolist()], q.device)
    sequence = torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths)
    position = keys.positions
    if window is not None:  # keys before every window are replaced by the first one in it: they may be gone
        first = lengths - documents.cu_seqlens.diff() - window + 1
        position = torch.maximum(position, torch.minimum(first, lengths - 1)[sequence])
    slots = block_table[sequence, position // page_size] * page_size + position % page_size
    k, v = (cache.flatten(0, 1)[slots] for cache in (k_pages, v_pages))
    attention_forward(q, k, v, documents, window=window, scale=scale, out=out, key_documents=keys)


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _tile_start(table_pointer, j, page_stride, key_stride, PAGE_SIZE: tl.constexpr):
    """Where key j stands, in elements from the first key of the first page."""
    page = tl.cast(tl.load(table_pointer + j // PAGE_SIZE), tl.int64)
    return page * page_stride + tl.cast(j % PAGE_SIZE, tl.int64) * key_stride


@triton.jit(do_not_specialize=["table_pointer", "lengths_pointer", "table_stride", "window"])
def _prefill_kernel(
    q_pointer,  # [tokens, HEADS, HEAD_DIM]
    k_pointer,  # [pages, PAGE_SIZE, HEADS // GROUP, HEAD_DIM]
    v_pointer,  # [pages, PAGE_SIZE, HEADS // GROUP, HEAD_DIM]
    out_pointer,  # [tokens, HEADS, HEAD_DIM]
    table_pointer,  # [documents, max_pages]
    lengths_pointer,  # [documents]
    work_pointer,  # [entries, 2]: document, first token
    bounds_pointer,  # [documents + 1]
    table_stride,
    window,
    scale,
    q_stride,
    q_head_stride,
    out_stride,
    out_head_stride,
    page_stride,
    key_stride,
    head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """One block of queries of one head. Heads vary fastest: those that share a kv head run together and find it in the
    cache."""
    entry, head = tl.program_id(0) // HEADS, tl.cast(tl.program_id(0) % HEADS, tl.int64)
    document = tl.load(work_pointer + entry * 2)
    if document < 0:
        return
    start = tl.load(work_pointer + entry * 2 + 1)
    begin, end = tl.load(bounds_pointer + document), tl.load(bounds_pointer + document + 1)
    keys = tl.load(lengths_pointer + document)

    row, last_row = tl.arange(0, ROWS), end - 1 - start
    first = start - begin + keys - (end - begin)  # the last key that the block's first query reads
    last = first + tl.minimum(ROWS - 1, last_row)
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    q_pointer += tl.cast(start, tl.int64) * q_stride + head * q_head_stride
    k_pointer += head // GROUP * head_stride
    v_pointer += head // GROUP * head_stride
    table_pointer += tl.cast(document, tl.int64) * table_stride
    q, q_second = load_head(q_pointer, row, last_row, q_stride, HEAD_DIM, FIRST, SECOND, True)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums, sums_second = zeros_head(ROWS, FIRST, SECOND)
    low, full_low, full_high = key_ranges(first, last, window, COLUMNS, HAS_WINDOW)
    # Pages are looked up a tile early: behind a look-up of its own the pipeline would load half as far ahead.
    last_key = tl.maximum(keys - 1, 0)
    next_start = _tile_start(table_pointer, tl.minimum(full_low, last_key), page_stride, key_stride, PAGE_SIZE)
    column = tl.arange(0, COLUMNS)
    for j in range(full_low, full_high, COLUMNS):
        at = next_start
        next_start = _tile_start(table_pointer, tl.minimum(j + COLUMNS, last_key), page_stride, key_stride, PAGE_SIZE)
        top, total, sums, sums_second = attend(
            q, q_second, top, total, sums, sums_second, k_pointer + at, v_pointer + at, column, keys - 1 - j, j, first,
            window, key_stride, key_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS, False, HAS_WINDOW,
        )  # fmt: skip
    # one loop for both masked ends: a third copy of the loop body costs registers
    for i in range(low + full_high - full_low, last + 1, COLUMNS):
        j = tl.where(i < full_high, i - (full_high - full_low), i)
        at = _tile_start(table_pointer, j, page_stride, key_stride, PAGE_SIZE)
        loaded = column
        if HAS_WINDOW:  # keys before every window are replaced by the first one in it: they may be gone
            loaded = tl.maximum(column, first - window + 1 - j)
        top, total, sums, sums_second = attend(
            q, q_second, top, total, sums, sums_second, k_pointer + at, v_pointer + at, loaded, keys - 1 - j, j, first,
            window, key_stride, key_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS, True, HAS_WINDOW,
        )  # fmt: skip

    divisor = tl.where(total > 0.0, total, 1.0)
    out_pointer += tl.cast(start, tl.int64) * out_stride + head * out_head_stride
    sums, sums_second = sums / divisor[:, None], sums_second / divisor[:, None]
    store_head(out_pointer, sums, sums_second, row, last_row, out_stride, HEAD_DIM, FIRST, SECOND)


def _triton_prefill(q, k_pages, v_pages, block_table, lengths, documents, window, scale, out):
    heads, head_dim = q.shape[1:]
    page_size, kv_heads = k_pages.shape[1:3]
    config = page_tile("attention_paged_prefill", q, page_size)
    first, second = head_parts(head_dim)
    work = documents.query_blocks(config.rows)
    if work.shape[0] == 0:
        return
    with torch.cuda.device_of(q):
        _prefill_kernel[(work.shape[0] * heads,)](
            q, k_pages, v_pages, out, block_table, lengths, work, documents.cu_seqlens, block_table.stride(0),
            min(window or 0, block_table.shape[1] * page_size),  # a huge one would overflow sums of positions
            scale, *q.stride()[:2], *out.stride()[:2], *k_pages.stride()[:3],
            HEADS=heads, GROUP=heads // kv_heads, HEAD_DIM=head_dim, FIRST=first, SECOND=second, ROWS=config.rows,
            COLUMNS=config.columns, PAGE_SIZE=page_size, HAS_WINDOW=window is not None, num_warps=config.warps,
            num_stages=config.stages,
        )  # fmt: skip


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def paged_prefill(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    documents: Documents,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The new tokens of each sequence attend causally to the sequence's cached keys, their own included.

    q [tokens, heads, head_dim], the new tokens packed as `documents`, one for each sequence (0 or more tokens);
    k_pages, v_pages [pages, page_size, kv_heads, head_dim], one layer's cache, views of equal strides; block_table
    int32 [documents, max_pages]: key j of sequence s stands in page `block_table[s, j // page_size]` at `j % page_size`
    (entries without a key that is read are never used); lengths int32 [documents], number of keys with the new ones: at
    least the document's tokens, at most max_pages * page_size. The last query meets the last key. Pages may be shared
    by sequences. With `window` a query reads only the newest `window` of its keys. `scale` defaults to
    head_dim ** -0.5. page_size is a multiple of 16 (64 or more is best), head_dim a multiple of 8 up to 256.

    Returns [tokens, heads, head_dim] in q's dtype. Raises ValueError for a wrong shape, stride, dtype or device.
    """
    check_pages(q, k_pages, v_pages, block_table, lengths, window, scale)
    check_device("documents", documents.cu_seqlens, "q", q)
    if documents.positions.shape[0] != q.shape[0]:
        raise ValueError("documents were built for another number of tokens than q has")
    if documents.cu_seqlens.shape[0] != lengths.shape[0] + 1:
        raise ValueError("block_table and lengths need one row for each document")
    if q.shape[0] and block_table.shape[1] == 0:
        raise ValueError("block_table has no columns, but its sequences have tokens")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _paged_prefill_op(q, k_pages, v_pages, block_table, lengths, documents.tensors(), window, scale)


@torch.library.custom_op("materia::paged_prefill", mutates_args=())
def _paged_prefill_op(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    documents: Sequence[torch.Tensor],
    window: int | None,
    scale: float,
) -> torch.Tensor:
    documents = Documents.of(documents)
    return paged_prefill_forward(q, k_pages, v_pages, block_table, lengths, documents, window=window, scale=scale)


@_paged_prefill_op.register_fake
def _(q, k_pages, v_pages, block_table, lengths, documents, window, scale):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
