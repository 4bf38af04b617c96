"""Plain text: one document a file."""

import re
from collections.abc import Iterator

from data.documents import Document
from data.files import decode
from data.readers.interface import Format, InputFile


def read(file: InputFile) -> Iterator[Document]:
    """The file as it stands, as one document named by its path below the source."""
    yield Document(id=file.name, source=file.source, title=None, text=decode(file.stream.read(), file.name))


FORMAT = Format(read, re.compile(r".*\.(txt|text|md)"), ".txt, .text, .md")
