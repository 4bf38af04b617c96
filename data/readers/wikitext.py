"""MediaWiki markup to plain text with Markdown headers, lists and table rows.

Templates are left out except those that write words or numbers (a unit conversion, a foreign phrase, a fraction);
references, files, categories and the closing link sections are left out; formulas keep their TeX.
"""

import html
import re
from collections import Counter
from collections.abc import Callable

from data.readers.inline import squeeze, subscript, superscript, tex
from data.readers.tables import Cell, markdown_rows, span
from data.readers.wikitext_templates import template_name, template_text

DEEPEST_NESTING = 400
"""Templates in templates; MediaWiki itself stops at 100."""


class NestedTooDeeply(Exception):
    """Markup inside markup beyond DEEPEST_NESTING."""


_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


def _paired(names_of_tags: str, may_be_empty: bool = False) -> re.Pattern[str]:
    """An element with what is in it (group 2), or `<tag />` where it may be empty.

    Inside stands no other opening tag of the same name: one that is never closed takes nothing else with it, and no
    page makes the search slow.
    """
    empty = r"/\s*>|" if may_be_empty else ""
    inside = r"([^<]*(?:<(?!/?\1\b)[^<]*)*)"
    return re.compile(rf"<({names_of_tags})\b[^<>]*?(?:{empty}>{inside}</\1\s*>)", re.IGNORECASE)


_REFERENCE = _paired("ref", may_be_empty=True)
_MATH = _paired("math|chem|ce")
_NOT_PROSE = _paired(
    "gallery|timeline|imagemap|score|graph|mapframe|templatestyles|references|noinclude|includeonly", may_be_empty=True
)
_VERBATIM = _paired("nowiki|pre|source|syntaxhighlight")
_SCRIPT = _paired("su[pb]")
_BREAK = re.compile(r"<br\s*/?\s*>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:b|i|u|s|em|strong|small|big|span|div|p|center|blockquote|poem|cite|code|tt|kbd|var|samp|abbr|del|ins|strike|font|nowiki|"
    r"ref|references|li|ul|ol|dl|dt|dd|q|section|onlyinclude|noinclude|includeonly|hr|table|tr|td|th|tbody|thead|caption)"
    r"(?:\s+(?:[\w:-]+\s*=[^<>]*|reversed|compact|nowrap))?\s*/?>",  # n<p and q>2 holds no tag
    re.IGNORECASE,
)
_INNERMOST = re.compile(  # a template or link that holds neither
    r"\{\{(?P<template>(?:[^{}\[\]]|\[(?!\[)|\](?!\]))*)\}\}|\[\[(?P<link>(?:[^{}\[\]]|\{(?!\{)|\}(?!\})|\[[^\[\]]+\])*)\]\]"
)
_BROKEN_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")  # with a link in it that never closes
_ARGUMENT = re.compile(r"\{\{\{([^{}|]*)(?:\|([^{}]*))?\}\}\}")
_INNERMOST_TABLE = re.compile(r"^[ \t:]*\{\|((?:(?!^[ \t:]*\{\|).)*?)^[ \t]*\|\}", re.DOTALL | re.MULTILINE)
_STRAY_TABLE_END = re.compile(r"\n[ \t]*\|\}[ \t]*")  # of a table that began inside a line
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\]]{1,2000}(?:\s+([^\]]{0,1000}))?\]")
_QUOTES = re.compile(r"'{2,5}")
_HEADER = re.compile(r"^(={1,6})\s*(.*?)\s*\1\s*$", re.MULTILINE)
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_NAMESPACES = ("file:", "image:", "category:", "media:", "wikt:", ":category:", "special:")
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*:(?=\S)")
_CLOSING_SECTIONS = frozenset((
    "see also", "references", "external links", "further reading", "notes", "bibliography", "sources", "footnotes",
    "notes and references", "references and notes", "citations", "works cited", "explanatory notes", "primary sources",
    "secondary sources",
))  # fmt: skip
_LIST_LINE = re.compile(r"^([*#;:]+)[ \t]*(.*)$")
_HELD = "\ue000{}\ue001"  # private-use brackets around the number of a held verbatim passage
_HELD_FOUND = re.compile("\ue000(\\d+)\ue001")
_ENTITY = re.compile(r"&(?:#\w+|\w{1,32});?")
_HOLES = (
    *((f"{first} {second}", first) for first in ",;" for second in ",;"),
    *((hole, "(") for hole in ("( ", "(,", "(;") * 3),
    *((hole, ")") for hole in (" )", ",)", ";)") * 3),
    (" ()", ""),
)
"""What is left around templates of sounds and of scripts: `Albania (, ; Shqipëri, )`."""


