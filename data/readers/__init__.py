"""Readers: one file a format. A reader turns one opened input file into documents and counted drops, streaming.

`FORMATS` names them by the KIND of `--source KIND[:NAME]=PATH`. A reader is a function `read(file: InputFile) ->
Iterator[Item]`; it raises DamagedFile when the file itself cannot be read on, and yields a Drop for a record that is no
document, a Deletion or a Retraction for what the record says of other documents.
"""

from data.readers import guidelines, jats, jsonl, medline, plain, s2orc, wikipedia
from data.readers.interface import Format

FORMATS: dict[str, Format] = {
    "medline": medline.FORMAT,
    "jats": jats.FORMAT,
    "s2orc": s2orc.FORMAT,
    "guidelines": guidelines.FORMAT,
    "wikipedia": wikipedia.FORMAT,
    "jsonl": jsonl.FORMAT,
    "text": plain.FORMAT,
}


def find_format(kind: str) -> Format:
    """The format of a source kind. Raises ValueError naming the kinds there are."""
    if kind not in FORMATS:
        raise ValueError(f"unknown source kind {kind!r}; known: {', '.join(FORMATS)}")
    return FORMATS[kind]
