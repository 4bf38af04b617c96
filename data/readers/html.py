"""HTML pages to Markdown: headers, paragraphs, lists, tables, formulas; scripts, menus and footers left out.

Folded panels (hidden until a reader opens them), asides, forms and buttons stay: guidelines keep doses there.
"""

import codecs
import re
from collections import Counter

from lxml import html
from selectolax.lexbor import LexborHTMLParser, LexborNode

from data.files import DamagedFile, decode
from data.readers.inline import mathml, names, squeeze, subscript, superscript, text_at_end
from data.readers.tables import Cell, markdown_rows, span

_NO_TEXT = "script, style, template, svg"
_LEFT_OUT = "nav, footer, noscript, iframe, select"
_MAIN = ("main", "[role=main]", "article")
_LEAST_MAIN = 0.6
"""Share of the page's words that the element marked as main must hold; else the page is not marked up that way."""
_HEADERS = {f"h{depth}": depth for depth in range(1, 7)}
_BLOCKS = frozenset(_HEADERS) | names(
    "p div section article main header figure figcaption blockquote address center details summary fieldset body html "
    "form aside ul ol dl table pre hr li dt dd menu"
)
DEEPEST_NESTING = 5000
"""Blocks in blocks from which parsing takes time that grows with the square."""
_NESTING = re.compile(
    r"<(/?)(?:div|section|article|main|blockquote|ul|ol|dl|menu|form|fieldset|details|center|pre)\b", re.IGNORECASE
)
_META_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9._-]+)""", re.IGNORECASE)


def html_text(data: bytes, name: str, notes: Counter[str]) -> tuple[str | None, str]:
    """`(title, Markdown)` of a page. Its own title comes first when no header says it.

    The encoding is a byte order mark's, the page's <meta charset>, or UTF-8, and is decoded strictly (DamagedFile).
    `notes` counts the words left out.
    """
    source = decode(data, name, _encoding(data))
    _check_nesting(source, name)
    tree = LexborHTMLParser(source)
    if tree.body is None:
        raise DamagedFile(name, "no HTML body found")
    heading = tree.css_first("title")
    page_title = squeeze(heading.text()) if heading is not None else ""
    for node in tree.css(_NO_TEXT):
        node.decompose()
    words = _words(tree.body)
    for node in tree.css(_LEFT_OUT):
        node.decompose()
    marked = next((found for selector in _MAIN if (found := _only(tree, selector)) is not None), tree.body)
    root = marked if _words(marked) >= _LEAST_MAIN * _words(tree.body) else tree.body
    notes["words of menus and page furniture left out"] += words - _words(root)
    headline = root.css_first("h1") or tree.css_first("h1")
    title = (squeeze(headline.text()) if headline is not None else "") or page_title
    blocks: list[str] = []
    _walk(root, blocks)
    if title and not any(squeeze(block.lstrip("#")) == title for block in blocks[:3] if block.startswith("#")):
        blocks.insert(0, f"# {title}")
    return title or None, "\n\n".join(blocks)


def _check_nesting(source: str, name: str) -> None:
    depth = 0
    for match in _NESTING.finditer(source):
        depth = max(depth + (-1 if match.group(1) else 1), 0)
        if depth > DEEPEST_NESTING:
            raise DamagedFile(name, "elements are nested too deeply")


def _encoding(data: bytes) -> str:
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    declared = _META_CHARSET.search(data[:4096])
    encoding = declared.group(1).decode("ascii").lower() if declared else "utf-8"
    return "utf-8" if encoding.startswith("utf-16") else encoding  # it could not be read here if it were UTF-16


def _words(node: LexborNode) -> int:
    return len(node.text(separator=" ").split())


def _only(tree: LexborHTMLParser, selector: str) -> LexborNode | None:
    """The one element of a page that fits; several articles are a list of teasers, not the text."""
    found = tree.css(selector)
    return found[0] if len(found) == 1 else None


def _walk(node: LexborNode, blocks: list[str]) -> None:
    """Append the blocks below `node`; running text between them becomes paragraphs."""
    running: list[str] = []
    for child in node.iter(include_text=True):
        if child.tag in _BLOCKS or _holds_blocks(child):
            _flush(running, blocks)
            _block(child, blocks)
        else:
            _inline(child, running)
    _flush(running, blocks)


def _holds_blocks(node: LexborNode) -> bool:
    """An inline element around blocks (<a><div>...), which HTML allows."""
    return node.tag not in ("-text", "-comment") and any(child.tag in _BLOCKS for child in node.iter())


def _flush(running: list[str], blocks: list[str]) -> None:
    lines = [squeeze(line) for line in "".join(running).split("\n")]
    text = "\n".join(line for line in lines if line)
    if text:
        blocks.append(text)
    running.clear()


def _block(node: LexborNode, blocks: list[str]) -> None:
    tag = node.tag
    if tag in _HEADERS:
        text = _line(node)
        if text:
            blocks.append("#" * _HEADERS[tag] + " " + text)
    elif tag in ("ul", "ol", "menu", "dl"):
        lines = _list_lines(node)
        if lines:
            blocks.append("\n".join(lines))
    elif tag == "table":
        _table(node, blocks)
    elif tag == "pre":
        text = (node.text() or "").strip("\n")
        if text.strip():
            blocks.append(text)
    elif tag == "blockquote":
        inner: list[str] = []
        _walk(node, inner)
        blocks += ["\n".join("> " + line for line in block.split("\n")) for block in inner]
    elif tag != "hr":
        _walk(node, blocks)


def _line(node: LexborNode) -> str:
    running: list[str] = []
    for child in node.iter(include_text=True):
        _inline(child, running)
    return squeeze("".join(running))


def _inline(node: LexborNode, running: list[str]) -> None:
    tag = node.tag
    if tag == "-text":
        running.append(re.sub(r"\s+", " ", node.text_content or ""))
    elif tag == "br":
        running.append("\n")
    elif tag in ("sup", "sub"):
        inner: list[str] = []
        for child in node.iter(include_text=True):
            _inline(child, inner)
        text, before = "".join(inner), text_at_end(running)
        after = (node.next.text_content or "") if node.next is not None and node.next.tag == "-text" else ""
        running.append(superscript(text, before) if tag == "sup" else subscript(text, before, after))
    elif tag == "math":
        running.append(f" {mathml(html.fragment_fromstring(node.html))} ")
    elif tag == "img":
        alternative = squeeze(node.attributes.get("alt") or "")
        running.append(f" {alternative} " if alternative else "")
    elif not tag.startswith(("-", "!")):
        running.append(" " if tag in _BLOCKS else "")
        for child in node.iter(include_text=True):
            _inline(child, running)
        running.append(" " if tag in _BLOCKS else "")


def _list_lines(node: LexborNode) -> list[str]:
    lines: list[str] = []
    number = _whole_number(node, "start", 1) - 1
    for item in node.iter():
        if item.tag in ("ul", "ol", "menu", "dl"):  # a list directly inside a list, as many editors write it
            lines += ["  " + line for line in _list_lines(item)]
            continue
        inner: list[str] = []
        _walk(item, inner)
        if item.tag == "li":
            number = _whole_number(item, "value", number + 1)
        bullet = f"{number}." if node.tag == "ol" else "-"
        own = [line for block in inner for line in block.split("\n")]
        if own and item.tag == "dd":
            lines += ["  " + line for line in own]
        elif own:
            lines += [f"{bullet} {own[0]}", *("  " + line for line in own[1:])]
    return lines


def _whole_number(node: LexborNode, attribute: str, default: int) -> int:
    value = (node.attributes.get(attribute) or "").strip()
    return int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else default


def _table(node: LexborNode, blocks: list[str]) -> None:
    caption = next((child for child in node.iter() if child.tag == "caption"), None)
    if caption is not None and _line(caption):
        blocks.append(_line(caption))
    rows, headers = [], 0
    for row in node.css("tr"):
        if not _belongs(row, node):
            continue  # a table in a cell is that cell's text
        cells = [cell for cell in row.iter() if cell.tag in ("td", "th")]
        if len(rows) == headers and cells and all(cell.tag == "th" for cell in cells):
            headers += 1
        rows.append([_cell(cell) for cell in cells])
    lines = markdown_rows(rows, headers)
    if lines:
        blocks.append("\n".join(lines))


def _belongs(row: LexborNode, table: LexborNode) -> bool:
    parent = row.parent
    while parent.tag != "table":
        parent = parent.parent
    return parent.mem_id == table.mem_id


def _cell(node: LexborNode) -> Cell:
    return Cell(_line(node), span(node.attributes.get("colspan")), span(node.attributes.get("rowspan")))
