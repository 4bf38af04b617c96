"""How much of an article's text a converter keeps, and how much it writes twice. Knows nothing of any converter.

A block is what stands directly in a paragraph, title, list item, definition, caption or table cell (its innermost one)
of the abstracts, body, appendices and floats of an article; sub-articles are other texts. References, labels, object
ids, formulas, media and supplementary material are no part of it. Words are `\\w+` after NFKC and case folding, with
inline mark-up removed, on both sides (so a converter's 10⁹ and the article's 10<sup>9</sup> are both 109).

Recall: a block's words that stand contiguous and in order in the output, else its longest common subsequence with the
passage that is most like it; what a block has been found in serves no other block, so a lost sentence does not hide
behind a repeated one. Duplication: how often 8-grams of the output occur beyond their count in the article.
"""

import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from lxml import etree

BLOCKS = ("p", "title", "list-item", "def", "caption", "td", "th")
FORMULAS = ("inline-formula", "disp-formula", "disp-formula-group", "chem-struct", "tex-math", "math")
NO_WORDS = ("xref", "label", "object-id", *FORMULAS, "media", "supplementary-material")
INLINE = ("italic", "bold", "sup", "sub", "underline", "sc", "monospace", "roman", "sans-serif", "strike", "overline")
INLINE += ("xref", "ext-link", "uri", "email", "named-content", "styled-content", "abbrev", "institution")
PARTS = ("abstract", "body", "app", "floats-group")
OTHER_TEXTS = ("sub-article", "response")
NGRAM = 8
NEAR = 20
"""Words before and after a passage's expected place that are searched as well."""
_REFERENCE = "\ue000"
_CITATION = re.compile(r"\[[\d\s,;–\-\ue000]*[\d\ue000][\d\s,;–\-\ue000]*\]")
_WORD = re.compile(r"\w+")


