"""Words as the comparisons between texts see them: duplicates, benchmark questions, filters."""

import re
import unicodedata
from collections.abc import Sequence

PHRASE = 5
"""Words of a phrase."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_SIGNS_TO_BLANKS = bytes(
    ord(" ") if byte < 128 and not (chr(byte).isalnum() or chr(byte) == "_") else byte for byte in range(256)
)


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
