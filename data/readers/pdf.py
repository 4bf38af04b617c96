"""PDF to Markdown by where the characters stand: paragraphs rejoined, words divided at line ends put together again,
running headers, footers and page numbers left out, larger type as headers, raised and lowered numbers as such.

PDFium gives the characters in reading order. A line of a table (wide gaps in it) and a line that was ended on purpose
(the next word would have fitted) stay lines of their own.
"""

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pypdfium2
from pypdfium2 import raw

from data.files import DamagedFile
from data.readers.inline import squeeze, subscript, superscript

_DIVIDED = "\x02"
"""What PDFium writes for a hyphen at the end of a line."""
_WIDE_GAP = 2.0
"""Distance between two characters, in font sizes, from which they belong to two cells."""
_LARGER = 1.07
"""Type of a header, in sizes of the text's own."""
_BOLD = 600
"""Weight of a typeface (400 is regular, 700 bold)."""
_BOLD_NAME = re.compile(rb"bold|black|heavy|-medi\b", re.IGNORECASE)
_LONGEST_HEADER = 150
"""Characters."""
_NEIGHBOURS = 6
"""Lines before and after one among which its column's right edge is looked for."""
_BLANK = 0.12
"""Distance, in font sizes, from which they belong to two words."""
_RUNNING = 0.6
"""Share of all pages (or of all even, or all odd pages) on which a line at the edge must return to be a running one."""
_DEEPEST_RUNNING = 3
"""Lines at the top and at the bottom of a page that are looked at."""
_BULLET = re.compile(r"^[\x0f\u2022\u25aa\u25cf\u25e6\uf0b7\uf0a7\uf0d8]\s*")
_ITEM = re.compile(r"^(?:- |\d{1,2}[.)]\s|\(?(?:[a-z]|[ivx]{1,4})\)\s)")
_CONTROL = re.compile(r"[\x00\x01\x03-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffe\uffff]")
_LETTERS = re.compile(r"[^\W\d_]{2}")
_NUMBERED = re.compile(r"^(\d{1,2}(?:\.\d{1,2})*)\.?\s+[^\W\d_]")
_KEEPS_HYPHEN = frozenset(("non", "self", "well", "half"))
_PARTS = re.compile(rf"(\w*){_DIVIDED}(\w*)")
_NO_TITLE = re.compile(r"^$|untitled|^microsoft word|\.(docx?|pdf|indd|qxd|tex)$", re.IGNORECASE)


@dataclass(slots=True)
class _Character:
    text: str
    size: float
    left: float
    right: float
    baseline: float
    bold: bool


@dataclass(slots=True)
class _Line:
    """One printed line: `left`, `right`, `baseline` and `size` in points, y upwards; `cells` when wide gaps part it,
    `bold` when all of it is."""

    text: str
    left: float
    right: float
    baseline: float
    size: float
    cells: bool
    bold: bool


def pdf_text(data: bytes, name: str, notes: Counter[str]) -> tuple[str | None, str]:
    """`(title, Markdown)` of a PDF; the text is empty when its pages are pictures.

    `notes` counts what was left out. Raises DamagedFile for a file that is encrypted or no PDF.
    """
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            reason = "the PDF is encrypted; save it without a password first"
        else:
            reason = f"no readable PDF ({error})"
        raise DamagedFile(name, reason) from error
    try:
        pages = [_page_lines(document, number, name) for number in range(len(document))]
        declared = squeeze(document.get_metadata_value("Title"))
    finally:
        document.close()
    running = _remove_running(pages)
    if running:
        notes["running headers, footers and page numbers left out"] += running
    if not any(pages):
        return None, ""
    blocks = _blocks(pages)
    text = _undivided("\n\n".join(blocks))
    unmapped = len(_CONTROL.findall(text))
    if unmapped:
        notes["characters without a meaning left out of PDFs"] += unmapped
        text = _CONTROL.sub("", text)
    title = None if _NO_TITLE.search(declared) else declared
    first = next((line[2:] for line in text.split("\n") if line.startswith("# ")), None)
    title = title or first
    if title and title.casefold() not in text[: 2 * len(title) + 500].casefold():
        text = f"# {title}\n\n{text}"
    return title, text


def _page_lines(document: pypdfium2.PdfDocument, number: int, name: str) -> list[_Line]:
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
        if character == _DIVIDED:
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
    if last.text == _DIVIDED or first.left < last.right - 0.3 * size:
        return False
    rise = abs(first.baseline - last.baseline)
    near = first.left - last.right < 0.5 * size
    return rise < (0.7 if near else 0.15) * size


def _line(characters: list[_Character]) -> _Line:
    """The text of one line, blanks squeezed, scripts by their height, two blanks where a cell ends."""
    printed = [character for character in characters if character.text != " "]
    if not printed:
        return _Line("", 0, 0, 0, 0, False, False)
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
    return _Line(text, printed[0].left, max(c.right for c in printed), baseline, size, cells, bold)


def _remove_running(pages: list[list[_Line]]) -> int:
    """Takes the running lines off the edges of the pages; returns how many."""
    removed = 0
    for edge in (0, -1):
        for _ in range(_DEEPEST_RUNNING):
            outer = {number: lines[edge].text for number, lines in enumerate(pages) if lines}
            running = _running(outer)
            for number in running:
                del pages[number][edge]
            removed += len(running)
            if not running:
                break
    return removed


