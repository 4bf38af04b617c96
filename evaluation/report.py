"""The report of an evaluation: `report.json`, `report.md` and the table printed at the end."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.questions import Question
from evaluation.predictions import Prediction
from evaluation.published import published_scores
from evaluation.statistics import PairedTest, majority_floor, mcnemar, wilson_interval

PRINTED_MODELS = ("MEDITRON-7B", "MEDITRON-70B")


@dataclass(frozen=True)
class Baseline:
    """The baseline's score on the same questions, and the paired test against it."""

    accuracy: float
    interval: tuple[float, float]
    unparsed: float
    test: PairedTest


@dataclass(frozen=True)
class Score:
    """One benchmark's result. All shares are in [0, 1]; intervals are Wilson's at 95 %; `published` is in percent."""

    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    unparsed: float
    floor: float
    cut: dict[str, int]
    subjects: dict[str, dict[str, float]]
    published: list[dict[str, str | float]] = field(default_factory=list)
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Report:
    """`run` says what was scored and how: model, mode (`letter`, `text`, `cot`, `sc-cot`), shots, seed, ..."""

    run: dict[str, object]
    benchmarks: dict[str, Score]


def make_report(
    run: dict[str, object], predictions: Sequence[Prediction], baseline: Sequence[Prediction] | None = None
) -> Report:
    """Scores per benchmark, in order of first appearance; with `baseline` (predictions of the same questions) also the
    paired comparison. ValueError where the baseline was not asked exactly these questions."""
    by_benchmark: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_benchmark.setdefault(prediction.benchmark, []).append(prediction)
    before = {prediction.id: prediction for prediction in baseline} if baseline is not None else None
    return Report(run, {name: _score(name, rows, before) for name, rows in by_benchmark.items()})


def _score(name: str, rows: Sequence[Prediction], before: dict[str, Prediction] | None) -> Score:
    n, correct = len(rows), sum(row.correct for row in rows)
    by_subject: dict[str, list[bool]] = {}
    for row in rows:
        if row.subject is not None:
            by_subject.setdefault(row.subject, []).append(row.correct)
    return Score(
        n=n,
        correct=correct,
        accuracy=correct / n,
        interval=wilson_interval(correct, n),
        unparsed=_unparsed(rows),
        floor=majority_floor([row.gold for row in rows]),
        cut=dict(Counter(row.cut for row in rows if row.cut)),
        subjects={s: {"n": len(right), "accuracy": sum(right) / len(right)} for s, right in sorted(by_subject.items())},
        published=[asdict(score) for score in published_scores(name, n)],
        baseline=_compare(name, rows, before) if before is not None else None,
    )


def _compare(name: str, rows: Sequence[Prediction], before: dict[str, Prediction]) -> Baseline:
    require_same_questions(name, rows, before)
    pairs = [before[row.id] for row in rows]
    correct = sum(row.correct for row in pairs)
    return Baseline(
        accuracy=correct / len(pairs),
        interval=wilson_interval(correct, len(pairs)),
        unparsed=_unparsed(pairs),
        test=mcnemar([row.correct for row in pairs], [row.correct for row in rows]),
    )


def require_same_questions(name: str, asked: Sequence[Prediction | Question], before: dict[str, Prediction]) -> None:
    """ValueError where the predictions `before` (by id) do not answer exactly the questions `asked` of a benchmark."""
    if {row.id for row in asked} != {id for id, row in before.items() if row.benchmark == name}:
        raise ValueError(
            f"--baseline: it was not asked the same questions of {name}. "
            "Score the baseline with the same --benchmark and --limit"
        )
    for row in asked:
        if (row.gold, row.options) != (before[row.id].gold, before[row.id].options):
            raise ValueError(f"--baseline: question {row.id} has other options or another answer. Score it again")


def _unparsed(rows: Sequence[Prediction]) -> float:
    """Share of answers that could not be read: of all generated texts, 0 for scored options."""
    answers = [answer for row in rows for answer in row.parsed]
    return answers.count(None) / len(answers) if answers else 0.0


