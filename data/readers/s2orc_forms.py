"""The forms of S2ORC records brought to one: `Paper` of `data.readers.s2orc_text`."""

import re
from bisect import bisect_left
from dataclasses import dataclass

import orjson

from data.readers.html import html_text
from data.readers.inline import squeeze, unescape
from data.readers.interface import InputFile
from data.readers.s2orc_text import Block, Mark, Paper, formula_text


class MalformedPaper(Exception):
    """A record whose parts are not what its form says; the message is one clause."""


# Parses: lists of paragraphs with spans (2019, 2020, doc2json, CORD-19)


def parsed_paper(parse: dict, file: InputFile) -> Paper:
    """A paper from `abstract`, `body_text`, `back_matter`, `bib_entries` and `ref_entries`."""
    paper = Paper()
    entries = _entries(parse, "ref_entries")
    for identity, entry in entries.items():
        kind = str(entry.get("type") or entry.get("type_str") or "")
        if kind in ("figure", "table"):
            paper.captions[identity] = ("fig" if kind == "figure" else "table", squeeze(_text(entry, "text")))
            rows = _table(entry, file) if kind == "table" and file.settings.tables else ""
            if rows:
                paper.tables[identity] = rows
    for identity, entry in _entries(parse, "bib_entries").items():
        authors = entry.get("authors")
        first = authors[0] if isinstance(authors, list) and authors and isinstance(authors[0], dict) else {}
        paper.citations[identity] = (
            unescape(squeeze(_text(entry, "title"))),
            unescape(squeeze(_text(first, "last"))),
        )
    if isinstance(parse.get("abstract"), list):  # a string is metadata
        paper.abstract = _paragraphs(parse, "abstract", entries)
    paper.body = _paragraphs(parse, "body_text", entries)
    for block in _paragraphs(parse, "back_matter", entries):
        if block.header:
            paper.body.append(block)
        else:
            file.notes["paragraphs without a header behind the text left out"] += 1
    return paper


def _paragraphs(parse: dict, name: str, entries: dict[str, dict]) -> list[Block]:
    paragraphs = parse.get(name) or []
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, dict) for paragraph in paragraphs):
        raise MalformedPaper(f"{name} is no list of paragraphs")
    blocks = []
    for paragraph in paragraphs:
        marks = [
            Mark(start, end, kind, target)
            for spans, kind in (("cite_spans", "cite"), ("ref_spans", "refer"), ("eq_spans", "formula"))
            for span in paragraph.get(spans) or ()
            for start, end, target in [_span(span, kind, entries)]
        ]
        header, number = _header(paragraph)
        blocks.append(Block(_text(paragraph, "text"), header, number, marks))
    return blocks


def _header(paragraph: dict) -> tuple[str | None, str | None]:
    """Name and number of a paragraph's section: its name, or the path of (number, name) pairs that LaTeX gives."""
    section, number = paragraph.get("section"), paragraph.get("sec_num")
    if isinstance(section, list):
        last = section[-1] if section else None
        section = last[-1] if isinstance(last, list) and last else last
    header = squeeze(section) if isinstance(section, str) else ""
    return header or None, str(number) if number and header else None


def _span(span: object, kind: str, entries: dict[str, dict]) -> tuple[int, int, str | None]:
    if not isinstance(span, dict) or not all(isinstance(span.get(key), int) for key in ("start", "end")):
        raise MalformedPaper("a span without start and end")
    identity = span.get("ref_id")
    identity = identity if isinstance(identity, str) else None
    if kind != "formula":
        return span["start"], span["end"], identity
    entry = entries.get(identity or "", {})
    source = _text(span, "latex") or _text(entry, "latex")
    return span["start"], span["end"], formula_text(source) or _text(span, "raw_str") or _text(entry, "text") or None


def _table(entry: dict, file: InputFile) -> str:
    """Markdown rows of a table that is given as HTML; of one that is not, only the caption is known."""
    source = _text(entry, "html") or _text(entry, "content")
    return html_text(source.encode(), file.name, file.notes)[1] if source.lstrip().startswith("<") else ""


def _entries(parse: dict, name: str) -> dict[str, dict]:
    entries = parse.get(name) or {}
    if not isinstance(entries, dict):
        raise MalformedPaper(f"{name} is no object")
    return {identity: entry for identity, entry in entries.items() if isinstance(entry, dict)}


