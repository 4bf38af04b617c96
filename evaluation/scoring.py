"""Log-probabilities of answer options, computed in packed batches.

Two rules, both on the token sequence of prompt and option encoded together, as the model would read it:

letter  log p of the option's letter (of `yes`, `no`, `maybe` for PubMedQA) after `The answer is:`. Tokenizers write a
        letter behind a space as one piece, as a space and a letter, or merged with the prompt's end; so only the ids
        in which the options' sequences differ are scored, from the end of their common prefix. That is the
        `acc` rule of lm-evaluation-harness.
text    log p of the option's text after the question alone, divided by the number of its ids; without the division
        short options would win.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.prompts import FittedPrompt
from kernels.documents import Documents
from model.llama import Llama

LOGIT_ROWS = 512
"""Rows of the vocabulary matrix computed at a time: 512 rows of 128,256 logits are 263 MB in float32."""


@dataclass(frozen=True)
class Target:
    """One sequence of ids (BOS first) of which the ids from `start` on are scored."""

    ids: list[int]
    start: int


def letter_targets(fitted: FittedPrompt) -> list[Target]:
    """Targets of the letter rule: all start where the options' sequences begin to differ."""
    sequences = fitted.with_continuation
    start = min(common_prefix(sequences[0], ids) for ids in sequences[1:])
    # An option that is the beginning of another one still needs an id to be scored.
    start = min(start, min(len(ids) for ids in sequences) - 1)
    return [Target(ids, start) for ids in sequences]


def text_targets(fitted: FittedPrompt) -> list[Target]:
    """Targets of the text rule: each starts where its sequence leaves that of the prompt."""
    return [Target(ids, min(common_prefix(fitted.ids, ids), len(ids) - 1)) for ids in fitted.with_continuation]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that two sequences share."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@torch.inference_mode()
def log_probabilities(
    model: Llama, questions: Sequence[Sequence[Target]], batch_tokens: int, progress: Callable[[int], object]
) -> list[list[float]]:
    """Sum of log p(ids[t] | ids[:t]) over t >= start, natural logarithm, for every target of every question.

    A sequence that begins another one of its question is not computed twice (four letters share one pass). Sequences
    are packed end to end, up to `batch_tokens` ids a pass. `progress(n)` is told of n more finished questions.
    """
    results = [[0.0] * len(targets) for targets in questions]
    readings = [_Reading(question, ids, readers) for question, targets in enumerate(questions)
                for ids, readers in _shared(targets)]  # fmt: skip
    waiting = [0] * len(questions)
    for reading in readings:
        waiting[reading.question] += 1
    readings.sort(key=lambda reading: -len(reading.ids))  # like lengths together; the largest pass comes first
    for batch in _batches(readings, batch_tokens):
        rows = _next_token_rows(model, batch, questions)
        for reading, values in zip(batch, rows, strict=True):
            for target, value in zip(reading.targets, values, strict=True):
                results[reading.question][target] = value
            waiting[reading.question] -= 1
        progress(sum(waiting[question] == 0 for question in {reading.question for reading in batch}))
    return results


@dataclass(frozen=True)
class _Reading:
    """One sequence to run through the model, and the targets (their places in the question) that it serves."""

    question: int
    ids: tuple[int, ...]
    targets: list[int]


def _shared(targets: Sequence[Target]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The distinct inputs of a question's targets; one that begins another is served by that."""
    inputs = sorted((tuple(target.ids[:-1]), place) for place, target in enumerate(targets))
    served: list[int] = []
    for (ids, place), following in zip(inputs, [*inputs[1:], ((), -1)], strict=True):
        served.append(place)
        if following[0][: len(ids)] != ids:  # sorted: whatever begins with `ids` would come next
            yield ids, served
            served = []


def _batches(readings: Sequence[_Reading], batch_tokens: int) -> Iterator[list[_Reading]]:
    batch: list[_Reading] = []
    size = 0
    for reading in readings:
        if batch and size + len(reading.ids) > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(reading)
        size += len(reading.ids)
    if batch:
        yield batch


def _next_token_rows(
    model: Llama, batch: Sequence[_Reading], questions: Sequence[Sequence[Target]]
) -> list[list[float]]:
    """The summed log-probabilities of each reading's targets, from one pass."""
    bounds = np.cumsum([0, *(len(reading.ids) for reading in batch)])
    tokens = torch.tensor([token for reading in batch for token in reading.ids], dtype=torch.int64, device=model.device)
    hidden = model.hidden(tokens, Documents.build(bounds, model.device, window=model.config.sliding_window))
    rows, wanted, counts = [], [], []
    for begin, reading in zip(bounds.tolist(), batch, strict=False):
        for place in reading.targets:
            target = questions[reading.question][place]
            rows += range(begin + target.start - 1, begin + len(target.ids) - 1)
            wanted += target.ids[target.start :]
            counts.append(len(target.ids) - target.start)
    values = _chosen_log_softmax(model, hidden, rows, wanted)
    sums = iter(part.sum().item() for part in values.split(counts))
    return [[next(sums) for _ in reading.targets] for reading in batch]


def _chosen_log_softmax(model: Llama, hidden: torch.Tensor, rows: list[int], wanted: list[int]) -> torch.Tensor:
    """log p of id `wanted[i]` at row `rows[i]` of `hidden`, float64 [rows] on the CPU."""
    device = hidden.device
    parts = []
    for begin in range(0, len(rows), LOGIT_ROWS):
        chosen = torch.tensor(rows[begin : begin + LOGIT_ROWS], device=device)
        ids = torch.tensor(wanted[begin : begin + LOGIT_ROWS], device=device)
        logits = model.logits(hidden[chosen]).float()  # [rows, vocab]
        parts.append(logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    return torch.cat(parts).double().cpu()
