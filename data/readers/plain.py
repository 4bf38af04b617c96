"""Plain text: one document a file."""

import re
from collections.abc import Iterator

from data.documents import Document
from data.files import decode_text, read_whole
from data.readers.interface import Format, InputFile


def read(file: InputFile) -> Iterator[Document]:
    """The file as it stands, as one document named by its path below the source."""
    text = decode_text(read_whole(file.stream, file.name), file.name)
    yield Document(id=file.name, source=file.source, title=None, text=text)


FORMAT = Format(read, re.compile(r".*\.(txt|text|md)"), ".txt, .text, .md")
