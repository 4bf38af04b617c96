"""JSON lines: an object a line with `text`, and any of a document's other fields. Large plain files are read in byte
ranges."""

import re
from collections.abc import Iterator, Sequence

from data.documents import Document
from data.readers.interface import Drop, Format, InputFile
from data.readers.records import read_records

TEXT_FIELDS = ("title", "url", "license", "language", "journal", "date", "pmid", "pmcid", "doi")
LIST_FIELDS = ("types", "mesh")
FIELDS = ("id", "text", *TEXT_FIELDS, *LIST_FIELDS, "version")
"""What a field map can name."""


def read(file: InputFile) -> Iterator[Document | Drop]:
    """A document a line in file order. A line that is no JSON object with a `text` is a `bad-record`, named by its
    byte offset.

    A line without `id` is named by its offset, which stays when lines are added at the end. `file.settings.fields`
    says under which keys other collections keep our fields.
    """
    fields = file.settings.fields
    for record in read_records(file):
        if isinstance(record, Drop):
            yield record
            continue
        value = mapped(record.value, fields, file) if fields else record.value
        document = document_from(value, record.place, file.source)
        if isinstance(document, Drop) and fields:
            names = ", ".join(f"{ours}={theirs}" for ours, theirs in fields)
            keys = ", ".join(record.value)
            document = Drop(document.rule, f"{document.detail} (after the field map {names}; the record has: {keys})")
        yield document


def mapped(record: dict, fields: Sequence[tuple[str, str]], file: InputFile) -> dict:
    """`record` under our names. A field whose key the record lacks is absent, and counted in `file.notes`."""
    values = dict(record)
    for ours, theirs in fields:
        found, value = _reach(record, theirs)
        values[ours] = value
        if not found:
            file.notes[f"records without the key {theirs} that is mapped to {ours}"] += 1
    return values


def _reach(record: dict, key: str) -> tuple[bool, object]:
    """Whether there is a value under `key`, and it; dots lead into inner objects unless the whole is itself a key."""
    if key in record:
        return True, record[key]
    value: object = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def document_from(record: dict, place: str, source: str) -> Document | Drop:
    """A document from a JSON object in our own field names; `place` names it in messages and is its id when it has
    none. A list of strings under `text` is its paragraphs."""
    text = record.get("text")
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        text = "\n\n".join(text)
    if not isinstance(text, str):
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
        text=text,
        version=version,
        **fields,
    )


FORMAT = Format(read, re.compile(r".*\.(jsonl|ndjson|json)"), ".jsonl, .jsonl.gz, .jsonl.zst", splittable=True)
