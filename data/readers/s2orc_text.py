"""The text of an S2ORC paper as Markdown, from any of its forms: blocks with marks at the places of citations,
references to figures, and formulas.

With special tokens a mark becomes what MEDITRON writes there (arXiv 2311.16079, section 2.2): the title of what is
cited and its first author, or the figure's number and the first clause of its caption. A citation that leads nowhere,
and a reference to a figure without caption, stays as printed. Without special tokens all
stay as printed, except that a formula's TeX stands in the place of its placeholder.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from data.readers.inline import squeeze, tex
from data.special_tokens import closing, enclose, opening, without_marks

LONGEST_REFERENCE = 12
"""Words of a title or a caption that a reference quotes."""
_MAIN_SECTION = re.compile(
    r"\b(?:abstract|background|introduction|objectives?|aims?|purpose|materials?|methods?|methodology|patients|experimental|"
    r"results?|findings|discussions?|conclusions?|concluding|limitations|summary|overview|case|appendix|supplementary)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?:(\d{1,2}(?:\.\d{1,2})*)\.?|([IVX]{1,5})\.|([A-Z])\.)\s+(?=\w)")
_LEFT_OUT = re.compile(
    r"(?:[\dIVX]{1,4}[.)]?\s+)?(?:acknowled?ge?ments?|references?$|bibliography|literature cited|works cited|funding|"
    r"financial (?:support|disclosure)|conflicts? of interests?|competing (?:financial )?interests?|"
    r"declarations? of (?:competing )?interests?|disclosures?$|contributors?$|copyright|"
    r"authors?['’]? ?s?['’]? contributions?|publisher['’]?s note|open access$|author information)",
    re.IGNORECASE,
)
"""Sections that are no text of the paper: thanks, interests, money, references, licences."""
_NO_CAPTION = re.compile(
    r"(?:(?:this|the|our) (?:\w+ )?(?:work|study|research|project|investigation) (?:was|is|has been|were) (?:\w+ ){0,2}"
    r"(?:support|fund|financ)|funding\b|acknowled?ge?ments?\b|"
    r"(?:we|the authors?) (?:\w+ )?(?:thank|acknowledge|are grateful)|"
    r"(?:financial|grant) support\b|conflicts? of interest)",
    re.IGNORECASE,
)
"""Statements that the parser took for a caption."""
SHORTEST_REPEATED = 100
"""Characters of a paragraph that is written once where abstract and body both print it."""
_PRINTED_NUMBER = re.compile(r"(fig|tab)[a-z]*\.?\s*([SA]?\d+(?:[A-Za-z]\b)?)", re.IGNORECASE)
_CAPTION_LABEL = re.compile(r"(?:fig(?:ure)?|table)\.?\s*[SA]?\d+\s*[|.:]?\s*", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.;:()]")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;]*\s*\)|\[\s*[,;]*\s*\]")
_CITED = r"{0} (?:(?!{1}).)*{1}".format(*(re.escape(token("bib_ref")) for token in (opening, closing)))
_CITED_IN_BRACKETS = re.compile(rf"[(\[]\s*({_CITED}(?:[\s,;]*{_CITED})*)[\s,;]*[)\]]")
_BLANK_BEFORE = re.compile(r" +([.,;:)\]])")


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters [start, end) of a block. `kind`: `cite`, `refer` or `formula`; `target` names what they lead to, or is
    the formula itself."""

    start: int
    end: int
    kind: str
    target: str | None


@dataclass(slots=True)
class Block:
    """A paragraph, or a formula that stands alone, in the section `header` (None: in none) with its printed number."""

    text: str
    header: str | None = None
    number: str | None = None
    marks: Sequence[Mark] = ()


