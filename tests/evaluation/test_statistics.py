"""Intervals and tests against published values and independent computation."""

from math import comb

import pytest

from data.benchmarks import read_benchmark
from evaluation.published import SCORES, published_scores
from evaluation.statistics import majority_floor, mcnemar, wilson_interval


# Newcombe, Statistics in Medicine 17:857-872 (1998), table I, method 3 (score, no continuity correction).
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_newcombes_table(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("accuracy", "total", "half"), [(0.644, 1273, 0.027), (0.66, 4183, 0.015), (0.816, 500, 0.034)]
)
def test_wilson_half_widths_of_the_published_scores(accuracy, total, half):
    low, high = wilson_interval(round(accuracy * total), total)
    assert (high - low) / 2 == pytest.approx(half, abs=2e-3)


def test_wilson_interval_is_symmetric_and_stays_in_range():
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


def pairs(gained, lost, both=7):
    return [False] * gained + [True] * lost + [True] * both, [True] * gained + [False] * lost + [True] * both


@pytest.mark.parametrize(("gained", "lost"), [(8, 1), (1, 8), (0, 0), (5, 5), (12, 4), (300, 240)])
def test_mcnemar_equals_the_sum_over_all_outcomes(gained, lost):
    test = mcnemar(*pairs(gained, lost))
    n, observed = gained + lost, min(gained, lost)
    as_extreme = [k for k in range(n + 1) if min(k, n - k) <= observed]
    exact = sum(comb(n, k) for k in as_extreme) / 2**n
    assert (test.gained, test.lost) == (gained, lost)
    assert test.exact_p == pytest.approx(exact)
    at_observed = sum(comb(n, k) for k in as_extreme if min(k, n - k) == observed) / 2**n
    assert test.mid_p == pytest.approx(exact - at_observed / 2 if gained != lost else 1.0)


def test_mcnemar_equals_the_published_example():
    # Fagerland et al. 2013, table 1 (airway hyper-responsiveness): 1 against 7 discordant pairs.
    test = mcnemar(*pairs(7, 1, both=13))
    assert (test.exact_p, test.mid_p) == pytest.approx((0.0703, 0.0391), abs=5e-5)


@pytest.mark.parametrize(
    ("name", "folder", "floor"),
    [
        ("medqa4", "medqa", 27.7),
        ("medmcqa", "medmcqa", 32.2),
        ("mmlu-medical", "mmlu", 30.6),
        ("pubmedqa", "pubmedqa", 55.2),
    ],
)
def test_majority_floors_of_the_real_benchmarks(assets, name, folder, floor):
    questions = read_benchmark(name, assets / "eval" / folder)
    assert 100 * majority_floor([question.gold for question in questions]) == pytest.approx(floor, abs=0.05)


def test_published_scores_stand_only_beside_the_full_test_set():
    assert published_scores("medqa4", 100) == []
    assert published_scores("mcq", 1273) == []
    found = {(score.model, score.mode): score.accuracy for score in published_scores("medqa", 1273)}
    assert found["MEDITRON-70B", "sc-cot"] == 64.4
    assert found["MEDITRON-7B", "few-shot"] == 28.7
    assert len({(score.model, score.mode, score.benchmark) for score in SCORES}) == len(SCORES)
