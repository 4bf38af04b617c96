"""What is counted of texts for the rules of `data.quality`: of a whole batch at once, by array arithmetic.

A call of numpy's, a regular expression or a dictionary of words costs an abstract as much as the arithmetic on it, and
there are twenty rules. So everything that is a number of words, phrases or characters is counted here, for all texts
together; a rule divides two of the numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, digits

import numpy as np

from data.language import ENGLISH_WORDS
from data.words import Words, word_hashes

LONGEST_WORD = 30
"""Characters. What is longer is fused, a sequence or base64."""
_SEQUENCE = 16
"""Bytes from which on a word may be a DNA or protein sequence: it is not asked whether it can be pronounced."""

_MISREAD = frozenset((
    "tbe", "tlie", "lhe", "tbat", "tliat", "lhat", "thnt", "witb", "wlth", "wilh", "vvith", "wiih", "nnd", "ancl",
    "vvas", "wns", "vvere", "wcre", "bave", "liave", "havc", "fiom", "frorn", "flom", "whicb", "wbich", "wliich",
    "tbis", "thls", "ihis", "tbese", "tbey", "bcen", "beeu", "becn", "ofthe",
))  # fmt: skip
"""What OCR makes of the, that, with, and, was, were, have, from, which, this, these, they, been."""
_WEB_WORDS = frozenset((
    "cookie", "cookies", "javascript", "browser", "website", "homepage", "sitemap", "login", "logout", "password",
    "username", "captcha", "newsletter", "subscribe", "unsubscribe", "click", "download", "upload", "copyright",
    "reserved", "privacy", "advertisement", "advertising", "checkout", "cart", "wishlist", "facebook", "twitter",
    "linkedin", "whatsapp", "instagram", "pinterest", "youtube", "rss", "faq", "navigation", "menu", "lorem", "ipsum",
    "dolor", "amet", "html", "http", "https", "www", "url", "server", "404", "403", "denied", "webmaster", "signup",
    "signin", "log", "sign", "share", "account", "accept", "reject", "consent", "preferences", "policy", "terms",
    "continue", "continuing", "settings", "skip", "toggle",
))  # fmt: skip
"""Of web pages' margins."""

_CONTINUATION_AND_BLANKS = bytes([*range(0x80, 0xC0), *b" \t\n"])
_LETTERS = frozenset(
    byte for byte in range(256) if (byte < 0x80 and chr(byte).isalpha()) or (0xC3 <= byte <= 0xED and byte != 0xE2)
)
"""First bytes of UTF-8 letters: ASCII, and all blocks but Latin-1's signs (C2), general punctuation and mathematics
(E2), private use and above (EE and on)."""
_NOT_LETTERS = bytes(byte for byte in range(256) if byte not in _LETTERS)
_SYMBOLS = b"#$&*+<=>@[\\]^_`{|}~\xc2\xee\xef\xf0\xf1\xf2\xf3\xf4"
"""0xE2 is not among them: dashes and quotes are common in prose."""
_LETTER, _CONSONANT, _DIGIT, _SIGN, _BLANK = 1, 2, 4, 8, 16
_TABLE_SHIFT = np.int64(46)
"""Here no two words that are looked for share sixteen bits."""
_CLASSES = bytes(
    sum(
        kind
        for kind, members in (
            (_LETTER, ascii_lowercase),
            (_CONSONANT, "bcdfghjklmnpqrstvwxz"),
            (_DIGIT, digits),
            (_SIGN, "|!~^\\{}<>*=#$%&@;+("),
            (_BLANK, " "),
        )
        if chr(byte) in members
    )
    for byte in range(256)
)
"""For `bytes.translate`: the classes of a character, as bits."""


@dataclass(slots=True)
class Counts:
    """One text, and what is counted of it.

    `words`; `different` ones; occurrences of the `most_frequent` one; `characters` of all words, and those in
    `overlong` ones; words that are a `single_letter`; words in ENGLISH_WORDS (`function_words`); `misread` function
    words; different `web_words`; different words that are `broken`; `signs` between two letters; `long_numbers` of four
    digits and more; `phrases`, and those that stood before (`repeated_phrases`); `visible` characters, `letters` among
    them, and `plain` ones (no symbols). `hashes` are those of the words, int64 [words].
    """

    text: str
    hashes: np.ndarray
    words: int
    different: int
    most_frequent: int
    characters: int
    overlong: int
    single_letters: int
    function_words: int
    misread: int
    web_words: int
    broken: int
    signs: int
    long_numbers: int
    phrases: int
    repeated_phrases: int
    visible: int
    letters: int
    plain: int


