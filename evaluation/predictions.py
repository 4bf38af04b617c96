"""Predictions: one line a question in `predictions.jsonl`, with all that is needed to decide the answer again."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from data.questions import Question
from evaluation.answers import extract_answer, majority


@dataclass(frozen=True)
class Prediction:
    """What the model said to one question and how it was read. Letters are keys of `options`.

    Scored options fill `option_logprobs`; generated answers fill `generations` (their texts), `parsed` (the answer of
    each, None where it states none) and `votes`. `prediction` is None where nothing could be read: counted as wrong.
    `cut` says what of the prompt was cut to the model's context: None, `shots`, `context` or `question`.
    """

    id: str
    benchmark: str
    subject: str | None
    prompt: str
    options: dict[str, str]
    gold: str
    cut: str | None
    option_logprobs: dict[str, float] = field(default_factory=dict)
    generations: list[str] = field(default_factory=list)
    parsed: list[str | None] = field(default_factory=list)
    votes: dict[str, int] = field(default_factory=dict)
    prediction: str | None = None
    correct: bool = False


def decide(prediction: Prediction) -> Prediction:
    """The same prediction with `parsed`, `votes`, `prediction` and `correct` made from its log-probabilities or texts.

    The most probable option is taken, the first of equals; NaN log-probabilities are a ValueError.
    """
    if prediction.generations:
        parsed = [extract_answer(text, prediction.options) for text in prediction.generations]
        answer, votes = majority(parsed)
    else:
        scores, parsed, votes = prediction.option_logprobs, [], {}
        if not scores or any(math.isnan(score) for score in scores.values()):
            raise ValueError(f"question {prediction.id}: no usable log-probabilities {scores}; is the model damaged?")
        answer = max(scores, key=lambda letter: scores[letter])
    return replace(prediction, parsed=parsed, votes=votes, prediction=answer, correct=answer == prediction.gold)


def scored(question: Question, prompt: str, cut: str | None, logprobs: Iterable[float]) -> Prediction:
    """The decided prediction of a question whose options were scored, in the order of its letters."""
    values = dict(zip(question.options, logprobs, strict=True))
    return decide(_undecided(question, prompt, cut, option_logprobs=values))


def generated(question: Question, prompt: str, cut: str | None, texts: list[str]) -> Prediction:
    """The decided prediction of a question that was answered by generated texts."""
    return decide(_undecided(question, prompt, cut, generations=texts))


def _undecided(question: Question, prompt: str, cut: str | None, **made) -> Prediction:
    return Prediction(
        question.id, question.benchmark, question.subject, prompt, question.options, question.gold, cut, **made
    )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write all predictions, a JSON object a line; the file exists whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions of a `predictions.jsonl`; ValueError names file, line and remedy where it is not one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the folder that an earlier eval.py --out wrote")
    known = {f.name for f in fields(Prediction)}
    predictions = []
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty. Run eval.py again")
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            predictions.append(Prediction(**{key: value for key, value in json.loads(line).items() if key in known}))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: line {number}: not a prediction ({error}). Run eval.py again") from error
    return predictions
