"""The rows of a JATS (XHTML) table as Markdown."""

from collections.abc import Callable

from lxml import etree

from data.readers.tables import Cell, markdown_rows, span


def table_rows(table: etree._Element, text: Callable[[etree._Element], str]) -> list[str]:
    """Markdown lines of a <table> or <array>; `text` gives that of a cell on one line."""
    rows: list[list[Cell]] = []
    headers = 0
    nested = table.find(".//table") is not None or table.find(".//array") is not None
    for row in table.iter("tr"):
        if nested and next(row.iterancestors("table", "array")) is not table:
            continue  # a table in a cell is that cell's text
        if row.getparent().tag == "thead" and len(rows) == headers:
            headers += 1
        rows.append(
            [
                Cell(text(cell), span(cell.get("colspan")), span(cell.get("rowspan")))
                for cell in row
                if cell.tag in ("td", "th")
            ]
        )
    return markdown_rows(rows, headers)
