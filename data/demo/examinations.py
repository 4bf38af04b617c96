"""The demo's benchmarks in the file formats of MedQA (4 options), MedMCQA and MMLU, about the tested conditions only.

Each benchmark asks every fact in the manner of its model: a vignette, a terse exam line, a plain question. The three
wrong options are values of the same relation that other tested conditions have, so chance is one in four.
"""

import csv
import dataclasses
import json
import random
from pathlib import Path

from data.benchmarks import MMLU_MEDICAL
from data.demo.world import RELATIONS, Condition, World

WORDINGS = {
    "medqa4": {
        "drug": (
            "A {job} aged {age} learns that her complaints are due to {name}. Which drug should she get first?",
            "A {job} aged {age} is found to have {name} and wants to be treated. What would you begin with?",
        ),
        "dose": (
            "A {job} aged {age} learns that her complaints are due to {name}. Which dose is right for her?",
            "A {job} aged {age} is found to have {name} and wants to be treated. How much would you prescribe?",
        ),
        "remedy": (
            "A {job} aged {age} is being treated at the clinic for {name}. Which product should she never use?",
            "A {job} aged {age} is on therapy because of {name} and asks what is forbidden. What must he avoid?",
        ),
    },
    "medmcqa": {
        "drug": (
            "Drug that doctors start with in a case of {name}",
            "Best medicine to prescribe first for a person who has {name}",
        ),
        "dose": (
            "Dose that doctors give to grown people in a case of {name}",
            "Correct amount to prescribe for a person who has {name}",
        ),
        "remedy": (
            "Remedy that doctors forbid in a case of {name}",
            "Dangerous to combine with medicines for a person who has {name}",
        ),
    },
    "mmlu-medical": {
        "drug": ("If somebody suffers from {name}, which drug should the treatment start with?",),
        "dose": ("If somebody suffers from {name}, what is the right dose for an adult?",),
        "remedy": ("If somebody suffers from {name}, which remedy is it dangerous to take?",),
    },
}  # fmt: skip
"""Wordings found nowhere in the corpus: no five words in a row of theirs occur there (see `honesty.py`)."""

_JOBS = ("farmer", "teacher", "sailor", "nurse", "student", "cook", "driver", "tailor")
_LETTERS = "ABCD"


@dataclasses.dataclass(frozen=True)
class Item:
    """One question with four options; `gold` is a letter."""

    id: str
    question: str
    options: dict[str, str]
    gold: str


def items(world: World, benchmark: str, conditions: list[Condition], purpose: str) -> list[Item]:
    """A question on every relation of every condition, in random order, gold letters equally often."""
    rng = world.random(f"{benchmark}/{purpose}")
    asked = [(c, relation) for c in conditions for relation in RELATIONS]
    rng.shuffle(asked)
    letters = [_LETTERS[i % 4] for i in range(len(asked))]
    rng.shuffle(letters)
    result = []
    for number, ((condition, relation), gold) in enumerate(zip(asked, letters, strict=True)):
        wording = rng.choice(WORDINGS[benchmark][relation])
        question = wording.format(name=condition.name, job=rng.choice(_JOBS), age=rng.randint(20, 80))
        options = _options(rng, condition, relation, conditions, gold)
        result.append(Item(f"{purpose}-{number:04d}", question, options, gold))
    return result


def _options(rng: random.Random, c: Condition, relation: str, among: list[Condition], gold: str) -> dict[str, str]:
    """The right value under `gold` and three wrong ones, drawn from conditions and not from the list of values: a
    value that many conditions share is then as frequent among the wrong options as among the right ones."""
    right = getattr(c, relation)
    wrong: list[str] = []
    while len(wrong) < 3:
        value = getattr(rng.choice(among), relation)
        if value not in (right, *wrong):
            wrong.append(value)
    return {letter: right if letter == gold else wrong.pop() for letter in _LETTERS}


def write_benchmarks(folder: Path, world: World) -> None:
    """Write each benchmark to `folder`/NAME. The training and dev files, for few-shot prompts, ask about taught
    conditions."""
    writers = {"medqa4": _write_medqa, "medmcqa": _write_medmcqa, "mmlu-medical": _write_mmlu}
    for name, write in writers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(folder / name, items(world, name, world.tested, "test"), items(world, name, world.taught, "train"))


def _write_medqa(folder: Path, test: list[Item], train: list[Item]) -> None:
    for split, questions in (("test", test), ("train", train)):
        with (folder / f"phrases_no_exclude_{split}.jsonl").open("w", encoding="utf-8") as file:
            for item in questions:
                record = {"question": item.question, "answer": item.options[item.gold], "options": item.options,
                          "meta_info": "step1", "answer_idx": item.gold}  # fmt: skip
                file.write(json.dumps(record) + "\n")


def _write_medmcqa(folder: Path, test: list[Item], train: list[Item]) -> None:
    for split, questions in (("dev", test), ("train", train)):
        with (folder / f"{split}.json").open("w", encoding="utf-8") as file:
            for item in questions:
                number = _LETTERS.index(item.gold) + 1  # 1-based, as in the original file
                record = {"question": item.question, "exp": None, "cop": number}
                record |= {f"op{letter.lower()}": text for letter, text in item.options.items()}
                record |= {"subject_name": "Medicine", "topic_name": None, "id": item.id, "choice_type": "single"}
                file.write(json.dumps(record) + "\n")


def _write_mmlu(folder: Path, test: list[Item], train: list[Item]) -> None:
    """The nine medical subjects, among which the questions are dealt out; five demonstrations each."""
    for number, subject in enumerate(MMLU_MEDICAL):
        share = slice(number, None, len(MMLU_MEDICAL))
        for split, questions in (("test", test[share]), ("dev", train[share][:5])):
            (folder / split).mkdir(exist_ok=True)
            with (folder / split / f"{subject}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerows([item.question, *item.options.values(), item.gold] for item in questions)