@dataclass(slots=True)
class Paper:
    """What all forms of a paper come down to. `citations` maps ids to (title, first author's last name), `captions` to
    (`fig` or `table`, caption)."""

    abstract: list[Block] = field(default_factory=list)
    body: list[Block] = field(default_factory=list)
    citations: dict[str, tuple[str, str]] = field(default_factory=dict)
    captions: dict[str, tuple[str, str]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    """Markdown rows by the id of their caption."""

    def take_marks_out(self, notes: Counter[str]) -> None:
        """Nothing that the record holds, however it was escaped, can be taken for a special token of ours."""

        def plain(text: str | None) -> str | None:
            return text and without_marks(text, notes)

        for block in (*self.abstract, *self.body):
            block.text, block.header, block.number = map(plain, (block.text, block.header, block.number))
            block.marks = [
                replace(mark, target=plain(mark.target)) if mark.kind == "formula" else mark for mark in block.marks
            ]
        self.citations = {name: (plain(title), plain(author)) for name, (title, author) in self.citations.items()}
        self.captions = {name: (kind, plain(caption)) for name, (kind, caption) in self.captions.items()}
        self.tables = {name: plain(rows) for name, rows in self.tables.items()}

    def text(self, title: str | None, special_tokens: bool, notes: Counter[str]) -> str:
        """Title, abstract, body, captions; empty when there is neither abstract nor body."""
        for identity in [name for name, (_, caption) in self.captions.items() if _NO_CAPTION.match(caption)]:
            del self.captions[identity]
            notes["statements of funding and thanks among the captions left out"] += 1
        self._write_once(notes)
        abstract = [text for block in self.abstract if (text := self._marked(block, special_tokens))]
        body = self._sections(special_tokens, notes)
        if not abstract and not body:
            return ""
        blocks = [f"# {title}"] if title else []
        if abstract and body:
            blocks.append("## Abstract")
        blocks += abstract + body
        seen = set()
        for identity, (kind, caption) in self.captions.items():
            if caption and caption.casefold() not in seen:
                seen.add(caption.casefold())
                blocks.append(enclose(kind, caption) if special_tokens else caption)
            if identity in self.tables:
                blocks.append(self.tables[identity])
        return "\n\n".join(blocks)

    def _write_once(self, notes: Counter[str]) -> None:
        """Leaves out paragraphs of the body that the abstract holds, and of the abstract that the body does."""
        self.body = _not_in(self.body, self.abstract, notes)
        self.abstract = _not_in(self.abstract, self.body, notes)

    def _sections(self, special_tokens: bool, notes: Counter[str]) -> list[str]:
        """The paragraphs of the body, each section's header before its first."""
        depths = header_depths(self.body)
        blocks: list[str] = []
        current = None
        for part in self.body:
            if part.header and _LEFT_OUT.match(part.header):
                notes["paragraphs of acknowledgements, funding, interests and references left out"] += 1
                continue
            text = self._marked(part, special_tokens)
            if not text:
                continue
            if part.header and (part.header, part.number) != current:
                current = (part.header, part.number)
                label = f"{part.number} {part.header}" if part.number else part.header
                blocks.append("#" * depths[current] + " " + label)
            blocks.append(text)
        return blocks

    def _marked(self, block: Block, special_tokens: bool) -> str:
        text = ""
        position = 0
        cited = False
        for mark in sorted(block.marks, key=lambda mark: (mark.start, -mark.end)):
            if not position <= mark.start < mark.end <= len(block.text):
                continue  # inside another one, or not of this text
            written = self._written(mark, block.text[mark.start : mark.end], special_tokens)
            if written is not None:
                text += block.text[position : mark.start]
                apart = written[:1] not in ("(", "[") or written.startswith(opening("bib_ref"))
                text += " " * (apart and text[-1:].isalnum()) + written
                position = mark.end
                text += " " * (written.endswith("]") and block.text[position : position + 1].isalnum())
                cited = cited or mark.kind == "cite"
        text += block.text[position:]
        if cited:  # what stood around a citation goes with it
            text = _CITED_IN_BRACKETS.sub(r"\1", _EMPTY_BRACKETS.sub("", text))
            text = _BLANK_BEFORE.sub(r"\1", text)
        return squeeze(text)

    def _written(self, mark: Mark, printed: str, special_tokens: bool) -> str | None:
        """What stands in the place of a mark; None for what is printed there."""
        if mark.kind == "formula":
            formula = squeeze(mark.target or "") or squeeze(printed)
            return enclose("formula", formula) if special_tokens else formula
        if not special_tokens:
            return None
        opening, closing = _odd_brackets(printed)
        if mark.kind == "cite":
            title, name = self.citations.get(mark.target or "", ("", ""))
            if not title:
                return None
            inner = enclose("bib_ref", ", ".join(part for part in (shortened(title), name) if part))
        else:
            caption = self.captions.get(mark.target or "")
            if caption is None:
                return None
            inner = enclose("fig_ref", figure_reference(printed, *caption))
        return opening + inner + closing


def _not_in(blocks: list[Block], others: list[Block], notes: Counter[str]) -> list[Block]:
    """The blocks that no other one holds word for word."""
    printed = [block.text for block in others if len(block.text) >= SHORTEST_REPEATED]
    kept = [
        block
        for block in blocks
        if len(block.text) < SHORTEST_REPEATED or not any(block.text.strip() in text for text in printed)
    ]
    if len(kept) < len(blocks):
        notes["paragraphs printed both in abstract and body written once"] += len(blocks) - len(kept)
    return kept


def shortened(text: str) -> str:
    """The first words of a title or clause; `...` says that there are more."""
    words = text.split()
    return " ".join(words[:LONGEST_REFERENCE]) + ("..." if len(words) > LONGEST_REFERENCE else "")


def figure_reference(printed: str, kind: str, caption: str) -> str:
    """`Figure 2: first clause of the caption`, the number as printed where it is referred to."""
    number = _PRINTED_NUMBER.search(printed)
    table = number.group(1).lower() == "tab" if number else kind == "table"
    label = ("Table" if table else "Figure") + (f" {number.group(2)}" if number else "")
    clause = shortened(_CLAUSE_END.split(_CAPTION_LABEL.sub("", caption, count=1).strip(), maxsplit=1)[0])
    return f"{label}: {clause}" if clause else label


def _odd_brackets(printed: str) -> tuple[str, str]:
    """Brackets of a printed mark whose other half stands outside it: `(14,` of `(14, 28)` keeps its `(`."""
    opening = closing = ""
    for left, right in ("()", "[]"):
        surplus = printed.count(left) - printed.count(right)
        opening += left * max(surplus, 0)
        closing += right * max(-surplus, 0)
    return opening, closing


def header_depths(blocks: Iterable[Block]) -> dict[tuple[str, str | None], int]:
    """Markdown depth of each section (2 under the title): by its number (2.3 is one deeper than 2), else 2 for the main
    sections that papers have and 3 for others."""
    depths = {}
    for block in blocks:
        if block.header:
            depths[block.header, block.number] = _depth(block.header, block.number)
    shift = min(depths.values(), default=2) - 2  # papers whose sections have names of their own
    return {section: depth - shift for section, depth in depths.items()}


def _depth(header: str, number: str | None) -> int:
    if number and number.strip(". ")[:1].isdigit():
        return min(2 + number.strip(". ").count("."), 6)
    printed = _NUMBER.match(header)
    if printed:
        digits, roman, letter = printed.groups()
        return min(2 + digits.count("."), 6) if digits else 2 if roman else 3 if letter else 2
    return 2 if len(header.split()) <= 3 and _MAIN_SECTION.search(header) else 3


def formula_text(source: str | None) -> str | None:
    """TeX between dollars; None when there is none."""
    return tex(source) if source and source.strip() else None


_FONT_SIGNS = str.maketrans({
    "ϩ": "+", "Ϫ": "−", "ϫ": "×", "ϭ": "=", "Ϯ": "±", "ϳ": "~", "Ͻ": "<", "Ͼ": ">",
})  # fmt: skip
_FONT_SIGN = re.compile(f"[{''.join(map(chr, _FONT_SIGNS))}]")
_COPTIC = re.compile(rf"(?!{_FONT_SIGN.pattern})[\u03e2-\u03ef\u2c80-\u2cff]")


def without_font_signs(text: str, notes: Counter[str]) -> str:
    """The signs that a mathematical font's numbers became (code 11003 is U+03EB, 10,000 less) as themselves; a text
    that has other Coptic letters is left alone."""
    if not _FONT_SIGN.search(text) or _COPTIC.search(text):
        return text
    notes["signs of a mathematical font that were read as Coptic letters"] += len(_FONT_SIGN.findall(text))
    return text.translate(_FONT_SIGNS)


def written_once(text: str, notes: Counter[str]) -> str:
    """An abstract that is printed twice in one string, once."""
    second = text.find(text[:SHORTEST_REPEATED], len(text) // 2) if len(text) > SHORTEST_REPEATED else -1
    if second < 0 or text[:second].rstrip(" :") != text[second:]:
        return text
    notes["abstracts printed twice written once"] += 1
    return text[second:]
