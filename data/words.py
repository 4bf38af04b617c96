"""Words as the comparisons between texts see them: duplicates, benchmark questions, filters.

Their hashes are taken of many texts at once, by array arithmetic on the bytes. A table of words met before takes ten
times as long: it lies far out of the processor's caches.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash

PHRASE = 5
"""Words of a phrase."""

ASCII = bytes(range(128))
_SIGNS_TO_BLANKS = bytes(
    ord(" ") if byte < 128 and not (chr(byte).isalnum() or chr(byte) == "_") else byte for byte in range(256)
)
_CHUNK = 8
"""Bytes of a word that are hashed at once."""
_CHUNKS = 6
"""Longer words are hashed one by one: prose has none, but a text may be a single word."""
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(_CHUNK + 1)], np.uint64)
_MIXER = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)
_PHRASE_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
).view(np.int64)
"""Odd numbers with well-mixed bits."""


class Words:
    """The words of some folded texts, one text after the other.

    `bytes` holds them as UTF-8 with blanks between, `starts` and `ends` int64 [words] say where in it each lies,
    `hashes` int64 [words] are theirs. `bounds` int64 [texts + 1]: text t has the words from bounds[t] to bounds[t + 1].
    `phrase_hashes` uint64: of the five words from each word on, those that run into the next text included.
    """

    def __init__(self, folded: Sequence[str]):
        spaced = list(map(_spaced, folded))
        self.bytes = b" %b%b" % (b" ".join(spaced), b" " * _CHUNK)
        self.starts, self.ends = _spans(self.bytes)
        self.hashes = _hashes(self.bytes, self.starts, self.ends)
        text_ends = np.cumsum([len(text) + 1 for text in spaced])
        self.bounds = np.append(0, self.starts.searchsorted(text_ends, side="right"))
        self.phrase_hashes = phrase_hashes(self.hashes)

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.bounds) - 1

    def of(self, text: int) -> np.ndarray:
        """The hashes of a text's words: int64."""
        return self.hashes[self.bounds[text] : self.bounds[text + 1]]

    def phrases(self, text: int) -> np.ndarray:
        """The hashes of a text's phrases: uint64, at least one."""
        begin, end = self.bounds[text : text + 2].tolist()
        if end - begin < PHRASE:
            return phrase_hashes(self.hashes[begin:end])
        return self.phrase_hashes[begin : end - PHRASE + 1]


def fold(text: str) -> str:
    """`text` in compatibility forms (NFKC) and case folded."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def all_but(usual: bytes, text: str) -> str:
    """The characters of `text` that are not among `usual` ASCII ones, in order: few, and so soon searched."""
    return text.encode("utf-8", "surrogatepass").translate(None, usual).decode("utf-8", "surrogatepass")


def split_words(folded: str) -> list[str]:
    """The words of a folded text, in order: what the pattern `\\w+` finds, in half its time."""
    return _spaced(folded).decode().split()


def _spaced(folded: str) -> bytes:
    """The words of a folded text as UTF-8, blanks between them."""
    for character in () if folded.isascii() else set(all_but(ASCII, folded)):
        if not character.isalnum():
            folded = folded.replace(character, " ")
    return folded.encode().translate(_SIGNS_TO_BLANKS)


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each word: int64 [words]."""
    spaced = b" %b%b" % (" ".join(words).encode(), b" " * _CHUNK)
    return _hashes(spaced, *_spans(spaced))


def _spans(spaced: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the words begin and end in bytes that begin and end with blanks."""
    blank = np.frombuffer(spaced, np.uint8) == ord(" ")
    edges = np.flatnonzero(blank[1:] != blank[:-1]) + 1
    return edges[::2], edges[1::2]


def _hashes(spaced: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The hashes of words, of eight bytes after the other. The first step has an inverse, so different words of up to
    eight bytes have different hashes."""
    chunks = np.ndarray((len(spaced) - _CHUNK + 1,), "<u8", spaced, strides=(1,))  # one begins at every byte
    hashes = _mixed(_chunk(chunks, starts, ends))
    longer = np.flatnonzero(ends - starts > _CHUNK)
    for done in range(_CHUNK, _CHUNKS * _CHUNK, _CHUNK):
        hashes[longer] = _mixed(hashes[longer] ^ _chunk(chunks, starts[longer] + done, ends[longer]))
        longer = longer[ends[longer] - starts[longer] > done + _CHUNK]
    for word in longer.tolist():
        hashes[word] = xxhash.xxh3_64_intdigest(spaced[starts[word] : ends[word]])
    return hashes.view(np.int64)


def _chunk(chunks: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The first bytes, eight at most, from `starts` to `ends` as numbers."""
    return chunks[starts] & _FIRST_BYTES.take(np.minimum(ends - starts, _CHUNK))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Numbers whose every bit depends on all bits of `values` (two rounds as in MurmurHash3's finaliser)."""
    for _ in range(2):
        values = (values ^ (values >> _HALF)) * _MIXER
    return values ^ (values >> _HALF)


def phrase_hashes(hashes: np.ndarray) -> np.ndarray:
    """A hash of every five words in a row, from the `word_hashes` of a text; of a shorter text, one of all its words:
    uint64 [max(words - 4, 1)]. A text of a million phrases has two unlike ones with equal hashes once in 10^7."""
    if len(hashes) < PHRASE:
        hashes = np.concatenate([hashes, np.zeros(PHRASE - len(hashes), np.int64)])
    keys = weighted_runs(hashes, _PHRASE_FACTORS).view(np.uint64)
    return keys ^ (keys >> _HALF)


def weighted_runs(numbers: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Of every `len(factors)` neighbours among int64 numbers the sum of their products with the factors, modulo 2^64:
    int64 [len(numbers) - len(factors) + 1]."""
    count = len(numbers) - len(factors) + 1
    total = numbers[:count] * factors[0]
    for place, factor in enumerate(factors[1:], 1):
        total += numbers[place : place + count] * factor
    return total