def table(report: Report) -> str:
    """The result as aligned text: n, accuracy with its interval, unparsed share, floor, published figures.

    Columns that would say nothing are left out: unparsed without generated answers, published without figures.
    """
    with_baseline = any(score.baseline for score in report.benchmarks.values())
    generated = report.run["mode"] in ("cot", "sc-cot")
    header = ["benchmark", "n", *(["base"] if with_baseline else []), "continued" if with_baseline else "accuracy"]
    header += ["mid-p"] if with_baseline else []
    header += ["unparsed", "floor", *(f"published {model}" for model in PRINTED_MODELS)]
    rows = [header]
    for name, score in report.benchmarks.items():
        row = [name, f"{score.n:,}"]
        if with_baseline:
            row.append(_with_interval(score.baseline.accuracy, score.baseline.interval))
        row.append(_with_interval(score.accuracy, score.interval))
        if with_baseline:
            row.append(f"{score.baseline.test.mid_p:.2g}")
        row += [f"{score.unparsed:.1%}" if generated else "-", f"{score.floor:.1%}", *_published_cells(report, score)]
        rows.append(row)
    told = [column for column in range(len(header)) if any(row[column] != "-" for row in rows[1:])]
    rows = [[row[column] for column in told] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _with_interval(accuracy: float, interval: tuple[float, float]) -> str:
    return f"{accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def published_beside(run: dict[str, object], score: Score) -> dict[str, tuple[float, str]]:
    """`{model: (accuracy in percent, mode)}` of `PRINTED_MODELS` for the run's own kind of answer.

    MEDITRON reports top-token answers without shots for fine-tuned models only, and TruthfulQA for few-shot ones only,
    so either stands in for the other.
    """
    if run["mode"] in ("cot", "sc-cot"):
        modes = (run["mode"],)
    else:
        modes = ("few-shot", "fine-tuned") if run["shots"] else ("fine-tuned", "few-shot")
    found: dict[str, tuple[float, str]] = {}
    for mode in modes:
        for row in score.published:
            if row["mode"] == mode and row["model"] in PRINTED_MODELS:
                found.setdefault(row["model"], (row["accuracy"], mode))
    return found


def _published_cells(report: Report, score: Score) -> list[str]:
    found = published_beside(report.run, score)
    return [f"{found[model][0]:.1f}% ({found[model][1]})" if model in found else "-" for model in PRINTED_MODELS]


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.md` into `folder`."""
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    run = ", ".join(f"{key} {value}" for key, value in report.run.items() if value is not None)
    parts = ["# Benchmark scores", run, f"```\n{table(report)}\n```", "![scores](scores.png)", *_notes(report)]
    for name, score in report.benchmarks.items():
        if score.subjects and len(score.subjects) > 1:
            rows = [f"| {subject} | {row['n']} | {row['accuracy']:.1%} |" for subject, row in score.subjects.items()]
            head = ["| subject | n | accuracy |", "|---|---|---|"]
            parts.append(f"## {name} by subject\n\n" + "\n".join([*head, *rows]))
    published = [row for score in report.benchmarks.values() for row in score.published]
    if published:
        rows = [f"| {row['benchmark']} | {row['model']} | {row['mode']} | {row['accuracy']} |" for row in published]
        head = ["| benchmark | model | mode | accuracy, % |", "|---|---|---|---|"]
        source = "From arXiv 2311.16079; `fine-tuned` is top-token after training on the benchmark's training split."
        parts.append(f"## Published\n\n{source}\n\n" + "\n".join([*head, *rows]))
    return "\n\n".join(parts) + "\n"


def _notes(report: Report) -> list[str]:
    lines = [
        "Intervals: Wilson, 95 %. Unparsed: share of generated texts that state no answer (wrong, and without a vote). "
        "Floor: accuracy of always giving the most frequent answer. Published figures stand beside full test sets only."
    ]
    for name, score in report.benchmarks.items():
        if score.cut:
            cut = ", ".join(f"{count:,} lost part of the {what}" for what, count in sorted(score.cut.items()))
            lines.append(f"{name}: of {score.n:,} prompts, cut from the left to fit the model's context, {cut}.")
        if score.baseline:
            test = score.baseline.test
            lines.append(
                f"{name}: {test.gained} questions gained and {test.lost} lost against the baseline, "
                f"McNemar exact p = {test.exact_p:.3g}, mid-p = {test.mid_p:.3g}."
            )
    return lines
