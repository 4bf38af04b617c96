"""Causal attention over packed documents: forward pass, log-sum-exp, merging of partial results.

out = softmax(scale * q k^T + mask) v, blockwise with a running maximum, so that no score reaches memory (Dao 2023,
arXiv:2307.08691). Query i of a document reads keys j <= i, with a window w only those with i - j < w (itself included).

FLOPs for a document of s tokens: 2 s^2 heads head_dim (half of the full square's 4). Bytes: q and out once; k and v
once for every block of queries that reads them, mostly from the cache. Bound by matrix products beyond a few hundred
tokens. Saved for backward: q, k, v, out, lse. Deterministic: each program writes its own rows.
"""

from collections.abc import Sequence

import torch

from .attention_backward import attention_backward
from .attention_blocks import (
    LARGEST_HEAD_DIM,
    attend,
    attention_tile,
    check_triton_dtype,
    head_parts,
    key_ranges,
    load_head,
    store_head,
    zeros_head,
)
from .common import accumulation_dtype, check_alike, check_device, check_floating
from .documents import Documents
from .padding import padded_batches, place, repeat_heads, take, visible
from .triton_or_stub import tl, triton

# ---- layer 1: plain functions ----------------------------------------------------------------------------------------


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
    *,
    window: int | None = None,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    key_documents: Documents | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each document over itself and the softmax's log-sum-exp.

    q [tokens, heads, head_dim]; k, v [keys, kv_heads, head_dim]; heads is a multiple of kv_heads, query head h reads
    kv head h // (heads / kv_heads). All may be strided views (of the packed qkv), the last dimension without gaps.
    `scale`, above 0, defaults to head_dim ** -0.5. `out` receives the result. Returns (out [tokens, heads, head_dim],
    lse [heads, tokens], natural logarithm, accumulation dtype).

    `key_documents` (as many documents, other lengths; for cached prefixes) aligns the last query of each document with
    its last key: j <= i + keys - queries. A query that reads no key gives out = 0 and lse = -inf.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    assert scale > 0
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=accumulation_dtype(q.dtype), device=q.device)
    run = _triton_forward if q.is_cuda else _torch_forward
    key_documents = documents if key_documents is None else key_documents
    run(q, k, v, documents, key_documents, window, scale, out, lse)
    return out, lse


def merge_attention(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of two disjoint sets of keys from the results over each.

    out_* [tokens, heads, head_dim], lse_* [heads, tokens]. lse = log(e^lse_a + e^lse_b) and
    out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b; with no key on either side (both -inf), 0 and -inf.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    reference = lse.masked_fill(lse.isneginf(), 0.0)
    share_a = (lse_a - reference).exp_().t()[..., None]
    share_b = (lse_b - reference).exp_().t()[..., None]
    return (out_a * share_a + out_b * share_b).to(out_a.dtype), lse


# ---- plain-torch twin ------------------------------------------------------------------------------------------------


def _torch_forward(q, k, v, documents, key_documents, window, scale, out, lse):
    """torch's CPU flash attention: one call for each group of documents of similar length, or for each document where
    queries and keys differ in number. Padding stands at a document's end, where causality hides it from real queries.
    """
    if key_documents is not documents:
        _torch_forward_cross(q, k, v, documents, key_documents, window, scale, out, lse)
        return
    for batch in padded_batches(tuple(documents.cu_seqlens.tolist())):
        mask = visible(batch.length, batch.length, window, q)
        keys, values = (repeat_heads(take(batch, x), q.shape[1]) for x in (k, v))
        result, result_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            take(batch, q), keys, values, 0.0, mask is None, attn_mask=mask, scale=scale
        )
        place(batch, result, out)
        place(batch, result_lse[..., None], lse.t()[..., None])


def _torch_forward_cross(q, k, v, documents, key_documents, window, scale, out, lse):
    begins, key_begins = documents.cu_seqlens.tolist(), key_documents.cu_seqlens.tolist()
    for document in range(len(begins) - 1):
        begin, end = begins[document : document + 2]
        keys = slice(*key_begins[document : document + 2])
        first = max(begin, end - (keys.stop - keys.start))
        out[begin:first] = 0  # these queries read no key
        lse[:, begin:first] = -torch.inf
        if first == end:
            continue
        mask = visible(end - first, keys.stop - keys.start, window, q)
        result, result_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[first:end].transpose(0, 1)[None],
            *(repeat_heads(x[keys].transpose(0, 1)[None], q.shape[1]) for x in (k, v)),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scale,
        )
        out[first:end] = result[0].transpose(0, 1)
        lse[:, first:end] = result_lse[0]