@dataclass
class Fidelity:
    """Word counts of one article: `blocks` in its blocks, `found` of them in the output; `output` words written,
    `repeated` 8-grams too often."""

    blocks: int = 0
    found: int = 0
    output: int = 0
    repeated: int = 0

    def __add__(self, other: "Fidelity") -> "Fidelity":
        return Fidelity(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def recall(self) -> float:
        """Share of the blocks' words that the output holds."""
        return self.found / max(self.blocks, 1)

    @property
    def duplication(self) -> float:
        """Share of the output that is written more often than in the article."""
        return self.repeated / max(self.output, 1)


def words(text: str) -> list[str]:
    """The words of a text, citation marks removed."""
    return _WORD.findall(unicodedata.normalize("NFKC", _CITATION.sub(" ", text).replace("^", "")).casefold())


def measure(article: etree._Element, output: str, kinds: tuple[str, ...] = BLOCKS) -> Fidelity:
    """The fidelity of `output` to an <article> (or to a tree that holds one), which is left as it is. Only blocks of
    these kinds are looked for."""
    found = words(output)
    places = Places(found)
    blocks = [block for tag, text in block_texts(article) if tag in kinds and (block := words(text))]
    inside = sum(map(places.take, blocks))
    everything = Counter(ngrams(words("".join(_all_text(article)))))
    repeated = sum(max(0, count - max(everything[gram], 1)) for gram, count in Counter(ngrams(found)).items())
    return Fidelity(sum(map(len, blocks)), inside, len(found), repeated)


def ngrams(sequence: list[str]) -> list[tuple[str, ...]]:
    """All runs of NGRAM words."""
    return list(zip(*(sequence[start:] for start in range(NGRAM)), strict=False))


class Places:
    """The words of an output, and which of them blocks have been found in."""

    def __init__(self, output: list[str]):
        self.output = output
        self.free = [True] * len(output)
        self.starts: dict[str, list[int]] = defaultdict(list)
        for position, word in enumerate(output):
            self.starts[word].append(position)
        self.cursor = 0

    def take(self, block: list[str]) -> int:
        """How many words of the block the output holds; they are taken, the next block is looked for behind them."""
        position = self._contiguous(block)
        if position is not None:
            self.free[position : position + len(block)] = [False] * len(block)
            self.cursor = position + len(block)
            return len(block)
        best, window, view = -1, range(0), []
        for candidate in self._windows(block):
            seen = [self.output[position] if self.free[position] else "" for position in candidate]
            length = longest_common_subsequence(block, seen)
            if length > best:
                best, window, view = length, candidate, seen
            if length == len(block):
                break
        for match in SequenceMatcher(None, block, view, autojunk=False).get_matching_blocks():
            start = window.start + match.b
            self.free[start : start + match.size] = [False] * match.size
            self.cursor = max(self.cursor, start + match.size)
        return best

    def _contiguous(self, block: list[str]) -> int | None:
        starts = self.starts[block[0]]
        behind = bisect_left(starts, self.cursor)
        for position in starts[behind:] + starts[:behind]:
            end = position + len(block)
            if self.output[position:end] == block and all(self.free[position:end]):
                return position
        return None

    def _windows(self, block: list[str]) -> list[range]:
        """Where the block may stand: behind the last one, and wherever three words in a row are its own."""
        starts = [self.cursor]
        for offset in range(0, len(block) - 2, max(1, len(block) // 16)):
            three = block[offset : offset + 3]
            places = [place for place in self.starts[three[0]] if self.output[place : place + 3] == three]
            starts += [place - offset for place in places[:8]]
        distinct = {start // NEAR: max(0, start - NEAR) for start in reversed(starts)}
        first = self.cursor // NEAR
        ordered = sorted(distinct, key=lambda near: (near != first, near))
        length, last = 2 * len(block) + 3 * NEAR, len(self.output)
        return [range(distinct[near], min(last, distinct[near] + length)) for near in ordered]


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Its length. Bit-parallel (Hyyrö 2004): bit i of `row` is 0 where the length grows at word i of `first`."""
    positions: dict[str, int] = defaultdict(int)
    for position, word in enumerate(first):
        positions[word] |= 1 << position
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def block_texts(article: etree._Element) -> list[tuple[str, str]]:
    """`(tag, text)` of each block, in order; a block that holds others gives the runs of text between them."""
    runs: list[tuple[str, list[str]]] = []
    for part in article.iter(*PARTS):
        if not any(outer.tag in (*PARTS, *OTHER_TEXTS) for outer in part.iterancestors()):
            _collect(part, "", runs)
    return [(tag, "".join(pieces)) for tag, pieces in runs]


def _collect(element: etree._Element, block: str, runs: list[tuple[str, list[str]]]) -> None:
    """Adds the text of `element`, whose innermost block has the tag `block` ("" for none), to the last run. Each block
    in it begins a run, and so does what follows that block."""
    if block:
        runs[-1][1].append(element.text or "")
    for child in element:
        if child.tag in BLOCKS:
            runs.append((child.tag, []))
            _collect(child, child.tag, runs)
            runs.append((block, []))
        elif child.tag not in (*NO_WORDS, "break"):
            _collect(child, block, runs)
        elif block:
            runs[-1][1].append(_REFERENCE if child.tag == "xref" else " ")
        if block:
            runs[-1][1].append(child.tail or "")


def _all_text(article: etree._Element) -> list[str]:
    """Everything that the article says, in order, a blank where an element is no inline mark-up."""
    pieces = [article.text or ""]
    for child in article:
        if child.tag not in OTHER_TEXTS:
            blank = "" if child.tag in INLINE else " "
            pieces += [blank, *_all_text(child), blank]
        pieces.append(child.tail or "")
    return pieces


def load(path: Path) -> etree._Element:
    """The tree of an article's file, without comments."""
    parser = etree.XMLParser(remove_comments=True, remove_pis=True, load_dtd=False, no_network=True)
    return etree.parse(str(path), parser).getroot()
