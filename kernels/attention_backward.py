"""Causal attention over packed documents: backward pass.

With p = exp(scale * q k^T - lse) computed again and delta = sum(dout * out) per query and head:
dv = p^T dout, ds = p * (dout v^T - delta), dq = scale * ds k, dk = scale * ds^T q; dk and dv are summed over the query
heads that share a kv head (Dao 2023, arXiv:2307.08691, algorithm 2).

Three kernels: delta; dk and dv of a block of keys, with a loop over the group's query heads, so that no buffer per
query head exists; dq of a block of queries. Seven matrix products a pair of blocks instead of the five of one joint
kernel: the price of having no atomic additions. Deterministic: each program writes its own rows, in one order. FLOPs by
the usual count (five products): 2.5 times the forward pass. Bytes: as the forward pass, plus dout, dq, dk, dv.
"""

import torch

from .attention_blocks import attention_tile, block_dim, check_triton_dtype, key_ranges, load_rows
from .documents import Documents
from .padding import padded_batches, place, repeat_heads, take, visible
from .triton_or_stub import tl, triton

_DELTA_ROWS = 64


# ---- layer 1: plain function -----------------------------------------------------------------------------------------


def attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    documents: Documents,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> None:
    """Writes the gradients of `attention_forward` (same documents for queries and keys) into dq, dk, dv.

    dout, q, out, dq [tokens, heads, head_dim]; k, v, dk, dv [tokens, kv_heads, head_dim]; lse [heads, tokens] as the
    forward pass returned it. All may be strided views, the last dimension without gaps; dq, dk, dv may be parts of one
    packed buffer, but must not overlap the inputs.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    run = _triton_backward if q.is_cuda else _torch_backward
    run(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_backward(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale):
    """torch's CPU flash attention backward: one call for each group of documents of similar length."""
    for batch in padded_batches(tuple(documents.cu_seqlens.tolist())):
        mask = visible(batch.length, batch.length, window, q)
        keys, values = (repeat_heads(take(batch, x), q.shape[1]) for x in (k, v))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            take(batch, dout),
            take(batch, q),
            keys,
            values,
            take(batch, out),
            take(batch, lse.t()[..., None])[..., 0],
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scale,
        )
        for gradient, destination in zip(gradients, (dq, dk, dv), strict=True):
            kv_heads = destination.shape[1]  # query heads that share a kv head add up
            summed = gradient if kv_heads == gradient.shape[1] else gradient.unflatten(1, (kv_heads, -1)).sum(2)
            place(batch, summed, destination)


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens"])
def _delta_kernel(
    dout_pointer,  # [tokens, HEADS, HEAD_DIM]
    out_pointer,  # [tokens, HEADS, HEAD_DIM]
    delta_pointer,  # [HEADS, tokens]
    tokens,
    dout_stride,
    dout_head_stride,
    out_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    start, head = tl.program_id(0) // HEADS * ROWS, tl.cast(tl.program_id(0) % HEADS, tl.int64)
    row, last_row = tl.arange(0, ROWS), tokens - 1 - start
    dout_pointer += tl.cast(start, tl.int64) * dout_stride + head * dout_head_stride
    out_pointer += tl.cast(start, tl.int64) * out_stride + head * out_head_stride
    dout = load_rows(dout_pointer, row, last_row, dout_stride, HEAD_DIM, BLOCK_DIM)
    out = load_rows(out_pointer, row, last_row, out_stride, HEAD_DIM, BLOCK_DIM)
    delta = tl.sum(tl.cast(dout, tl.float32) * tl.cast(out, tl.float32), axis=1)
    tl.store(delta_pointer + head * tokens + start + row, delta, mask=row <= last_row)


@triton.jit
def _add_to_key_value(
    k, v, dk, dv, q_pointer, dout_pointer, lse_pointer, delta_pointer, i, queries, position, window, q_stride,
    dout_stride, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """dk (not yet scaled) and dv [ROWS, dim] of a block of keys with one block of queries, from i on, added.

    Scores are kept transposed, [keys, queries]: p and ds then go into the second product as they come out of the first,
    from registers. The other way round they would pass through shared memory, and Triton 3.4 to 3.7.0 compiles that
    product wrongly on Hopper.
    """
    start = tl.cast(i, tl.int64)
    row, last_row = tl.arange(0, COLUMNS), queries - 1 - i
    clamped = tl.minimum(row, last_row)
    q = load_rows(q_pointer + start * q_stride, row, last_row, q_stride, HEAD_DIM, BLOCK_DIM)
    dout = load_rows(dout_pointer + start * dout_stride, row, last_row, dout_stride, HEAD_DIM, BLOCK_DIM)
    lse_log2 = tl.load(lse_pointer + start + clamped) * 1.4426950408889634  # [COLUMNS]
    delta = tl.load(delta_pointer + start + clamped)  # [COLUMNS]
    score = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2  # [ROWS, COLUMNS]
    p = tl.exp2(score - lse_log2[None, :])
    if MASKED:
        behind = (i + row)[None, :] - position[:, None]
        read = (behind >= 0) & (row <= last_row)[None, :]
        if HAS_WINDOW:
            read = read & (behind < window)
        p = tl.where(read, p, 0.0)
    dv = tl.dot(tl.cast(p, dout.dtype), dout, dv, input_precision="ieee")
    dp = tl.dot(v, tl.trans(dout), input_precision="ieee")  # [ROWS, COLUMNS]
    ds = p * (dp - delta[None, :])
    dk = tl.dot(tl.cast(ds, q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["tokens", "window"])
def _key_value_kernel(
    dout_pointer,  # [tokens, KV_HEADS * GROUP, HEAD_DIM]
    q_pointer,  # [tokens, KV_HEADS * GROUP, HEAD_DIM]
    k_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    v_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    lse_pointer,  # [KV_HEADS * GROUP, tokens]
    delta_pointer,  # [KV_HEADS * GROUP, tokens]
    dk_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    dv_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    work_pointer,  # [entries, 2]: document, first key
    bounds_pointer,  # [documents + 1]
    tokens,
    window,
    scale,
    dout_stride,
    dout_head_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    dk_stride,
    dk_head_stride,
    dv_stride,
    dv_head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """dk and dv of one block of keys of one kv head."""
    entry, kv_head = tl.program_id(0) // KV_HEADS, tl.cast(tl.program_id(0) % KV_HEADS, tl.int64)
    document = tl.load(work_pointer + entry * 2)
    if document < 0:
        return
    start = tl.load(work_pointer + entry * 2 + 1)
    begin, end = tl.load(bounds_pointer + document), tl.load(bounds_pointer + document + 1)
    queries = end - begin

    row, last_row = tl.arange(0, ROWS), end - 1 - start
    first = start - begin
    last = first + tl.minimum(ROWS - 1, last_row)
    position = first + row
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    at = tl.cast(start, tl.int64)
    k = load_rows(k_pointer + at * k_stride + kv_head * k_head_stride, row, last_row, k_stride, HEAD_DIM, BLOCK_DIM)
    v = load_rows(v_pointer + at * v_stride + kv_head * v_head_stride, row, last_row, v_stride, HEAD_DIM, BLOCK_DIM)

    # queries first..high - 1 read the block; those in [full_low, full_high) read all its keys, in full blocks
    high, full_high = queries, queries
    if HAS_WINDOW:
        high = tl.minimum(queries, last + window)
        full_high = tl.minimum(queries, first + window)
    full_low = first + tl.cdiv(last - first, COLUMNS) * COLUMNS
    full_high = tl.maximum(first + tl.maximum(full_high - first, 0) // COLUMNS * COLUMNS, full_low)

    dk = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    dv = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    begin_at = tl.cast(begin, tl.int64)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_base = q_pointer + begin_at * q_stride + head * q_head_stride
        dout_base = dout_pointer + begin_at * dout_stride + head * dout_head_stride
        lse_base = lse_pointer + head * tokens + begin
        delta_base = delta_pointer + head * tokens + begin
        for i in range(full_low, full_high, COLUMNS):
            dk, dv = _add_to_key_value(
                k, v, dk, dv, q_base, dout_base, lse_base, delta_base, i, queries, position, window, q_stride,
                dout_stride, scale_log2, HEAD_DIM, BLOCK_DIM, COLUMNS, False, HAS_WINDOW,
            )  # fmt: skip
        # one loop for both masked ends: a third copy of the loop body costs registers
        for i in range(first + full_high - full_low, high, COLUMNS):
            at_query = tl.where(i < full_high, i - (full_high - full_low), i)
            dk, dv = _add_to_key_value(
                k, v, dk, dv, q_base, dout_base, lse_base, delta_base, at_query, queries, position, window, q_stride,
                dout_stride, scale_log2, HEAD_DIM, BLOCK_DIM, COLUMNS, True, HAS_WINDOW,
            )  # fmt: skip

    column = tl.arange(0, BLOCK_DIM)
    stored = (row <= last_row)[:, None] & (column[None, :] < HEAD_DIM)
    dk_at = dk_pointer + at * dk_stride + kv_head * dk_head_stride + row[:, None] * dk_stride + column[None, :]
    dv_at = dv_pointer + at * dv_stride + kv_head * dv_head_stride + row[:, None] * dv_stride + column[None, :]
    tl.store(dk_at, tl.cast(dk * tl.cast(scale, tl.float32), dk_pointer.dtype.element_ty), mask=stored)
    tl.store(dv_at, tl.cast(dv, dv_pointer.dtype.element_ty), mask=stored)


@triton.jit
def _add_to_query(
    q, dout, lse_log2, delta, dq, k_pointer, v_pointer, j, keys, position, window, k_stride, v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """dq (not yet scaled) [ROWS, dim] of a block of queries with one block of keys, from j on, added."""
    start = tl.cast(j, tl.int64)
    row, last_row = tl.arange(0, COLUMNS), keys - 1 - j
    k = load_rows(k_pointer + start * k_stride, row, last_row, k_stride, HEAD_DIM, BLOCK_DIM)
    v = load_rows(v_pointer + start * v_stride, row, last_row, v_stride, HEAD_DIM, BLOCK_DIM)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # [ROWS, COLUMNS]
    p = tl.exp2(score - lse_log2[:, None])
    if MASKED:
        behind = position[:, None] - (j + row)[None, :]
        read = behind >= 0
        if HAS_WINDOW:
            read = read & (behind < window)
        p = tl.where(read, p, 0.0)
    dp = tl.dot(dout, tl.trans(v), input_precision="ieee")  # [ROWS, COLUMNS]
    ds = p * (dp - delta[:, None])
    return tl.dot(tl.cast(ds, k.dtype), k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=["tokens", "window"])
def _query_kernel(
    dout_pointer,  # [tokens, HEADS, HEAD_DIM]
    q_pointer,  # [tokens, HEADS, HEAD_DIM]
    k_pointer,  # [tokens, HEADS // GROUP, HEAD_DIM]
    v_pointer,  # [tokens, HEADS // GROUP, HEAD_DIM]
    lse_pointer,  # [HEADS, tokens]
    delta_pointer,  # [HEADS, tokens]
    dq_pointer,  # [tokens, HEADS, HEAD_DIM]
    work_pointer,  # [entries, 2]: document, first token
    bounds_pointer,  # [documents + 1]
    tokens,
    window,
    scale,
    dout_stride,
    dout_head_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    dq_stride,
    dq_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """dq of one block of queries of one head; blocks of keys in the order of the forward pass."""
    entry, head = tl.program_id(0) // HEADS, tl.cast(tl.program_id(0) % HEADS, tl.int64)
    document = tl.load(work_pointer + entry * 2)
    if document < 0:
        return
    start = tl.load(work_pointer + entry * 2 + 1)
    begin, end = tl.load(bounds_pointer + document), tl.load(bounds_pointer + document + 1)

    row, last_row = tl.arange(0, ROWS), end - 1 - start
    first = start - begin
    last = first + tl.minimum(ROWS - 1, last_row)
    position = first + row
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    at = tl.cast(start, tl.int64)
    q = load_rows(q_pointer + at * q_stride + head * q_head_stride, row, last_row, q_stride, HEAD_DIM, BLOCK_DIM)
    dout_pointer += at * dout_stride + head * dout_head_stride
    dout = load_rows(dout_pointer, row, last_row, dout_stride, HEAD_DIM, BLOCK_DIM)
    statistic = head * tokens + start + tl.minimum(row, last_row)
    lse_log2 = tl.load(lse_pointer + statistic) * 1.4426950408889634  # [ROWS]
    delta = tl.load(delta_pointer + statistic)  # [ROWS]
    k_pointer += tl.cast(begin, tl.int64) * k_stride + head // GROUP * k_head_stride
    v_pointer += tl.cast(begin, tl.int64) * v_stride + head // GROUP * v_head_stride

    dq = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    low, full_low, full_high = key_ranges(first, last, window, COLUMNS, HAS_WINDOW)
    for j in range(full_low, full_high, COLUMNS):
        dq = _add_to_query(
            q, dout, lse_log2, delta, dq, k_pointer, v_pointer, j, end - begin, position, window, k_stride, v_stride,
            scale_log2, HEAD_DIM, BLOCK_DIM, COLUMNS, False, HAS_WINDOW,
        )  # fmt: skip
    for j in range(low + full_high - full_low, last + 1, COLUMNS):
        j_at = tl.where(j < full_high, j - (full_high - full_low), j)
        dq = _add_to_query(
            q, dout, lse_log2, delta, dq, k_pointer, v_pointer, j_at, end - begin, position, window, k_stride, v_stride,
            scale_log2, HEAD_DIM, BLOCK_DIM, COLUMNS, True, HAS_WINDOW,
        )  # fmt: skip

    column = tl.arange(0, BLOCK_DIM)
    stored = (row <= last_row)[:, None] & (column[None, :] < HEAD_DIM)
    dq_at = dq_pointer + at * dq_stride + head * dq_head_stride + row[:, None] * dq_stride + column[None, :]
    tl.store(dq_at, tl.cast(dq * tl.cast(scale, tl.float32), dq_pointer.dtype.element_ty), mask=stored)


def _triton_backward(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale):
    check_triton_dtype(q.dtype)
    assert lse.is_contiguous()
    assert dout.stride(-1) == out.stride(-1) == 1
    tokens, heads, head_dim = q.shape
    if tokens == 0:
        return
    kv_heads = k.shape[1]
    shape = {"HEAD_DIM": head_dim, "BLOCK_DIM": block_dim(head_dim)}
    delta = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    strides = [stride for x in (dout, q, k, v) for stride in x.stride()[:2]]
    shared = (documents.cu_seqlens, tokens, min(window or 0, tokens), scale, *strides)
    with torch.cuda.device_of(q):
        _delta_kernel[(triton.cdiv(tokens, _DELTA_ROWS) * heads,)](
            dout, out, delta, tokens, *dout.stride()[:2], *out.stride()[:2], HEADS=heads, ROWS=_DELTA_ROWS, **shape
        )
        tile = attention_tile("attention_key_value", q)
        work = documents.key_blocks(tile.rows)
        _key_value_kernel[(work.shape[0] * kv_heads,)](
            dout, q, k, v, lse, delta, dk, dv, work, *shared, *dk.stride()[:2], *dv.stride()[:2],
            KV_HEADS=kv_heads, GROUP=heads // kv_heads, ROWS=tile.rows, COLUMNS=tile.columns,
            HAS_WINDOW=window is not None, num_warps=tile.warps, num_stages=tile.stages, **shape,
        )  # fmt: skip
        tile = attention_tile("attention_query", q)
        work = documents.query_blocks(tile.rows)
        _query_kernel[(work.shape[0] * heads,)](
            dout, q, k, v, lse, delta, dq, work, *shared, *dq.stride()[:2],
            HEADS=heads, GROUP=heads // kv_heads, ROWS=tile.rows, COLUMNS=tile.columns,
            HAS_WINDOW=window is not None, num_warps=tile.warps, num_stages=tile.stages, **shape,
        )  # fmt: skip
