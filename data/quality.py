"""What is measured of one text: shares of letters, of broken or repeated words, of lines that are no prose.

Each measure is a pure function of a Sample; `data.filters` says from which value on a document goes, and why.
Characters are counted in bytes: `bytes.translate` and `bytes.count` are much faster than regular expressions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_lowercase, digits

import numpy as np

from data.language import ENGLISH_WORDS

FEWEST_WORDS = 20
"""Shares of words are taken of at least so many: two abbreviations in a text of eight words say nothing."""

_CONTINUATION_AND_BLANKS = bytes([*range(0x80, 0xC0), *b" \t\n"])
_LETTERS = frozenset(
    byte for byte in range(256) if (byte < 0x80 and chr(byte).isalpha()) or (0xC3 <= byte <= 0xED and byte != 0xE2)
)
"""First bytes of UTF-8 letters: ASCII, and all blocks but Latin-1's signs (C2), general punctuation and mathematics
(E2), private use and above (EE and on)."""
_NOT_LETTERS = bytes(byte for byte in range(256) if byte not in _LETTERS)
_SYMBOLS = b"#$&*+<=>@[\\]^_`{|}~\xc2\xee\xef\xf0\xf1\xf2\xf3\xf4"
"""0xE2 is not among them: dashes and quotes are common in prose."""


def _table(**classes: str) -> bytes:
    """For `bytes.translate`: a character of a class becomes the class's name, a blank stays, all else becomes `-`."""
    names = {ord(character): ord(name) for name, characters in classes.items() for character in characters}
    return bytes(names.get(byte, byte if byte == ord(" ") else ord("-")) for byte in range(256))


_LETTER_TABLE = _table(a=ascii_lowercase, n=digits)
_CONSONANT_TABLE = _table(c="bcdfghjklmnpqrstvwxz")
_SIGN_TABLE = _table(a=ascii_lowercase, s="|!~^\\{}<>*=#$%&@;+(")
_NUMBER_TABLE = bytes.maketrans(b"123456789", b"000000000")
_SEQUENCE = 16
"""Letters from which on a word may be a DNA or protein sequence: it is not asked whether it can be pronounced."""
_MISREAD = frozenset((
    "tbe", "tlie", "lhe", "tbat", "tliat", "lhat", "thnt", "witb", "wlth", "wilh", "vvith", "wiih", "nnd", "ancl",
    "vvas", "wns", "vvere", "wcre", "bave", "liave", "havc", "fiom", "frorn", "flom", "whicb", "wbich", "wliich",
    "tbis", "thls", "ihis", "tbese", "tbey", "bcen", "beeu", "becn", "ofthe",
))  # fmt: skip
"""What OCR makes of the, that, with, and, was, were, have, from, which, this, these, they, been."""
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
_WEB_WORDS = frozenset((
    "cookie", "cookies", "javascript", "browser", "website", "homepage", "sitemap", "login", "logout", "password",
    "username", "captcha", "newsletter", "subscribe", "unsubscribe", "click", "download", "upload", "copyright",
    "reserved", "privacy", "advertisement", "advertising", "checkout", "cart", "wishlist", "facebook", "twitter",
    "linkedin", "whatsapp", "instagram", "pinterest", "youtube", "rss", "faq", "navigation", "menu", "lorem", "ipsum",
    "dolor", "amet", "html", "http", "https", "www", "url", "server", "404", "403", "denied", "webmaster", "signup",
    "signin", "log", "sign", "share", "account", "accept", "reject", "consent", "preferences", "policy", "terms",
    "continue", "continuing", "settings", "skip", "toggle",
))  # fmt: skip


class Sample:
    """A text, its folded words and the hashes of its phrases (see `data.words`), and what several measures count.

    `counts` are of the different words, `lengths` the characters of each word, `encoded` is UTF-8, `visible` a byte a
    visible character (the first of its UTF-8 form). `count` and `different` words are FEWEST_WORDS at least.
    """

    __slots__ = ("count", "counts", "different", "encoded", "lengths", "phrases", "text", "visible", "words")

    def __init__(self, text: str, words: Sequence[str], phrases: np.ndarray):
        self.text = text
        self.words = words
        self.phrases = phrases
        self.count = max(len(words), FEWEST_WORDS)
        self.counts = Counter(words)
        self.different = max(len(self.counts), FEWEST_WORDS)
        self.lengths = list(map(len, words))
        self.encoded = text.encode("utf-8", "replace")
        self.visible = self.encoded.translate(None, _CONTINUATION_AND_BLANKS)

    def occurrences(self, words: frozenset[str]) -> int:
        """How many of the text's words are among `words`."""
        return sum(self.counts[word] for word in words.intersection(self.counts))


