"""References of an article written out between MEDITRON's special tokens: what is cited and what a figure shows.

    [bib_ref] Title of the work, at most twelve words..., Surname of the first author [/bib_ref]
    [fig_ref] Figure 2A: First clause of the caption, at most twelve words... [/fig_ref]

The id that a reference points to decides, not its ref-type. As in MEDITRON's corpus, tables have the token of figures,
and a citation of a work without a title is left out. A range `[4-7]` that links its ends gives the works between them
too, where their places in the list agree with the numbers and they are at most ten. A citation whose id is not in the
article stays as it is printed.
"""

import re
from collections.abc import Callable

from lxml import etree

from data.readers.inline import names, squeeze
from data.special_tokens import enclose

MOST_WORDS = 12
"""Words of a title or caption (MEDITRON's number)."""
MOST_BETWEEN = 10
"""Works between the ends of a range; of a wider one only the ends are given."""
_CITED_WORKS = names("ref mixed-citation element-citation citation nlm-citation")
_DISPLAYS = names("fig table-wrap fig-group table-wrap-group")
_TITLES = ("article-title", "chapter-title", "part-title", "data-title", "trans-title", "source")

# Marks in running text until its end is reached, when the brackets around them are known. No XML file can hold these.
_CITATION = "\x02{}\x07{}\x03"
_DISPLAY = "\x04{}\x05{}\x06"
_ONE_CITATION = r"\x02[^\x03]*\x03"
_CITATIONS = re.compile(rf"\s*([\[(]?)\s*({_ONE_CITATION}(?:[\s,;–—−‐‑-]*{_ONE_CITATION})*)(\s*[\])])?")
_PARTS = re.compile(r"\x02([^\x07]*)\x07([^\x03]*)\x03([^\x02]*)")
_RANGE = re.compile(r"[\[(]?([0-9]{1,4})[\])]?\s*[–—−‐‑-]\s*[\[(]?([0-9]{1,4})[\])]?")
_DISPLAYED = re.compile(r"\x04([^\x05]*)\x05([^\x06]*)\x06([A-Za-z]\b)?")
_WORD_OF_DISPLAY = re.compile(r"(?:figures?|figs?\.?|tables?|tabs?\.?|schemes?|charts?|plates?)\s*$", re.IGNORECASE)
_NAMED = re.compile(r"[^\W\d_]{3,}")
_END_OF_CLAUSE = re.compile(r"[.;:](?=\s|$)|[()]")
_PAIRS = ("[]", "()")


