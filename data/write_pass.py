"""Pass C, per part of a unit: the survivors in input order -> `<source>/{train,validation}-NNNNN.jsonl.zst`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from data.deduplicate import RULES, VERDICTS
from data.documents import DocumentWriter
from data.scratch import ScratchReader, load_array
from data.shared import SPLITS, Shared

LENGTH_EDGES = 2 ** np.arange(0, 31)
"""Characters: documents are counted by octaves."""


@dataclass(frozen=True)
class Output:
    """Part number `unit` of all, number `place` of its source."""

    unit: int
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


def write_survivors(output: Output, shared: Shared) -> Written:
    """Writes one file a split (none for a split without documents); the documents' bytes are those of pass A."""
    reader = ScratchReader(shared.units, output.key)
    drops = unit_drops(load_array(shared.duplicates / "dropped.npy"), output.unit)
    keep = np.ones(len(reader.rows), dtype=bool)
    keep[drops["worse_position"]] = False
    written = _counted(reader.rows, keep, drops)
    folder = shared.out / output.source_name
    with ExitStack() as stack:
        writers = {}
        for number, split in enumerate(SPLITS):
            if written.documents[split]:
                folder.mkdir(exist_ok=True)
                path = folder / f"{split}-{output.place:05d}.jsonl.zst"
                writers[number] = stack.enter_context(DocumentWriter(path))
        for line, split in _kept_lines(reader, keep):
            writers[split].write_line(line)
    return written


def _kept_lines(reader: ScratchReader, keep: np.ndarray) -> Iterator[tuple[bytes, int]]:
    splits = reader.rows["split"].tolist()
    for line, kept, split in zip(reader.lines(), keep.tolist(), splits, strict=True):
        if kept:
            yield line, split


def unit_drops(drops: np.ndarray, unit: int) -> np.ndarray:
    """The rows of one unit's documents, of rows sorted by document."""
    first, last = np.searchsorted(drops["worse_unit"], [unit, unit + 1])
    return np.asarray(drops[first:last])


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
            written.better[int(drop["better_unit"])] += 1
    kept = rows[keep]
    written.years = _counter(kept["year"])
    written.languages = _counter(kept["language"])
    written.licenses = _counter(kept["license"])
    written.lengths = _counter(np.searchsorted(LENGTH_EDGES, kept["characters"], side="right") - 1)
    return written


def _counter(values: Sequence[int] | np.ndarray) -> Counter[int]:
    found, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))
