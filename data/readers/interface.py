"""What a reader gets and gives."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data.documents import Document

ABSTRACT = "abstract"
"""Among a document's types: it is only the abstract, though its format has full texts."""


@dataclass(frozen=True)
class ReadSettings:
    """What the user decides about texts, for every reader that meets such things."""

    tables: bool = True
    """Tables are written as Markdown rows; else only their captions and footnotes."""
    special_tokens: bool = False
    """Citations, references to figures and tables, formulas and captions stand between MEDITRON's special tokens."""
    languages: tuple[str, ...] = ("en",)
    """Two-letter codes of the languages that are wanted; "" stands for all."""
    fields: tuple[tuple[str, str], ...] = ()
    """(our field, their key) for jsonl with other names: ("text", "body")."""


@dataclass
class InputFile:
    """One opened, decompressed file.

    `name` is its path below the source's root: used in ids and messages, the same on every machine. `offset` is the
    byte of the file at which `stream` begins (not 0 for a later range of a large jsonl). `notes` counts what was left
    out inside documents. `companion` is the file that belongs to it, where there is one (`Format.companion`).
    """

    stream: BinaryIO
    name: str
    source: str
    offset: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    settings: ReadSettings = ReadSettings()
    companion: "InputFile | None" = None

    def note_entities(self, unknown: Counter[str]) -> None:
        """Count the entity names that the XML door did not know."""
        for name, count in unknown.items():
            self.notes[f"unknown entity &{name}; kept as text"] += count


@dataclass(frozen=True, slots=True)
class Drop:
    """A record that gives no document: the rule's name, and where and why where a person may want to look.

    `about` is what is known of the article, a document without text: where later files revise earlier ones, even a
    revision that is dropped replaces what stood there before, and a retraction reaches every source.
    """

    rule: str
    detail: str | None = None
    about: Document | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """The publisher took a citation back: documents of this source read before, with this PMID, go."""

    pmid: str


@dataclass(frozen=True, slots=True)
class Retraction:
    """A notice takes an article back: `about`, a document without text, has its identifiers. Every source's copy goes,
    where what is retracted is dropped at all; in a stream of releases what stands before the notice."""

    about: Document


Item = Document | Drop | Deletion | Retraction
Read = Callable[[InputFile], Iterator[Item]]


@dataclass(frozen=True)
class Format:
    """How a source kind is read.

    `pattern` matches the lower-case file name without its compression suffix. `splittable` files are cut into byte
    ranges of whole lines when not compressed. `archives`: members of .tar, .tar.gz, .tgz are read like files.
    `full_text` documents are preferred to abstracts with the same identity, unless they say `abstract` among their
    types. `marks`: where special tokens are wanted it writes them (`data.special_tokens`), and lets no mark of the file
    itself through. `companion` finds the file that has the other half of a file's records. `revises`: all sources of
    this kind are one stream of releases, in whose order a later record replaces an earlier one with its PMID, even by
    saying nothing.
    """

    read: Read
    pattern: re.Pattern[str]
    spelling: str
    splittable: bool = False
    archives: bool = False
    full_text: bool = False
    revises: bool = False
    marks: bool = False
    companion: Callable[[Path], Path | None] | None = None
