"""Intervals and paired tests of benchmark scores."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, JASA 22, 1927): never outside [0, 1] and sound for small counts.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile of (1 + confidence) / 2.
    """
    assert 0 <= correct <= total and total > 0, (correct, total)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # The interval holds the share itself; at 0 and 1 rounding would leave it outside by 1e-17.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same questions. `gained`: only the new one is right; `lost`: only the baseline is right."""

    gained: int
    lost: int
    exact_p: float
    mid_p: float


def mcnemar(baseline: Sequence[bool], new: Sequence[bool]) -> PairedTest:
    """McNemar's test on paired right/wrong answers: two-sided exact binomial and mid-p values.

    Under the null hypothesis `gained` is Binomial(gained + lost, 1/2). The exact test doubles the smaller tail; mid-p
    counts half of the observed outcome's probability and is less conservative (Fagerland, Lydersen and Laake, BMC
    Medical Research Methodology 13:91, 2013).
    """
    pairs = list(zip(baseline, new, strict=True))
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    n, smaller = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(smaller + 1))
    exact = min(1.0, 2 * tail / 2**n)  # integers until here: no overflow or rounding for thousands of questions
    mid = 1.0 if gained == lost else (2 * tail - math.comb(n, smaller)) / 2**n
    return PairedTest(gained, lost, exact, mid)


def majority_floor(gold: Sequence[str]) -> float:
    """Accuracy of always giving the most frequent gold letter: what a model without knowledge can reach."""
    return max(Counter(gold).values()) / len(gold)
