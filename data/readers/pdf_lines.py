"""The printed lines of a PDF page, in reading order, by where its characters stand."""

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pypdfium2
from pypdfium2 import raw

from data.files import DamagedFile
from data.readers.inline import squeeze, subscript, superscript

DIVIDED = "\x02"
"""What PDFium writes for a hyphen at the end of a line."""
_WIDE_GAP = 2.0
"""Distance between two characters, in font sizes, from which they belong to two cells."""
_BOLD = 600
"""Weight of a typeface (400 is regular, 700 bold)."""
_BOLD_NAME = re.compile(rb"bold|black|heavy|-medi\b", re.IGNORECASE)
_BLANK = 0.12
"""Distance, in font sizes, from which they belong to two words."""
_BULLET = re.compile(r"^[\x0f\u2022\u25aa\u25cf\u25e6\uf0b7\uf0a7\uf0d8]\s*")


@dataclass(slots=True)
class _Character:
    text: str
    size: float
    left: float
    right: float
    baseline: float
    bold: bool


@dataclass(slots=True)
class Line:
    """One printed line: `left`, `right`, `baseline` and `size` in points, y upwards; `cells` when wide gaps part it,
    `bold` when all of it is."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    cells: bool
    bold: bool


def page_lines(document: pypdfium2.PdfDocument, number: int, name: str) -> list[Line]:
    """The lines of page `number` (from 0). DamagedFile, naming `name`, when it cannot be read."""
    try:
        page = document[number]
        text_page = page.get_textpage()
    except pypdfium2.PdfiumError as error:
        raise DamagedFile(name, f"page {number + 1} cannot be read ({error})") from error
    try:
        lines: list[list[_Character]] = []
        for segment in _segments(text_page):
            if lines and _same_line(lines[-1], segment):
                last = lines[-1][-1]
                if segment[0].left - last.right > _BLANK * last.size:
                    lines[-1].append(replace(last, text=" "))
                lines[-1] += segment
            else:
                lines.append(segment)
        return [line for characters in lines if (line := _line(characters)).text]
    finally:
        text_page.close()
        page.close()


def _segments(text_page: pypdfium2.PdfTextPage) -> Iterator[list[_Character]]:
    """The characters of a page up to each break that PDFium sees; blanks carry the place of what they follow."""
    handle = text_page.raw
    left, right, bottom, top, x, y = (ctypes.c_double() for _ in range(6))
    segment: list[_Character] = []
    bold = False  # of the word
    high = 0  # the first half of a character beyond U+FFFF
    for index in range(text_page.count_chars()):
        code = raw.FPDFText_GetUnicode(handle, index)
        if code in (10, 13):
            if segment:
                yield segment
            segment = []
            continue
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00) if high else 0xFFFD
        high = 0
        character = chr(code)
        if character.isspace():
            if segment:
                last = segment[-1]
                segment.append(_Character(" ", last.size, last.right, last.right, last.baseline, last.bold))
            continue
        raw.FPDFText_GetCharBox(handle, index, left, right, bottom, top)
        raw.FPDFText_GetCharOrigin(handle, index, x, y)
        size = raw.FPDFText_GetFontSize(handle, index)
        if size <= 1.0:  # the scale is in the text matrix instead
            size = (top.value - bottom.value) * 1.4
        if not segment or segment[-1].text == " ":
            bold = _is_bold(handle, index)
        segment.append(_Character(character, size, min(x.value, left.value), right.value, y.value, bold))
        if character == DIVIDED:
            yield segment
            segment = []
    if segment:
        yield segment


def _is_bold(handle: raw.FPDF_TEXTPAGE, index: int) -> bool:
    """Whether a character's typeface is bold, by its weight or, where a file does not say it, by its name."""
    if raw.FPDFText_GetFontWeight(handle, index) >= _BOLD:
        return True
    name = ctypes.create_string_buffer(128)
    raw.FPDFText_GetFontInfo(handle, index, name, len(name), None)
    return _BOLD_NAME.search(name.value) is not None


def _same_line(line: list[_Character], segment: list[_Character]) -> bool:
    """Whether a segment goes on at the right of a line: a cell at the same height, or a raised or lowered number."""
    last, first = line[-1], segment[0]
    size = max(last.size, first.size)
    if last.text == DIVIDED or first.left < last.right - 0.3 * size:
        return False
    rise = abs(first.baseline - last.baseline)
    near = first.left - last.right < 0.5 * size
    return rise < (0.7 if near else 0.15) * size


def _line(characters: list[_Character]) -> Line:
    """The text of one line, blanks squeezed, scripts by their height, two blanks where a cell ends."""
    printed = [character for character in characters if character.text != " "]
    if not printed:
        return Line("", 0, 0, 0, 0, False, False)
    sizes = Counter(round(character.size, 1) for character in printed)
    size = max(sizes, key=lambda value: (sizes[value], value))
    heights = Counter(round(character.baseline, 1) for character in printed if round(character.size, 1) == size)
    baseline = max(heights, key=lambda value: (heights[value], value))
    pieces: list[tuple[int, str]] = []  # raised 1, lowered -1, else 0
    cells, previous = False, None
    for character in characters:
        script = 0
        if character.size < 0.92 * size and character.text != " ":
            rise = character.baseline - baseline
            script = (rise > 0.15 * size) - (rise < -0.08 * size)
        gap = previous is not None and character.text != " " and character.left - previous > _WIDE_GAP * size
        if gap:
            cells = True
            pieces.append((0, "  "))
        if character.text != " ":
            previous = character.right
        if pieces and pieces[-1][0] == script:
            pieces[-1] = (script, pieces[-1][1] + character.text)
        else:
            pieces.append((script, character.text))
    text = ""
    for place, (script, piece) in enumerate(pieces):
        if script > 0:
            text += superscript(piece, text[-20:])
        elif script < 0:
            text += subscript(piece, text[-20:], pieces[place + 1][1] if place + 1 < len(pieces) else "")
        else:
            text += piece
    text = re.sub(r" {3,}", "  ", text.strip()) if cells else squeeze(text)
    text = _BULLET.sub("- ", text)
    bold = all(character.bold for character in printed)
    return Line(text, printed[0].left, max(c.right for c in printed), baseline, size, cells, bold)
