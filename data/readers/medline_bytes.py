"""MEDLINE's records as elements, several times faster than by parsing the whole file.

Two thirds of a MEDLINE file are references, authors and dates of processing, which no document uses. Records are cut
out of the stream as bytes, those blocks are cut out of the records as bytes, and only the rest is parsed. In XML a `<`
stands for nothing but mark-up, except inside comments, CDATA and processing instructions. So from the first of those
that holds one, and from the first thing that is not a whole record behind another, the file goes through
`data.xml.iterate`. Both ways give the same of every well-formed file; only inside a block that is cut, the mark-up is
not checked beyond its end (the encoding is), and unknown entity names in it are not counted.

Where the two differ is a file that is not well formed. Cut as bytes, a record that cannot be parsed is passed over as
`Malformed` if it is clear where it ends, and reading goes on. What goes through `data.xml.iterate` is refused as a
whole, and so is everything that is no fault of one record: a file cut short, a wrong encoding, declared entities,
broken mark-up between records, and too many malformed records.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from lxml import etree

from data import xml
from data.files import READ_SIZE, DamagedFile

TAGS = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")
RECORD_LIMIT = 16 << 20
"""Bytes held while the end of a record is looked for; the largest real ones have about 3 MB (thousands of authors)."""
MALFORMED_LIMIT, MALFORMED_SHARE = 100, 0.01
"""Malformed records of a file: when those read so far are more than both, number and share, the file is damaged."""
UNUSED = (
    "AuthorList",
    "ChemicalList",
    "CoiStatement",
    "CopyrightInformation",
    "DataBankList",
    "DateCompleted",
    "DateRevised",
    "GrantList",
    "History",
    "InvestigatorList",
    "KeywordList",
    "MedlineJournalInfo",
    "Pagination",
    "PersonalNameSubjectList",
    "ReferenceList",
)
"""Blocks that the reader never looks into and that are worth cutting: large, or in every record. None of them stands in
running text."""

_DECLARATION = re.compile(rb"\A<\?xml[ \t\r\n][^>]*\?>")
_ROOT = re.compile(rb"[ \t\r\n]*(<[A-Za-z]+>)")
_RECORD = re.compile(rb"[ \t\r\n]*<(%b)(?=[ \t\r\n>])" % "|".join(TAGS).encode())
_HIDING = re.compile(rb"<(?:!(?!--[^<]*?-->|\[CDATA\[[^<]*?\]\]>)|\?(?![^<]*?\?>))")
_BLOCK = re.compile(rb"""<(%b)(?:[ \t\r\n]+[A-Za-z]+="[^"<>]*")*>""" % "|".join(UNUSED).encode())
_START_LIMIT = 1 << 12
"""Bytes in which a next record must begin: blanks and a tag."""
_PMID = re.compile(rb"<PMID(?:[ \t\r\n][^<>]*)?>[ \t\r\n]*([0-9]+)")
_PLACE = re.compile(r",? line \d+(?:, column \d+)?")
"""Where a fault lies, in lxml's message; what is parsed is a piece of the file, so that the numbers mislead."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A record that is not well-formed XML: `PMID 12` or the `line 34` where it begins, and what is wrong.

    The PMID is the first that stands in its bytes, for a person who looks for it. Nothing may be concluded from it.
    """

    place: str
    reason: str

    @classmethod
    def describe(cls, record: bytes, line: int, reason: str) -> "Malformed":
        """`line` is the file's line on which the record begins."""
        pmid = None if record.startswith(b"<DeleteCitation") else _PMID.search(record)  # its PMIDs are others'
        return cls(f"PMID {pmid.group(1).decode()}" if pmid else f"line {line}", _PLACE.sub("", reason))


