"""In the strict interpreter bfloat16 gives what torch gives, to the bit."""

import pytest
import torch

from kernels.triton_or_stub import tl, triton


@pytest.fixture(autouse=True)
def strict(strict_interpreter):
    if strict_interpreter is None:
        pytest.skip("nothing is interpreted here")
    return strict_interpreter


@triton.jit
def _arithmetic(x, y, out, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(x + at), tl.load(y + at)
    if OPERATION == "add":
        result = a + b
    elif OPERATION == "multiply":
        result = a * b
    elif OPERATION == "divide":
        result = tl.cast(a / b, tl.bfloat16)
    elif OPERATION == "negate":
        result = -a
    elif OPERATION == "absolute":
        result = tl.abs(a)
    elif OPERATION == "greater":
        result = tl.where(a > b, a, b)
    elif OPERATION == "maximum":
        result = tl.maximum(a, b)
    elif OPERATION == "truth as a number":
        result = tl.cast(a > b, tl.bfloat16)
    elif OPERATION == "times a constant":
        result = a * 1.7
    elif OPERATION == "whole":
        result = tl.cast(tl.cast(a * 100, tl.int32), tl.bfloat16)
    elif OPERATION == "sum":
        result = a * 0 + tl.sum(a, axis=0)
    elif OPERATION == "largest":
        result = a * 0 + tl.cast(tl.max(a, axis=0), tl.bfloat16)
    elif OPERATION == "running sum":
        result = tl.cumsum(a, axis=0)
    tl.store(out + at, result)


ARITHMETIC = {
    "add": torch.add,
    "multiply": torch.mul,
    "divide": torch.div,
    "negate": lambda a, b: -a,
    "absolute": lambda a, b: a.abs(),
    "greater": torch.maximum,
    "maximum": torch.maximum,
    "truth as a number": lambda a, b: (a > b).to(a.dtype),
    "times a constant": lambda a, b: a * torch.tensor(1.7, dtype=a.dtype),
    "whole": lambda a, b: (a * 100).to(torch.int32).to(a.dtype),
    "sum": lambda a, b: a * 0 + a.float().sum().to(a.dtype),
    "largest": lambda a, b: a * 0 + a.max(),
    "running sum": lambda a, b: a.float().cumsum(0).to(a.dtype),
}


def bfloat16(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("operation", ARITHMETIC)
def test_bfloat16_arithmetic_equals_torch(operation):
    """To the bit; the sums are float32 sums rounded once."""
    x, y = bfloat16(64, seed=0), bfloat16(64, seed=1)
    out = torch.zeros_like(x)
    _arithmetic[(1,)](x, y, out, OPERATION=operation, BLOCK=64)
    expected = ARITHMETIC[operation](x, y)
    assert torch.equal(out, expected)


@triton.jit
def _cast(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.cast(tl.load(x + at), out.dtype.element_ty))


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a in ("float32", "float64", "float16", "int32") for b in "<>"]
)
def test_casts_from_and_to_bfloat16_equal_torch(source, target):
    """Ties, subnormals, infinities, NaN and values that round up to infinity among them."""
    source = getattr(torch, source)
    bits = torch.randint(-(2**31), 2**31, (512,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    bits[:128] = (bits[:128] & ~0xFFFF) | 0x8000  # halfway between two bfloat16
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 1e-40])
    values = torch.cat((bits.view(torch.float32), special, torch.zeros(504)))
    if source == torch.int32:
        values = torch.cat((bits, torch.arange(-256, 256, dtype=torch.int32)))
    values = values.to(source) if target == ">" else values.to(torch.bfloat16)
    if target == "<" and source == torch.int32:
        values = values.clamp(-1e9, 1e9)  # beyond, the cast is undefined
    out = torch.zeros(len(values), dtype=torch.bfloat16 if target == ">" else source)
    _cast[(1,)](values, out, BLOCK=len(values))
    expected = values.to(out.dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7))


@triton.jit
def _product(a, b, out, OUT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee")
    tl.store(out + at, tl.cast(product, OUT))


def test_bfloat16_products_equal_torch(strict):
    """Integers, so that no order of additions matters: equal to the bit; as shipped, nothing is right."""
    a, b = (torch.randint(-8, 9, (32, 32), generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    out = torch.zeros(32, 32)
    with strict.suspended():
        _product[(1,)](a, b, out, OUT=tl.float32, BLOCK=32)
    assert not torch.equal(out, a.float() @ b.float())
    _product[(1,)](a, b, out, OUT=tl.float32, BLOCK=32)
    assert torch.equal(out, a.float() @ b.float())
    narrow = torch.zeros(32, 32, dtype=torch.bfloat16)
    _product[(1,)](a, b, narrow, OUT=tl.bfloat16, BLOCK=32)
    assert torch.equal(narrow, a @ b)
