"""What happened to one unit in pass A: counts, what the report shows, and the lists that its tables refer to."""

import heapq
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from data.documents import Document, whole_file

DETAILS_KEPT = 20
"""Places of dropped records that a unit's summary names; the counts are always whole."""
SAMPLES = 5
"""Texts shown of each source."""
CANDIDATES = 4 * SAMPLES
"""Kept of each unit: some of them may turn out duplicates."""
MOST_NAMES, OTHER = 1000, "other"
"""Of languages and of licences that a unit tells apart."""
SAMPLE_CHARACTERS = 1500
"""Of a shown text, before and after."""


@dataclass(frozen=True)
class Part:
    """Documents that the later passes take as one: a part, named `key`, of what pass A left of unit number `unit`."""

    unit: int
    key: str


@dataclass(order=True)
class Sample:
    """A document shown in the report: those of the smallest hash of their id."""

    hash: int
    part: int
    position: int
    id: str
    before: str
    after: str


@dataclass
class Summary:
    """`records` counts everything read: documents and drops; `damaged` maps names to reasons, `files` names to sha256.

    `parts` counts the files that the documents kept went to (`data.read_pass`). `characters` are those of all documents
    read, `dropped_characters` those of the documents each rule dropped, `languages` as detected in the text.
    `contaminated` holds a [id, rule, benchmark, question id, share] for each document dropped for a benchmark.
    """

    key: str = ""
    files: dict[str, str] = field(default_factory=dict)
    records: int = 0
    characters: int = 0
    documents: int = 0
    parts: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_characters: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    contaminated: list[list] = field(default_factory=list)
    overlap: dict = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    token_sample: list[int] = field(default_factory=lambda: [0, 0])
    """Characters and tokens of the documents that the tokenizer was tried on."""

    def drop(self, rule: str, detail: str | None = None, characters: int = 0) -> None:
        """Count one dropped record."""
        self.dropped[rule] += 1
        if characters:
            self.dropped_characters[rule] += characters
        if detail and len(self.details) < DETAILS_KEPT:
            self.details.append(f"{rule}: {detail}")

    def part_key(self, part: int) -> str:
        """The name of one part of the unit's result."""
        return f"{self.key}-{part:05d}"

    def sample(self, document: Document, part: int, position: int, before: str, seed: int) -> None:
        """Keep the document among those that are shown if its id's hash is among the smallest."""
        value = xxhash.xxh3_64_intdigest(f"sample:{document.id}".encode(), seed=seed)
        if len(self.samples) == CANDIDATES and value >= self.samples[-1].hash:
            return
        before, after = before[:SAMPLE_CHARACTERS], document.text[:SAMPLE_CHARACTERS]
        shown = Sample(value, part, position, document.id, before, after)
        self.samples = heapq.nsmallest(CANDIDATES, [*self.samples, shown])

    def save(self, path: Path) -> None:
        """Write as JSON, temporary name first."""
        values = vars(self) | {"samples": [vars(sample) for sample in self.samples]}
        with whole_file(path) as stream:
            stream.write(json.dumps(values, sort_keys=True).encode())

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """The summary that `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("dropped", "dropped_characters", "notes"):
            values[name] = Counter(values[name])
        values["samples"] = [Sample(**sample) for sample in values["samples"]]
        return cls(**values)


def place(values: list[str], value: str) -> int:
    """The index of `value` in a short list that grows: names instead of strings in a table's rows. What comes after
    MOST_NAMES others is OTHER."""
    if value not in values:
        if len(values) >= MOST_NAMES:
            value = OTHER
        if value not in values:
            values.append(value)
    return values.index(value)
