"""JSON records: one a line, or all those of a small .json file; what is no record is a counted drop with its place.

Memory is bounded by the longest record, not by the file: a line beyond RECORD_LIMIT is skipped in pieces, unread.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from data.files import READ_SIZE, DamagedFile, decode, without_compression
from data.readers.interface import Drop, InputFile

RECORD_LIMIT = 32 << 20
"""Bytes of a line, or of a .json file that is one value. The longest papers with all their annotations have a few
million; decoded, a record of this size takes a few hundred MB."""


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object and where it stands: `file@byte` for a line, `file#number` in a list, `file` alone."""

    value: dict
    place: str


def read_records(file: InputFile) -> Iterator[Record | Drop]:
    """The objects of a file in its order. Lines that are no JSON object are `bad-record`, too long ones
    `line-too-long`.

    A file named .json may also be one object or a list of objects written over several lines. Raises DamagedFile for
    bytes that are not UTF-8 (naming the offset) and for a .json file that is neither.
    """
    lines = _lines(file)
    if file.offset == 0 and without_compression(file.name).endswith(".json"):
        first = next(((offset, line) for offset, line in lines if line is None or line.strip()), None)
        if first is None:
            return
        offset, line = first
        if line is None or not isinstance(_parsed(line, offset, file), dict):
            yield from _whole(line, lines, file)
            return
        yield _record(line, offset, file)
    for offset, line in lines:
        if line is None:
            limit = f"more than {RECORD_LIMIT >> 20} MiB in one line; write a record a line"
            yield Drop("line-too-long", f"{file.name}@{offset}: {limit}")
        elif line.strip():
            yield _record(line, offset, file)


def _lines(file: InputFile) -> Iterator[tuple[int, bytes | None]]:
    """`(byte offset, line)`; None in place of a line that is too long, of which no more than a piece is held."""
    offset = file.offset
    while line := file.stream.readline(RECORD_LIMIT + 1):
        length = len(line)
        if length > RECORD_LIMIT and not line.endswith(b"\n"):
            piece, line = line, None
            while piece and not piece.endswith(b"\n"):
                piece = file.stream.readline(READ_SIZE)
                length += len(piece)
        if offset == 0 and line is not None:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield offset, line
        offset += length


def _parsed(line: bytes, offset: int, file: InputFile) -> object:
    """The JSON value of a line; the error itself when it is none. DamagedFile when that is because of its encoding."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        decode(line, file.name, offset=offset)
        return error


def _record(line: bytes, offset: int, file: InputFile) -> Record | Drop:
    return _checked(_parsed(line, offset, file), f"{file.name}@{offset}")


def _checked(value: object, place: str) -> Record | Drop:
    if isinstance(value, dict):
        return Record(value, place)
    if isinstance(value, orjson.JSONDecodeError):
        return Drop("bad-record", f"{place}: not JSON ({value})")
    return Drop("bad-record", f"{place}: expected an object, found {type(value).__name__}")


def _whole(first: bytes | None, lines: Iterator[tuple[int, bytes | None]], file: InputFile) -> Iterator[Record | Drop]:
    """The records of a .json file that is one value."""
    too_large = DamagedFile(file.name, f"more than {RECORD_LIMIT >> 20} MiB of JSON; write a record a line (.jsonl)")
    if first is None:
        raise too_large
    pieces, size = [first], len(first)
    for _, line in lines:
        size += RECORD_LIMIT if line is None else len(line)
        if line is None or size > RECORD_LIMIT:
            raise too_large
        pieces.append(line)
    value = _parsed(b"".join(pieces), 0, file)
    if isinstance(value, orjson.JSONDecodeError):
        raise DamagedFile(file.name, f"not JSON ({value})") from value
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield _checked(item, f"{file.name}#{number}")
    elif isinstance(value, dict):
        yield Record(value, file.name)
    else:
        yield _checked(value, file.name)
