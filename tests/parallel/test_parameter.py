"""Rectangles of flat ranges, and views over adjacent parameters."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.parameter import ALIGNMENT, ParameterBuffer, Record, rectangles


def record(name, *shape, decay=True):
    return Record(name, shape, (0,) * len(shape), shape, weight_decay=decay)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_rectangles_cover_a_range_once(rows, columns, data):
    start = data.draw(st.integers(0, rows * columns))
    end = data.draw(st.integers(start, rows * columns))
    pieces = rectangles(record("w", rows, columns), start, end)
    assert len(pieces) <= 3
    values = np.arange(rows * columns).reshape(rows, columns)
    covered = [values[r : r + h, c : c + w].ravel() for _, (r, c), (h, w) in pieces]
    assert np.array_equal(np.concatenate([*covered, []]), np.arange(start, end))
    assert [first for first, _, _ in pieces] == [piece[0] for piece in covered]


@given(st.integers(1, 20), st.data())
def test_rectangles_of_a_vector(length, data):
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    local = Record("w", (100,), (10,), (length,), weight_decay=False)
    assert rectangles(local, start, end) == [(start, (10 + start,), (end - start,))]


def test_adjacent_parameters_are_one_matrix():
    buffer = ParameterBuffer()
    buffer.add(record("norm", 5, decay=False), bucket="norms")
    fused = buffer.add(record("q", 4, 6), record("k", 2, 6), record("v", 2, 6), bucket="block 0")
    late = buffer.add(record("norm 2", 5, decay=False), bucket="norms")
    buffer.allocate(torch.bfloat16, "cpu", gradients=True, multiple=7)
    norms, block = buffer.buckets
    assert (norms.start, norms.end) == (0, block.start)
    assert block.end == buffer.length
    assert (norms.end - norms.start) % (7 * ALIGNMENT) == (block.end - block.start) % (7 * ALIGNMENT) == 0
    assert late.parameters[0].start == ALIGNMENT
    assert fused.parameters[0].start % ALIGNMENT == 0
    for number, parameter in enumerate(fused.parameters):
        parameter.data.fill_(number)
        parameter.main_grad.fill_(number)
    expected = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    assert torch.equal(fused.data[:, 0].long(), expected)
    assert torch.equal(fused.main_grad[:, 5].long(), expected)
    assert fused.main_grad.dtype == torch.float32
    assert buffer.data.count_nonzero() == fused.data.count_nonzero()


def test_padding_rows_are_part_of_the_matrix_and_of_no_parameter():
    buffer = ParameterBuffer()
    padded = dataclasses.replace(record("head", 3, 4), padding=5)
    head, other = buffer.add(padded, bucket="head"), buffer.add(record("norm", 4), bucket="head")
    buffer.allocate(torch.float64, "cpu", gradients=True)
    assert head.data.shape == (8, 4)
    assert head.parameters[0].data.shape == (3, 4)
    head.data[3:] = 1
    other.parameters[0].data.fill_(2)
    assert head.parameters[0].data.count_nonzero() == 0
    assert head.data.sum() == 5 * 4


def test_a_bucket_completes_with_its_last_gradient():
    buffer = ParameterBuffer()
    a, b = (buffer.add(record(name, 2, 2), bucket="block 0") for name in "ab")
    tied = buffer.add(record("embedding", 2, 2), bucket="embedding")
    tied.uses = 2
    buffer.allocate(torch.float64, "cpu", gradients=True)
    complete = []
    buffer.gradients.on_complete = lambda bucket: complete.append(bucket.name)
    x = torch.ones(3, 2, dtype=torch.float64)
    buffer.begin_step(micro_batches=2)
    for _ in range(3):
        tied.add_gradient(x, x)
    a.add_gradient(x, x)
    a.add_gradient(x, x)
    b.added()
    assert complete == []
    b.added()
    tied.added()
    assert complete == ["block 0", "embedding"]
    assert torch.equal(a.main_grad, torch.full((2, 2), 6.0, dtype=torch.float64))
    with pytest.raises(AssertionError, match="more gradients than announced in bucket block 0"):
        a.added()
