"""The three passes of curation. Each is a function of one unit (or one partition) and files; the order of calls does
not matter.

Pass A, per unit: read, clean, drop by rule, decontaminate -> `work/units/KEY.jsonl.zst`, `KEY.records.npy`, `KEY.json`
(written last). Pass B, per partition of the key space: worse and better copies -> `work/pairs-NNNNN.npy`. Pass C, per
unit: the survivors in input order -> `<source>/{train,validation}-NNNNN.jsonl.zst`. KEY is a hash of the unit's bytes,
the settings and this code, so finished units are found again after a stop and after new input.
"""

import functools
import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import ftfy
import numpy as np
import xxhash
from lxml import etree

from data import deduplicate
from data.clean import clean_text, drop_rule
from data.decontaminate import Questions
from data.documents import Document, read_documents, temporary_name, write_documents
from data.files import DamagedFile, is_documentation, open_input, open_range
from data.readers import find_format
from data.readers.interface import Deletion, Drop, Format, InputFile
from data.units import Unit, content_hash, is_archive

SPLITS = ("train", "validation")
DETAILS_KEPT = 20
"""Places of dropped records that a unit's summary names; the counts are always whole."""


@dataclass(frozen=True)
class Shared:
    """What every pass knows. `validation` is the share per source kind, `out` the output folder."""

    out: Path
    min_characters: int
    seed: int
    validation: dict[str, float]
    questions: Questions

    @property
    def work(self) -> Path:
        return self.out / "work"

    @functools.cached_property
    def digest(self) -> str:
        """Everything besides the input that a unit's result depends on."""
        values = (
            self.min_characters,
            self.seed,
            sorted(self.validation.items()),
            self.questions.digest,
            code_version(),
        )
        return hashlib.sha256(repr(values).encode()).hexdigest()


