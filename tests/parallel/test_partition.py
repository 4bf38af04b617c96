"""Layers are split as evenly as any split can be."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.partition import partition


def heaviest(counts, first_extra, last_extra):
    loads = list(counts)
    loads[0] += first_extra
    loads[-1] += last_extra
    return max(loads)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 6), st.integers(0, 7), st.floats(0, 4), st.floats(0, 4))
def test_no_other_split_is_lighter(parts, more_layers, first_extra, last_extra):
    num_layers = parts + more_layers
    ranges = partition(num_layers, parts, first_extra, last_extra)
    assert [layer for part in ranges for layer in part] == list(range(num_layers))
    counts = [len(part) for part in ranges]
    assert min(counts) >= 1
    cuts = itertools.combinations(range(1, num_layers), parts - 1)
    splits = ([b - a for a, b in itertools.pairwise((0, *cut, num_layers))] for cut in cuts)
    best = min(heaviest(split, first_extra, last_extra) for split in splits)
    assert heaviest(counts, first_extra, last_extra) == best
    assert partition(num_layers, parts, first_extra, last_extra) == ranges


@pytest.mark.parametrize(
    ("num_layers", "parts", "first_extra", "last_extra", "counts"),
    [
        (32, 8, 0, 0, [4] * 8),
        (80, 8, 1, 1, [9, 10, 10, 10, 10, 10, 11, 10]),
        (10, 4, 0, 0, [2, 2, 3, 3]),  # the early stages hold more micro-batches
        (9, 4, 0, 1.5, [2, 3, 3, 1]),
        (5, 1, 1, 1, [5]),
        (7, 2, 0, 3, [5, 2]),
        (3, 3, 9, 9, [1, 1, 1]),
    ],
)
def test_examples(num_layers, parts, first_extra, last_extra, counts):
    assert [len(part) for part in partition(num_layers, parts, first_extra, last_extra)] == counts


def test_fewer_layers_than_parts():
    with pytest.raises(ValueError, match=r"4 layers .* 6 .*--pp .*--chunks"):
        partition(4, 6)