def _running(outer: dict[int, str]) -> set[int]:
    """The pages whose outermost line returns on most pages, or on most even or odd ones: the same words with no
    number or with the page's own, counted from any start."""
    found: set[int] = set()
    for part in (list(outer), [n for n in outer if n % 2 == 0], [n for n in outer if n % 2]):
        groups: dict[tuple[str, int | None], set[int]] = {}
        for number in part:
            words = re.sub(r"\d+", "#", outer[number])
            groups.setdefault((outer[number], None), set()).add(number)
            for value in re.findall(r"\d{1,6}", outer[number]):
                groups.setdefault((words, int(value) - number), set()).add(number)
        for members in groups.values():
            if len(members) >= max(3, _RUNNING * len(part)):
                found |= members
    return found


def _blocks(pages: list[list[_Line]]) -> list[str]:
    """Headers, paragraphs and lines, in reading order over all pages."""
    large, depth_of = _header_depths(pages)
    blocks: list[str] = []
    previous: _Line | None = None
    previous_depth, edge = 0, 0.0
    for lines in pages:
        for place, line in enumerate(lines):
            depth = depth_of(line)
            if previous is None or depth != previous_depth:
                blocks.append("#" * depth + " " * (depth > 0) + line.text)
            elif _goes_on(previous, line, edge) or (large(line) and depth and _header_goes_on(previous, line)):
                blank = "" if blocks[-1].endswith(_DIVIDED) or line.text[0] in ",.;:)" else " "
                blocks[-1] += blank + line.text
            elif not depth and _same_list(previous, line):
                blocks[-1] += "\n" + line.text
            else:
                blocks.append("#" * depth + " " * (depth > 0) + line.text)
            previous, previous_depth = line, depth
            edge = _edge(lines, place)
    return blocks


def _header_depths(pages: list[list[_Line]]) -> tuple[Callable[[_Line], bool], Callable[[_Line], int]]:
    """Two functions: whether a line is in larger type, and its header depth: by its number (2.1 is 3), else by the rank
    of its size; 0 for text. Larger type is a header, and so is a short bold line that ends no sentence."""
    sizes: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            sizes[round(line.size, 1)] += len(line.text)
    body = max(sizes, key=lambda value: (sizes[value], value))
    larger = sorted({round(size) for size in sizes if size > _LARGER * body}, reverse=True)

    def large(line: _Line) -> bool:
        return line.size > _LARGER * body

    def depth_of(line: _Line) -> int:
        bold = line.bold and line.size > 0.95 * body and not line.text.endswith((".", ",", ";", _DIVIDED))
        if (
            not (large(line) or bold)
            or line.cells
            or len(line.text) > _LONGEST_HEADER
            or not _LETTERS.search(line.text)
        ):
            return 0
        number = _NUMBERED.match(line.text)
        if number:
            return min(1 + len(number.group(1).strip(".").split(".")), 6)
        return min(1 + (larger.index(round(line.size)) if large(line) else max(len(larger), 1)), 6)

    return large, depth_of


def _edge(lines: list[_Line], place: int) -> float:
    """Where the column of a line ends on the right, by what stands around it in the same size."""
    line = lines[place]
    around = lines[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1]
    return max(
        other.right
        for other in around
        if other.left < line.right and other.right > line.left and abs(other.size - line.size) < 0.08 * line.size
    )


def _goes_on(line: _Line, following: _Line, edge: float) -> bool:
    """Whether the paragraph of `line`, whose column ends at `edge`, goes on in the line that follows it."""
    if line.text.endswith(_DIVIDED) or following.text[0] in ",.;)":
        return True
    if (
        line.cells
        or following.cells
        or _ITEM.match(following.text)
        or abs(line.size - following.size) > 0.08 * line.size
    ):
        return False
    word = following.text.split(" ", 1)[0]
    width = (following.right - following.left) * len(word) / len(following.text)
    if line.right + 0.3 * line.size + width < edge:
        return False
    if not _below(line, following):  # the next column or page
        return line.text[-1] not in ".!?:" and (following.text[0].islower() or following.text[0] in "([")
    indent = following.left - line.left
    return indent < 0.7 * line.size or _ITEM.match(line.text) is not None


def _header_goes_on(line: _Line, following: _Line) -> bool:
    """A header of several lines, often centred."""
    same = abs(line.size - following.size) < 0.02 * line.size and not _NUMBERED.match(following.text)
    return same and 0 < line.baseline - following.baseline < 1.5 * line.size


def _below(line: _Line, following: _Line) -> bool:
    return 0 < line.baseline - following.baseline < 1.9 * line.size and following.left < line.right


def _same_list(line: _Line, following: _Line) -> bool:
    """Lines that stay lines without an empty one between them: rows, items, and what stands closely below."""
    rows = line.cells and following.cells
    items = _ITEM.match(following.text) is not None
    return (rows or items or following.left - line.left < 0.7 * line.size) and (
        0 < line.baseline - following.baseline < 1.35 * line.size
    )


def _undivided(text: str) -> str:
    """Words divided at line ends put together, with the hyphen where it is the word's own.

    It is when the text writes the word with it elsewhere, after `non` and the like, and when a part is not all
    lower-case letters (COVID-19, IL-6), a first capital aside, unless the text writes the word without.
    """
    words = set(re.findall(r"\w+(?:-\w+)+|\w+", text.replace(_DIVIDED, " ")))

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        whole, hyphened = first + second, f"{first}-{second}"
        letters = first.isalpha() and second.isalpha() and first[1:].islower() and second.islower()
        if hyphened in words or first.lower() in _KEEPS_HYPHEN or not (letters or whole in words):
            return hyphened
        return whole

    return _PARTS.sub(join, text)
