"""What the demo's literature says, before it takes a file format: abstracts, articles, guidelines, question pages."""

import dataclasses
import random
from collections.abc import Iterator

from data.demo.wordings import Phrasebook
from data.demo.world import RELATIONS, Condition, World

FIRST_PMID = 90_000_001

_STUDIES = ("randomised trial", "cohort study", "register study", "multicentre comparison", "open-label study")
_SETTINGS = (
    "three district hospitals", "a university clinic", "nine general practices", "two island communities",
    "a national register", "the outpatient wards of five towns",
)  # fmt: skip
_METHODS = (
    "We followed {n} patients from {setting} for {months} months.",
    "Between {year} and {later}, {n} adults seen at {setting} were enrolled.",
    "Records of {n} patients from {setting} were reviewed by two readers.",
    "{n} consecutive patients were assigned at random and examined every {weeks} weeks.",
    "The main outcome was recovery after {weeks} weeks; {n} patients of {setting} took part.",
)
_RESULTS = (
    "Symptoms resolved in {percent}% of the patients (p < 0.0{digit}).",
    "After {weeks} weeks, {percent}% were free of complaints (95% CI {low} to {high}).",
    "Only {digit} patients dropped out, none because of side effects.",
    "The median time to recovery was {weeks} weeks.",
    "Relapses were seen in {digit} of {n} patients.",
    "Hospital stay became {digit} days shorter (p = 0.0{digit}).",
)
_CLOSING = (
    "Larger studies are under way.",
    "These findings hold for both sexes and all age groups.",
    "The results agree with earlier reports.",
    "Teaching hospitals should update their protocols.",
    "Awareness among family doctors remains low.",
    "Follow-up for at least {months} months is advised.",
)
_CASE = (
    "A {age}-year-old {person} presented with {sign} of {weeks} weeks' duration.",
    "A {age}-year-old {person} was admitted because of {sign}.",
    "We saw a {age}-year-old {person} who had suffered from {sign} since {year}.",
)
_RECOVERY = (
    "The patient recovered within {weeks} weeks and remains well.",
    "At the visit after {months} months no complaint was left.",
    "Discharge was possible after {digit} days.",
)


@dataclasses.dataclass(frozen=True)
class Abstract:
    """One MEDLINE record; `sections` are (label or None, text)."""

    pmid: int
    title: str
    sections: list[tuple[str | None, str]]
    types: list[str]
    year: int
    condition: Condition


@dataclasses.dataclass(frozen=True)
class Article:
    """One full-text review of several conditions: sections of paragraphs, one dose table, cited PMIDs."""

    number: int
    title: str
    abstract: str
    sections: list[tuple[str, list[str]]]
    table: list[tuple[str, str, str, str]]
    references: list[Abstract]
    year: int


@dataclasses.dataclass(frozen=True)
class Guideline:
    """One guideline page about one condition."""

    condition: Condition
    overview: list[str]
    treatment: list[str]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class QuestionPage:
    """Questions with their answers, as paragraphs of lines."""

    title: str
    paragraphs: list[list[str]]


def fill(rng: random.Random, template: str, condition: Condition) -> str:
    """A template of this file with random numbers and places."""
    digit, low, year = rng.randint(2, 9), rng.randint(40, 70), rng.randint(2001, 2010)
    numbers = {"n": rng.randint(24, 480), "months": rng.randint(6, 36), "weeks": rng.randint(2, 16), "digit": digit,
               "percent": low + 8, "low": low, "high": low + 16, "year": year, "later": year + digit,
               "age": rng.randint(19, 84), "person": rng.choice(("man", "woman")),
               "setting": rng.choice(_SETTINGS), "sign": condition.sign}  # fmt: skip
    return template.format_map(numbers)


