"""The block and running text of JATS elements as Markdown: sections, paragraphs, lists, tables, captions, formulas.

Blocks come out in reading order and each piece of text once. A paragraph that holds a block (a list, a table, a display
formula) is written as the text before it, the block, and the text after it.
"""

from collections import Counter

from lxml import etree

from data.readers.inline import local_name, mathml, names, squeeze, subscript, superscript, tex, text_at_end
from data.readers.tables import Cell, markdown_rows, span

DEEPEST_HEADER = 6
_SILENT = names(
    "object-id media graphic supplementary-material ref-list permissions sec-meta related-article related-object "
    "kwd-group contrib-group author-notes aff alt-text long-desc attrib"
)
"""Elements without prose of the article: files, references, authors, licences."""
_BOXES = names("boxed-text app app-group glossary notes fig-group table-wrap-group fn-group statement")
_PROSE = names(
    "sec p list def-list disp-formula disp-formula-group disp-quote fig table-wrap table array verse-group speech "
    "preformat code fn chem-struct-wrap caption question answer"
)
_BLOCKS = _BOXES | _SILENT | _PROSE
_CITED = ("bibr", "bib")
_FORMULAS = names("inline-formula disp-formula chem-struct alternatives math tex-math")


class Blocks:
    """Collects the Markdown blocks of one article. `notes` counts what has no text (a formula given only as a
    picture)."""

    def __init__(self, notes: Counter[str]):
        self.notes = notes
        self.blocks: list[str] = []

    def text(self) -> str:
        """The blocks so far, a blank line between two."""
        return "\n\n".join(self.blocks)

    def add(self, block: str) -> None:
        """Append one block unless it is empty."""
        if block.strip():
            self.blocks.append(block)

    # Blocks

    def section(self, element: etree._Element, depth: int, default_title: str | None = None) -> None:
        """An abstract, section or appendix: its header at `depth` (Markdown `#` count), then its children."""
        title = self._child_line(element, "title").rstrip(":") or default_title
        label = self._child_line(element, "label")
        header = " ".join(part for part in (label, title) if part)
        if header:
            start = len(self.blocks)
            self.add("#" * min(depth, DEEPEST_HEADER) + " " + header)
            self.children(element, depth)
            if len(self.blocks) == start + 1:  # nothing under the header (a section of downloads only)
                del self.blocks[start]
        else:
            self.children(element, depth - 1)

    def children(self, element: etree._Element, depth: int) -> None:
        """The block children of `element`, which stands at header depth `depth`."""
        for child in element:
            if local_name(child) not in ("title", "label", "sec-meta"):
                self.block(child, depth)

    def block(self, element: etree._Element, depth: int) -> None:
        """One block-level element."""
        name = local_name(element)
        if name == "sec":
            self.section(element, depth + 1)
        elif name in _SILENT or not name:
            return
        elif name in ("list", "def-list"):
            self.add("\n".join(self._list_lines(element)))
        elif name == "fig":
            self._caption(element)
        elif name == "table-wrap":
            self._caption(element)
            self._tables(element)
            self._table_foot(element)
        elif name in ("table", "array"):
            self.add("\n".join(self._table_rows(element)))
        elif name == "fn":
            self.add(self._joined(element))
        elif name in _BOXES:
            self._caption(element)
            self.section(element, depth + 1)
        elif name == "caption":
            return  # written by _caption of what it belongs to
        elif name in ("preformat", "code"):
            self.add("".join(element.itertext()).strip("\n"))
        elif name in _FORMULAS:
            self.add(self._labelled(element, self._formula(element)))
        elif name in _BLOCKS or self._holds_blocks(element):
            self._mixed(element, depth)
        else:
            self.add(self.line(element))

    def _holds_blocks(self, element: etree._Element) -> bool:
        return any(local_name(child) in _BLOCKS for child in element)

    def _mixed(self, element: etree._Element, depth: int) -> None:
        """A paragraph: running text, broken where a block stands inside it."""
        running = [element.text or ""]
        for child in element:
            name = local_name(child)
            if name in _BLOCKS:
                self.add(squeeze("".join(running)))
                running = []
                self.block(child, depth)
            elif name != "label":
                self._inline(child, running)
            running.append(child.tail or "")
        self.add(squeeze("".join(running)))

    def _caption(self, element: etree._Element) -> None:
        """`Label. Title Paragraphs` of a figure, table or box as one block; blocks inside the caption keep their
        form."""
        caption = next((child for child in element if local_name(child) == "caption"), None)
        label = self._child_line(element, "label")
        first = [label.rstrip(".:") + "." if label and caption is not None else label]
        rest = []
        for child in caption if caption is not None else ():
            if local_name(child) in ("title", "p") and not self._holds_blocks(child):
                first.append(self.line(child))
            else:
                inner = Blocks(self.notes)
                inner.block(child, 1)
                rest += inner.blocks
        self.add(" ".join(part for part in first if part))
        for block in rest:
            self.add(block)

    def _tables(self, element: etree._Element) -> None:
        """The tables of a table-wrap; of alternatives, the first that has text."""
        for child in element:
            name = local_name(child)
            if name == "alternatives":
                tables = [table for table in child if local_name(table) == "table"]
                self.add("\n".join(self._table_rows(tables[0])) if tables else "")
            elif name in ("table", "array"):
                self.add("\n".join(self._table_rows(child)))
            elif name in ("p", "list", "def-list", "disp-formula", "boxed-text", "disp-quote", "preformat"):
                self.block(child, DEEPEST_HEADER)
            elif name == "graphic":
                self.notes["tables given only as a picture"] += not any(
                    local_name(other) == "table" for other in element
                )

    def _table_foot(self, element: etree._Element) -> None:
        for foot in element:
            if local_name(foot) == "table-wrap-foot":
                for child in foot:
                    if local_name(child) == "fn-group":
                        self.children(child, DEEPEST_HEADER)
                    else:
                        self.block(child, DEEPEST_HEADER)

    def _table_rows(self, table: etree._Element) -> list[str]:
        rows, headers = [], 0
        for row in table.iter("{*}tr"):
            if next(row.iterancestors("{*}table", "{*}array")) is not table:
                continue  # a table in a cell is that cell's text
            cells = [
                Cell(self._joined(cell, own_label=False), span(cell.get("colspan")), span(cell.get("rowspan")))
                for cell in row
                if local_name(cell) in ("td", "th")
            ]
            if local_name(row.getparent()) == "thead" and len(rows) == headers:
                headers += 1
            rows.append(cells)
        return markdown_rows(rows, headers)

    def _joined(self, element: etree._Element, own_label: bool = True) -> str:
        """All blocks inside a footnote or cell on one line, a label in front."""
        inner = Blocks(self.notes)
        label = self._child_line(element, "label") if own_label else ""
        inner._mixed(element, DEEPEST_HEADER)
        return squeeze(" ".join([label, *inner.blocks]))

    # Lists

    def _list_lines(self, element: etree._Element) -> list[str]:
        """The lines of a list; what belongs to an item stands indented below its bullet."""
        title = self._child_line(element, "title")
        lines = [title] if title else []
        number = 0
        for item in element:
            name = local_name(item)
            if name == "list-item":
                number += 1
                lines += self._item_lines(
                    item, self._child_line(item, "label") or _bullet(element.get("list-type"), number)
                )
            elif name == "def-item":
                lines += self._definition_lines(item)
            elif name in ("list", "def-list"):
                lines += ["  " + line for line in self._list_lines(item)]
            elif name == "p":
                lines.append(self.line(item))
        return lines

    def _item_lines(self, item: etree._Element, bullet: str) -> list[str]:
        inner = Blocks(self.notes)
        inner._mixed(item, DEEPEST_HEADER)
        if not inner.blocks:
            return []
        begins_with_list = next((local_name(child) for child in item if local_name(child) != "label"), "") in (
            "list",
            "def-list",
        )
        lines = [line for block in inner.blocks for line in block.split("\n")]
        first = [bullet] if begins_with_list else [f"{bullet} {lines.pop(0)}"]
        return first + ["  " + line for line in lines]

    def _definition_lines(self, item: etree._Element) -> list[str]:
        terms = ", ".join(filter(None, (self.line(child) for child in item if local_name(child) == "term")))
        definition = " ".join(filter(None, (self._joined(child) for child in item if local_name(child) == "def")))
        text = ": ".join(filter(None, (terms.rstrip(":"), definition)))
        return [f"- {text}"] if text else []

    # Running text

    def line(self, element: etree._Element) -> str:
        """The running text of an element on one line."""
        running: list[str] = []
        self._inside(element, running)
        return squeeze("".join(running))

    def _child_line(self, element: etree._Element, name: str) -> str:
        child = next((child for child in element if local_name(child) == name), None)
        return self.line(child) if child is not None else ""

    def _inside(self, element: etree._Element, running: list[str]) -> None:
        running.append(element.text or "")
        for child in element:
            self._inline(child, running)
            running.append(child.tail or "")

    def _inline(self, element: etree._Element, running: list[str]) -> None:
        """Append the text of one inline element to `running`."""
        name = local_name(element)
        if name in ("sup", "sub"):
            inner: list[str] = []
            self._inside(element, inner)
            text = "".join(inner)
            if name == "sub":
                running.append(subscript(text, text_at_end(running), element.tail or ""))
            elif any(reference.get("ref-type") in _CITED for reference in element.iter("{*}xref")):
                self._raised_citation(element, running)
            else:
                running.append(superscript(text, text_at_end(running)))
        elif name == "xref":
            self._reference(element, running)
        elif name in _FORMULAS:
            running.append(f" {self._formula(element)} ")
        elif name == "break":
            running.append(" ")
        elif name in ("inline-graphic", "graphic"):
            alternative = next(element.iter("{*}alt-text"), None)
            running.append(f" {self.line(alternative)} " if alternative is not None else "")
        elif name == "fn":
            running.append(f" ({self._joined(element)})")
        elif name in _SILENT or not name:
            return
        elif name in _BLOCKS:  # a block where only running text can stand (a paragraph in a table cell)
            inner = Blocks(self.notes)
            inner.block(element, DEEPEST_HEADER)
            running.append(" " + " ".join(inner.blocks) + " ")
        else:
            self._inside(element, running)

    def _raised_citation(self, element: etree._Element, running: list[str]) -> None:
        """A <sup> with citations in it, which are no exponents; an exponent may stand before them: 10⁹ [3]."""
        exponent = element.text or ""
        if not exponent.strip()[-1:].isalnum():
            exponent = ""
        cited = "".join(element.itertext()).removeprefix(exponent)
        running.append(superscript(exponent, text_at_end(running)))
        running.append(cited if "[" in cited else f" [{squeeze(cited)}]")

    def _reference(self, element: etree._Element, running: list[str]) -> None:
        """The mark of a reference, kept apart from a number before it: `20 [4]`, `20ᵃ`."""
        before = text_at_end(running)
        after_number = before[-1:].isdigit()
        raised = next(element.iter("{*}sup"), None) is not None
        if element.get("ref-type") in _CITED and (after_number or raised):
            cited = squeeze("".join(element.itertext()))
            running.append(cited if "[" in cited else f" [{cited}]")
        elif element.get("ref-type") in ("table-fn", "fn") and after_number and not raised:
            running.append(superscript(self.line(element), before))
        else:
            self._inside(element, running)

    # Formulas

    def _labelled(self, element: etree._Element, text: str) -> str:
        label = self._child_line(element, "label")
        return f"{text} {label}".strip() if text else ""

    def _formula(self, element: etree._Element) -> str:
        """A formula from its TeX, else MathML, else the characters it is set in, else the picture's alternative
        text."""
        found = element if local_name(element) == "tex-math" else next(element.iter("{*}tex-math"), None)
        if found is not None:
            return tex("".join(found.itertext()))
        found = element if local_name(element) == "math" else next(element.iter("{*}math"), None)
        if found is not None:
            return mathml(found)
        running = [element.text or ""]
        for child in element:
            if local_name(child) not in ("label", "graphic", "inline-graphic", "object-id"):
                self._inline(child, running)
            running.append(child.tail or "")
        text = squeeze("".join(running))
        if not text:
            alternative = next(element.iter("{*}alt-text"), None)
            text = self.line(alternative) if alternative is not None else ""
        self.notes["formulas given only as a picture"] += not text
        return text


def _bullet(kind: str | None, number: int) -> str:
    if kind in ("order", "roman-lower", "roman-upper"):
        return f"{number}."
    if kind in ("alpha-lower", "alpha-upper"):
        letter = chr(ord("a") + (number - 1) % 26)
        return f"({letter if kind == 'alpha-lower' else letter.upper()})"
    return "-"
