"""Attention of one new token a sequence over a paged key/value cache (Kwon et al. 2023, arXiv:2309.06180).

out = softmax(scale * q k^T) v over a sequence's cached keys; the cache is pages of a fixed number of keys, and a table
says which pages are a sequence's, in order. Inference only, no gradient.

Bytes moved: every key and value that is read, once; 4 operations a value for each query head that shares it: bound by
memory. Deterministic.

The Triton version is not written yet; torch operations on every device, which gather the pages first.
"""

import torch

from .common import accumulation_dtype, check_alike, check_device, check_floating


def decode_attention(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Each sequence's newest token attends to the sequence's cached keys, its own included.

    q [sequences, heads, head_dim]; k_pages, v_pages [pages, page_size, kv_heads, head_dim], one layer's cache;
    block_table int32 [sequences, max_pages]: key j of sequence s stands in page `block_table[s, j // page_size]` at
    `j % page_size` (entries that hold no key are never used); lengths int32 [sequences], number of keys. With `window`
    only the newest `window` keys are read. Pages may be shared by sequences. A sequence of length 0 gives 0.
    `scale` defaults to head_dim ** -0.5. Returns [sequences, heads, head_dim] in q's dtype.
    Raises ValueError for a wrong shape, stride, dtype or device.
    """
    check_floating("q", q, 3)
    for name, cache in (("k_pages", k_pages), ("v_pages", v_pages)):
        check_floating(name, cache, 4)
        check_alike(name, cache, "q", q)
    if k_pages.shape != v_pages.shape or k_pages.shape[3] != q.shape[2] or q.shape[1] % k_pages.shape[2]:
        raise ValueError("k_pages and v_pages must have one shape, with q's head_dim and a divisor of q's heads")
    for name, integers in (("block_table", block_table), ("lengths", lengths)):
        check_device(name, integers, "q", q)
        if integers.dtype != torch.int32 or integers.shape[0] != q.shape[0]:
            raise ValueError(f"{name} must be int32 with one row for each sequence of q")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it counts the newest key itself, so at least 1 (None: no window)")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _decode_attention_op(q, k_pages, v_pages, block_table, lengths, window, scale)


_GATHERED_ELEMENTS = 1 << 26
"""Keys gathered at a time, in elements: 256 MB of float32, and as much for the values."""


@torch.library.custom_op("materia::decode_attention", mutates_args=())
def _decode_attention_op(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    page_size, kv_heads = k_pages.shape[1:3]
    if not q.is_cuda and q.shape[0]:  # on a GPU the host would have to wait for the longest length
        block_table = block_table[:, : -(-int(lengths.max()) // page_size)]
    out = torch.empty_like(q)
    gathered = block_table.shape[1] * page_size * kv_heads * q.shape[2]
    step = max(1, _GATHERED_ELEMENTS // max(1, gathered))
    for begin in range(0, q.shape[0], step):
        part = slice(begin, begin + step)
        out[part] = _attend(q[part], k_pages, v_pages, block_table[part], lengths[part], window, scale)
    return out


def _attend(q, k_pages, v_pages, block_table, lengths, window, scale):
    """`decode_attention` of some of the sequences, all pages gathered."""
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
    scores = torch.einsum("skgd,stkd->skgt", grouped, keys).mul_(scale)
    scores.masked_fill_(~valid[:, None, None], -torch.inf)
    weights = scores.softmax(-1).masked_fill_((lengths == 0)[:, None, None, None], 0.0)
    return torch.einsum("skgt,stkd->skgd", weights, values).flatten(1, 2).to(q.dtype)


@_decode_attention_op.register_fake
def _(q, k_pages, v_pages, block_table, lengths, window, scale):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("materia::write_pages", mutates_args=("k_pages", "v_pages"))
def write_pages(
    k: torch.Tensor, v: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, slots: torch.Tensor
) -> None:
    """Stores new keys and values in the cache, in place.

    k, v [tokens, kv_heads, head_dim]; k_pages, v_pages [pages, page_size, kv_heads, head_dim], contiguous;
    slots int64 [tokens], all different: page * page_size + offset in the page. Raises ValueError for a wrong shape,
    stride or dtype.
    """
    if not (k.shape == v.shape and k_pages.shape == v_pages.shape and k.shape[1:] == k_pages.shape[2:]):
        raise ValueError("k and v must have one shape, and kv_heads and head_dim of both caches, also of one shape")
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous")
    if slots.dtype != torch.int64 or slots.shape != k.shape[:1]:
        raise ValueError("slots must be int64 [tokens], one for each row of k")
    k_pages.view(-1, *k_pages.shape[2:]).index_copy_(0, slots, k)
    v_pages.view(-1, *v_pages.shape[2:]).index_copy_(0, slots, v)