def plain_text(source: str, left_out: Counter[str]) -> str:
    """The text of a page. Its markup is undone from the innermost outwards, so nesting of any depth comes out whole.

    `left_out` counts the templates left out by their names. Raises NestedTooDeeply.
    """
    held: list[str] = []

    def restore(text: str) -> str:
        return _HELD_FOUND.sub(lambda match: held[int(match.group(1))], text)

    def hold(text: str) -> str:
        held.append(restore(text))  # a table may hold a formula, and verbatim text another
        return _HELD.format(len(held) - 1)

    text = _COMMENT.sub("", _without_marks(source))
    text = _REFERENCE.sub("", text)
    text = _MATH.sub(lambda match: hold(tex(match.group(2))), text)
    text = _VERBATIM.sub(lambda match: hold(_unescape(match.group(2))), text)
    text = _NOT_PROSE.sub("", text)
    text = _repeat(_SCRIPT, _script, text)
    text = _ARGUMENT.sub(lambda match: match.group(2) or "", text)
    text = _repeat(_INNERMOST, lambda match: _template_or_link(match, left_out), text)
    text = _BROKEN_TEMPLATE.sub("", text)
    text = _repeat(_INNERMOST_TABLE, lambda match: hold(_table(match.group(1))), text)
    text = _STRAY_TABLE_END.sub("\n", text)
    text = _EXTERNAL.sub(lambda match: match.group(1) or "", text)
    text = _inline(text)
    text = _HEADER.sub(lambda match: "#" * max(2, len(match.group(1))) + " " + match.group(2), _lists(text))
    text = _without_closing_sections(text)
    return re.sub(r"\n{3,}", "\n\n", restore(text)).strip()


def _inline(text: str) -> str:
    """Emphasis, tags and entities of running text."""
    text = _QUOTES.sub("", text)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _MAGIC_WORD.sub("", text)
    text = re.sub(r"[ \t]{2,}|\t", " ", _unescape(text).replace("\xa0", " "))
    for hole, kept in _HOLES if "(" in text else ():
        while hole in text:
            text = text.replace(hole, kept)
    return text


def _unescape(text: str) -> str:
    """Entities as their characters, except those of held passages."""
    return _ENTITY.sub(lambda match: _without_marks(html.unescape(match.group())), text)


def _without_marks(text: str) -> str:
    return text.replace("\ue000", "").replace("\ue001", "")


