"""The blocks of a JATS article as Markdown: sections, paragraphs, lists, tables, captions, formulas.

Blocks come out in reading order and each piece of text once. A paragraph that holds a block (a list, a table, a display
formula) is written as the text before it, the block, and the text after it. Expects plain tag names, without
namespaces.
"""

from lxml import etree

from data.readers.inline import squeeze
from data.readers.jats_inline import BLOCKS, BOXES, FORMULAS, HANDLERS, SILENT, Conversion, RunningText
from data.readers.jats_tables import table_rows
from data.special_tokens import enclose

DEEPEST_HEADER = 6
_NO_BLOCKS = ("title", "label", "sec-meta")
_IN_TABLE_WRAP = ("p", "list", "def-list", "disp-formula", "boxed-text", "disp-quote", "preformat")


class Blocks(RunningText):
    """Collects the Markdown blocks of one article."""

    def __init__(self, conversion: Conversion):
        super().__init__(conversion)
        self.blocks: list[str] = []

    def text(self) -> str:
        """The blocks so far, a blank line between two."""
        return "\n\n".join(self.blocks)

    def add(self, block: str) -> None:
        """Append one block unless it is empty."""
        if block and not block.isspace():
            self.blocks.append(block)

    def inner_blocks(self, element: etree._Element) -> list[str]:
        inner = Blocks(self.conversion)
        inner.block(element, DEEPEST_HEADER)
        return inner.blocks

    def joined(self, element: etree._Element, own_label: bool = True) -> str:
        if not len(element):
            return self.line(element)
        inner = Blocks(self.conversion)
        label = self.child_line(element, "label") if own_label else ""
        inner.paragraph(element, DEEPEST_HEADER)
        return squeeze(" ".join([label, *inner.blocks]))

    def section(self, element: etree._Element, depth: int, default_title: str | None = None) -> None:
        """An abstract, section or appendix: its header at `depth` (Markdown `#` count), then its children."""
        title = self.child_line(element, "title").rstrip(":") or default_title
        label = self.child_line(element, "label")
        header = " ".join(part for part in (label, title) if part)
        if not header:
            self.children(element, depth - 1)
            return
        start = len(self.blocks)
        self.add("#" * min(depth, DEEPEST_HEADER) + " " + header)
        self.children(element, depth)
        if len(self.blocks) == start + 1:  # nothing under the header (a section of downloads only)
            del self.blocks[start]

    def children(self, element: etree._Element, depth: int) -> None:
        """The block children of `element`, which stands at header depth `depth`."""
        for child in element:
            if child.tag not in _NO_BLOCKS:
                self.block(child, depth)

    def block(self, element: etree._Element, depth: int) -> None:
        """One block-level element."""
        tag = element.tag
        if tag == "p":
            self.paragraph(element, depth)
        elif tag == "sec":
            self.section(element, depth + 1)
        elif tag in SILENT:
            return
        elif tag in ("list", "def-list"):
            self.add("\n".join(self._list_lines(element)))
        elif tag == "fig":
            self._caption(element, "fig")
        elif tag == "table-wrap":
            self._table(element)
        elif tag in ("table", "array"):
            self._rows(element)
        elif tag == "fn":
            self.add(self.joined(element))
        elif tag in BOXES and element.find("caption") is None:
            self.section(element, depth + 1)
        elif tag in BOXES:
            self._caption(element)
            self.children(element, depth + 1)
        elif tag == "caption":
            return  # written by _caption of what it belongs to
        elif tag in ("preformat", "code"):
            self.add("".join(element.itertext()).strip("\n"))
        elif tag in FORMULAS:
            self.add(self._labelled(element, self.formula(element)))
        else:
            self.paragraph(element, depth)

    def paragraph(self, element: etree._Element, depth: int) -> None:
        """Running text, broken where a block stands inside it; a label is left out."""
        running = [element.text] if element.text else []
        for child in element:
            tag = child.tag
            handler = HANDLERS.get(tag)
            if tag == "label":
                pass
            elif handler is None:
                if len(child):
                    self.inside(child, running)
                elif child.text:
                    running.append(child.text)
            elif tag in BLOCKS:
                self.add(self.finished(running))
                running = []
                self.block(child, depth)
            else:
                handler(self, child, running)
            if child.tail:
                running.append(child.tail)
        self.add(self.finished(running))

    def _labelled(self, element: etree._Element, text: str) -> str:
        label = self.child_line(element, "label")
        return f"{text} {label}".strip() if text else ""

    # Figures and tables

    def _caption(self, element: etree._Element, kind: str | None = None) -> None:
        """`Label. Title Paragraphs` of a figure, table or box as one block, between special tokens of its kind when
        they are wanted; blocks inside the caption keep their form."""
        caption = element.find("caption")
        label = self.child_line(element, "label")
        first = [label.rstrip(".:") + "." if label and caption is not None else label]
        rest: list[str] = []
        for child in caption if caption is not None else ():
            inner = self.inner_blocks(child) if child.tag != "title" else [self.line(child)]
            if child.tag in ("title", "p") and len(inner) == 1:
                first += inner
            else:
                rest += inner
        text = " ".join(part for part in first if part)
        wanted = kind and text and self.conversion.references is not None
        self.add(enclose(kind, text) if wanted else text)
        self.blocks += rest

    def _table(self, element: etree._Element) -> None:
        """A table-wrap: caption, rows (of alternatives, the first table), what else stands there, footnotes."""
        self._caption(element, "table")
        for child in element:
            if child.tag == "alternatives":
                table = child.find("table")
                if table is not None:
                    self._rows(table)
            elif child.tag in ("table", "array"):
                self._rows(child)
            elif child.tag in _IN_TABLE_WRAP:
                self.block(child, DEEPEST_HEADER)
        if element.find(".//graphic") is not None and element.find(".//table") is None:
            self.conversion.notes["tables given only as a picture"] += 1
        for foot in element.findall("table-wrap-foot"):
            for child in foot:
                if child.tag == "fn-group":
                    self.children(child, DEEPEST_HEADER)
                else:
                    self.block(child, DEEPEST_HEADER)

    def _rows(self, table: etree._Element) -> None:
        if self.conversion.tables:
            self.add("\n".join(table_rows(table, self._cell)))
        else:
            self.conversion.notes["tables without their rows, as asked for"] += 1

    def _cell(self, cell: etree._Element) -> str:
        return self.joined(cell, own_label=False)

    # Lists

    def _list_lines(self, element: etree._Element) -> list[str]:
        """The lines of a list; what belongs to an item stands indented below its bullet."""
        title = self.child_line(element, "title")
        lines = [title] if title else []
        number = 0
        for item in element:
            if item.tag == "list-item":
                number += 1
                bullet = self.child_line(item, "label") or _bullet(element.get("list-type"), number)
                lines += self._item_lines(item, bullet)
            elif item.tag == "def-item":
                lines += self._definition_lines(item)
            elif item.tag in ("list", "def-list"):
                lines += ["  " + line for line in self._list_lines(item)]
            elif item.tag == "p":
                lines.append(self.line(item))
        return lines

    def _item_lines(self, item: etree._Element, bullet: str) -> list[str]:
        inner = Blocks(self.conversion)
        inner.paragraph(item, DEEPEST_HEADER)
        if not inner.blocks:
            return []
        begins_with_list = next((child.tag for child in item if child.tag != "label"), "") in ("list", "def-list")
        lines = [line for block in inner.blocks for line in block.split("\n")]
        first = [bullet] if begins_with_list else [f"{bullet} {lines.pop(0)}"]
        return first + ["  " + line for line in lines]

    def _definition_lines(self, item: etree._Element) -> list[str]:
        terms = ", ".join(filter(None, (self.line(child) for child in item.iterchildren("term"))))
        definition = " ".join(filter(None, (self.joined(child) for child in item.iterchildren("def"))))
        text = ": ".join(filter(None, (terms.rstrip(":"), definition)))
        return [f"- {text}"] if text else []


def _bullet(kind: str | None, number: int) -> str:
    if kind in ("order", "roman-lower", "roman-upper"):
        return f"{number}."
    if kind in ("alpha-lower", "alpha-upper"):
        letter = chr(ord("a") + (number - 1) % 26)
        return f"({letter if kind == 'alpha-lower' else letter.upper()})"
    return "-"
