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

from .attention_blocks import (
    attention_tile,
    check_triton_dtype,
    dot_heads,
    dot_rows,
    head_parts,
    key_ranges,
    load_head,
    store_head,
    zeros_head,
)
from .documents import Documents
from .padding import padded_batches, place, repeat_heads, take, visible
from .tiles import architecture, tile
from .triton_or_stub import tl, triton

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
    dlse: torch.Tensor | None = None,
) -> None:
    """Writes the gradients of `attention_forward` (same documents for queries and keys) into dq, dk, dv.

    dout, q, out, dq [tokens, heads, head_dim]; k, v, dk, dv [tokens, kv_heads, head_dim]; lse [heads, tokens] as the
    forward pass returned it. All may be strided views, the last dimension without gaps; dq, dk, dv may be parts of one
    packed buffer, but must not overlap the inputs. `dlse`, contiguous [heads, tokens] in lse's dtype, is a gradient
    that reaches lse itself: d lse / d score = p, so ds = p * (dout v^T - delta + dlse).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    assert scale > 0
    run = _triton_backward if q.is_cuda else _torch_backward
    run(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale, dlse)


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_backward(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale, dlse):
    """torch's CPU flash attention backward: one call for each group of documents of similar length.

    It knows no gradient of lse. A further column does: with 1 in v and dlse in dout the product dout v^T grows by dlse,
    and with 0 in out delta does not.
    """
    if dlse is not None:
        columns = [torch.full_like(x[..., :1], 1.0 if x is v else 0.0) for x in (q, k, v, out)]
        q, k, v, out = (torch.cat(pair, -1) for pair in zip((q, k, v, out), columns, strict=True))
        dout = torch.cat([dout, dlse.t()[..., None].to(dout.dtype)], -1)
    for batch in padded_batches(tuple(documents.cu_seqlens.tolist())):
        mask = visible(batch.length, batch.length, window, q)
        keys, values = (repeat_heads(take(batch, x), q.shape[1]) for x in (k, v))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            take(batch, dout), take(batch, q), keys, values, take(batch, out), take(batch, lse.t()[..., None])[..., 0],
            0.0, mask is None, attn_mask=mask, scale=scale,
        )  # fmt: skip
        for gradient, destination in zip(gradients, (dq, dk, dv), strict=True):
            kv_heads = destination.shape[1]  # query heads that share a kv head add up
            summed = gradient if kv_heads == gradient.shape[1] else gradient.unflatten(1, (kv_heads, -1)).sum(2)
            place(batch, summed[..., : destination.shape[2]], destination)


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens"])
def _delta_kernel(
    dout_pointer,  # [tokens, HEADS, HEAD_DIM]
    out_pointer,  # [tokens, HEADS, HEAD_DIM]
    lse_pointer,  # [HEADS, tokens]
    dlse_pointer,  # [HEADS, tokens] or unused
    starts_pointer,  # [2, HEADS, tokens]
    tokens,
    scale,
    dout_stride, dout_head_stride,
    out_stride, out_head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, ROWS: tl.constexpr, HAS_DLSE: tl.constexpr,
):  # fmt: skip
    """-lse / scale and dlse - delta of ROWS tokens of one head: from these the products that give scores and dp start.
    """
    start, head = tl.program_id(0) // HEADS * ROWS, tl.cast(tl.program_id(0) % HEADS, tl.int64)
    row, last_row = tl.arange(0, ROWS), tokens - 1 - start
    dout_pointer += tl.cast(start, tl.int64) * dout_stride + head * dout_head_stride
    out_pointer += tl.cast(start, tl.int64) * out_stride + head * out_head_stride
    dout, _ = load_head(dout_pointer, row, last_row, dout_stride, HEAD_DIM, BLOCK_DIM, 0, True)
    out, _ = load_head(out_pointer, row, last_row, out_stride, HEAD_DIM, BLOCK_DIM, 0, True)
    dp_start = -tl.sum(tl.cast(dout, tl.float32) * tl.cast(out, tl.float32), axis=1)
    stored = row <= last_row
    statistics = head * tokens + start
    lse = tl.load(lse_pointer + statistics + row, mask=stored, other=0.0)
    if HAS_DLSE:
        dp_start += tl.load(dlse_pointer + statistics + row, mask=stored, other=0.0)
    starts_pointer += statistics
    tl.store(starts_pointer + row, -lse / tl.cast(scale, tl.float32), mask=stored)
    tl.store(starts_pointer + tl.cast(tokens, tl.int64) * HEADS + row, dp_start, mask=stored)


@triton.jit
def _add_to_key_value(
    k, k_second, v, v_second, dk, dk_second, dv, dv_second, q_pointer, dout_pointer, starts_pointer, i, deltas,
    queries, first, window, q_stride, dout_stride, scale_log2,
    HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr,
):  # fmt: skip
    """dk (not yet scaled) and dv [ROWS, dim], in two parts, of a block of keys with one block of queries from i on,
    added.

    Scores are kept transposed, [keys, queries]: p and ds then go into the second product as they come out of the first,
    from registers. The other way round they would pass through shared memory, and Triton 3.4 to 3.7.0 compiles that
    product wrongly on Hopper. The products that give scores and dp start from -lse and -delta, which costs no registers
    besides the accumulator's own.
    """
    start = tl.cast(i, tl.int64)
    row, last_row = tl.arange(0, COLUMNS), queries - 1 - i
    statistic = row
    if MASKED:
        statistic = tl.minimum(row, last_row)
    q_pointer += start * q_stride
    dout_pointer += start * dout_stride
    starts_pointer += start
    q, q_second = load_head(q_pointer, row, last_row, q_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    score = tl.broadcast_to(tl.load(starts_pointer + statistic)[None, :], (ROWS, COLUMNS))
    score = dot_heads(k, k_second, q, q_second, score, SECOND)  # [ROWS, COLUMNS]
    p = tl.exp2(score * scale_log2)
    if MASKED:
        behind = (i + row)[None, :] - (first + tl.arange(0, ROWS))[:, None]
        read = (behind >= 0) & (row <= last_row)[None, :]
        if HAS_WINDOW:
            read = read & (behind < window)
        p = tl.where(read, p, 0.0)
    dout, dout_second = load_head(dout_pointer, row, last_row, dout_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    if HAS_DV:
        dv, dv_second = dot_rows(p, dout, dout_second, dv, dv_second, SECOND)
    if HAS_DK:
        dp = tl.broadcast_to(tl.load(starts_pointer + deltas + statistic)[None, :], (ROWS, COLUMNS))
        dp = dot_heads(v, v_second, dout, dout_second, dp, SECOND)  # [ROWS, COLUMNS]
        dk, dk_second = dot_rows(p * dp, q, q_second, dk, dk_second, SECOND)
    return dk, dk_second, dv, dv_second


@triton.jit(do_not_specialize=["tokens", "window"])
def _key_value_kernel(
    dout_pointer,  # [tokens, KV_HEADS * GROUP, HEAD_DIM]
    q_pointer,  # [tokens, KV_HEADS * GROUP, HEAD_DIM]
    k_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    v_pointer,  # [tokens, KV_HEADS, HEAD_DIM]
    starts_pointer,  # [2, KV_HEADS * GROUP, tokens]: -lse / scale, dlse - delta
    dk_pointer,  # [tokens, KV_HEADS, HEAD_DIM] or unused
    dv_pointer,  # [tokens, KV_HEADS, HEAD_DIM] or unused
    work_pointer,  # [entries, 2]: document, first key
    bounds_pointer,  # [documents + 1]
    tokens,
    window,
    scale,
    dout_stride, dout_head_stride,
    q_stride, q_head_stride,
    k_stride, k_head_stride,
    v_stride, v_head_stride,
    dk_stride, dk_head_stride,
    dv_stride, dv_head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DK: tl.constexpr, HAS_DV: tl.constexpr,
):  # fmt: skip
    """dk, dv or both of one block of keys of one kv head."""
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
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    at = tl.cast(start, tl.int64)
    k_pointer += at * k_stride + kv_head * k_head_stride
    k, k_second = load_head(k_pointer, row, last_row, k_stride, HEAD_DIM, FIRST, SECOND, True)
    v, v_second = k, k_second  # dv alone does not read v
    if HAS_DK:
        v_pointer += at * v_stride + kv_head * v_head_stride
        v, v_second = load_head(v_pointer, row, last_row, v_stride, HEAD_DIM, FIRST, SECOND, True)

    # queries first..high - 1 read the block; those in [full_low, full_high) read all its keys, in full blocks
    high, full_high = queries, queries
    if HAS_WINDOW:
        high = tl.minimum(queries, last + window)
        full_high = tl.minimum(queries, first + window)
    full_low = first + tl.cdiv(last - first, COLUMNS) * COLUMNS
    full_high = tl.maximum(first + tl.maximum(full_high - first, 0) // COLUMNS * COLUMNS, full_low)

    dk, dk_second = zeros_head(ROWS, FIRST, SECOND)
    dv, dv_second = zeros_head(ROWS, FIRST, SECOND)
    begin_at = tl.cast(begin, tl.int64)
    deltas = tl.cast(tokens, tl.int64) * (KV_HEADS * GROUP)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_base = q_pointer + begin_at * q_stride + head * q_head_stride
        dout_base = dout_pointer + begin_at * dout_stride + head * dout_head_stride
        starts_base = starts_pointer + head * tokens + begin
        for i in range(full_low, full_high, COLUMNS):
            dk, dk_second, dv, dv_second = _add_to_key_value(
                k, k_second, v, v_second, dk, dk_second, dv, dv_second, q_base, dout_base, starts_base, i, deltas,
                queries, first, window, q_stride, dout_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS,
                False, HAS_WINDOW, HAS_DK, HAS_DV,
            )  # fmt: skip
        # one loop for both masked ends: a third copy of the loop body costs registers
        for i in range(first + full_high - full_low, high, COLUMNS):
            at_query = tl.where(i < full_high, i - (full_high - full_low), i)
            dk, dk_second, dv, dv_second = _add_to_key_value(
                k, k_second, v, v_second, dk, dk_second, dv, dv_second, q_base, dout_base, starts_base, at_query,
                deltas, queries, first, window, q_stride, dout_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS,
                COLUMNS, True, HAS_WINDOW, HAS_DK, HAS_DV,
            )  # fmt: skip

    if HAS_DK:
        scale = tl.cast(scale, tl.float32)
        dk_pointer += at * dk_stride + kv_head * dk_head_stride
        store_head(dk_pointer, dk * scale, dk_second * scale, row, last_row, dk_stride, HEAD_DIM, FIRST, SECOND)
    if HAS_DV:
        dv_pointer += at * dv_stride + kv_head * dv_head_stride
        store_head(dv_pointer, dv, dv_second, row, last_row, dv_stride, HEAD_DIM, FIRST, SECOND)


@triton.jit
def _add_to_query(
    q, q_second, dout, dout_second, score_start, dp_start, dq, dq_second, k_pointer, v_pointer, j, keys, first, window,
    k_stride, v_stride, scale_log2,
    HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """dq (not yet scaled) [ROWS, dim], in two parts, of a block of queries with one block of keys from j on, added."""
    start = tl.cast(j, tl.int64)
    row, last_row = tl.arange(0, COLUMNS), keys - 1 - j
    k_pointer += start * k_stride
    v_pointer += start * v_stride
    k, k_second = load_head(k_pointer, row, last_row, k_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    score = dot_heads(q, q_second, k, k_second, tl.broadcast_to(score_start[:, None], (ROWS, COLUMNS)), SECOND)
    p = tl.exp2(score * scale_log2)
    if MASKED:
        behind = (first + tl.arange(0, ROWS))[:, None] - (j + row)[None, :]
        read = behind >= 0
        if HAS_WINDOW:
            read = read & (behind < window)
        p = tl.where(read, p, 0.0)
    v, v_second = load_head(v_pointer, row, last_row, v_stride, HEAD_DIM, FIRST, SECOND, MASKED)
    dp = dot_heads(dout, dout_second, v, v_second, tl.broadcast_to(dp_start[:, None], (ROWS, COLUMNS)), SECOND)
    return dot_rows(p * dp, k, k_second, dq, dq_second, SECOND)


@triton.jit(do_not_specialize=["tokens", "window"])
def _query_kernel(
    dout_pointer,  # [tokens, HEADS, HEAD_DIM]
    q_pointer,  # [tokens, HEADS, HEAD_DIM]
    k_pointer,  # [tokens, HEADS // GROUP, HEAD_DIM]
    v_pointer,  # [tokens, HEADS // GROUP, HEAD_DIM]
    starts_pointer,  # [2, HEADS, tokens]: -lse / scale, dlse - delta
    dq_pointer,  # [tokens, HEADS, HEAD_DIM]
    work_pointer,  # [entries, 2]: document, first token
    bounds_pointer,  # [documents + 1]
    tokens,
    window,
    scale,
    dout_stride, dout_head_stride,
    q_stride, q_head_stride,
    k_stride, k_head_stride,
    v_stride, v_head_stride,
    dq_stride, dq_head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
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
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    at = tl.cast(start, tl.int64)
    q_pointer += at * q_stride + head * q_head_stride
    dout_pointer += at * dout_stride + head * dout_head_stride
    q, q_second = load_head(q_pointer, row, last_row, q_stride, HEAD_DIM, FIRST, SECOND, True)
    dout, dout_second = load_head(dout_pointer, row, last_row, dout_stride, HEAD_DIM, FIRST, SECOND, True)
    statistic = head * tokens + start + tl.minimum(row, last_row)
    score_start = tl.load(starts_pointer + statistic)  # [ROWS]
    dp_start = tl.load(starts_pointer + tl.cast(tokens, tl.int64) * HEADS + statistic)  # [ROWS]
    k_pointer += tl.cast(begin, tl.int64) * k_stride + head // GROUP * k_head_stride
    v_pointer += tl.cast(begin, tl.int64) * v_stride + head // GROUP * v_head_stride

    dq, dq_second = zeros_head(ROWS, FIRST, SECOND)
    low, full_low, full_high = key_ranges(first, last, window, COLUMNS, HAS_WINDOW)
    for j in range(full_low, full_high, COLUMNS):
        dq, dq_second = _add_to_query(
            q, q_second, dout, dout_second, score_start, dp_start, dq, dq_second, k_pointer, v_pointer, j, end - begin,
            first, window, k_stride, v_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS, False, HAS_WINDOW,
        )  # fmt: skip
    for j in range(low + full_high - full_low, last + 1, COLUMNS):
        j_at = tl.where(j < full_high, j - (full_high - full_low), j)
        dq, dq_second = _add_to_query(
            q, q_second, dout, dout_second, score_start, dp_start, dq, dq_second, k_pointer, v_pointer, j_at,
            end - begin, first, window, k_stride, v_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS, True,
            HAS_WINDOW,
        )  # fmt: skip

    scale = tl.cast(scale, tl.float32)
    dq_pointer += at * dq_stride + head * dq_head_stride
    store_head(dq_pointer, dq * scale, dq_second * scale, row, last_row, dq_stride, HEAD_DIM, FIRST, SECOND)


def _triton_backward(dout, q, k, v, out, lse, documents, dq, dk, dv, window, scale, dlse):
    check_triton_dtype(q.dtype)
    assert lse.is_contiguous()
    assert dout.stride(-1) == out.stride(-1) == 1
    tokens, heads, head_dim = q.shape
    if tokens == 0:
        return
    starts = torch.empty((2, heads, tokens), dtype=torch.float32, device=q.device)
    delta = tile("backward_delta", head_dim, architecture(q.device))
    with torch.cuda.device_of(q):
        _delta_kernel[(triton.cdiv(tokens, delta.rows) * heads,)](
            dout, out, lse, dlse, starts, tokens, scale, *dout.stride()[:2], *out.stride()[:2],
            HEADS=heads, HEAD_DIM=head_dim, BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)), ROWS=delta.rows,
            HAS_DLSE=dlse is not None, num_warps=delta.warps, num_stages=delta.stages,
        )  # fmt: skip
        # Two accumulators of 256 columns do not fit the registers: there dk and dv are made one after the other.
        passes = ("attention_key_value",) if head_dim <= 128 else ("attention_value", "attention_key")
        for kernel in passes:
            _launch_key_value(kernel, dout, q, k, v, starts, documents, dk, dv, window, scale)
        _launch_query(dout, q, k, v, starts, documents, dq, window, scale)


def _launch_key_value(kernel, dout, q, k, v, starts, documents, dk, dv, window, scale):
    config = attention_tile(kernel, q)
    (tokens, heads, head_dim), kv_heads = q.shape, k.shape[1]
    first, second = head_parts(head_dim)
    work = documents.key_blocks(config.rows)
    _key_value_kernel[(work.shape[0] * kv_heads,)](
        dout, q, k, v, starts, dk, dv, work, documents.cu_seqlens, tokens, min(window or 0, tokens), scale,
        *(stride for x in (dout, q, k, v, dk, dv) for stride in x.stride()[:2]),
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, HEAD_DIM=head_dim, FIRST=first, SECOND=second, ROWS=config.rows,
        COLUMNS=config.columns, HAS_WINDOW=window is not None, HAS_DK=kernel != "attention_value",
        HAS_DV=kernel != "attention_key", num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _launch_query(dout, q, k, v, starts, documents, dq, window, scale):
    config = attention_tile("attention_query", q)
    tokens, heads, head_dim = q.shape
    first, second = head_parts(head_dim)
    work = documents.query_blocks(config.rows)
    _query_kernel[(work.shape[0] * heads,)](
        dout, q, k, v, starts, dq, work, documents.cu_seqlens, tokens, min(window or 0, tokens), scale,
        *(stride for x in (dout, q, k, v, dq) for stride in x.stride()[:2]),
        HEADS=heads, GROUP=heads // k.shape[1], HEAD_DIM=head_dim, FIRST=first, SECOND=second, ROWS=config.rows,
        COLUMNS=config.columns, HAS_WINDOW=window is not None, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
