"""Parts of a printed paper that are no text of it: authors, references, lines of the proceedings."""

import re
from collections import Counter

from data.readers.pdf_lines import Line

DEEPEST_RUNNING = 3
"""Lines at the top and at the bottom of a page that are looked at."""
_NUMBER = re.compile(r"[0-9]{1,4}")
_PROCEEDINGS = re.compile(r"Proceedings of |.*(?:©|\(c\)|\bc) ?(?:19|20)\d\d\b", re.IGNORECASE)
_HEADER = re.compile(r"(#{1,6}) ")
_ABSTRACT = re.compile(r"#{1,6} abstract[.:]?", re.IGNORECASE)
_REFERENCES = re.compile(
    r"(#{0,6}) ?(?:\d{1,2}(?:\.\d{1,2})*\.? )?(?:references|bibliography|reference list|list of references|"
    r"literature cited|works cited)[.:]?",
    re.IGNORECASE,
)
_APPENDIX = re.compile(r"#{1,6} (?:[A-Z\d.]{1,4} )?(?:appendi|annex|supplement|glossary)", re.IGNORECASE)
_OF_SENTENCES = re.compile(r"\b(?:is|are|was|were|be|been|should|must|can|may|this|that|these|we|has|have|not|if)\b")


def without_edge_lines(pages: list[list[Line]], starts: set[int], notes: Counter[str]) -> None:
    """Takes off page numbers that stand apart from where they run, when pages are counted from one of `starts`, and
    the lines of the proceedings and the copyright at the edges of the first page."""
    for number, lines in enumerate(pages):
        edge = [
            *range(min(DEEPEST_RUNNING, len(lines))),
            *range(max(DEEPEST_RUNNING, len(lines) - DEEPEST_RUNNING), len(lines)),
        ]
        for place in reversed(edge):
            text = lines[place].text
            if _NUMBER.fullmatch(text) and int(text) - number in starts:
                notes["running headers, footers and page numbers left out"] += 1
            elif number == 0 and _PROCEEDINGS.match(text):
                notes["lines of proceedings and copyright left out"] += 1
            else:
                continue
            del lines[place]


def without_apparatus(blocks: list[str], first_page: int, notes: Counter[str]) -> list[str]:
    """`blocks`, of which the first `first_page` begin on the first page, without authors and references."""
    kept = _without_authors(blocks, first_page, notes)
    result: list[str] = []
    depth = 0  # of the header of the references that are being left out
    for block in kept:
        references = _REFERENCES.fullmatch(block)
        header = _HEADER.match(block)
        if references:
            depth = len(references.group(1)) or 6
        elif depth and (_APPENDIX.match(block) or (header and len(header.group(1)) <= depth) or _is_prose(block)):
            depth = 0
        if depth:
            notes["blocks of references left out"] += 1
        else:
            result.append(block)
    return result


def _without_authors(blocks: list[str], first_page: int, notes: Counter[str]) -> list[str]:
    """Leaves out what stands between the title, the first header of the greatest size, and the abstract."""
    abstract = next((place for place, block in enumerate(blocks[:first_page]) if _ABSTRACT.fullmatch(block)), 0)
    headers = {place: len(found.group(1)) for place in range(abstract) if (found := _HEADER.match(blocks[place]))}
    if not headers:
        return blocks
    title = min(headers, key=lambda place: (headers[place], place))
    between = [block for block in blocks[title + 1 : abstract] if _is_prose(block)]
    left_out = abstract - title - 1 - len(between)
    if left_out:
        notes["blocks of authors and affiliations left out"] += left_out
    return [*blocks[: title + 1], *between, *blocks[abstract:]]


def _is_prose(block: str) -> bool:
    """Whether a block has the small words of sentences, of which names, addresses and references have few."""
    words = len(block.split())
    return words >= 30 and 25 * len(_OF_SENTENCES.findall(block)) >= words
