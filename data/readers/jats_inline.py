"""The running text of JATS elements: emphasis, scripts, references, formulas.

Expects plain tag names, without namespaces.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from lxml import etree

from data.readers.inline import mathml, names, squeeze, subscript, superscript, tex, text_at_end, unescape
from data.readers.jats_references import References, holds_citation
from data.special_tokens import enclose

CITED = names("bibr bib")
"""Values of ref-type that point to the bibliography."""
_FOOTNOTES = names("fn table-fn")
_LINK = "{http://www.w3.org/1999/xlink}href"
_OPEN_NUMBER = re.compile(r"[0-9][.,]?$")
"""A number's end, to which another digit would be added: `20` and `4`, but also `5.` and `1`."""
_CARRIES_MARK = re.compile(r"[\w)\]%]$|[0-9][.,]$")
"""What a footnote's letter or digit would be read with: `20`, `5.`, `mg`, `12%`, `(n)`."""
FORMULAS = names("inline-formula disp-formula chem-struct alternatives math tex-math")
SILENT = names(
    "object-id media graphic supplementary-material ref-list permissions sec-meta related-article related-object "
    "kwd-group contrib-group author-notes aff alt-text long-desc attrib"
)
"""Elements without prose of the article: files, references, authors, licences."""
BOXES = names("boxed-text app app-group glossary notes fig-group table-wrap-group fn-group statement")
BLOCKS = BOXES | names(
    "sec p list def-list disp-formula disp-formula-group disp-quote fig table-wrap table array verse-group verse-line "
    "speech preformat code chem-struct-wrap caption question answer"
)
"""Elements that stand apart from running text. (A footnote inside a sentence is written there, in parentheses.)"""


@dataclass
class Conversion:
    """What is asked for and noted while one article is converted. `references` is there when special tokens are
    wanted; `notes` counts what has no text (a formula given only as a picture) or was not asked for."""

    notes: Counter[str] = field(default_factory=Counter)
    tables: bool = True
    references: References | None = None