def abstracts(world: World, copies: int) -> list[Abstract]:
    """`copies` abstracts a condition, alternating between trials, safety reports, case reports and short reviews."""
    rng = world.random("abstracts")
    book = Phrasebook(rng)
    kinds = (_trial, _safety, _case_report, _review)
    order = [(condition, kinds[copy % len(kinds)]) for copy in range(copies) for condition in world.conditions]
    rng.shuffle(order)
    records = []
    for number, (condition, kind) in enumerate(order):
        title, sections, types = kind(rng, book, condition)
        records.append(Abstract(FIRST_PMID + number, title, sections, types, rng.randint(2020, 2024), condition))
    return records


def _trial(rng: random.Random, book: Phrasebook, c: Condition) -> tuple[str, list, list[str]]:
    study = rng.choice(_STUDIES)
    title = rng.choice((f"{c.drug} in {c.name}: a {study}", f"Treatment of {c.name}: results of a {study}",
                        f"Dose and effect of {c.drug} in adults with {c.name}"))  # fmt: skip
    sections = [
        ("BACKGROUND", book.background(c)),
        ("METHODS", fill(rng, rng.choice(_METHODS), c)),
        ("RESULTS", f"{_facts(book, c, 'drug', 'dose')} {fill(rng, rng.choice(_RESULTS), c)}"),
        ("CONCLUSIONS", _facts(book, c, "drug", "dose")),
    ]
    return title, sections, ["Journal Article", "Clinical Trial"]


def _safety(rng: random.Random, book: Phrasebook, c: Condition) -> tuple[str, list, list[str]]:
    title = rng.choice((f"Household remedies during treatment of {c.name}", f"Safety of {c.drug} in {c.name}",
                        f"An interaction seen in patients with {c.name}"))  # fmt: skip
    sections = [
        ("OBJECTIVE", f"To find out which remedies are unsafe in {c.name}. {book.background(c)}"),
        ("METHODS", fill(rng, rng.choice(_METHODS), c)),
        ("RESULTS", f"{_facts(book, c, 'remedy')} {fill(rng, rng.choice(_RESULTS), c)} {_facts(book, c, 'remedy')}"),
        ("CONCLUSIONS", _facts(book, c, "remedy", "drug")),
    ]
    return title, sections, ["Journal Article"]


def _case_report(rng: random.Random, book: Phrasebook, c: Condition) -> tuple[str, list, list[str]]:
    title = rng.choice((f"{c.name} in a patient with {c.sign}", f"{c.name}: a case report",
                        f"Lessons from a patient with {c.name}"))  # fmt: skip
    story = [
        fill(rng, rng.choice(_CASE), c),
        f"The diagnosis of {c.name} was made.",
        _facts(book, c, *RELATIONS),
        fill(rng, rng.choice(_RECOVERY), c),
    ]
    return title, [(None, " ".join(story))], ["Case Reports"]


def _review(rng: random.Random, book: Phrasebook, c: Condition) -> tuple[str, list, list[str]]:
    title = rng.choice((f"{c.name}: an update", f"News about {c.name}", f"Management of {c.name}: a short review"))
    order = rng.sample(RELATIONS, 3)
    story = [book.background(c), _facts(book, c, *order, order[0]), fill(rng, rng.choice(_CLOSING), c)]
    return title, [(None, " ".join(story))], ["Review"]


def _facts(book: Phrasebook, condition: Condition, *relations: str) -> str:
    return " ".join(book.statement(relation, condition) for relation in relations)


def articles(world: World, published: list[Abstract], conditions_each: int = 5) -> list[Article]:
    """Full-text reviews of `conditions_each` conditions (or a few more), each citing abstracts about its conditions.

    Together they go through every condition twice.
    """
    rng = world.random("articles")
    book = Phrasebook(rng)
    by_name: dict[str, list[Abstract]] = {}
    for abstract in published:
        by_name.setdefault(abstract.condition.name, []).append(abstract)
    result = []
    for _ in range(2):
        shuffled = rng.sample(world.conditions, len(world.conditions))
        count = len(shuffled) // conditions_each
        for group in (shuffled[first::count] for first in range(count)):
            references = [rng.choice(by_name[c.name]) for c in group]
            result.append(_article(rng, book, len(result) + 1, group, references))
    return result


