"""The mixture of sources: which share of the tokens each has, and which source the n-th sample comes from."""

from collections.abc import Sequence
from fractions import Fraction

ONE = 1 << 32  # weights are integers out of this: shares are kept to 2.3e-10, and all arithmetic on them is exact


def divide(shares: Sequence[float | None], tokens: Sequence[int], names: Sequence[str]) -> list[Fraction]:
    """The share of the tokens that each folder gets.

    Args:
        shares: what was asked for; None takes part, by its token count, in what the others leave.
        tokens: training tokens of each folder.
        names: folders, for messages.

    Returns:
        Shares that sum to exactly 1.

    Raises:
        ValueError: a share outside (0, 1], shares that leave nothing or do not sum to 1, or a folder without tokens.
    """
    for name, share, count in zip(names, shares, tokens, strict=True):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name}={share:g}: a share is a fraction of the tokens, more than 0 and at most 1")
        if share is not None and not count:
            raise ValueError(f"{name}={share:g}: there are no training tokens in it to take a share of")
    given = sum(Fraction(share) for share in shares if share is not None)
    rest = sum(count for share, count in zip(shares, tokens, strict=True) if share is None)
    if not given and not rest:
        raise ValueError(f"{', '.join(names)}: no training tokens")
    if not rest:
        if abs(given - 1) > 1e-6:
            raise ValueError(f"the shares sum to {float(given):g}; make them sum to 1 or leave one out")
        return [Fraction(share or 0) / given for share in shares]
    if given >= 1:
        raise ValueError(
            f"the given shares sum to {float(given):g}, which leaves nothing for the folders without one; "
            "make them sum to less than 1, or give every folder a share"
        )
    return [
        Fraction(count, rest) * (1 - given) if share is None else Fraction(share)
        for share, count in zip(shares, tokens, strict=True)
    ]


class Blend:
    """The order in which sources take turns: pure functions of the sample number, so nothing is stored or replayed.

    Sources are walked from the heaviest to the lightest. Of the first m slots that the earlier sources left, a source
    of weight a, out of the weight R that is left, takes round(m a / R): the slots where this number grows. The rest
    is passed on. (For one source against the rest this is Bresenham's line.)

    The count of a source in the first n samples differs from n * weight / 2**32 by at most (1 + H(K - 2)) / 2 for K
    sources, H(k) = 1 + 1/2 + ... + 1/k: each source but the last rounds by at most 1/2, and the error of an earlier
    source reaches a later one in proportion to its part of what is left. That is 1/2 for two sources, 1 for three and
    less than 2 for ten.
    """

    def __init__(self, shares: Sequence[Fraction]):
        """Args: shares that sum to 1; a share of 0 is never taken."""
        self.weights = _integer_weights(shares)
        self._walk = []  # (source, weight, weight left for it and all lighter ones)
        left = ONE
        for source in sorted(range(len(shares)), key=lambda source: (-self.weights[source], source)):
            self._walk.append((source, self.weights[source], left))
            left -= self.weights[source]

    def locate(self, number: int) -> tuple[int, int]:
        """(source of a sample, how many earlier samples came from the same source)."""
        assert number >= 0, f"sample number {number}"
        for source, weight, left in self._walk:
            before = _rounded(number * weight, left)
            if _rounded((number + 1) * weight, left) > before:
                return source, before
            number -= before
        raise AssertionError("the last source takes every slot that is left")

    def count(self, samples: int) -> list[int]:
        """How many of the first `samples` samples come from each source."""
        counts = [0] * len(self.weights)
        for source, weight, left in self._walk:
            if weight:
                counts[source] = _rounded(samples * weight, left)
                samples -= counts[source]
        return counts


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _integer_weights(shares: Sequence[Fraction]) -> list[int]:
    """Shares as integers that sum to ONE, by largest remainder; a positive share gets at least 1."""
    assert sum(shares) == 1, f"shares sum to {float(sum(shares))}"
    weights = [max(int(share * ONE), share > 0) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda source: weights[source] - shares[source] * ONE)
    short = ONE - sum(weights)
    for step in range(abs(short)):
        source = by_remainder[step] if short > 0 else max(range(len(weights)), key=weights.__getitem__)
        weights[source] += 1 if short > 0 else -1
    return weights