@functools.cache
def code_version() -> str:
    """A hash of the curation code itself and of the libraries whose version shapes its output."""
    folder = Path(__file__).parent
    modules = ("passes", "clean", "decontaminate", "deduplicate", "documents", "files", "units", "xml")
    paths = [folder / f"{name}.py" for name in modules] + sorted((folder / "readers").glob("*.py"))
    digest = hashlib.sha256(f"{ftfy.__version__} {etree.LIBXML_VERSION}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Restart(Exception):
    """A file turned out damaged after some of its documents were taken: the unit starts again without it."""


@dataclass
class Summary:
    """What happened to one unit. `records` counts everything read: documents and drops; `damaged` maps names to
    reasons."""

    key: str = ""
    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)

    def drop(self, rule: str, detail: str | None = None) -> None:
        """Count one dropped record."""
        self.dropped[rule] += 1
        if detail and len(self.details) < DETAILS_KEPT:
            self.details.append(f"{rule}: {detail}")

    def save(self, path: Path) -> None:
        """Write as JSON, temporary name first."""
        temporary = temporary_name(path)
        temporary.write_text(json.dumps(vars(self), sort_keys=True), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """The summary that `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("dropped", "notes", "contaminated"):
            values[name] = Counter(values[name])
        return cls(**values)


def read_and_clean(unit: Unit, shared: Shared) -> tuple[Summary, bool]:
    """Pass A: the unit's summary, and whether a finished result was found and used again.

    A damaged file contributes nothing, so that curating again after it is repaired gives what a clean run gives.
    """
    key = hashlib.sha256(f"{content_hash(unit)}{shared.digest}".encode()).hexdigest()
    folder = shared.work / "units"
    if (folder / f"{key}.json").exists():
        return Summary.load(folder / f"{key}.json"), True
    damaged: dict[str, str] = {}
    while True:
        summary = Summary(key=key, damaged=damaged)
        records = deduplicate.Records(shared.seed)
        try:
            write_documents(folder / f"{key}.jsonl.zst", _kept(unit, shared, summary, records))
        except _Restart:
            continue
        break
    _save_array(folder / f"{key}.records.npy", records.array())
    summary.save(folder / f"{key}.json")
    return summary, False


def _save_array(path: Path, array: np.ndarray) -> None:
    temporary = temporary_name(path)
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    temporary.replace(path)


def _kept(unit: Unit, shared: Shared, summary: Summary, records: deduplicate.Records) -> Iterator[Document]:
    """The documents of a unit that pass every rule which looks at one document alone."""
    position = 0
    for item in _items(unit, summary):
        if isinstance(item, Deletion):
            records.delete(item, position)
            continue
        summary.records += 1
        if isinstance(item, Drop):
            summary.drop(item.rule, item.detail)
            continue
        deduplicate.drop_false_identifiers(item, summary.notes)
        item.text = clean_text(item.text)
        item.title = " ".join(clean_text(item.title).split()) or None if item.title else None
        rule = drop_rule(item.text, shared.min_characters)
        if rule:
            summary.drop(rule)
            continue
        match = shared.questions.match(item)
        if match:
            summary.drop(match[0], f"{item.id} ({match[1]})")
            summary.contaminated[match[1]] += 1
            continue
        item.split = split_of(item, shared.validation[unit.kind], shared.seed)
        records.add(item, position)
        position += 1
        yield item


def split_of(document: Document, validation_share: float, seed: int) -> str:
    """`train` or `validation` by a hash of pmid, else doi, else id: it never changes when other documents come or
    go."""
    identity = document.pmid or (
        deduplicate.normalised_doi(document.doi) if document.doi else f"{document.source}:{document.id}"
    )
    return SPLITS[xxhash.xxh3_64_intdigest(f"split:{identity}".encode(), seed=seed) < validation_share * 2**64]


def _items(unit: Unit, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    """Everything the readers find in a unit. Damage is noted in `summary.damaged`; raises _Restart when items must
    be taken back."""
    for file in unit.files:
        if file.name in summary.damaged:
            continue
        taken = False
        try:
            for item in _file_items(unit, file.name, file.path, summary):
                taken = True
                yield item
        except DamagedFile as error:
            summary.damaged[file.name] = error.reason
            if taken:
                raise _Restart from error


def _file_items(unit: Unit, name: str, path: Path, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    form = find_format(unit.kind)
    if is_archive(name):
        yield from _archive_items(unit, name, path, summary)
        return
    stream, offset = (open_input(path, name), 0) if unit.end is None else open_range(path, name, unit.start, unit.end)
    with stream:
        yield from _read(form, InputFile(stream, name, unit.source_name, offset, summary.notes))


def _read(form: Format, file: InputFile) -> Iterator[Document | Drop | Deletion]:
    """What the reader finds. A value that it did not foresee is damage of this file, not the end of the run."""
    try:
        yield from form.read(file)
    except DamagedFile:
        raise
    except ValueError as error:
        raise DamagedFile(file.name, f"cannot be read ({error})") from error


def _archive_items(unit: Unit, name: str, path: Path, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    """The readable members of a tar archive, in its order, in one pass. A damaged member is noted, the others are
    read."""
    form = find_format(unit.kind)
    with open_input(path, name) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if not member.isfile() or is_documentation(member.name.rpartition("/")[2]):
                        continue
                    if form.pattern.fullmatch(member.name.lower()) is None:
                        continue
                    place = f"{name}/{member.name}"
                    if place not in summary.damaged:
                        yield from _member_items(unit, place, archive.extractfile(member), summary)
        except tarfile.TarError as error:
            raise DamagedFile(name, f"broken archive ({error})") from error


def _member_items(unit: Unit, place: str, stream: BinaryIO, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    taken = False
    try:
        for item in _read(find_format(unit.kind), InputFile(stream, place, unit.source_name, notes=summary.notes)):
            taken = True
            yield item
    except DamagedFile as error:
        if error.name != place:  # the archive itself
            raise
        summary.damaged[place] = error.reason
        if taken:
            raise _Restart from error


@dataclass(frozen=True)
class Partition:
    """Pass B's task: one of `count` key ranges over the records of all units."""

    number: int
    count: int
    keys: tuple[str, ...]
    sources: tuple[int, ...]
    full_text: tuple[bool, ...]


def find_duplicates(partition: Partition, shared: Shared) -> None:
    """Pass B: writes the (worse, better) pairs of one partition."""
    slices = []
    for key in partition.keys:
        records = np.load(shared.work / "units" / f"{key}.records.npy", mmap_mode="r", allow_pickle=False)
        slices.append(deduplicate.partition_slice(records, partition.number, partition.count))
    pairs = deduplicate.worse_documents(slices, partition.sources, partition.full_text)
    _save_array(_pairs_path(shared, partition.number), pairs)


def _pairs_path(shared: Shared, number: int) -> Path:
    return shared.work / f"pairs-{number:05d}.npy"


@dataclass(frozen=True)
class Output:
    """Pass C's task: unit number `unit` of all, number `place` of its source."""

    unit: int
    place: int
    key: str
    source_name: str
    partitions: int


def write_survivors(output: Output, shared: Shared) -> dict[str, Counter[str]]:
    """Pass C: writes one file a split (none for a split without documents).

    Returns counts: `dropped` by rule, `documents` and `characters` by split, `better` by the number of the unit that
    won.
    """
    dropped = _dropped(output, shared)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("dropped", "documents", "characters", "better")}
    kept: dict[str, list[int]] = {split: [] for split in SPLITS}
    source = shared.work / "units" / f"{output.key}.jsonl.zst"
    for position, document in enumerate(read_documents(source)):
        if position in dropped:
            rule, better_unit = dropped[position]
            counts["dropped"][deduplicate.RULES[rule]] += 1
            counts["better"][str(better_unit)] += 1
        else:
            split = document["split"]
            kept[split].append(position)
            counts["documents"][split] += 1
            counts["characters"][split] += len(document["text"])
    folder = shared.out / output.source_name
    for split, positions in kept.items():
        if positions:
            folder.mkdir(exist_ok=True)
            chosen = set(positions)
            survivors = (document for position, document in enumerate(read_documents(source)) if position in chosen)
            write_documents(folder / f"{split}-{output.place:05d}.jsonl.zst", survivors)
    return counts


def _dropped(output: Output, shared: Shared) -> dict[int, tuple[int, int]]:
    """Position: (rule, better unit) for the unit's worse documents; the first rule counts."""
    dropped: dict[int, tuple[int, int]] = {}
    for number in range(output.partitions):
        pairs = np.load(_pairs_path(shared, number), mmap_mode="r", allow_pickle=False)
        first, last = np.searchsorted(pairs["worse_unit"], [output.unit, output.unit + 1])
        for pair in np.asarray(pairs[first:last]):
            found = (int(pair["rule"]), int(pair["better_unit"]))
            position = int(pair["worse_position"])
            dropped[position] = min(found, dropped.get(position, found))
    return dropped
