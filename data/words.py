"""Words as the comparisons between texts see them: duplicates, benchmark questions, filters."""

import re
import unicodedata

_WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """`text` in compatibility forms (NFKC) and case folded."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def split_words(folded: str) -> list[str]:
    """The words (`\\w+`) of a folded text, in order."""
    return _WORD.findall(folded)
