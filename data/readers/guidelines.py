"""Clinical guidelines: HTML, PDF, text, Markdown and JSON files, and jsonl of the public guidelines collection.

The public collection has `id, source, title, clean_text, raw_text, url, overview` on each line. Whatever else a JSON
object holds is written out as Markdown: a key is a header, a list of strings a list, so that structured guidelines (a
condition a file) keep every item.
"""

import re
from collections.abc import Iterator

from data.documents import Document
from data.files import DamagedFile, decode_text, read_whole, without_compression
from data.readers.html import html_text
from data.readers.inline import squeeze
from data.readers.interface import Drop, Format, InputFile
from data.readers.pdf import pdf_text
from data.readers.plain import without_front_matter
from data.readers.records import read_records

_TITLE_KEYS = ("title", "condition_name", "condition", "name", "topic", "heading")
_TEXT_KEYS = ("clean_text", "text", "content", "raw_text")
_NOT_TEXT = frozenset(("id", "source", "url", "slug", "license", "language", "date", "schema_version", "version"))
PDF_LIMIT = 512 << 20
"""Bytes; books with scanned pictures in them are large."""
_GROUP_NAMES = ("type", "name", "title", "group", "heading")
"""Keys whose value names the group of items beside it: {"type": "Severe", "features": [...]}."""


def read(file: InputFile) -> Iterator[Document | Drop]:
    """A document a file; a document a line of jsonl; a document an object of a JSON list."""
    name = without_compression(file.name)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        for record in read_records(file):
            yield record if isinstance(record, Drop) else _record(record.value, record.place, file)
    elif name.endswith(".pdf"):
        yield _pdf(file)
    elif name.endswith((".html", ".htm", ".xhtml")):
        try:
            title, text = html_text(read_whole(file.stream, file.name), file.name, file.notes)
        except RecursionError as error:
            raise DamagedFile(file.name, "elements are nested too deeply") from error
        yield _document(file, file.name, title, text)
    else:
        text = decode_text(read_whole(file.stream, file.name), file.name)
        title = None
        if name.endswith(".md"):
            title, text = without_front_matter(text, file.notes)
        first = next((line for line in text.splitlines() if line.strip()), "")
        title = title or first.lstrip("#").strip(" *_")
        yield _document(file, file.name, title if 0 < len(title) <= 200 else None, text)


def _pdf(file: InputFile) -> Document | Drop:
    data = read_whole(file.stream, file.name, limit=PDF_LIMIT)
    title, text = pdf_text(data, file.name, file.notes)
    if not text:
        return Drop("no-text-in-pdf", f"{file.name}: its pages are pictures; run OCR (ocrmypdf) on it first")
    return _document(file, file.name, title, text)


def _document(file: InputFile, identity: str, title: str | None, text: str, **fields: str | None) -> Document:
    return Document(id=identity, source=file.source, title=title, text=text, types=["guideline"], **fields)


def _record(record: dict, place: str, file: InputFile) -> Document | Drop:
    try:
        return _record_document(record, place, file)
    except RecursionError:
        return Drop("bad-record", f"{place}: objects are nested too deeply")


def _record_document(record: dict, place: str, file: InputFile) -> Document:
    title = squeeze(_string(record, _TITLE_KEYS)) or None
    text_key = next((key for key in _TEXT_KEYS if _string(record, (key,))), None)
    if text_key:
        text = record[text_key]
        overview = _string(record, ("overview",)).strip()
        if overview and overview not in text:
            text = f"{overview}\n\n{text}"
        written = {text_key, "overview" if overview else "", *(("raw_text",) if text_key == "clean_text" else ())}
        rest = markdown({key: value for key, value in record.items() if key not in written})
        text = f"{text}\n\n{rest}" if rest else text
    else:
        text = markdown(record)
    if title and not text.lstrip("# \n").casefold().startswith(title.casefold()):
        text = f"# {title}\n\n{text}"
    identity = record.get("id")
    return _document(
        file,
        str(identity) if isinstance(identity, str | int) and identity != "" else place,
        title,
        text,
        url=_string(record, ("url",)) or None,
        license=_string(record, ("license",)) or None,
        journal=_string(record, ("source",)) or None,
        date=_string(record, ("date",)) or None,
    )


def _string(record: dict, keys: tuple[str, ...]) -> str:
    """The first of `keys` that holds a string with something in it, else ""."""
    return next((record[key] for key in keys if isinstance(record.get(key), str) and record[key].strip()), "")


def markdown(record: dict) -> str:
    """A JSON object as Markdown below its title: every string, number and list item in it, in its order."""
    title_key = next((key for key in _TITLE_KEYS if isinstance(record.get(key), str)), None)
    blocks: list[str] = []
    for key, value in record.items():
        if key != title_key and key not in _NOT_TEXT and not key.endswith("_slug"):
            _field(key, value, 2, blocks)
    return "\n\n".join(blocks)


def _field(key: str, value: object, depth: int, blocks: list[str]) -> None:
    """Header and content of one key; nothing when there is no content."""
    start = len(blocks)
    blocks.append("#" * min(depth, 6) + " " + key.replace("_", " ").strip().capitalize())
    _content(value, depth, blocks)
    if len(blocks) == start + 1:
        del blocks[start]


def _content(value: object, depth: int, blocks: list[str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _field(key, inner, depth + 1, blocks)
    elif isinstance(value, list):
        _list(value, depth, blocks)
    elif value is not None and str(value).strip():
        blocks.append(str(value).strip())


def _list(values: list, depth: int, blocks: list[str]) -> None:
    bullets: list[str] = []
    for value in values:
        if isinstance(value, dict | list):
            _bullets(bullets, blocks)
            _group(value, depth, blocks) if isinstance(value, dict) else _list(value, depth, blocks)
        elif value is not None and str(value).strip():
            bullets.append(f"- {squeeze(str(value))}")
    _bullets(bullets, blocks)


def _bullets(bullets: list[str], blocks: list[str]) -> None:
    if bullets:
        blocks.append("\n".join(bullets))
        bullets.clear()


def _group(value: dict, depth: int, blocks: list[str]) -> None:
    """An object of a list. One that is a name and one list is a header over that list."""
    name_key = next((key for key in _GROUP_NAMES if isinstance(value.get(key), str) and value[key].strip()), None)
    if name_key is None:
        _content(value, depth, blocks)
        return
    rest = {key: inner for key, inner in value.items() if key != name_key}
    blocks.append("#" * min(depth + 1, 6) + " " + squeeze(value[name_key]))
    if len(rest) == 1:
        _content(next(iter(rest.values())), depth + 1, blocks)
    else:
        _content(rest, depth + 1, blocks)


FORMAT = Format(
    read, re.compile(r".*\.(html?|xhtml|txt|text|md|json|jsonl|ndjson|pdf)"), ".html, .pdf, .txt, .md, .json, .jsonl"
)
