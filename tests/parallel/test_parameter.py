"""Rectangles of flat ranges, and views over adjacent parameters."""

import numpy as np
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
    buffer.add(record("norm", 5, decay=False))
    fused = buffer.add(record("q", 4, 6), record("k", 2, 6), record("v", 2, 6))
    buffer.allocate(torch.bfloat16, "cpu", gradients=True, multiple=7)
    assert buffer.length % (7 * ALIGNMENT) == 0
    assert fused.parameters[0].start % ALIGNMENT == 0
    for number, parameter in enumerate(fused.parameters):
        parameter.data.fill_(number)
        parameter.main_grad.fill_(number)
    expected = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    assert torch.equal(fused.data[:, 0].long(), expected)
    assert torch.equal(fused.main_grad[:, 5].long(), expected)
    assert fused.main_grad.dtype == torch.float32
    assert buffer.data.count_nonzero() == fused.data.count_nonzero()
