"""Cleaning that loses nothing.

Text is repaired, never rewritten: doses, `p < 0.05`, bracketed ranges, table rows, µ, ≤, ± and superscripts come out as
they went in. Compatibility normalisation is not used (it would turn 10⁹ into 109): of its forms only the Latin
ligatures, which printing put into words, are written as letters.
"""

import re
import unicodedata

import ftfy

from data.special_tokens import MARK, unmarked
from data.words import all_but

_SECOND = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022"
    "\u2026\u2030\u2039\u203a\u20ac\u2122"
)
_MOJIBAKE = re.compile(
    f"[\u0080-\u009f\ufffd]|\u00c2[\u00a0-\u00bf]|[\u00c3\u00ce\u00cf][{_SECOND}]|\u00e2[{_SECOND}]{{2}}"
)
"""What UTF-8 that was once read as Latin-1 or Windows-1252 surely leaves: `Â±`, `Ã©`, `Î¼g`, `â‰¤`. Only then is ftfy,
slow and sometimes wrong, asked to decide."""
_MAY_BE_MOJIBAKE = re.compile("[\u0080-\u009f\ufffd\u00c2\u00c3\u00ce\u00cf\u00e2]")
"""What every match of the above begins with."""
_PLAIN = bytes([9, 10, *range(32, 127)])
"""ASCII that needs no repair."""
_NO_MOJIBAKE = re.compile(f"([\u00c5\u00d8\u00d7][\u00b0-\u00b3\u00b9\u00bb]|{MARK})")
"""`2.5 Å±0.3`, `Ø±2`, `5 mg×²`: correct, and the bytes of a Hungarian, an Arabic and a Hebrew letter. And the mark of a
special token: it is in no encoding, and what is repaired must not become one."""
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF, *(c for c in range(32) if c not in (9, 10, 11, 12, 13)), 127])
_SPACES = dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_LINE_BREAKS = dict.fromkeys([0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], "\n")
_LIGATURES = dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
_CHARACTERS = _INVISIBLE | _SPACES | _LINE_BREAKS | _LIGATURES
_ANY_OF_THEM = re.compile("[" + re.escape("".join(map(chr, _CHARACTERS))) + "]")
_LINE_END_BLANKS = re.compile(r"[ \t]+$", re.MULTILINE)
_HYPHENATED = re.compile(r"\u00ad[ \t]*\r?\n[ \t]*(?=\w)")
"""A word cut at the end of a line: the soft hyphen says that both halves are one word."""
_BLANK_LINES = re.compile(r"\n{3,}")


def clean_text(text: str) -> str:
    """`text` with broken encodings repaired (ftfy, only where it shows), composed accents, letters for ligatures, plain
    blanks and line breaks.

    Invisible characters go, blanks at line ends go, and more than one empty line becomes one. Indentation and every
    visible character stay.
    """
    before = None
    while text != before:  # what is taken out can join the halves of a broken character, or show one to ftfy
        before, text = text, _repaired(text)
    return text


def _replacement(found: re.Match[str]) -> str:
    return _CHARACTERS[ord(found.group())] or ""


def _repaired(text: str) -> str:
    signs = all_but(_PLAIN, text)
    if signs:
        text = _with_repaired_signs(text, signs)
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = _LINE_END_BLANKS.sub("", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")


def _with_repaired_signs(text: str, signs: str) -> str:
    if _MAY_BE_MOJIBAKE.search(signs) and _MOJIBAKE.search(text):
        parts = _NO_MOJIBAKE.split(text)
        text = "".join(part if place % 2 else unmarked(ftfy.fix_encoding(part)) for place, part in enumerate(parts))
        signs = all_but(_PLAIN, text)
    if "\u00ad" in signs:
        text = _HYPHENATED.sub("", text)
    if _ANY_OF_THEM.search(signs):
        text = _ANY_OF_THEM.sub(_replacement, text.replace("\r\n", "\n"))
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)