# ---- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "window"])
def _forward_kernel(
    q_pointer,  # [tokens, HEADS, HEAD_DIM]
    k_pointer,  # [keys, HEADS // GROUP, HEAD_DIM]
    v_pointer,  # [keys, HEADS // GROUP, HEAD_DIM]
    out_pointer,  # [tokens, HEADS, HEAD_DIM]
    lse_pointer,  # [HEADS, tokens]
    work_pointer,  # [entries, 2]: document, first token
    bounds_pointer,  # [documents + 1]
    key_bounds_pointer,  # [documents + 1]
    tokens,
    window,
    scale,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    out_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """One block of queries of one head. Heads vary fastest: the longest blocks of all heads start first, and the heads
    that share a kv head run together and find it in the cache."""
    entry, head = tl.program_id(0) // HEADS, tl.cast(tl.program_id(0) % HEADS, tl.int64)
    document = tl.load(work_pointer + entry * 2)
    if document < 0:
        return
    start = tl.load(work_pointer + entry * 2 + 1)
    begin, end = tl.load(bounds_pointer + document), tl.load(bounds_pointer + document + 1)
    key_begin, key_end = tl.load(key_bounds_pointer + document), tl.load(key_bounds_pointer + document + 1)
    keys = key_end - key_begin

    row, last_row = tl.arange(0, ROWS), end - 1 - start
    first = start - begin + keys - (end - begin)  # the last key that the block's first query reads
    last = first + tl.minimum(ROWS - 1, last_row)
    scale_log2 = tl.cast(scale, tl.float32) * 1.4426950408889634
    q_pointer += tl.cast(start, tl.int64) * q_stride + head * q_head_stride
    k_pointer += tl.cast(key_begin, tl.int64) * k_stride + head // GROUP * k_head_stride
    v_pointer += tl.cast(key_begin, tl.int64) * v_stride + head // GROUP * v_head_stride
    q, q_second = load_head(q_pointer, row, last_row, q_stride, HEAD_DIM, FIRST, SECOND, True)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums, sums_second = zeros_head(ROWS, FIRST, SECOND)
    low, full_low, full_high = key_ranges(first, last, window, COLUMNS, HAS_WINDOW)
    column = tl.arange(0, COLUMNS)
    for j in range(full_low, full_high, COLUMNS):
        at = tl.cast(j, tl.int64)
        top, total, sums, sums_second = attend(
            q, q_second, top, total, sums, sums_second, k_pointer + at * k_stride, v_pointer + at * v_stride, column,
            keys - 1 - j, j, first, window, k_stride, v_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS,
            False, HAS_WINDOW,
        )  # fmt: skip
    # one loop for both masked ends: a third copy of the loop body costs registers
    for i in range(low + full_high - full_low, last + 1, COLUMNS):
        j = tl.where(i < full_high, i - (full_high - full_low), i)
        at = tl.cast(j, tl.int64)
        top, total, sums, sums_second = attend(
            q, q_second, top, total, sums, sums_second, k_pointer + at * k_stride, v_pointer + at * v_stride, column,
            keys - 1 - j, j, first, window, k_stride, v_stride, scale_log2, HEAD_DIM, FIRST, SECOND, ROWS, COLUMNS,
            True, HAS_WINDOW,
        )  # fmt: skip

    divisor = tl.where(total > 0.0, total, 1.0)
    lse = tl.where(total > 0.0, (top * scale_log2 + tl.log2(divisor)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_pointer + head * tokens + start + row, lse, mask=row <= last_row)
    out_pointer += tl.cast(start, tl.int64) * out_stride + head * out_head_stride
    sums, sums_second = sums / divisor[:, None], sums_second / divisor[:, None]
    store_head(out_pointer, sums, sums_second, row, last_row, out_stride, HEAD_DIM, FIRST, SECOND)


def _triton_forward(q, k, v, documents, key_documents, window, scale, out, lse):
    check_triton_dtype(q.dtype)
    tokens, heads, head_dim = q.shape
    tile = attention_tile("attention_forward", q)
    first, second = head_parts(head_dim)
    work = documents.query_blocks(tile.rows)
    if work.shape[0] == 0:
        return
    with torch.cuda.device_of(q):
        _forward_kernel[(work.shape[0] * heads,)](
            q, k, v, out, lse, work, documents.cu_seqlens, key_documents.cu_seqlens, tokens,
            min(window or 0, k.shape[0]),  # no distance is longer; a huge one would overflow sums of positions
            scale, *(stride for x in (q, k, v, out) for stride in x.stride()[:2]),
            HEADS=heads, GROUP=heads // k.shape[1], HEAD_DIM=head_dim, FIRST=first, SECOND=second, ROWS=tile.rows,
            COLUMNS=tile.columns, HAS_WINDOW=window is not None, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


# ---- layer 2: public operator ----------------------------------------------------------------------------------------


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
    *,
    window: int | None = None,
    scale: float | None = None,
    key_documents: Documents | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Causal attention over packed documents, [tokens, heads, head_dim]: arguments as in `attention_forward`.

    head_dim is a multiple of 8 up to 256. With `return_lse` also the softmax's log-sum-exp [heads, tokens], which
    `merge_attention` takes. Both are differentiable once with respect to q, k and v, and work under torch.compile; with
    `key_documents` (other keys than the queries' own) there is no gradient. Raises ValueError for a wrong shape,
    stride, dtype or device.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_floating(name, tensor, 3)
        check_alike(name, tensor, "q", q)
    check_device("documents", documents.cu_seqlens, "q", q)
    heads, head_dim = q.shape[1:]
    if k.shape != v.shape or k.shape[2] != head_dim:
        raise ValueError("k and v must have one shape, [keys, kv_heads, head_dim], with q's head_dim")
    if head_dim % 8 or not 8 <= head_dim <= LARGEST_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}; it must be a multiple of 8 up to {LARGEST_HEAD_DIM}")
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"{heads} query heads are not a multiple of {k.shape[1]} kv heads")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it counts the query itself, so at least 1 (None: no window)")
    if scale is not None and scale <= 0:
        raise ValueError(f"scale is {scale}; it must be above 0 (None: head_dim ** -0.5)")
    _check_documents(q, k, documents, key_documents)
    if q.is_cuda:
        check_triton_dtype(q.dtype)
    scale = head_dim**-0.5 if scale is None else scale
    key_tensors = [] if key_documents is None else key_documents.tensors()
    out, lse = _attention_op(q, k, v, documents.tensors(), key_tensors, window, scale)
    return (out, lse) if return_lse else out


def _check_documents(q, k, documents, key_documents):
    if documents.positions.shape[0] != q.shape[0]:
        raise ValueError("documents were built for another number of tokens than q has")
    if key_documents is None:
        if k.shape[0] != q.shape[0]:
            raise ValueError("k and v must have as many tokens as q; for other numbers give key_documents")
        return
    check_device("key_documents", key_documents.cu_seqlens, "q", q)
    if key_documents.positions.shape[0] != k.shape[0]:
        raise ValueError("key_documents were built for another number of tokens than k has")
    if key_documents.cu_seqlens.shape != documents.cu_seqlens.shape:
        raise ValueError("documents and key_documents must be equally many")


@torch.library.custom_op("materia::attention", mutates_args=())
def _attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Sequence[torch.Tensor],
    key_documents: Sequence[torch.Tensor],
    window: int | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    keys = Documents.of(key_documents) if key_documents else None
    return attention_forward(q, k, v, Documents.of(documents), window=window, scale=scale, key_documents=keys)


@_attention_op.register_fake
def _(q, k, v, documents, key_documents, window, scale):
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=accumulation_dtype(q.dtype), device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), lse


@torch.library.custom_op("materia::attention_backward", mutates_args=())
def _attention_backward_op(
    dout: torch.Tensor | None,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    documents: Sequence[torch.Tensor],
    window: int | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    # an expanded gradient (of out.sum(), say) has stride 0
    dout = torch.zeros_like(out) if dout is None else dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    attention_backward(
        dout, q, k, v, out, lse, Documents.of(documents), dq, dk, dv, window=window, scale=scale, dlse=dlse
    )
    return dq, dk, dv


@_attention_backward_op.register_fake
def _(dout, dlse, q, k, v, out, lse, documents, window, scale):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _setup(ctx, inputs, output):
    q, k, v, documents, key_documents, ctx.window, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.key_tensors = len(key_documents)
    ctx.save_for_backward(q, k, v, *output, *documents)


def _backward(ctx, dout, dlse):
    if ctx.key_tensors:
        raise RuntimeError("attention with key_documents has no gradient: call it under torch.no_grad()")
    q, k, v, out, lse, *documents = ctx.saved_tensors
    dq, dk, dv = _attention_backward_op(dout, dlse, q, k, v, out, lse, documents, ctx.window, ctx.scale)
    return dq, dk, dv, [None] * len(documents), [], None, None


_attention_op.register_autograd(_backward, setup_context=_setup)
