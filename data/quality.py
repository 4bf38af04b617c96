"""What is measured of one text: shares of letters, of broken or repeated words, of lines that are no prose.

Each measure is a pure function of a text's Counts; `data.filters` says from which value on a document goes, and why.
"""

import re

import numpy as np

from data.counts import Counts
from data.words import weighted_runs

FEWEST_WORDS = 20
"""Shares of words are taken of at least so many: two abbreviations in a text of eight words say nothing."""

_NUMBER_TABLE = bytes.maketrans(b"123456789", b"000000000")
_YEAR = r"(?:1[89]|20)\d\d"
_PAGES = r"[A-Za-z]?\d+\s?[-–]\s?[A-Za-z]?\d"
_CITATION = re.compile(
    rf"\b{_YEAR}[a-z]?\s?(?:[A-Z][a-z]{{2}}[ \d]{{0,3}})?[;,]\s?\d+\s?(?:\([^)\n]{{1,12}}\))?\s?:\s?[A-Za-z]?\d"
    rf"|\b{_YEAR}[;,]\s?\d+\s?(?:\([^)\n]{{1,12}}\))?,\s?(?:{_PAGES}|\d+\.)"
    rf"|\b\d+\s?\(\d+[^)\n]{{0,6}}\)\s?[:,]\s?{_PAGES}"
    rf"|\b\d+\s?[:,]\s?{_PAGES}\d*[.,]?\s\(?{_YEAR}\b"
    rf"|(?<=[a-z.,]\s)\d{{1,3}}\s?[:,]\s?{_PAGES}"
    rf"|\bpp?\.\s?{_PAGES}"
    r"|\b10\.\d{4,5}/"
)
"""`2010;362(5):123`; `2014, 371, 1265–1267`; `12(3), 45–67`; `66, 297–305 (2014)`; `Sci 3:42–43`;
`pp. 45-67`; a DOI."""
_FEWEST_CITATIONS = 4
_PAGE_SIGNS = (b"0-0", "0–0".encode(), b"0:0", b"0: 0", b"):0", b"): 0", b".0000/", b"0, 0", b"-E0", "–E0".encode())
"""Each citation has one at least, all digits written as 0."""
_CONTENTS_LINE = re.compile(r".*\w.*?(?:\.{2,}|(?:\. ){2,}|…|\s)\s*\d{1,4}")
_PAIR_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64).view(np.int64)


def _share(count: int, words: int) -> float:
    return count / max(words, FEWEST_WORDS)


def function_word_share(counts: Counts) -> float:
    """English function words among all words."""
    return counts.function_words / max(counts.words, 1)


def alphabetic_share(counts: Counts) -> float:
    """Letters among visible characters."""
    return counts.letters / max(counts.visible, 1)


def symbol_share(counts: Counts) -> float:
    """Signs that are neither letter, digit, dash nor punctuation, among visible characters."""
    return 1 - counts.plain / max(counts.visible, 1)


def mean_word_length(counts: Counts) -> float:
    """Characters a word."""
    return counts.characters / max(counts.words, 1)


def single_letter_share(counts: Counts) -> float:
    """Words of one letter among all; digits are none."""
    return _share(counts.single_letters, counts.words)


def overlong_share(counts: Counts) -> float:
    """Characters in words of more than 30 among all characters of words."""
    return counts.overlong / max(counts.characters, 1)


def ocr_noise_share(counts: Counts) -> float:
    """Broken words among the different words, and signs inside words and misread function words among all words."""
    return _share(counts.broken, counts.different) + _share(counts.signs + counts.misread, counts.words)


def web_word_share(counts: Counts) -> float:
    """Different words of web pages' margins (cookies, subscribe, login) among the different words."""
    return _share(counts.web_words, counts.different)


def duplicate_phrase_share(counts: Counts) -> float:
    """Phrases of five words that stood before, among all; 0 for less than FEWEST_WORDS phrases."""
    return counts.repeated_phrases / counts.phrases if counts.phrases >= FEWEST_WORDS else 0.0


def top_pair_share(counts: Counts) -> float:
    """Words in the most frequent pair of words among all. 0 where no word makes up a tenth: its pairs make up less than
    a fifth then."""
    if counts.words < 2 or counts.most_frequent * 10 < max(counts.words, FEWEST_WORDS):
        return 0.0
    _, occurrences = np.unique(weighted_runs(counts.hashes, _PAIR_FACTORS), return_counts=True)
    return _share(2 * int(occurrences.max()), counts.words)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def duplicate_line_share(counts: Counts) -> float:
    """Characters in lines that stood before, among all characters of lines."""
    lines = _lines(counts.text)
    different = set(lines)
    return 1 - sum(map(len, different)) / sum(map(len, lines)) if len(different) < len(lines) else 0.0


def contents_line_share(counts: Counts) -> float:
    """Lines that end in a page number among all; of fewer than five lines 0."""
    lines = _lines(counts.text) if counts.text.count("\n") >= 4 else []
    if len(lines) < 5:
        return 0.0
    return sum(line[-1].isdecimal() and _CONTENTS_LINE.fullmatch(line) is not None for line in lines) / len(lines)


def citation_density(counts: Counts) -> float:
    """Volumes with pages and DOIs, as in reference lists, a hundred words. 0 for fewer than four, and where a hundred
    words have no year or no pages."""
    words = max(counts.words, FEWEST_WORDS)
    fewest = max(_FEWEST_CITATIONS, words / 100)
    if counts.long_numbers < fewest:
        return 0.0
    numbers = counts.text.encode("utf-8", "replace").translate(_NUMBER_TABLE)
    if sum(map(numbers.count, _PAGE_SIGNS)) < fewest:
        return 0.0
    found = len(_CITATION.findall(counts.text))
    return 100 * found / words if found >= _FEWEST_CITATIONS else 0.0
