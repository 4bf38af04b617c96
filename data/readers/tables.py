"""Table cells with spans to Markdown rows."""

from collections.abc import Iterable
from typing import NamedTuple

LARGEST_SPAN = 1000
"""HTML's own limit for colspan; a larger number in a file is a mistake or an attack."""


class Cell(NamedTuple):
    """One cell: its text on one line and how many columns and rows it covers."""

    text: str
    columns: int = 1
    rows: int = 1


def span(value: str | None) -> int:
    """A colspan or rowspan attribute as a number from 1 to LARGEST_SPAN; what is no number counts as 1."""
    return min(max(int(value), 1), LARGEST_SPAN) if value and value.strip().isdecimal() else 1


def markdown_rows(rows: Iterable[list[Cell]], headers: int) -> list[str]:
    """Markdown lines of a table whose first `headers` rows are its head: a rule line follows the first of them,
    as Markdown knows heads of one row only.

    A cell that spans columns or rows is written once, at its upper left; the places that it covers are empty. Rows and
    columns without any text are left out.
    """
    grid: list[list[str]] = []
    open_spans: dict[int, int] = {}  # column: rows that a cell from above still covers
    for row in rows:
        line: list[str] = []
        covered = {}
        for cell in row:
            while open_spans.get(len(line), 0) > 0:
                line.append("")
            if cell.rows > 1:
                covered |= {len(line) + offset: cell.rows - 1 for offset in range(cell.columns)}
            line.append(cell.text.replace("|", "\\|"))
            line.extend([""] * (cell.columns - 1))
        open_spans = {column: left - 1 for column, left in open_spans.items() if left > 1} | covered
        grid.append(line)
    head = any(any(line) for line in grid[:headers])
    grid = [line for line in grid if any(line)]
    if not grid:
        return []
    width = max(map(len, grid))
    grid = [line + [""] * (width - len(line)) for line in grid]
    used = [column for column in range(width) if any(line[column] for line in grid)]
    lines = ["| " + " | ".join(line[column] for column in used) + " |" for line in grid]
    if head:
        lines.insert(1, "|" + " --- |" * len(used))
    return lines
