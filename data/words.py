"""Words as the comparisons between texts see them: duplicates, benchmark questions, filters."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash

PHRASE = 5
"""Words of a phrase."""
WORDS_HELD = 1 << 19
"""Hashes of words that a process keeps, in about 60 MB."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_SIGNS_TO_BLANKS = bytes(
    ord(" ") if byte < 128 and not (chr(byte).isalnum() or chr(byte) == "_") else byte for byte in range(256)
)
_PHRASE_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
).view(np.int64)
"""Odd numbers with well-mixed bits."""


def fold(text: str) -> str:
    """`text` in compatibility forms (NFKC) and case folded."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def split_words(folded: str) -> list[str]:
    """The words of a folded text, in order: what the pattern `\\w+` finds, in half its time."""
    if not folded.isascii():
        for character in set("".join(_BEYOND_ASCII.findall(folded))):
            if not character.isalnum():
                folded = folded.replace(character, " ")
    return folded.encode().translate(_SIGNS_TO_BLANKS).decode().split()


def phrases(words: Sequence[str]) -> list[str]:
    """Every five words in a row, in order; of a shorter text, all its words as one."""
    if len(words) < PHRASE:
        return [" ".join(words)]
    return list(map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:], strict=False)))


class _Hashes(dict):
    """xxh3 of every word met so far, as a signed number: numpy's fastest arithmetic is on those."""

    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode()) - (1 << 63)
        return value


_hashes = _Hashes()


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each word: int64 [words]."""
    if len(_hashes) > WORDS_HELD:
        _hashes.clear()
    return np.fromiter(map(_hashes.__getitem__, words), np.int64, len(words))


def phrase_hashes(hashes: np.ndarray) -> np.ndarray:
    """A hash of each of a text's `phrases`, from its `word_hashes`: uint64, at least one. A text of a million phrases
    has two unlike ones with equal hashes once in 10^7."""
    if len(hashes) < PHRASE:
        hashes = np.concatenate([hashes, np.zeros(PHRASE - len(hashes), np.int64)])
    keys = np.correlate(hashes, _PHRASE_FACTORS).view(np.uint64)  # sums of products, modulo 2^64
    return keys ^ (keys >> np.uint64(32))