def count(texts: Sequence[str], words: Words) -> list[Counts]:
    """The counts of texts; `words` are those of the same texts, folded."""
    if not texts:
        return []
    encoded = [text.encode("utf-8", "replace") for text in texts]
    visible = [text.translate(None, _CONTINUATION_AND_BLANKS) for text in encoded]
    classes = np.frombuffer(words.bytes.translate(_CLASSES), np.uint8)
    lengths = _characters(words)
    different, most_frequent = _different(words)
    known = _KNOWN.occurrences(words)
    columns = (
        texts,
        map(words.of, range(len(words))),
        np.diff(words.bounds).tolist(),
        different,
        most_frequent,
        _sums(lengths, words.bounds),
        _sums(np.where(lengths > LONGEST_WORD, lengths, 0), words.bounds),
        (np.array(_sums(lengths == 1, words.bounds)) - known["digits"].sum(axis=1)).tolist(),
        known["function"].sum(axis=1).tolist(),
        known["misread"].sum(axis=1).tolist(),
        np.count_nonzero(known["web"], axis=1).tolist(),
        _broken(words, classes),
        _signs(encoded),
        _long_numbers(words, classes),
        *_phrases(words),
        map(len, visible),
        (len(text.translate(None, _NOT_LETTERS)) for text in visible),
        (len(text.translate(None, _SYMBOLS)) for text in visible),
    )
    return list(map(Counts, *columns))


def _sums(values: np.ndarray, bounds: np.ndarray) -> list[int]:
    """The sum of `values` [words] over each text."""
    return np.diff(np.append(0, np.cumsum(values))[bounds]).tolist()


def _texts(words: Words) -> np.ndarray:
    """The text to which each word belongs: uint64 [words]."""
    return np.repeat(np.arange(len(words), dtype=np.uint64), np.diff(words.bounds))


def _characters(words: Words) -> np.ndarray:
    """Characters of each word: int64 [words]."""
    lengths = words.ends - words.starts
    if not words.bytes.isascii():
        continuing = np.flatnonzero((np.frombuffer(words.bytes, np.uint8) & 0xC0) == 0x80)
        of_word = words.starts.searchsorted(continuing, side="right") - 1
        lengths -= np.bincount(of_word, minlength=len(lengths))
    return lengths


def _ordered(texts: np.ndarray, hashes: np.ndarray, count: int) -> tuple[np.ndarray, np.uint64]:
    """Text number and hash as one number, ascending, and by how many bits the text number is shifted. The hash loses as
    many: of a million in a text, two unlike ones become alike once in 10^5 times."""
    bits = max(count - 1, 1).bit_length()
    shift = np.uint64(64 - bits)
    return np.sort((texts << shift) | (hashes.view(np.uint64) >> np.uint64(bits))), shift


def _different(words: Words) -> tuple[list[int], list[int]]:
    """Of each text, how many different words there are, and how often the most frequent one occurs."""
    keys, shift = _ordered(_texts(words), words.hashes, len(words))
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    bounds = (keys[first] >> shift).searchsorted(np.arange(len(words) + 1, dtype=np.uint64))
    occurrences = np.append(np.diff(first, append=len(keys)), 0)  # a number for the last texts, if they have no words
    most = np.maximum.reduceat(occurrences, bounds[:-1]) if len(words) else occurrences[:0]
    different = np.diff(bounds)
    return different.tolist(), np.where(different, most, 0).tolist()