def _article(
    rng: random.Random, book: Phrasebook, number: int, group: list[Condition], references: list[Abstract]
) -> Article:
    organs = sorted({c.organ for c in group})
    names = f"{', '.join(c.name for c in group[:-1])} and {group[-1].name}"
    abstract = f"This review covers {names}. {fill(rng, rng.choice(_CLOSING), group[0])}"
    intro = f"Family doctors meet {names} more often than is thought. {book.background(group[0])}"
    sections = [("Introduction", [intro])]
    for c in group:
        first = f"{book.background(c)} {_facts(book, c, *RELATIONS)}"
        second = f"{_facts(book, c, *rng.sample(RELATIONS, 2))} {fill(rng, rng.choice(_RESULTS), c)}"
        sections.append((c.name, [first, second]))
    sections.append(("Conclusion", ["Table 1 gathers the facts. " + fill(rng, rng.choice(_CLOSING), group[0])]))
    title = f"Disorders of the {' and the '.join(organs[:2])}: a clinical review of {len(group)} conditions"
    table = [(c.name, c.drug, c.dose, c.remedy) for c in group]
    return Article(number, title, abstract, sections, table, references, max(cited.year for cited in references))


def guidelines(world: World) -> list[Guideline]:
    """One page a condition."""
    rng = world.random("guidelines")
    book = Phrasebook(rng)
    return [
        Guideline(
            c,
            overview=[book.background(c), book.background(c)],
            treatment=[book.statement(relation, c) for relation in ("drug", "dose", "drug", "dose")],
            warnings=[book.statement("remedy", c) for _ in range(2)],
        )
        for c in world.conditions
    ]


def question_pages(world: World, copies: int, exercises: int) -> Iterator[QuestionPage]:
    """Pages of six questions about taught conditions, then pages of four exercises.

    Each fact is asked `copies` times plainly, each time in another wording, and `exercises` times in an exercise: with
    four options, the way to the answer, and the answer by its text.
    """
    rng = world.random("questions")
    book = Phrasebook(rng)
    plain = [(c, relation) for c in world.taught for relation in RELATIONS for _ in range(copies)]
    rng.shuffle(plain)
    for page, asked in enumerate(_groups(plain, 6), start=1):
        paragraphs = []
        for condition, relation in asked:
            why = f" {book.statement(relation, condition)}" if rng.random() < 0.3 else ""
            answer = f"{getattr(condition, relation)}.{why}"
            paragraphs.append(question_and_answer(book.question(relation, condition), answer))
        yield QuestionPage(f"Questions from the clinic, part {page}", paragraphs)
    worked = [(c, relation) for c in world.taught for relation in RELATIONS for _ in range(exercises)]
    rng.shuffle(worked)
    for page, asked in enumerate(_groups(worked, 4), start=1):
        paragraphs = [p for condition, relation in asked for p in _exercise(rng, book, condition, relation, world)]
        yield QuestionPage(f"Exercises with solutions, part {page}", paragraphs)


def question_and_answer(question: str, answer: str) -> list[str]:
    """The paragraph of a plain question; the answer begins with the asked value itself."""
    return [f"Question: {question}", f"Answer: {answer}"]


def _exercise(rng: random.Random, book: Phrasebook, c: Condition, relation: str, world: World) -> list[list[str]]:
    right = getattr(c, relation)
    others = sorted({getattr(other, relation) for other in world.conditions} - {right})
    options = rng.sample([right, *rng.sample(others, 3)], 4)
    return [
        [f"Question: {book.question(relation, c)}"],
        [
            "Options:",
            *(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)),
            f"Let's think step by step. {book.statement(relation, c)} The answer is: {right}.",
        ],
    ]


def _groups(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