def _text(value: dict, key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""


# Annotated texts (Datasets API)


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int
    attributes: dict


class _Annotations:
    """The spans of one text by kind, in its order. Names are those of `s2orc`; `s2orc_v2` writes them with `_`."""

    def __init__(self, holder: dict, where: str):
        self.text = _text(holder, "text")
        found = holder.get("annotations") or {}
        if not isinstance(found, dict):
            raise MalformedPaper(f"{where}.annotations is no object")
        self.raw = {key.replace("_", ""): value for key, value in found.items()}
        self.where = where

    def spans(self, kind: str) -> list[_Span]:
        value = self.raw.get(kind)
        try:
            items = orjson.loads(value) if isinstance(value, str) and value else value or []
            spans = [_Span(int(item["start"]), int(item["end"]), item.get("attributes") or {}) for item in items]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MalformedPaper(f"{self.where}.annotations.{kind} is no list of spans") from error
        if not all(isinstance(span.attributes, dict) for span in spans):
            raise MalformedPaper(f"{self.where}.annotations.{kind} has attributes that are no object")
        inside = [span for span in spans if 0 <= span.start < span.end <= len(self.text)]
        return sorted(inside, key=lambda span: (span.start, span.end))

    def printed(self, span: _Span) -> str:
        return unescape(squeeze(self.text[span.start : span.end]))


def annotated_paper(record: dict, file: InputFile) -> tuple[Paper, str]:
    """A paper from one text with annotations, and the title printed in it ("" when none is marked)."""
    name = "content" if isinstance(record.get("content"), dict) else "body"
    body = _Annotations(record[name], name)
    bibliography = record.get("bibliography")
    references = _Annotations(bibliography, "bibliography") if isinstance(bibliography, dict) else body
    paper = Paper(citations=_citations(references))
    _add_captions(body, paper, file)
    abstracts = body.spans("abstract")
    paper.abstract = [Block(body.text[span.start : span.end]) for span in abstracts]
    marks = _marks(body)
    starts = [mark.start for mark in marks]
    header, number, covered = None, None, max((span.end for span in abstracts), default=0)
    parts = [(span, kind) for kind in ("sectionheader", "paragraph", "formula") for span in body.spans(kind)]
    for span, kind in sorted(parts, key=lambda part: (part[0].start, -part[0].end)):
        if kind == "sectionheader":
            header = body.printed(span) or None
            number = str(span.attributes.get("n") or "").strip(". ") or None
        elif span.start >= covered:  # not a formula inside a paragraph, nor a paragraph of the abstract
            covered = span.end
            inside = marks[bisect_left(starts, span.start) : bisect_left(starts, span.end)]
            moved = [Mark(mark.start - span.start, mark.end - span.start, mark.kind, mark.target) for mark in inside]
            paper.body.append(Block(body.text[span.start : span.end], header, number, moved))
    title = next((printed for span in body.spans("title") if (printed := body.printed(span))), "")
    return paper, title


def _marks(body: _Annotations) -> list[Mark]:
    marks = [
        Mark(span.start, span.end, kind, str(span.attributes["ref_id"]) if span.attributes.get("ref_id") else None)
        for name, kind in (("bibref", "cite"), ("figureref", "refer"), ("tableref", "refer"))
        for span in body.spans(name)
    ]
    marks += [Mark(span.start, span.end, "formula", None) for span in body.spans("formula")]
    return sorted(marks, key=lambda mark: (mark.start, mark.end))


def _first_inside(spans: list[_Span], outer: _Span) -> _Span | None:
    place = bisect_left(spans, outer.start, key=lambda span: span.start)
    return spans[place] if place < len(spans) and spans[place].end <= outer.end else None


def _citations(references: _Annotations) -> dict[str, tuple[str, str]]:
    titles, names = references.spans("bibtitle"), references.spans("bibauthorlastname")
    citations = {}
    for entry in references.spans("bibentry"):
        identity = entry.attributes.get("id") or entry.attributes.get("ref_id")
        title, name = _first_inside(titles, entry), _first_inside(names, entry)
        if identity and title:
            citations[str(identity)] = (references.printed(title), references.printed(name) if name else "")
    return citations


def _add_captions(body: _Annotations, paper: Paper, file: InputFile) -> None:
    """Captions by the id of the figure around each; the cells of a table are not told apart in this form."""
    figures = body.spans("figure")
    tables = body.spans("table")
    captions = body.spans("figurecaption")
    for place, outer in enumerate([*figures, *tables]):
        identity = str(outer.attributes.get("id") or f"{'figure' if place < len(figures) else 'table'} {outer.start}")
        table = place >= len(figures) or identity.startswith("tab") or outer.attributes.get("type") == "table"
        caption = _first_inside(captions, outer)
        if caption is not None:
            paper.captions[identity] = ("table" if table else "fig", body.printed(caption))
    if tables:
        file.notes["tables whose cells are not told apart left out, captions kept"] += len(tables)
    named = {
        (caption.start, caption.end) for outer in (*figures, *tables) if (caption := _first_inside(captions, outer))
    }
    for caption in captions:
        if (caption.start, caption.end) not in named:
            printed = body.printed(caption)
            paper.captions[f"caption {caption.start}"] = ("table" if re.match(r"(?i)tab", printed) else "fig", printed)
