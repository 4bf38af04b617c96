"""Predictions on disk, the report's numbers and its comparison with a baseline."""

import json

import pytest

from data.questions import Question
from evaluation.picture import draw_scores
from evaluation.predictions import decide, generated, read_predictions, scored, write_predictions
from evaluation.report import make_report, markdown, table, write_report

RUN = {"model": "m", "mode": "sc-cot", "shots": 0, "seed": 1, "limit": None}
OPTIONS = {"A": "alpha", "B": "beta"}


def question(number, gold="A", benchmark="medqa4", subject=None):
    return Question(f"{benchmark}:{number}", benchmark, subject, "Which?", "", OPTIONS, gold)


def answered(number, *letters, gold="A", cut=None, subject=None):
    texts = [f"The answer is: {letter}" if letter else "It depends." for letter in letters]
    return generated(question(number, gold, subject=subject), "prompt", cut, texts)


def test_report_counts_what_was_right_unparsed_and_cut():
    rows = [
        answered(0, "A", "A", None, subject="x"),
        answered(1, "B", None, None, subject="x", cut="shots"),
        answered(2, None, None, None, gold="B", subject="y", cut="shots"),
        answered(3, "B", "A", "B", gold="B", subject="y"),
    ]
    score = make_report(RUN, rows).benchmarks["medqa4"]
    assert (score.n, score.correct, score.accuracy, score.floor) == (4, 2, 0.5, 0.5)
    assert score.unparsed == 6 / 12
    assert score.cut == {"shots": 2}
    assert score.subjects == {"x": {"n": 2, "accuracy": 0.5}, "y": {"n": 2, "accuracy": 0.5}}
    assert score.interval == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert rows[2].prediction is None
    assert not rows[2].correct


def test_unparsed_answers_never_win_the_vote():
    row = answered(0, None, None, None, None, "A")
    assert (row.prediction, row.votes, row.parsed) == ("A", {"A": 1}, [None, None, None, None, "A"])


def test_best_option_is_the_most_probable_one():
    assert scored(question(0), "p", None, [-3.0, -2.0]).prediction == "B"
    assert scored(question(0), "p", None, [-2.0, -2.0]).prediction == "A"
    with pytest.raises(ValueError, match="no usable log-probabilities"):
        scored(question(0), "p", None, [float("nan"), -2.0])


def test_predictions_survive_the_disk_and_are_decided_again(tmp_path):
    rows = [answered(0, "A", None), scored(question(1), "p \u2028 q", "context", [-1.5, -0.25])]
    write_predictions(tmp_path / "predictions.jsonl", rows)
    again = read_predictions(tmp_path / "predictions.jsonl")
    assert again == rows
    assert [decide(row) for row in again] == rows
    keys = set(json.loads((tmp_path / "predictions.jsonl").read_text().split("\n")[0]))
    assert keys >= {"id", "benchmark", "subject", "prompt", "gold", "prediction", "correct", "option_logprobs",
                    "generations", "votes", "parsed"}  # fmt: skip


@pytest.mark.parametrize("content", ['{"id": "x"}\n', "not json\n", "[1]\n", ""])
def test_files_that_are_not_predictions_are_refused(tmp_path, content):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"predictions\.jsonl: (line 1: not a prediction|the file is empty)"):
        read_predictions(path)


def test_baseline_is_compared_question_by_question():
    before = [answered(i, "A" if i < 2 else "B") for i in range(10)]
    after = [answered(i, "A" if i != 0 else "B") for i in range(10)]
    report = make_report(RUN, after, before)
    baseline = report.benchmarks["medqa4"].baseline
    assert baseline.accuracy == 0.2
    assert (baseline.test.gained, baseline.test.lost) == (8, 1)
    assert baseline.test.exact_p == pytest.approx(20 / 512)
    lines = table(report).splitlines()
    assert "base" in lines[0]
    assert "continued" in lines[0]
    assert "20.0% [5.7%, 51.0%]" in lines[2]
    assert "90.0% [59.6%, 98.2%]" in lines[2]
    assert "8 questions gained and 1 lost" in markdown(report)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([answered(0, "A")], "not asked the same questions of medqa4"),
        ([answered(0, "A"), answered(1, "A", gold="B")], "other options"),
    ],
)
def test_baseline_of_other_questions_is_refused(before, message):
    with pytest.raises(ValueError, match=message):
        make_report(RUN, [answered(0, "A"), answered(1, "A")], before)


def test_published_figures_appear_beside_the_full_test_set_only():
    rows = [answered(number, "A") for number in range(1273)]
    full, part = make_report(RUN, rows), make_report(RUN, rows[:-1])
    assert "70.2% (sc-cot)" in table(full)
    assert "| medqa4 | MEDITRON-70B | sc-cot | 70.2 |" in markdown(full)
    assert "70.2" not in table(part) + markdown(part)
    assert part.benchmarks["medqa4"].published == []


@pytest.mark.parametrize(
    ("benchmark", "count", "shots", "figure"),
    [
        ("medqa4", 1273, 0, "52.0% (fine-tuned)"),
        ("medqa4", 1273, 3, "37.4% (few-shot)"),
        ("truthfulqa-medical", 99, 0, "28.3% (few-shot)"),
    ],
)
def test_published_figures_are_those_of_the_same_kind_of_answer(benchmark, count, shots, figure):
    rows = [scored(question(number, benchmark=benchmark), "p", None, [-1.0, -2.0]) for number in range(count)]
    assert figure in table(make_report(RUN | {"mode": "letter", "shots": shots}, rows))


def test_files_of_the_report(tmp_path):
    rows = [answered(i, "A" if i % 2 else None) for i in range(1273)]
    report = make_report(RUN, rows, [answered(i, None) for i in range(1273)])
    write_report(report, tmp_path)
    draw_scores(report, tmp_path / "scores.png")
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["run"] == RUN
    assert values["benchmarks"]["medqa4"]["correct"] == 636
    assert values["benchmarks"]["medqa4"]["baseline"]["test"]["gained"] == 636
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "![scores](scores.png)" in (tmp_path / "report.md").read_text()
