"""Pass C, per part of a unit: the survivors in input order -> `<source>/{train,validation}-NNNNN.jsonl.zst`."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from data.deduplicate import Drops
from data.documents import DocumentWriter, temporary_name
from data.identities import RULES, VERDICTS
from data.scratch import ScratchReader
from data.shared import SPLITS, Shared

LENGTH_EDGES = 2 ** np.arange(0, 31)
"""Characters: documents are counted by octaves."""


@dataclass(frozen=True)
class Output:
    """Part number `part` of all, number `place` of its source; `folder` is that of the duplicate search."""

    folder: Path
    part: int
    place: int
    key: str
    source_name: str


@dataclass
class Written:
    """What was written of one part: counts by split, by rule, and of what the report shows of the survivors.

    `better` counts, by the number of its part, where the better copies are; `languages` and `licenses` by the place in
    the summary's lists; `lengths` by octave of characters.
    """

    documents: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_characters: Counter[str] = field(default_factory=Counter)
    better: Counter[int] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    languages: Counter[int] = field(default_factory=Counter)
    licenses: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    def save(self, path: Path) -> None:
        """Write as JSON, temporary name first."""
        temporary = temporary_name(path)
        temporary.write_text(json.dumps({name: list(counter.items()) for name, counter in vars(self).items()}))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote."""
        values = json.loads(path.read_text())
        return cls(**{name: Counter(dict(items)) for name, items in values.items()})


def write_survivors(output: Output, shared: Shared) -> tuple[Written, bool]:
    """Writes one file a split (none for a split without documents); the documents' bytes are those of pass A. Returns
    what was written, and whether an earlier run had done so."""
    record = output.folder / f"written-{output.part:05d}.json"
    paths = [shared.out / output.source_name / f"{split}-{output.place:05d}.jsonl.zst" for split in SPLITS]
    if record.exists():
        written = Written.load(record)
        if all(path.exists() for path, split in zip(paths, SPLITS, strict=True) if written.documents[split]):
            return written, True
    reader = ScratchReader(shared.units, output.key)
    drops = Drops.load(output.folder).of(output.part)
    keep = np.ones(len(reader.rows), dtype=bool)
    keep[drops["worse_position"]] = False
    written = _counted(reader.rows, keep, drops)
    with ExitStack() as stack:
        writers = {}
        for number, (split, path) in enumerate(zip(SPLITS, paths, strict=True)):
            if written.documents[split]:
                path.parent.mkdir(exist_ok=True)
                writers[number] = stack.enter_context(DocumentWriter(path))
        for line, split in _kept_lines(reader, keep):
            writers[split].write_line(line)
    written.save(record)
    return written, False


def _kept_lines(reader: ScratchReader, keep: np.ndarray) -> Iterator[tuple[bytes, int]]:
    splits = reader.rows["split"].tolist()
    for line, kept, split in zip(reader.lines(), keep.tolist(), splits, strict=True):
        if kept:
            yield line, split


def _counted(rows: np.ndarray, keep: np.ndarray, drops: np.ndarray) -> Written:
    written = Written()
    for number, split in enumerate(SPLITS):
        of_split = rows[keep & (rows["split"] == number)]
        if len(of_split):
            written.documents[split] = len(of_split)
            written.characters[split] = int(of_split["characters"].sum(dtype=np.int64))
            written.words[split] = int(of_split["words"].sum(dtype=np.int64))
    for drop, characters in zip(drops, rows["characters"][drops["worse_position"]].tolist(), strict=True):
        rule = RULES[drop["rule"]]
        written.dropped[rule] += 1
        written.dropped_characters[rule] += characters
        if drop["rule"] >= VERDICTS:
            written.better[int(drop["better_part"])] += 1
    kept = rows[keep]
    written.years = _counter(kept["year"])
    written.languages = _counter(kept["language"])
    written.licenses = _counter(kept["license"])
    written.lengths = _counter(np.searchsorted(LENGTH_EDGES, kept["characters"], side="right") - 1)
    return written


def _counter(values: Sequence[int] | np.ndarray) -> Counter[int]:
    found, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))