class References:
    """What the ids of one article stand for. `line` gives the running text of an element without special tokens."""

    def __init__(self, article: etree._Element, line: Callable[[etree._Element], str]):
        self.line = line
        self.targets: dict[str, etree._Element] = {}
        self.works: list[str] = []  # an id of each entry of the list of references
        self.places: dict[str, int] = {}  # ids of entries, and of works in them, to the entry's place in `works`
        entry = None
        for element in article.iter(*_CITED_WORKS, *_DISPLAYS):
            name = element.get("id")
            if not name or name in self.targets:
                continue
            self.targets[name] = element
            if element.tag in _CITED_WORKS:
                previous, entry = entry, next(element.iterancestors("ref"), element)
                if entry is not previous:
                    self.works.append(name)
                self.places[name] = len(self.works) - 1
        self.texts: dict[str, str] = {}

    def mark(self, xref: etree._Element, running: list[str]) -> str | None:
        """The mark for an <xref> behind the text `running`; None when it is no reference to a work, figure or table
        of this article. `Figure` before a bare number is taken from `running`: it is part of the mark."""
        ids = (xref.get("rid") or "").split()
        tags = {self.targets[name].tag for name in ids if name in self.targets}
        if tags & _DISPLAYS:
            return self._display(xref, next(name for name in ids if name in self.targets), running)
        printed = [squeeze("".join(xref.itertext()))]  # once, with the first of several ids
        known = (name for name in ids if name in self.targets)
        return "".join(_CITATION.format(name, printed.pop() if printed else "") for name in known) or None

    def written_out(self, text: str) -> str:
        """`text` with marks turned into special tokens. The brackets around citations and what separates them go."""
        if holds_citation(text):
            text = _CITATIONS.sub(self._citations, text)
        if "\x05" in text:
            text = _DISPLAYED.sub(_displayed, text)
        return text.strip()

    def _citations(self, match: re.Match[str]) -> str:
        opening, marks, closing = match.groups(default="")
        if opening + closing.strip() in _PAIRS:
            opening = closing = ""
        works = (self._text(name, self._work) for name in self._cited(marks))
        tokens = " ".join(enclose("bib_ref", work) for work in works if work)
        before = " " if tokens or opening else ""
        following = match.string[match.end() : match.end() + 1]
        after = " " if following.isalnum() or (tokens and following in ("\x02", "\x04", "[", "(")) else ""
        return (before + opening + tokens + closing + after) if match.start() else (opening + tokens + closing + after)

    def _cited(self, marks: str) -> list[str]:
        """The ids that a run of marks names, with those inside of its ranges."""
        cited: list[str] = []
        previous, printed = "", ""
        for name, written, separator in _PARTS.findall(marks):
            cited += [*self._between(previous, name, printed + written), name]
            previous, printed = name, written + separator
        return cited

    def _between(self, first: str, last: str, printed: str) -> list[str]:
        ends = _RANGE.fullmatch(printed)
        if not ends or first not in self.places or last not in self.places:
            return []
        start, end = self.places[first] + 1, self.places[last]
        agree = end - start + 1 == int(ends[2]) - int(ends[1])
        return self.works[start:end] if agree and end - start <= MOST_BETWEEN else []

    def _display(self, xref: etree._Element, name: str, running: list[str]) -> str:
        written = squeeze("".join(xref.itertext()))
        label = self.targets[name].find("label")
        word = self.line(label).rstrip(".:").rpartition(" ")[0] if label is not None else ""
        if word and not _NAMED.search(written):
            written = f"{word} {written}".strip()
            if running:
                running[-1] = _WORD_OF_DISPLAY.sub("", running[-1])
        return _DISPLAY.format(written, self._text(name, self._clause))

    def _text(self, name: str, write: Callable[[etree._Element], str]) -> str:
        if name not in self.texts:
            self.texts[name] = write(self.targets[name]) if name in self.targets else ""
        return self.texts[name]

    def _work(self, reference: etree._Element) -> str:
        """`Title, Surname` of a cited work; "" when its title is not marked up."""
        found = (reference.find(f".//{name}") for name in _TITLES)
        title = next((text for element in found if element is not None and (text := self.line(element))), "")
        if not title:
            return ""
        author = next(reference.iter("surname", "collab"), None)
        parts = [_first_words(title.rstrip(".,; ")), self.line(author) if author is not None else ""]
        return ", ".join(part for part in parts if part)

    def _clause(self, display: etree._Element) -> str:
        """The first clause of a caption."""
        caption = display.find("caption")
        found = caption.iter("title", "p") if caption is not None else ()
        text = next((text for element in found if (text := self.line(element))), "")
        return _first_words(_END_OF_CLAUSE.split(text, maxsplit=1)[0].strip())


def _first_words(text: str) -> str:
    words = text.split()
    return " ".join(words[:MOST_WORDS]).rstrip(",;:") + "..." if len(words) > MOST_WORDS else " ".join(words)


def holds_citation(text: str) -> bool:
    """Whether a citation's mark is in the text."""
    return "\x03" in text


def _displayed(match: re.Match[str]) -> str:
    written, clause, panel = match.groups()
    written += panel or ""
    return enclose("fig_ref", f"{written}: {clause}" if clause and written else written or clause)