def _phrases(words: Words) -> tuple[list[int], list[int]]:
    """Of each text, how many phrases there are, and how many of them stood before."""
    of_text = [words.phrases(text) for text in range(len(words))]
    counts = list(map(len, of_text))
    texts = np.repeat(np.arange(len(words), dtype=np.uint64), counts)
    keys, shift = _ordered(texts, np.concatenate([*of_text, np.zeros(0, np.uint64)]), len(words))
    again = keys[1:][keys[1:] == keys[:-1]] >> shift
    return counts, np.bincount(again.astype(np.int64), minlength=len(words)).tolist()


def _table_place(hashes: np.ndarray) -> np.ndarray:
    """Sixteen bits of hashes of words."""
    return (hashes >> _TABLE_SHIFT) & np.int64(0xFFFF)


class _Known:
    """Sets of words, and how often each of their words occurs in texts."""

    def __init__(self, **sets: Iterable[str]):
        listed = {name: sorted(members) for name, members in sets.items()}
        words = [word for members in listed.values() for word in members]
        ends = np.cumsum([len(members) for members in listed.values()]).tolist()
        self.columns = {
            name: slice(end - len(members), end) for (name, members), end in zip(listed.items(), ends, strict=True)
        }
        self.hashes = np.append(word_hashes(words), 0)
        places = _table_place(self.hashes[:-1])
        assert len(set(words)) == len(words) == len(set(places.tolist())), "two words share a place of the table"
        self.table = np.full(1 << 16, len(words), np.uint8)
        self.table[places] = np.arange(len(words))

    def occurrences(self, words: Words) -> dict[str, np.ndarray]:
        """int64 [texts, words of the set] of each set."""
        number = self.table.take(_table_place(words.hashes))
        found = np.flatnonzero(self.hashes.take(number) == words.hashes)
        width = len(self.hashes)
        text = words.bounds.searchsorted(found, side="right") - 1
        counts = np.bincount(text * width + number[found], minlength=len(words) * width).reshape(len(words), width)
        return {name: counts[:, columns] for name, columns in self.columns.items()}


_KNOWN = _Known(function=ENGLISH_WORDS, misread=_MISREAD, web=_WEB_WORDS, digits=digits)


def _broken(words: Words, classes: np.ndarray) -> list[int]:
    """Of each text, how many different words have digits between letters (`pat1ent`), five consonants in a row or four
    alone (`hjkl`)."""
    letter, digit, consonant, blank = ((classes & kind) != 0 for kind in (_LETTER, _DIGIT, _CONSONANT, _BLANK))
    inside = letter[:-3] & digit[1:-2] & (letter[2:-1] | (digit[2:-1] & letter[3:]))
    four = consonant[1:-4] & consonant[2:-3] & consonant[3:-2] & consonant[4:-1]
    found = np.union1d(np.flatnonzero(inside), np.flatnonzero(four & (consonant[5:] | (blank[:-5] & blank[5:]))) + 1)
    word = words.starts.searchsorted(found, side="right") - 1
    word = word[words.ends[word] - words.starts[word] < _SEQUENCE]
    text = words.bounds.searchsorted(word, side="right").astype(np.uint64) - np.uint64(1)
    keys, shift = _ordered(text, words.hashes[word], len(words))
    return np.bincount((np.unique(keys) >> shift).astype(np.int64), minlength=len(words)).tolist()


def _signs(encoded: Sequence[bytes]) -> list[int]:
    """Of each text, how many signs stand between two letters (`a<lmitted`)."""
    classes = np.frombuffer(b" ".join(encoded).translate(_CLASSES), np.uint8)
    letter, sign = (classes & _LETTER) != 0, (classes & _SIGN) != 0
    found = np.flatnonzero(letter[:-2] & sign[1:-1] & letter[2:])
    ends = np.cumsum([len(text) + 1 for text in encoded])
    return np.bincount(ends.searchsorted(found, side="right"), minlength=len(encoded)).tolist()


def _long_numbers(words: Words, classes: np.ndarray) -> list[int]:
    """Of each text, how many runs of digits have four and more."""
    digit = (classes & _DIGIT) != 0
    found = np.flatnonzero(digit[1:-3] & digit[2:-2] & digit[3:-1] & digit[4:] & ~digit[:-4]) + 1
    word = words.starts.searchsorted(found, side="right") - 1
    return np.bincount(words.bounds.searchsorted(word, side="right") - 1, minlength=len(words)).tolist()
