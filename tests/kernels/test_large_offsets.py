"""Offsets of 2^31 elements and more, on memory of which only the pages that are used exist."""

import math
import mmap
import sys

import numpy as np
import pytest
import torch

from kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    cross_entropy_row,
    decode,
    paged_prefill,
    rmsnorm,
    rope,
    swiglu,
)
from kernels.documents import Documents
from kernels.tiles import Tile
from tests.kernels.conftest import REASON_NOT_TO_INTERPRET

pytestmark = [
    pytest.mark.skipif(REASON_NOT_TO_INTERPRET is not None, reason=str(REASON_NOT_TO_INTERPRET)),
    pytest.mark.skipif(sys.platform != "linux", reason="memory without pages is asked for as Linux has it"),
]
NORESERVE = 0x4000  # Linux; Python 3.11 has no name for it
ROWS = 5
STRIDE = (1 << 29) + 16
"""Elements from row to row: the last of 5 begins past 2^31."""


def sparse(elements, dtype=torch.float16):
    """Zeros that take no memory until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)


def far_apart(like, stride=STRIDE):
    """A copy of `like` [rows, ...] whose rows lie far apart."""
    elements = stride * (like.shape[0] - 1) + math.prod(like.shape[1:])
    return sparse(elements, like.dtype).as_strided(like.shape, (stride, *like.stride()[1:])).copy_(like)


def normal(*shape, seed=0, dtype=torch.float16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def use(strict_interpreter, monkeypatch):
    """Lets the Triton launchers of a module stand in for its twins."""

    def replace(module):
        for name in [name for name in vars(module) if name.startswith("_triton_")]:
            monkeypatch.setattr(module, name.replace("_triton_", "_torch_"), getattr(module, name))

    return replace


def test_rmsnorm(use):
    use(rmsnorm)
    x, residual, dy, dsummed = normal(4, ROWS, 40)
    weight = normal(40, seed=1)
    expected = rmsnorm.rmsnorm_forward(x, weight, 1e-5, residual=residual)
    far = rmsnorm.rmsnorm_forward(
        far_apart(x), weight, 1e-5, residual=far_apart(residual), out=far_apart(torch.zeros_like(x))
    )
    assert all(torch.equal(a, b) for a, b in zip(far, expected, strict=True))
    _, rstd, summed = expected
    dx = rmsnorm.rmsnorm_backward(dy, summed, weight, rstd, dsummed=dsummed)
    far_dy = far_apart(dy)
    rmsnorm.rmsnorm_backward(far_dy, far_apart(summed), weight, rstd, dsummed=far_apart(dsummed), out=far_dy)
    assert torch.equal(far_dy, dx)


def test_rope(use):
    use(rope)
    cos, sin = torch.rand(2, ROWS, 4)
    qkv, positions = normal(ROWS, 5 * 8), torch.arange(ROWS)
    far = rope.rope_forward(far_apart(qkv), cos, sin, positions, 3, 1)
    assert torch.equal(far, rope.rope_forward(qkv.clone(), cos, sin, positions, 3, 1))


def test_swiglu(use):
    use(swiglu)
    gate_up, dout = normal(ROWS, 2 * 40), normal(ROWS, 40, seed=1)
    assert torch.equal(swiglu.swiglu_forward(far_apart(gate_up), far_apart(dout)), swiglu.swiglu_forward(gate_up))
    far, product = far_apart(gate_up), far_apart(dout)
    swiglu.swiglu_backward(far_apart(dout), far, out=far, product=product)
    assert torch.equal(far, swiglu.swiglu_backward(dout, gate_up))
    assert torch.equal(product, swiglu.swiglu_forward(gate_up))


def test_adamw(use, monkeypatch):
    """A shard of more than 2^31 elements, of which the last two blocks are updated: all would touch all the memory."""
    use(adamw)
    monkeypatch.setattr(adamw, "tile", lambda *key: Tile(1, 1024, 1, 1, 0))
    n, end = (1 << 31) + 2048, slice(-2048, None)
    values = normal(4, 2048, dtype=torch.float32)
    values[2].square_()
    scalars = {name: torch.tensor([0.5]) for name in ("lr", "gradient_scale", "step", "keep")}
    options = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8} | scalars
    near, near_weights = values.clone(), values[0].bfloat16()
    adamw.adamw_step(*near, near_weights, decay_ranges=[(1000, 2048, 0.1)], **options)

    class LastTwo:
        def permutation(self, programs):
            assert programs == n // 1024
            return np.array([programs - 1, programs - 2])

    monkeypatch.setattr(np.random, "default_rng", lambda seed: LastTwo())
    far, weights = [sparse(n, torch.float32) for _ in values], sparse(n, torch.bfloat16)
    for tensor, value in zip(far, values, strict=True):
        tensor[end] = value
    adamw.adamw_step(*far, weights, decay_ranges=[(n - 1048, n, 0.1)], **options)
    assert all(torch.equal(tensor[end], value) for tensor, value in zip(far, near, strict=True))
    assert torch.equal(weights[end], near_weights)


def test_attention(use):
    """Rows 2^24 apart, so that the last of 136 begin past 2^31. (Within a block of 128 rows offsets have 32 bits: tokens
    of more than 2^24 values would not do, and there are none.)"""
    use(attention)
    tokens, stride = 136, (1 << 24) - 16
    documents = Documents.build([0, 130, tokens], "cpu")
    q, k, v, dout = (normal(tokens, heads, 16, seed=seed) for seed, heads in enumerate((2, 1, 1, 2)))
    far = [far_apart(t, stride) for t in (q, k, v)]
    out, lse = attention.attention_forward(*far, documents)
    expected, expected_lse = attention.attention_forward(q, k, v, documents)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)

    use(attention_backward)
    near_gradients = [torch.empty_like(t) for t in (q, k, v)]
    far_gradients = [far_apart(torch.zeros_like(t), stride) for t in (q, k, v)]
    backward = attention_backward.attention_backward
    backward(dout, q, k, v, out, lse, documents, *near_gradients)
    backward(far_apart(dout, stride), *far, far_apart(out, stride), lse, documents, *far_gradients)
    assert all(torch.equal(a, b) for a, b in zip(far_gradients, near_gradients, strict=True))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("far_axis", ["pages", "heads"])
def test_paged_cache(use, monkeypatch, far_axis, splits):
    """Pages, or kv heads, far apart; so are the queries of decode attention."""
    use(decode)
    use(paged_prefill)
    monkeypatch.setattr(decode, "split_count", lambda *shapes: splits)
    monkeypatch.setattr(decode, "LEAST_KEYS", 16)
    caches = normal(2, ROWS, 16, ROWS, 16)  # pages, page, kv heads, head_dim
    if far_axis == "pages":
        far = [far_apart(cache) for cache in caches]
    else:
        far = [far_apart(cache.transpose(0, 2).contiguous()).transpose(0, 2) for cache in caches]
    table, lengths = torch.tensor([[4, 0], [3, 4]], dtype=torch.int32), torch.tensor([32, 20], dtype=torch.int32)
    q = normal(2, 2 * ROWS, 16, seed=1)
    expected = decode.decode_forward(q, *caches, table, lengths)
    outcome = decode.decode_forward(far_apart(q, 4 * STRIDE), *far, table, lengths)
    assert all(torch.equal(a, b) for a, b in zip(outcome, expected, strict=True))

    q, documents = normal(9, 2 * ROWS, 16, seed=1), Documents.build([0, 4, 9], "cpu")
    expected = paged_prefill.paged_prefill_forward(q, *caches, table, lengths, documents)
    assert torch.equal(paged_prefill.paged_prefill_forward(q, *far, table, lengths, documents), expected)


def test_cross_entropy(use):
    use(cross_entropy)
    logits, targets = normal(ROWS, 100), torch.tensor([3, 99, 0, -100, 50])
    far = far_apart(logits)
    stats = cross_entropy.stats(logits, targets, 0, 100)
    torch.testing.assert_close(cross_entropy.stats(far, targets, 0, 100), stats, rtol=0, atol=0, equal_nan=True)
    expected = cross_entropy.gradient(logits.clone(), targets, stats, 0, 100)
    assert torch.equal(cross_entropy.gradient(far, targets, stats, 0, 100), expected)


def test_cross_entropy_of_whole_rows(use):
    use(cross_entropy_row)
    logits, targets = normal(ROWS, 100), torch.tensor([3, 99, 0, -100, 50])
    far = far_apart(logits)
    losses = cross_entropy_row.losses_and_gradient(far, targets, 100)
    assert torch.equal(losses, cross_entropy_row.losses_and_gradient(logits, targets, 100))
    assert torch.equal(far, logits)  # both hold the gradient