def iterate(stream: BinaryIO, name: str, unknown: Counter[str]) -> Iterator[etree._Element | Malformed]:
    """Each element named in TAGS, without the blocks named in UNUSED, valid until the next is asked for; Malformed in
    place of one that is not well formed.

    Memory does not grow with the file. Names of unknown entities are counted in `unknown`. Raises DamagedFile as
    `data.xml.iterate` does, and where malformed records are too many.
    """
    source = xml.XmlStream(stream, name)
    source.rewriter = _Unchanged()
    cutter = RecordCutter(source)
    parser = etree.XMLParser(**xml.PARSER_SETTINGS)
    records = malformed = 0
    while True:
        record = cutter.cut()
        reason = "its end tag is missing"
        if record is not None:
            records += 1
            try:
                element = _parsed(record, parser, unknown)
            except etree.XMLSyntaxError as error:
                reason = error.msg
                cutter.give_back(record)
            else:
                yield element
                continue
        skipped = cutter.skip_malformed(reason)
        if skipped is None:  # what is wrong, if anything is, the parse of all that is left will say
            break
        records += record is None
        malformed += 1
        if malformed > MALFORMED_LIMIT and malformed > MALFORMED_SHARE * records:
            raise DamagedFile(name, f"{malformed} of its first {records} records are not well-formed XML")
        yield skipped
    yield from xml.iterate(cutter.rest(), name, TAGS, unknown)


def _parsed(record: bytes, parser: etree.XMLParser, unknown: Counter[str]) -> etree._Element:
    """The record's element without the blocks named in UNUSED. Raises XMLSyntaxError."""
    kept = without_unused(record)
    if b"&" not in kept or not xml.NAMED_ENTITY.search(kept):
        return etree.fromstring(kept, parser)
    rewriter = xml.EntityRewriter()
    element = etree.fromstring(rewriter.feed(kept) + rewriter.close(), parser)
    unknown.update(rewriter.unknown)
    return element


class _Unchanged:
    """Stands in for the EntityRewriter of a stream whose entities are rewritten later, in what is left of it."""

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def close(self) -> bytes:
        return b""


class _Rest:
    """A file-like object: `head`, then the rest of `source`."""

    def __init__(self, head: bytes, source: xml.XmlStream):
        self.head = head
        self.source = source

    def read(self, size: int) -> bytes:
        head, self.head = self.head, b""
        return head or self.source.read(size)