def _repeat(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace innermost matches until none is left."""
    for _ in range(DEEPEST_NESTING):
        text, count = pattern.subn(replace, text)
        if not count:
            return text
    raise NestedTooDeeply


def _script(match: re.Match[str]) -> str:
    raised = match.group(1).lower() == "sup"
    text, before = _QUOTES.sub("", match.group(2)), match.string[max(0, match.start() - 20) : match.start()]
    after = match.string[match.end() : match.end() + 1]
    return superscript(text, before) if raised else subscript(text, before, after)


def _template_or_link(match: re.Match[str], left_out: Counter[str]) -> str:
    template = match.group("template")
    if template is None:
        return _link(match.group("link"))
    text = template_text(template)
    if not text:
        left_out[template_name(template)] += 1
    return text


def _link(source: str) -> str:
    """The words of a link; nothing for files, categories and links to other languages."""
    target, *words = source.split("|")
    lower = target.strip().lower()
    if lower.startswith(_NAMESPACES) or (not words and _INTERLANGUAGE.match(target)):
        return ""
    text = words[-1] if words else target.lstrip(":")
    return text if text.strip() else re.sub(r"^\w+:|\s*\([^)]*\)$", "", target)


def _table(source: str) -> str:
    """The rows of a wiki table as Markdown."""
    rows: list[list[Cell]] = []
    current: list[Cell] = []
    caption = ""
    headers = 0
    head_row = True
    for line in _logical_lines(source):
        if line.startswith("|-"):
            if current:
                rows.append(current)
                headers += head_row and headers == len(rows) - 1
            current, head_row = [], True
        elif line.startswith("|+"):
            caption = _cell(line[2:]).text
        elif line.startswith(("|", "!")):
            head_row = head_row and line[0] == "!"
            for part in re.split(r"\|\||!!" if line[0] == "!" else r"\|\|", line[1:]):
                current.append(_cell(part))
    if current:
        rows.append(current)
        headers += head_row and headers == len(rows) - 1
    lines = markdown_rows(rows, headers)
    return "\n" + "\n".join([caption] * bool(caption) + [""] * bool(caption and lines) + lines) + "\n"


def _logical_lines(source: str) -> list[str]:
    """Lines of a table, with lines that go on a cell joined to it; the first (the table's attributes) left out."""
    lines: list[str] = []
    for line in source.split("\n")[1:]:
        stripped = line.strip()
        if stripped.startswith(("|", "!")) or not lines:
            lines.append(stripped)
        elif stripped:
            lines[-1] += " " + stripped
    return lines


def _cell(source: str) -> Cell:
    attributes, bar, text = source.partition("|")
    if not bar or "[[" in attributes:
        attributes, text = "", source
    columns = re.search(r"colspan\s*=\s*[\"']?\s*(\d+)", attributes, re.IGNORECASE)
    rows = re.search(r"rowspan\s*=\s*[\"']?\s*(\d+)", attributes, re.IGNORECASE)
    return Cell(squeeze(_inline(text)), span(columns and columns.group(1)), span(rows and rows.group(1)))


def _lists(text: str) -> str:
    """List lines to Markdown: `*` and `#` by depth, `;` a term, `:` an indented line."""
    lines = []
    counters: dict[str, int] = {}  # of the list that each prefix of marks numbers
    for line in text.split("\n"):
        match = _LIST_LINE.match(line)
        if match is None:
            counters = {}
            lines.append(line.strip())
            continue
        marks, words = match.groups()
        counters = {prefix: count for prefix, count in counters.items() if marks.startswith(prefix)}
        counters[marks] = counters.get(marks, 0) + 1
        if not words.strip():
            continue
        indent = "  " * (len(marks) - 1)
        bullet = {"*": "- ", "#": f"{counters[marks]}. ", ";": "", ":": ""}[marks[-1]]
        lines.append(indent + bullet + words.strip())
    return "\n".join(lines)


def _without_closing_sections(text: str) -> str:
    """Leaves out link and reference sections, and headers with nothing under them."""
    kept: list[tuple[int, str, str]] = []
    skip_below = 0
    for number, part in enumerate(re.split(r"^(?=#{2,6} )", text, flags=re.MULTILINE)):
        header, _, body = part.partition("\n") if part.startswith("##") else ("", "", part)
        depth = len(header) - len(header.lstrip("#")) if header else number and 2
        if skip_below and depth > skip_below:
            continue
        skip_below = depth if header.lstrip("# ").strip().lower() in _CLOSING_SECTIONS else 0
        if not skip_below:
            kept.append((depth, header, body.strip()))
    lines: list[str] = []
    for place, (depth, header, body) in enumerate(kept):
        deeper_follows = place + 1 < len(kept) and kept[place + 1][0] > depth
        if header and (body or deeper_follows):
            lines.append(header)
        if body:
            lines.append(body)
    return "\n\n".join(lines)
