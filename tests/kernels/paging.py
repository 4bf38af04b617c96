"""Paged caches for tests."""

import torch

from kernels.paged_cache import write_pages


def paged(lengths, page_size, kv_heads, head_dim, dtype, device="cpu", seed=0, extra=1):
    """Random keys and values in pages dealt out in random order; what is not written is NaN, unused table entries are
    out of range. Returns (k_pages, v_pages, block_table, lengths, keys and values of each sequence)."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in lengths]
    order = torch.randperm(sum(counts) + extra, generator=generator).to(torch.int32)
    table = torch.full((len(lengths), max(counts, default=0) + extra), 10**6, dtype=torch.int32)
    k_pages, v_pages = (
        torch.full((len(order), page_size, kv_heads, head_dim), torch.nan, dtype=dtype, device=device) for _ in range(2)
    )
    sequences = []
    for row, (own, n) in enumerate(zip(order[: sum(counts)].split(counts), lengths, strict=True)):
        table[row, : len(own)] = own
        keys, values = torch.randn(2, n, kv_heads, head_dim, dtype=torch.float64, generator=generator).to(device, dtype)
        place = torch.arange(n)
        slots = own[place // page_size] * page_size + place % page_size
        write_pages(keys, values, k_pages, v_pages, slots.to(device, torch.int64))
        sequences.append((keys, values))
    return k_pages, v_pages, table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device), sequences


def assert_equal_in_float32(ours, plain, exact, factor):
    """In the place of `assert_accurate` for random shapes: of a few numbers plain torch's error may by chance be nil."""
    assert ours.shape == exact.shape
    if exact.numel():
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()