class RunningText(ABC):
    """Text inside of blocks. Pieces of it are appended to a list `running`, so that a script sees what it follows."""

    def __init__(self, conversion: Conversion):
        self.conversion = conversion

    def line(self, element: etree._Element) -> str:
        """The running text of an element on one line."""
        if not len(element):
            return unescape(squeeze(element.text or ""))
        running: list[str] = []
        self.inside(element, running)
        return self.finished(running)

    def child_line(self, element: etree._Element, name: str) -> str:
        """The running text of the first child of this name; "" without one."""
        child = next(element.iterchildren(name), None)
        return self.line(child) if child is not None else ""

    def finished(self, running: list[str]) -> str:
        """The pieces as one line, references written out."""
        text = unescape(squeeze("".join(running)))
        references = self.conversion.references
        return references.written_out(text) if references is not None else text

    def inside(self, element: etree._Element, running: list[str]) -> None:
        """Append the text inside of `element`."""
        if element.text:
            running.append(element.text)
        for child in element:
            handler = HANDLERS.get(child.tag)
            if handler is None:
                if len(child):
                    self.inside(child, running)
                elif child.text:
                    running.append(child.text)
            else:
                handler(self, child, running)
            if child.tail:
                running.append(child.tail)

    @abstractmethod
    def inner_blocks(self, element: etree._Element) -> list[str]:
        """The blocks of a block that stands where only running text can (a list in a table cell)."""

    @abstractmethod
    def joined(self, element: etree._Element, own_label: bool = True) -> str:
        """All blocks inside a footnote or cell on one line, a label in front."""

    # Scripts and references

    def _subscript(self, element: etree._Element, running: list[str]) -> None:
        inner: list[str] = []
        self.inside(element, inner)
        running.append(subscript("".join(inner), text_at_end(running), element.tail or ""))

    def _superscript(self, element: etree._Element, running: list[str]) -> None:
        cites = len(element) and any(xref.get("ref-type") in CITED for xref in element.iter("xref"))
        if cites:
            self._raised_citation(element, running)
            return
        inner: list[str] = []
        self.inside(element, inner)
        running.append(superscript("".join(inner), text_at_end(running)))

    def _raised_citation(self, element: etree._Element, running: list[str]) -> None:
        """A <sup> with citations in it, which are no exponents; an exponent may stand before them: 10⁹ [3]."""
        marked = self.conversion.references is not None
        exponent = (element.text or "").rstrip(",; " if marked else None)
        if not exponent.strip()[-1:].isalnum():
            exponent = ""
        running.append(superscript(exponent, text_at_end(running)))
        inner: list[str] = []
        if marked:
            self.inside(element, inner)
        cited = "".join(inner if marked else element.itertext()).removeprefix(exponent)
        if holds_citation(cited):
            running.append(" " * cited[0].isalnum() + cited)
            return
        running.append(cited if "[" in cited else f" [{squeeze(cited)}]")

    def _reference(self, element: etree._Element, running: list[str]) -> None:
        """The mark of a reference, kept apart from a number before it: `20 [4]`, `20ᵃ`. With special tokens, what it
        points to."""
        if self.conversion.references is not None:
            mark = self.conversion.references.mark(element, running)
            if mark is not None:
                running.append(mark)
                return
        kind = element.get("ref-type")
        before = running[-1][-2:] if running else ""
        raised = len(element) and element.find(".//sup") is not None
        if kind in CITED:
            cited = "".join(element.itertext()) if len(element) else element.text or ""
            fuses = cited[:1].isdigit() and (before[-1:].isalnum() or _OPEN_NUMBER.search(before))
            if fuses or raised:
                running.append(cited if "[" in cited else f" [{squeeze(cited)}]")
                return
        elif kind in _FOOTNOTES and not raised and _CARRIES_MARK.search(before):
            running.append(superscript(self.line(element), text_at_end(running)))
            return
        if len(element):
            self.inside(element, running)
        elif element.text:
            running.append(element.text)

    # What stands for itself

    def _link(self, element: etree._Element, running: list[str]) -> None:
        """The words of a link, or its address where it has none."""
        if len(element) or (element.text and not element.text.isspace()):
            self.inside(element, running)
        else:
            running.append(element.get(_LINK) or "")

    def _inline_formula(self, element: etree._Element, running: list[str]) -> None:
        text = self.formula(element)
        before = " " if running and running[-1][-1:].isalnum() else ""
        running.append(before + text + " " * (element.tail or "")[:1].isalnum())

    def _break(self, element: etree._Element, running: list[str]) -> None:
        running.append(" ")

    def _picture(self, element: etree._Element, running: list[str]) -> None:
        alternative = element.find(".//alt-text")
        if alternative is not None:
            running.append(f" {self.line(alternative)} ")

    def _footnote(self, element: etree._Element, running: list[str]) -> None:
        running.append(f" ({self.joined(element)})")

    def _nothing(self, element: etree._Element, running: list[str]) -> None:
        running.append(" ")

    def _blocks_inside(self, element: etree._Element, running: list[str]) -> None:
        running.append(" " + " ".join(self.inner_blocks(element)) + " ")

    def formula(self, element: etree._Element) -> str:
        """A formula from its TeX, else MathML, else the characters it is set in, else the picture's alternative
        text; that there is one where it has none of them."""
        text = self._formula_text(element)
        if not text:
            if element.tag == "alternatives":  # of a picture that is no formula
                return ""
            self.conversion.notes["formulas given only as a picture"] += 1
        if self.conversion.references is not None:
            return enclose("formula", text)
        return text or "(formula not shown)"

    def _formula_text(self, element: etree._Element) -> str:
        found = next(element.iter("tex-math"), None)
        if found is not None:
            return tex("".join(found.itertext()))
        found = next(element.iter("math"), None)
        if found is not None:
            return mathml(found)
        running = [element.text or ""]
        for child in element:
            if child.tag in FORMULAS:
                running.append(self._formula_text(child))
            elif child.tag not in ("label", "graphic", "inline-graphic", "object-id"):
                HANDLERS.get(child.tag, RunningText.inside)(self, child, running)
            running.append(child.tail or "")
        text = self.finished(running)
        if not text:
            alternative = next(element.iter("alt-text"), None)
            text = self.line(alternative) if alternative is not None else ""
        return text


HANDLERS: dict[str, Callable[[RunningText, etree._Element, list[str]], None]] = {
    **dict.fromkeys(BLOCKS, RunningText._blocks_inside),
    **dict.fromkeys(SILENT, RunningText._nothing),
    **dict.fromkeys(FORMULAS, RunningText._inline_formula),
    "sub": RunningText._subscript,
    "sup": RunningText._superscript,
    "xref": RunningText._reference,
    **dict.fromkeys(("ext-link", "uri"), RunningText._link),
    "break": RunningText._break,
    "inline-graphic": RunningText._picture,
    "fn": RunningText._footnote,
}
"""How an inline element is written; any other by the text inside of it."""
