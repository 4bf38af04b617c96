"""JSON lines: an object a line with `text`, and any of a document's other fields. Large plain files are read in byte
ranges."""

import re
from collections.abc import Iterator

import orjson

from data.documents import Document
from data.files import StreamDecoder
from data.readers.interface import Drop, Format, InputFile

TEXT_FIELDS = ("title", "url", "license", "language", "journal", "date", "pmid", "pmcid", "doi")
LIST_FIELDS = ("types", "mesh")


def read(file: InputFile) -> Iterator[Document | Drop]:
    """A document a line in file order. A line that is no JSON object with a `text` string is a `bad-record`, named by
    its byte offset.

    A line without `id` is named by its offset, which stays when lines are added at the end.
    """
    decoder = StreamDecoder(file.name, "utf-8")
    decoder.consumed = offset = file.offset
    for line in file.stream:
        place = f"{file.name}@{offset}"
        offset += len(line)
        decoder.decode(line, final=True)
        if line.strip():
            yield _document(line, place, file.source)


def _document(line: bytes, place: str, source: str) -> Document | Drop:
    try:
        record = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        return Drop("bad-record", f"{place}: not JSON ({error})")
    if not isinstance(record, dict):
        return Drop("bad-record", f"{place}: expected an object, found {type(record).__name__}")
    return document_from(record, place, source)


def document_from(record: dict, place: str, source: str) -> Document | Drop:
    """A document from a JSON object in our own field names; `place` names it in messages and is its id when it has
    none."""
    if not isinstance(record.get("text"), str):
        return Drop("bad-record", f"{place}: no string under the key text; keys: {', '.join(record)}")
    fields: dict[str, object] = {}
    for name in TEXT_FIELDS:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # identifiers are often written as numbers
        if value is not None and not isinstance(value, str):
            return Drop("bad-record", f"{place}: {name} must be a string, found {type(value).__name__}")
        fields[name] = value or None
    for name in LIST_FIELDS:
        value = record.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            return Drop("bad-record", f"{place}: {name} must be a list of strings")
        fields[name] = value
    version = record.get("version")
    if version is not None and not isinstance(version, int):
        return Drop("bad-record", f"{place}: version must be a whole number")
    identity = record.get("id")
    return Document(
        id=str(identity) if isinstance(identity, str | int) and identity != "" else place,
        source=source,
        text=record["text"],
        version=version,
        **fields,
    )


FORMAT = Format(read, re.compile(r".*\.(jsonl|ndjson|json)"), ".jsonl, .jsonl.gz, .jsonl.zst", splittable=True)