def function_word_share(sample: Sample) -> float:
    """English function words among all words."""
    return sample.occurrences(ENGLISH_WORDS) / max(len(sample.words), 1)


def alphabetic_share(sample: Sample) -> float:
    """Letters among visible characters."""
    return len(sample.visible.translate(None, _NOT_LETTERS)) / max(len(sample.visible), 1)


def symbol_share(sample: Sample) -> float:
    """Signs that are neither letter, digit, dash nor punctuation, among visible characters."""
    return 1 - len(sample.visible.translate(None, _SYMBOLS)) / max(len(sample.visible), 1)


def mean_word_length(sample: Sample) -> float:
    """Characters a word."""
    return sum(sample.lengths) / max(len(sample.words), 1)


def single_letter_share(sample: Sample) -> float:
    """Words of one letter among all; digits are none."""
    return (sample.lengths.count(1) - sum(sample.counts.get(digit, 0) for digit in digits)) / sample.count


def overlong_share(sample: Sample) -> float:
    """Characters in words of more than 30 among all characters of words."""
    if max(sample.lengths, default=0) <= 30:
        return 0.0
    return sum(length for length in sample.lengths if length > 30) / sum(sample.lengths)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def ocr_noise_share(sample: Sample) -> float:
    """Broken words among the different words: digits between letters (`pat1ent`), five consonants in a row, four alone
    (`hjkl`); and signs inside words (`a<lmitted`) and misread function words among all words."""
    words = f" {' '.join([word for word in sample.counts if len(word) < _SEQUENCE])} ".encode("utf-8", "replace")
    letters = words.translate(_LETTER_TABLE)
    consonants = words.translate(_CONSONANT_TABLE)
    broken = letters.count(b"ana") + letters.count(b"anna") + consonants.count(b"ccccc") + consonants.count(b" cccc ")
    signs = sample.encoded.translate(_SIGN_TABLE).count(b"asa")
    return broken / sample.different + (signs + sample.occurrences(_MISREAD)) / sample.count


def duplicate_line_share(sample: Sample) -> float:
    """Characters in lines that stood before, among all characters of lines."""
    lines = _lines(sample.text)
    different = set(lines)
    return 1 - sum(map(len, different)) / sum(map(len, lines)) if len(different) < len(lines) else 0.0


def duplicate_phrase_share(sample: Sample) -> float:
    """Phrases of five words that stood before, among all; 0 for less than FEWEST_WORDS phrases."""
    if len(sample.phrases) < FEWEST_WORDS:
        return 0.0
    ordered = np.sort(sample.phrases)
    return np.count_nonzero(ordered[1:] == ordered[:-1]) / len(ordered)


def top_pair_share(sample: Sample) -> float:
    """Words in the most frequent pair of words among all. 0 where no word makes up a tenth: its pairs make up less than
    a fifth then."""
    if max(sample.counts.values(), default=0) * 10 < sample.count:
        return 0.0
    return 2 * max(Counter(pairwise(sample.words)).values(), default=0) / sample.count


def contents_line_share(sample: Sample) -> float:
    """Lines that end in a page number among all; of fewer than five lines 0."""
    lines = _lines(sample.text)
    if len(lines) < 5:
        return 0.0
    return sum(line[-1].isdecimal() and _CONTENTS_LINE.fullmatch(line) is not None for line in lines) / len(lines)


def citation_density(sample: Sample) -> float:
    """Volumes with pages and DOIs, as in reference lists, a hundred words. 0 for fewer than four, and where a hundred
    words have no year or no pages."""
    numbers = sample.encoded.translate(_NUMBER_TABLE)
    fewest = max(_FEWEST_CITATIONS, sample.count / 100)
    if numbers.count(b"0000") < fewest or sum(map(numbers.count, _PAGE_SIGNS)) < fewest:
        return 0.0
    found = len(_CITATION.findall(sample.text))
    return 100 * found / sample.count if found >= _FEWEST_CITATIONS else 0.0


def web_word_share(sample: Sample) -> float:
    """Different words of web pages' margins (cookies, subscribe, login) among the different words."""
    return len(_WEB_WORDS.intersection(sample.counts)) / sample.different
