"""Plain text and Markdown: one document a file."""

import re
from collections import Counter
from collections.abc import Iterator

from data.documents import Document
from data.files import decode_text, read_whole, without_compression
from data.readers.inline import squeeze
from data.readers.interface import Format, InputFile

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n((?:[^\n]*\n)*?)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)\s*")
_KEY = re.compile(r"[\w -]+:(?:[ \t\r]|$)", re.MULTILINE)
_TITLE = re.compile(r"^title:[ \t]+(.+)$", re.MULTILINE | re.IGNORECASE)


def read(file: InputFile) -> Iterator[Document]:
    """The file as it stands, as one document named by its path below the source."""
    text = decode_text(read_whole(file.stream, file.name), file.name)
    title = None
    if without_compression(file.name).endswith(".md"):
        title, text = without_front_matter(text, file.notes)
    yield Document(id=file.name, source=file.source, title=title, text=text)


def without_front_matter(text: str, notes: Counter[str]) -> tuple[str | None, str]:
    """`(title, text)` of Markdown without the YAML between `---` lines that it may begin with; None: no title there.

    What stands between two rules and begins with no `key: value` is text.
    """
    block = _FRONT_MATTER.match(text)
    if block is None or not _KEY.match(block.group(1)):
        return None, text
    notes["blocks of YAML before Markdown left out"] += 1
    title = _TITLE.search(block.group(1))
    return (squeeze(title.group(1).strip().strip("\"'")) or None) if title else None, text[block.end() :]


FORMAT = Format(read, re.compile(r".*\.(txt|text|md)"), ".txt, .text, .md")
