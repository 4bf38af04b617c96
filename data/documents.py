"""Documents on disk: one JSON object a line in zstd files, `DIR/<name>/{train,validation}-00000.jsonl.zst`."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import orjson
import zstandard

from data.disk_full import writing
from data.files import DamagedFile, open_input

COMPRESSION_LEVEL = 3
"""The one zstd setting: the same documents give the same bytes. Level 3 writes faster than any reader reads."""


@dataclass(slots=True)
class Document:
    """One text and what is known about it; what a source does not say is None (or an empty list).

    `id` is unique in its source and stable when other files are added; `date` is ISO, as exact as known (`2021`,
    `2021-03`, `2021-03-09`); `license` is an SPDX-like name; `mesh` holds `Descriptor` or `Descriptor/qualifier`.
    """

    id: str
    source: str
    title: str | None
    text: str
    url: str | None = None
    license: str | None = None
    language: str | None = None
    journal: str | None = None
    types: list[str] | None = None
    mesh: list[str] | None = None
    date: str | None = None
    pmid: str | None = None
    pmcid: str | None = None
    doi: str | None = None
    version: int | None = None
    split: str | None = None


def temporary_name(path: Path) -> Path:
    """Where the bytes of `path` are gathered before it appears whole under its own name."""
    return path.with_name(f"{path.name}.part-{os.getpid()}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream for the bytes of `path`, which appears under its own name whole or not at all. A full disk's error names
    it."""
    temporary = temporary_name(path)
    try:
        with writing(path):
            # w+b: what numpy takes for a plain file it writes in a way of its own, whose errors do not say why
            with temporary.open("w+b") as stream:
                yield stream
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class DocumentWriter:
    """Writes JSON lines to `path` (.jsonl.zst), temporary name first, then rename; an error inside `with` leaves no
    file. The bytes depend on the documents alone."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.temporary = temporary_name(self.path)

    def __enter__(self) -> Self:
        self.raw = self.temporary.open("wb")
        compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        self.stream = compressor.stream_writer(self.raw)
        return self

    def write(self, document: Document | Mapping) -> None:
        """One document."""
        self.write_line(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))

    def write_line(self, line: bytes) -> None:
        """One document as its JSON line."""
        with writing(self.path):
            self.stream.write(line)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                with writing(self.path):
                    self.stream.close()  # closes the file under it too
                self.temporary.replace(self.path)
            else:
                self.raw.close()
        finally:
            self.temporary.unlink(missing_ok=True)


def write_documents(path: Path, documents: Iterable[Document | Mapping]) -> int:
    """Write documents to `path`; returns how many. An error while `documents` is read leaves no file."""
    count = 0
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.write(document)
            count += 1
    return count


def read_documents(path: Path) -> Iterator[dict]:
    """The documents of one file in order. Raises ValueError naming the file (and line) when it is cut short or not
    ours."""
    path = Path(path)
    with open_input(path, str(path)) as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DamagedFile(str(path), f"line {number} is not JSON ({error})") from error
