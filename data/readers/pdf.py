"""PDF to Markdown by where the characters stand: paragraphs rejoined, words divided at line ends put together again,
running headers, footers and page numbers left out, larger type as headers, raised and lowered numbers as such.

PDFium gives the characters in reading order. A line of a table (wide gaps in it) and a line that was ended on purpose
(the next word would have fitted) stay lines of their own.
"""

import re
from collections import Counter
from collections.abc import Callable

import pypdfium2

from data.files import DamagedFile
from data.readers.inline import squeeze
from data.readers.pdf_lines import DIVIDED, Line, page_lines
from data.readers.pdf_parts import DEEPEST_RUNNING, without_apparatus, without_edge_lines

_LARGER = 1.07
"""Type of a header, in sizes of the text's own."""
_LONGEST_HEADER = 150
"""Characters."""
_NEIGHBOURS = 6
"""Lines before and after one among which its column's right edge is looked for."""
_RUNNING = 0.6
"""Share of all pages (or of all even, or all odd pages) on which a line at the edge must return to be a running one."""
_ITEM = re.compile(r"^(?:- |\d{1,2}[.)]\s|\(?(?:[a-z]|[ivx]{1,4})\)\s)")
_CONTROL = re.compile(r"[\x00\x01\x03-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffe\uffff]")
_LETTERS = re.compile(r"[^\W\d_]{2}")
_NUMBERED = re.compile(r"^(\d{1,2}(?:\.\d{1,2})*)\.?\s+[^\W\d_]")
_KEEPS_HYPHEN = frozenset(("non", "self", "well", "half"))
_PARTS = re.compile(rf"(\w*){DIVIDED}(\w*)")
_NO_TITLE = re.compile(r"^$|untitled|^microsoft word|\.(docx?|pdf|indd|qxd|tex)$", re.IGNORECASE)


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
        pages = [page_lines(document, number, name) for number in range(len(document))]
        declared = squeeze(document.get_metadata_value("Title"))
    finally:
        document.close()
    running, starts = _remove_running(pages)
    if running:
        notes["running headers, footers and page numbers left out"] += running
    without_edge_lines(pages, starts, notes)
    if not any(pages):
        return None, ""
    blocks = without_apparatus(*_blocks(pages), notes)
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


def _remove_running(pages: list[list[Line]]) -> tuple[int, set[int]]:
    """Takes the running lines off the edges of the pages; how many, and the numbers from which pages are counted."""
    removed = 0
    starts: set[int] = set()
    for edge in (0, -1):
        for _ in range(DEEPEST_RUNNING):
            outer = {number: lines[edge].text for number, lines in enumerate(pages) if lines}
            running = _running(outer)
            for number in running:
                del pages[number][edge]
            starts |= {int(outer[number]) - number for number in running if re.fullmatch(r"[0-9]{1,4}", outer[number])}
            removed += len(running)
            if not running:
                break
    return removed, starts


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


def _blocks(pages: list[list[Line]]) -> tuple[list[str], int]:
    """Headers, paragraphs and lines, in reading order over all pages; how many of them begin on the first."""
    large, depth_of = _header_depths(pages)
    blocks: list[str] = []
    previous: Line | None = None
    previous_depth, edge = 0, 0.0
    first_page = 0
    for number, lines in enumerate(pages):
        for place, line in enumerate(lines):
            depth = depth_of(line)
            if previous is None or depth != previous_depth:
                blocks.append("#" * depth + " " * (depth > 0) + line.text)
            elif _goes_on(previous, line, edge) or (large(line) and depth and _header_goes_on(previous, line)):
                blank = "" if blocks[-1].endswith(DIVIDED) or line.text[0] in ",.;:)" else " "
                blocks[-1] += blank + line.text
            elif not depth and _same_list(previous, line):
                blocks[-1] += "\n" + line.text
            else:
                blocks.append("#" * depth + " " * (depth > 0) + line.text)
            previous, previous_depth = line, depth
            edge = _edge(lines, place)
        first_page = first_page if number else len(blocks)
    return blocks, first_page


def _header_depths(pages: list[list[Line]]) -> tuple[Callable[[Line], bool], Callable[[Line], int]]:
    """Two functions: whether a line is in larger type, and its header depth: by its number (2.1 is 3), else by the rank
    of its size; 0 for text. Larger type is a header, and so is a short bold line that ends no sentence."""
    sizes: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            sizes[round(line.size, 1)] += len(line.text)
    body = max(sizes, key=lambda value: (sizes[value], value))
    larger = sorted({round(size) for size in sizes if size > _LARGER * body}, reverse=True)

    def large(line: Line) -> bool:
        return line.size > _LARGER * body

    def depth_of(line: Line) -> int:
        bold = line.bold and line.size > 0.95 * body and not line.text.endswith((".", ",", ";", DIVIDED))
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


def _edge(lines: list[Line], place: int) -> float:
    """Where the column of a line ends on the right, by what stands around it in the same size."""
    line = lines[place]
    around = lines[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1]
    return max(
        other.right
        for other in around
        if other.left < line.right and other.right > line.left and abs(other.size - line.size) < 0.08 * line.size
    )


def _goes_on(line: Line, following: Line, edge: float) -> bool:
    """Whether the paragraph of `line`, whose column ends at `edge`, goes on in the line that follows it."""
    if line.text.endswith(DIVIDED) or following.text[0] in ",.;)":
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


def _header_goes_on(line: Line, following: Line) -> bool:
    """A header of several lines, often centred."""
    same = abs(line.size - following.size) < 0.02 * line.size and not _NUMBERED.match(following.text)
    return same and 0 < line.baseline - following.baseline < 1.5 * line.size


def _below(line: Line, following: Line) -> bool:
    return 0 < line.baseline - following.baseline < 1.9 * line.size and following.left < line.right


def _same_list(line: Line, following: Line) -> bool:
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
    words = set(re.findall(r"\w+(?:-\w+)+|\w+", text.replace(DIVIDED, " ")))

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        whole, hyphened = first + second, f"{first}-{second}"
        letters = first.isalpha() and second.isalpha() and first[1:].islower() and second.islower()
        if hyphened in words or first.lower() in _KEEPS_HYPHEN or not (letters or whole in words):
            return hyphened
        return whole

    return _PARTS.sub(join, text)
