"""The checksum of copies sees every single bit, and is the same however the tensor is cut up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel import checksum
from parallel.grid import Grid
from parallel.parameter import ParameterBuffer, Record

DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def sum_of(weights):
    return int(checksum._checksum(weights)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
def test_every_flipped_bit_changes_it(dtype, data):
    weights = torch.randn(7, 11).to(dtype)
    before = sum_of(weights)
    bits = weights.view(-1).view(checksum.BITS[dtype.itemsize])
    element, bit = data.draw(st.integers(0, 76)), data.draw(st.integers(0, 8 * dtype.itemsize - 2))
    bits[element] ^= 1 << bit
    assert sum_of(weights) != before
    bits[element] ^= 1 << bit
    assert sum_of(weights) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sign_and_the_place_count(dtype):
    weights = torch.randn(40).to(dtype)
    negated, swapped = weights.clone(), weights.clone()
    negated[39] = -negated[39]
    swapped[[3, 8]] = weights[[8, 3]]
    assert len({sum_of(weights), sum_of(negated), sum_of(swapped)}) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_do_not_matter(dtype, monkeypatch):
    weights = torch.randn(13, 17).to(dtype)
    before = sum_of(weights)
    monkeypatch.setattr(checksum, "PIECE", 10)
    assert sum_of(weights) == before
    weights[12, 16], weights[0, 0] = float("nan"), float("inf")
    assert int(checksum._checksum(weights)[1]) == 2


def test_weights_that_are_not_finite_are_counted():
    buffer = ParameterBuffer()
    buffer.add(Record("w", (5, 4), (0, 0), (5, 4), True), bucket="block 0")
    buffer.allocate(torch.bfloat16, "cpu", gradients=False)
    checksum.check_weights(buffer, Grid.single(), 3)
    buffer.data[2:5] = float("nan")
    with pytest.raises(ValueError, match="step 3: 3 weights are not finite, nothing is saved"):
        checksum.check_weights(buffer, Grid.single(), 3)
