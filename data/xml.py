"""The one door through which XML enters: streaming, constant memory, and nothing in a file can reach outside it.

- No entity is ever declared or expanded: the DOCTYPE is taken out of the byte stream before the parser sees it. One
  that only names an external DTD, as PubMed's and JATS files do, is dropped (the DTD is never loaded); one that
  declares entities is refused.
- Named HTML entities (`5 &mu;g`, `&nbsp;`) are legal only with a DTD, and parsers that "recover" delete them, which
  turns micrograms into grams. They are rewritten to numeric references first; unknown names stay visible as text
  (`&foo;`) and are counted.
- Text is decoded strictly by the declared encoding; the first bad byte is named by its offset.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from html.entities import html5
from typing import BinaryIO

from lxml import etree

from data.files import READ_SIZE, DamagedFile, StreamDecoder

PROLOG_LIMIT = 1 << 20
"""Bytes before the root element; real files have a few hundred."""
PREDEFINED = frozenset(("lt", "gt", "amp", "quot", "apos"))
LONGEST_NAME = 64
"""Longest entity name looked for; the longest HTML one has 31 letters."""

_ENTITY = re.compile(rb"&([A-Za-z_:][A-Za-z0-9_:.-]{0,%d});" % (LONGEST_NAME - 1))
NAMED_ENTITY = re.compile(rb"&(?!#|(?:%b);)" % "|".join(sorted(PREDEFINED)).encode())
"""What may be one that XML itself does not define."""
_SECTIONS = {
    b"<![CDATA[": b"]]>",
    b"<!--": b"-->",
    b"<?": b"?>",
}  # where `&name;` is not a reference: opening and closing
_SECTION_START = re.compile(rb"<!\[CDATA\[|<!--|<\?")
_DOCTYPE = re.compile(
    rb"""<!DOCTYPE(?:[^\[>"']|"[^"]*"|'[^']*')*"""
    rb"""(?:\[(?:[^\]"'<]|"[^"]*"|'[^']*'|<!--.*?-->|<\?.*?\?>|<(?!!--|\?))*\]\s*)?>""",
    re.DOTALL,
)
_DECLARED_ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class EntityRewriter:
    """Rewrites named HTML entities of an ASCII-compatible XML byte stream to numeric references, chunk by chunk.

    The output does not depend on where the chunks end. `unknown` counts the names that HTML does not know; they come
    out as text (`&amp;name;`). The five that XML itself defines are left alone, and so is everything in CDATA, comments
    and processing instructions.
    """

    def __init__(self) -> None:
        self.unknown: Counter[str] = Counter()
        self.held = b""  # the end of the last chunk, when something may go on in the next
        self.closing = b""  # what ends the section we are in; empty in text and tags

    def feed(self, chunk: bytes) -> bytes:
        """The part of everything fed so far that can be settled now."""
        return self._rewrite(self.held + chunk, final=False)

    def close(self) -> bytes:
        """The rest."""
        return self._rewrite(self.held, final=True)

    def _rewrite(self, data: bytes, final: bool) -> bytes:
        pieces = []
        position = 0
        while position < len(data):
            if self.closing:
                end = data.find(self.closing, position)
                if end < 0:
                    break
                end += len(self.closing)
                pieces.append(data[position:end])
                self.closing = b""
            else:
                start = _SECTION_START.search(data, position)
                if start is None:
                    break
                pieces.append(self._substitute(data[position : start.start()]))
                pieces.append(start.group())
                self.closing = _SECTIONS[start.group()]
                end = start.end()
            position = end
        rest = data[position:]
        keep = 0 if final else self._undecided(rest)
        self.held = rest[len(rest) - keep :]
        rest = rest[: len(rest) - keep]
        pieces.append(rest if self.closing else self._substitute(rest))
        return b"".join(pieces)

    def _undecided(self, data: bytes) -> int:
        """How many last bytes of `data` may be the beginning of something that the next chunk completes."""
        if self.closing:
            return min(len(data), len(self.closing) - 1)
        keep = 0
        ampersand = data.rfind(b"&", -(LONGEST_NAME + 1))
        if ampersand >= 0 and b";" not in data[ampersand:]:
            keep = len(data) - ampersand
        bracket = data.rfind(b"<", -len(b"<![CDATA[") + 1)
        if bracket >= 0:
            keep = max(keep, len(data) - bracket)
        return keep

    def _substitute(self, data: bytes) -> bytes:
        return _ENTITY.sub(self._reference, data) if b"&" in data else data

    def _reference(self, match: re.Match[bytes]) -> bytes:
        name = match.group(1).decode("ascii")
        if name in PREDEFINED:
            return match.group()
        characters = html5.get(name + ";")
        if characters is None:
            self.unknown[name] += 1
            return b"&amp;" + match.group(1) + b";"
        return b"".join(b"&#%d;" % ord(character) for character in characters)


class XmlStream:
    """A file-like object for the parser: the XML of `stream` as UTF-8 without DOCTYPE and without named entities."""

    def __init__(self, stream: BinaryIO, name: str):
        self.stream = stream
        self.name = name
        self.rewriter = EntityRewriter()
        head = stream.read(READ_SIZE)
        if not head.strip():
            raise DamagedFile(name, "empty file, expected XML")
        self.decoder = StreamDecoder(name, _encoding(head))
        self.incomplete = b""  # the first bytes of a character whose others are not there yet
        self.pending = self._without_doctype(self._utf8(head))
        self.finished = False

    def _utf8(self, chunk: bytes, final: bool = False) -> bytes:
        text = self.decoder.decode(chunk, final)
        if self.decoder.encoding != "utf-8":
            return text.encode()
        data = self.incomplete + chunk  # as it came: to encode again what was decoded takes as long as decoding
        whole = len(data) - self.decoder.held
        self.incomplete = data[whole:]
        return data[:whole]

    def _without_doctype(self, data: bytes) -> bytes:
        """`data`, lengthened until the root element begins, with the DOCTYPE replaced by its own line breaks."""
        while True:
            position = _root_position(data, self.name)
            if position is not None:
                break
            more = self.stream.read(READ_SIZE)
            if not more:  # a file shorter than a DOCTYPE
                position = _root_position(data + b" " * len(b"<!DOCTYPE"), self.name)
                if position is not None:
                    break
            if not more or len(data) > PROLOG_LIMIT:
                raise DamagedFile(self.name, "not XML: no root element found")
            data += self._utf8(more)
        prolog = data[:position]
        doctype = _DOCTYPE.search(re.sub(rb"<!--.*?-->", lambda m: b" " * len(m.group()), prolog, flags=re.DOTALL))
        if doctype is not None:
            prolog = prolog[: doctype.start()] + b"\n" * doctype.group().count(b"\n") + prolog[doctype.end() :]
        return prolog + data[position:]

    def read(self, size: int = -1) -> bytes:
        """The next bytes, about `size` of them; b"" at the end."""
        while not self.finished:
            if self.pending:
                chunk, self.pending = self.pending, b""
            else:
                raw = self.stream.read(READ_SIZE if size < 0 else size)
                self.finished = not raw
                chunk = self._utf8(raw, final=not raw)
            settled = self.rewriter.feed(chunk)
            if self.finished:
                settled += self.rewriter.close()
            if settled:
                return settled
        return b""


def _encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    declared = _DECLARED_ENCODING.match(head)
    return declared.group(1).decode("ascii").lower() if declared else "utf-8"


def _root_position(data: bytes, name: str) -> int | None:
    """Where the root element's tag begins; None when more bytes are needed. Refuses a DOCTYPE that declares
    entities."""
    position = 0
    doctype_seen = False
    while True:
        opening = data.find(b"<", position)
        if opening < 0 or len(data) < opening + len(b"<!DOCTYPE"):
            return None
        if data.startswith(b"<!DOCTYPE", opening):
            if doctype_seen:
                raise DamagedFile(name, "two DOCTYPEs; refused")
            doctype_seen = True
            match = _DOCTYPE.match(data, opening)
            declares = b"<!ENTITY" in (data[opening : match.end()] if match else data[opening:])
            if declares:
                raise DamagedFile(name, "the DOCTYPE declares entities (an entity bomb or an external file); refused")
            if match is None:
                return None
            position = match.end()
            continue
        closing = next((end for start, end in _SECTIONS.items() if data.startswith(start, opening)), None)
        if closing is None:
            return opening
        end = data.find(closing, opening)
        if end < 0:
            return None
        position = end + len(closing)


PARSER_SETTINGS = {
    "resolve_entities": False, "no_network": True, "load_dtd": False, "encoding": "utf-8",
    "collect_ids": False,  # a table of ids that nobody asks for takes a quarter of the time
}  # fmt: skip


def iterate(stream: BinaryIO, name: str, tags: tuple[str, ...], unknown: Counter[str]) -> Iterator[etree._Element]:
    """Each element with one of `tags` when it is complete; it is emptied when the next is asked for, so memory stays
    flat.

    Names of unknown entities are counted in `unknown`. Raises DamagedFile for XML that is not well formed, cut short,
    in the wrong encoding or that declares entities.
    """
    source = XmlStream(stream, name)
    source.rewriter.unknown = unknown
    try:
        for _, element in etree.iterparse(source, events=("end",), tag=tags, **PARSER_SETTINGS):
            yield element
            element.clear(keep_tail=False)
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise DamagedFile(name, f"not well-formed XML ({error.msg})") from error


def parse(stream: BinaryIO, name: str, unknown: Counter[str]) -> etree._Element:
    """The root element of a whole file; comments and processing instructions are left out. Errors as in `iterate`."""
    source = XmlStream(stream, name)
    source.rewriter.unknown = unknown
    parser = etree.XMLParser(remove_comments=True, remove_pis=True, **PARSER_SETTINGS)
    try:
        return etree.parse(source, parser).getroot()
    except etree.XMLSyntaxError as error:
        raise DamagedFile(name, f"not well-formed XML ({error.msg})") from error
