"""Work units: the pieces into which the sources are cut, by what the input is and never by who will work on them.

A unit is one file, one archive, a fixed byte range of a large jsonl, or a group of small files. Groups end after a file
whose *name* hashes so: a file added to a folder changes the one group it falls into, and every other unit's result can
be used again.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data.files import COMPRESSIONS, READ_SIZE, DamagedFile, is_documentation, open_range, walk, without_compression
from data.medline_files import missing_numbers, release_order
from data.readers import find_format
from data.readers.interface import Format

RANGE_BYTES = 64 << 20
"""A byte range of an uncompressed jsonl; also the most a group of small files holds."""
SMALL_FILE = 4 << 20
"""Files below this are grouped."""
GROUP_FILES = 64
"""Files of a group, on average."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2")


@dataclass(frozen=True)
class Source:
    """One `--source KIND[:NAME]=PATH`."""

    kind: str
    name: str
    path: Path


@dataclass(frozen=True)
class UnitFile:
    """`name` is the path below the source, with `/`; `size` in bytes."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Unit:
    """What one call of a pass works on. `source` is the place on the command line; `start` and `end` cut a jsonl
    into byte ranges."""

    source: int
    kind: str
    source_name: str
    files: tuple[UnitFile, ...]
    start: int = 0
    end: int | None = None

    @property
    def size(self) -> int:
        """Input bytes."""
        return sum(file.size for file in self.files) if self.end is None else self.end - self.start


def parse_source(text: str) -> Source:
    """`KIND[:NAME]=PATH`. ValueError names the flag and shows the form; NAME defaults to KIND."""
    declared, sign, path = text.partition("=")
    kind, colon, name = declared.partition(":")
    name = name if colon else kind
    if not (sign and kind and path and name):
        raise ValueError(f"--source {text!r}: expected KIND=PATH or KIND:NAME=PATH, e.g. medline=pubmed/")
    if name != Path(name).name or name.startswith(".") or ".part-" in name or name in ("work", "train", "validation"):
        raise ValueError(f"--source {text!r}: {name!r} cannot be the name of an output folder; choose another NAME")
    find_format(kind)
    return Source(kind, name, Path(path).expanduser())


@dataclass(frozen=True)
class Plan:
    """The units of one source in input order; how many files of which other suffix were passed over."""

    units: tuple[Unit, ...]
    passed_over: Counter[str]


def plan(source: Source, place: int) -> Plan:
    """The units of a source. Raises ValueError when the path is missing or holds nothing that this kind reads."""
    form = find_format(source.kind)
    if not source.path.exists():
        raise ValueError(f"--source {source.kind}={source.path}: no such file or folder")
    passed_over: Counter[str] = Counter()
    files: list[UnitFile] = []
    if source.path.is_dir():
        for name, path in walk(source.path):
            if is_documentation(path.name):
                continue
            if _readable(form, path.name):
                files.append(UnitFile(name, path, _size(path)))
            elif path.suffix != ".md5":
                passed_over["".join(path.suffixes[-2:]).lower() or path.name] += 1
    elif _readable(form, source.path.name):
        files.append(UnitFile(source.path.name, source.path, _size(source.path)))
    if not files:
        raise ValueError(f"--source {source.kind}={source.path}: nothing to read; {source.kind} reads {form.spelling}")
    return Plan(tuple(_units(files, source, place, form)), passed_over)


def ranks(units: Sequence[Unit]) -> list[int]:
    """The place of each unit among all; where the sources of a kind are one stream of releases, its place in that."""
    found = list(range(len(units)))
    revising = [number for number in found if find_format(units[number].kind).revises]
    in_order = sorted(revising, key=lambda number: (release_order(units[number].files[0].path.name), number))
    for rank, number in enumerate(in_order):
        found[number] = rank
    return found


def missing_releases(units: Sequence[Unit]) -> list[str]:
    """Which numbers of a release are not there, in all its sources together."""
    return missing_numbers([unit.files[0].path.name for unit in units if find_format(unit.kind).revises])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing: reading it will name it as damaged
        return 0


def is_archive(name: str) -> bool:
    """Whether a file name is a tar archive's."""
    return name.lower().endswith(ARCHIVES)


def _readable(form: Format, name: str) -> bool:
    if is_archive(name):
        return form.archives
    return form.pattern.fullmatch(without_compression(name)) is not None


def _units(files: list[UnitFile], source: Source, place: int, form: Format) -> list[Unit]:
    units: list[Unit] = []
    group: list[UnitFile] = []

    def close_group() -> None:
        if group:
            units.append(Unit(place, source.kind, source.name, tuple(group)))
            group.clear()

    for file in files:
        if form.splittable and file.size > RANGE_BYTES and not file.name.lower().endswith(COMPRESSIONS):
            close_group()
            for start in range(0, file.size, RANGE_BYTES):
                end = min(start + RANGE_BYTES, file.size)
                units.append(Unit(place, source.kind, source.name, (file,), start, end))
        elif is_archive(file.name) or file.size >= SMALL_FILE:
            close_group()
            units.append(Unit(place, source.kind, source.name, (file,)))
        else:
            group.append(file)
            if form.revises:  # a release's files keep their order one by one
                close_group()
                continue
            last_of_group = xxhash.xxh3_64_intdigest(file.name.encode()) % GROUP_FILES == 0
            if last_of_group or sum(member.size for member in group) >= RANGE_BYTES:
                close_group()
    close_group()
    return units


def _sha256(path: Path) -> str:
    if not path.is_file():  # reading a pipe would wait for ever
        raise OSError("not a regular file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_hashes(unit: Unit) -> dict[str, str]:
    """The sha256 of the bytes that the unit reads of each of its files, and of what belongs to it. One that cannot be
    read counts with the reason."""
    hashes = {}
    form = find_format(unit.kind)
    for file in unit.files:
        try:
            companion = form.companion(file.path) if form.companion else None
            for other in (companion, file.path.with_name(f"{file.path.name}.md5")):
                if other and other.exists():
                    hashes[f"{file.name} + {other.name}"] = _sha256(other)
            if unit.end is None:
                hashes[file.name] = _sha256(file.path)
            else:
                digest = hashlib.sha256()
                with open_range(file.path, file.name, unit.start, unit.end)[0] as stream:
                    while chunk := stream.read(READ_SIZE):
                        digest.update(chunk)
                hashes[file.name] = digest.hexdigest()
        except (OSError, DamagedFile) as error:
            hashes[file.name] = f"unreadable: {error}"
    return hashes
