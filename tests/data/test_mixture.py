"""Shares and the blend: exact arithmetic, so properties are checked on any shares and any sample number."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import ONE, Blend, divide

weights = st.lists(st.integers(1, 10**6), min_size=1, max_size=12)


def blend_of(parts):
    return Blend([Fraction(part, sum(parts)) for part in parts])


def bound(sources):
    """The largest difference from the share that the docstring of Blend promises."""
    return (1 + sum(Fraction(1, k) for k in range(1, sources - 1))) / 2


@settings(max_examples=200, deadline=None)
@given(parts=weights, start=st.integers(0, 10**12), length=st.integers(1, 50))
def test_locate_counts_earlier_samples_of_the_same_source(parts, start, length):
    blend = blend_of(parts)
    counts = blend.count(start)
    assert sum(counts) == start
    for number in range(start, start + length):
        source, earlier = blend.locate(number)
        assert earlier == counts[source]
        counts[source] += 1
    assert counts == blend.count(start + length)


@settings(max_examples=200, deadline=None)
@given(parts=weights, samples=st.integers(0, 10**12))
def test_every_source_has_its_share_at_every_moment(parts, samples):
    blend = blend_of(parts)
    assert sum(blend.weights) == ONE
    for count, weight in zip(blend.count(samples), blend.weights, strict=True):
        assert abs(count - Fraction(samples * weight, ONE)) <= bound(len(parts))


@settings(max_examples=200, deadline=None)
@given(parts=weights)
def test_weights_are_the_shares_to_within_rounding(parts):
    for weight, part in zip(blend_of(parts).weights, parts, strict=True):
        assert abs(weight - Fraction(part, sum(parts)) * ONE) < len(parts)
        assert weight > 0


def test_tiny_shares_are_not_lost_and_zero_is_never_taken():
    tiny = Fraction(1, 10**12)
    blend = Blend([tiny, Fraction(0), 1 - tiny])
    assert blend.weights == [1, 0, ONE - 1]
    assert blend.count(ONE) == [1, 0, ONE - 1]
    sequence = [Blend([Fraction(1, 2), Fraction(0), Fraction(1, 2)]).locate(n)[0] for n in range(100)]
    assert sorted(set(sequence)) == [0, 2]


def test_sources_take_turns():
    sequence = [Blend([Fraction(1, 4), Fraction(3, 4)]).locate(number)[0] for number in range(400)]
    for start in range(0, 400, 4):
        assert sum(source == 0 for source in sequence[start : start + 4]) == 1


@pytest.mark.parametrize(
    ("shares", "tokens", "expected"),
    [
        ([None, None], [30, 10], [Fraction(3, 4), Fraction(1, 4)]),
        ([0.5, None, None], [1, 30, 10], [Fraction(1, 2), Fraction(3, 8), Fraction(1, 8)]),
        ([0.25, 0.75], [5, 5], [Fraction(1, 4), Fraction(3, 4)]),
        ([None, None], [10, 0], [1, 0]),
        ([1.0, None], [10, 0], [1, 0]),
    ],
)
def test_divide(shares, tokens, expected):
    assert divide(shares, tokens, ["a", "b", "c"][: len(shares)]) == expected


def test_shares_given_in_decimals_sum_to_exactly_one():
    assert sum(divide([0.1, 0.2, 0.7], [1, 1, 1], ["a", "b", "c"])) == 1


@pytest.mark.parametrize(
    ("shares", "tokens", "message"),
    [
        ([0.5, 0.4], [1, 1], r"sum to 0\.9; make them sum to 1"),
        ([0.7, 0.4], [1, 1], r"sum to 1\.1"),
        ([1.0, None], [1, 1], "leaves nothing"),
        ([0.0, None], [1, 1], "a=0: a share is a fraction"),
        ([1.5, None], [1, 1], r"a=1\.5: a share is a fraction"),
        ([float("nan"), None], [1, 1], "a=nan: a share is a fraction"),
        ([0.5, None], [0, 1], r"a=0\.5: there are no training tokens"),
        ([None, None], [0, 0], "no training tokens"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, tokens, message):
    with pytest.raises(ValueError, match=message):
        divide(shares, tokens, ["a", "b"])
