"""The paged key/value cache that `decode` and `paged_prefill` read: writing into it, and what both ask of it.

Keys and values stand in pages of a fixed number of keys (Kwon et al. 2023, arXiv:2309.06180); a table says which pages
are a sequence's, in order, so that sequences can share the pages of a common prefix.
"""

import torch

from .common import check_alike, check_device, check_floating
from .tiles import Tile, architecture, tile

LARGEST_HEAD_DIM = 256
PAGE_MULTIPLE = 16
"""Page sizes are multiples of this, the fewest keys that fill a matrix instruction."""


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


def check_pages(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None,
    scale: float | None,
) -> None:
    """Raise ValueError unless these are what the operators on a paged cache take."""
    check_floating("q", q, 3)
    for name, cache in (("k_pages", k_pages), ("v_pages", v_pages)):
        check_floating(name, cache, 4)
        check_alike(name, cache, "q", q)
    head_dim, page_size = q.shape[2], k_pages.shape[1]
    if k_pages.shape != v_pages.shape or k_pages.shape[3] != head_dim:
        raise ValueError("k_pages and v_pages must have one shape, [pages, page_size, kv_heads, head_dim of q]")
    if k_pages.stride() != v_pages.stride():
        raise ValueError("k_pages and v_pages must have equal strides; call .contiguous() on both")
    if k_pages.shape[2] == 0 or q.shape[1] % k_pages.shape[2]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k_pages.shape[2]} kv heads")
    if head_dim % 8 or not 8 <= head_dim <= LARGEST_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}; it must be a multiple of 8 up to {LARGEST_HEAD_DIM}")
    if page_size == 0 or page_size % PAGE_MULTIPLE:
        raise ValueError(f"pages of {page_size} keys; their size must be a multiple of {PAGE_MULTIPLE}")
    for name, integers, dimensions in (("block_table", block_table, 2), ("lengths", lengths, 1)):
        check_device(name, integers, "q", q)
        if integers.dtype != torch.int32 or integers.dim() != dimensions or integers.stride(-1) != 1:
            raise ValueError(f"{name} must be int32 with {dimensions} dimensions, without gaps in its last one")
    if block_table.shape[0] != lengths.shape[0]:
        raise ValueError("block_table and lengths need one row for each sequence")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it counts the newest key itself, so at least 1 (None: no window)")
    if scale is not None and scale <= 0:
        raise ValueError(f"scale is {scale}; it must be above 0 (None: head_dim ** -0.5)")
    if q.is_cuda and q.dtype == torch.float64:
        raise ValueError("attention in float64 runs on the CPU only; use float32, bfloat16 or float16 on a GPU")


def check_room(lengths: torch.Tensor, block_table: torch.Tensor, page_size: int) -> int:
    """Pages of the longest sequence; ValueError where the table has no room for them. For CPU tensors only: on a GPU
    the host would have to wait for the lengths."""
    pages = -(-int(lengths.max()) // page_size) if lengths.numel() else 0
    if pages > block_table.shape[1]:
        raise ValueError(f"a length needs {pages} pages, but block_table has room for {block_table.shape[1]}")
    return pages


def page_tile(kernel: str, q: torch.Tensor, page_size: int) -> Tile:
    """Configuration of a kernel that reads pages: a tile of keys never crosses a page, so that it needs one look-up. It
    is the largest power of two that divides the page, at most what the table says."""
    table = architecture(q.device)  # first: it refuses a GPU that is too old
    config = tile(kernel, q.shape[-1], "float32" if q.dtype == torch.float32 else table)
    return config._replace(columns=min(config.columns, page_size & -page_size))