class RecordCutter:
    """Cuts whole records out of a stream of UTF-8, up to the first thing that it does not know for certain."""

    def __init__(self, source: xml.XmlStream):
        self.source = source
        head = source.read(READ_SIZE)  # UTF-8 now, so that a declared encoding would mislead
        self.data = _DECLARATION.sub(lambda match: b"\n" * match.group().count(b"\n"), head)
        while (root := _ROOT.match(self.data)) is None and len(self.data) < _START_LIMIT:
            chunk = source.read(READ_SIZE)
            if not chunk:
                break
            self.data += chunk
        # On its own line; without a plain root element everything is left to the parser.
        self.root = b"\n" * self.data.count(b"\n", 0, root.start(1)) + root.group(1) if root else b""
        root_end = b"/" + self.root.strip(b"<>\n")
        self.root_end = re.compile(rb"[ \t\r\n]*<%b[ \t\r\n]*>" % root_end)
        self.edge = re.compile(rb"<(?:/?(?:%b)|%b)(?=[ \t\r\n/>])" % ("|".join(TAGS).encode(), root_end))
        self.position = root.end() if root else 0  # in `data`: up to here everything was cut
        self.lines = 0  # line breaks before `data`
        self.may_hide = _may_hide(self.data)

    def cut(self) -> bytes | None:
        """The next record. None when anything else comes next, as at the root's end, or something is hidden in it."""
        if not self.root:
            return None
        while (start := _RECORD.match(self.data, self.position)) is None:
            if len(self.data) - self.position > _START_LIMIT or not self._read_on():
                return None
        size = self._find_end(b"</%b>" % start.group(1))
        if size is None:
            return None
        record = self.data[self.position : self.position + size]
        if self.may_hide and _HIDING.search(record):
            return None
        self.position += size
        return record.lstrip()

    def _find_end(self, closing: bytes, searched: int = 0) -> int | None:
        """Bytes from `position` to the end of the next `closing` that begins `searched` bytes behind it or later."""
        while (found := self.data.find(closing, self.position + searched)) < 0:
            held = len(self.data) - self.position
            searched = max(searched, held - len(closing))
            if held > RECORD_LIMIT or not self._read_on():
                return None
        return found + len(closing) - self.position

    def _read_on(self) -> bool:
        """Lengthen `data`; False at the end of the stream."""
        chunk = self.source.read(READ_SIZE)
        self.lines += _line_breaks(self.data, self.position)
        self.data = self.data[self.position :] + chunk
        self.may_hide = _may_hide(self.data)
        self.position = 0
        return bool(chunk)

    def give_back(self, record: bytes) -> None:
        """Undo the last `cut`."""
        self.position -= len(record)

    def skip_malformed(self, reason: str) -> Malformed | None:
        """Go past the record that comes next and cannot be parsed. None, and nothing done, unless it is clear where it
        ends: up to its end tag, or where that is missing up to the next record or the root's end, nothing is hidden in
        it; and behind it comes a record or the root's end.

        No well-formed file has such a record, but for records that hold records.
        """
        start = _RECORD.match(self.data, self.position) if self.root else None
        edge = self.edge.search(self.data, start.end()) if start else None
        if edge is None or not self.data.startswith(b">", start.end()):  # with attributes it may be an empty element
            return None
        closing = b"</%b>" % start.group(1)
        if self.data.startswith(closing, edge.start()):
            size = followed = edge.start() + len(closing) - self.position
        else:
            size = followed = edge.start() - self.position
            reason = "its end tag is missing"
            following = _RECORD.match(self.data, edge.start())
            if following:  # it might lie inside the first, whose end is then still to come
                followed = self._find_end(b"</%b>" % following.group(1), size)
        record = self.data[self.position : self.position + size]
        if _HIDING.search(record) or followed is None or not self._goes_on(followed):
            return None
        blanks = size - len(record.lstrip())
        line = 1 + self.lines + _line_breaks(self.data, self.position + blanks)
        self.position += size
        return Malformed.describe(record.strip(), line, reason)

    def _goes_on(self, size: int) -> bool:
        """Whether a record begins, or the root ends, `size` bytes behind `position`."""
        while True:
            place = self.position + size
            if _RECORD.match(self.data, place) or self.root_end.match(self.data, place):
                return True
            if len(self.data) - place > _START_LIMIT or not self._read_on():
                return False

    def rest(self) -> _Rest:
        """All that was not cut, in a root element of its own, on the lines where the file has it."""
        lines = self.lines + _line_breaks(self.data, self.position) - self.root.count(b"\n")
        return _Rest(self.root + b"\n" * lines + self.data[self.position :], self.source)


def _may_hide(data: bytes) -> bool:
    """Whether a comment, a CDATA section or a processing instruction begins in it."""
    signs = np.frombuffer(data, np.uint8)
    following = signs[1:]
    return bool(((signs[:-1] == ord("<")) & ((following == ord("!")) | (following == ord("?")))).any())


def _line_breaks(data: bytes, end: int) -> int:
    """How many there are before `end`, in a tenth of the time of `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8, end) == ord("\n")))


def without_unused(record: bytes) -> bytes:
    """`record` without the blocks named in UNUSED; one whose end is not clear stays, and everything behind it."""
    kept = []
    position = 0
    block = _BLOCK.search(record)
    while block is not None:
        end = _block_end(record, block)
        if end is None:
            break
        kept.append(record[position : block.start()])
        position = end
        block = _BLOCK.search(record, position)
    kept.append(record[position:])
    return b"".join(kept)


def _block_end(record: bytes, block: re.Match[bytes]) -> int | None:
    """Where a block ends whose first tag is `block`; reference lists may hold reference lists."""
    opening, closing = b"<" + block.group(1), b"</%b>" % block.group(1)
    end = block.end()
    missing = 1
    while missing:
        found = record.find(closing, end)
        if found < 0:
            return None
        missing += record.count(opening, end, found) - 1
        end = found + len(closing)
    return end
