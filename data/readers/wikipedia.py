"""Wikipedia dumps (`pages-articles.xml.bz2`, multistream too): an article a document, redirects and other namespaces
dropped."""

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

from lxml import etree

from data.documents import Document
from data.readers.interface import Drop, Format, InputFile
from data.readers.wikitext import NestedTooDeeply, plain_text
from data.xml import iterate

NAMED_TEMPLATES = 30
"""Of the templates of a file that are left out, this many of the most frequent are counted by name."""
LONGEST_NAME = 60
_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def read(file: InputFile) -> Iterator[Document | Drop]:
    """The articles of one dump in its order. Namespaces other than 0 are `not-an-article`, redirects `redirect`."""
    unknown: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    base = "https://en.wikipedia.org/wiki/"
    for element in iterate(file.stream, file.name, ("{*}page", "{*}base"), unknown):
        if element.tag.endswith("base"):
            base = (element.text or base).strip().rpartition("/")[0] + "/"
        else:
            yield _article(element, base, file, left_out)
    file.note_entities(unknown)
    for name, count in left_out.most_common(NAMED_TEMPLATES):
        file.notes[f"template {name[:LONGEST_NAME]} left out"] += count
        del left_out[name]
    if left_out:
        file.notes["rarer templates left out"] += left_out.total()


def _article(page: etree._Element, base: str, file: InputFile, left_out: Counter[str]) -> Document | Drop:
    title = page.findtext("{*}title")
    identity = page.findtext("{*}id")
    text = page.findtext("{*}revision/{*}text")
    if page.findtext("{*}ns", "0").strip() != "0":
        return Drop("not-an-article")
    if page.find("{*}redirect") is not None or (text or "").lstrip().upper().startswith("#REDIRECT"):
        return Drop("redirect")
    if not (title and identity and text):
        return Drop("bad-record", f"{file.name}: a page without title, id or text (id {identity})")
    try:
        text = plain_text(text, left_out)
    except NestedTooDeeply:
        return Drop("bad-record", f"{file.name}: markup nested too deeply (id {identity})")
    timestamp = page.findtext("{*}revision/{*}timestamp") or ""
    root = next(page.iterancestors("{*}mediawiki"), page)
    return Document(
        id=f"page:{identity.strip()}",
        source=file.source,
        title=title,
        text=f"# {title}\n\n{text}",
        url=base + quote(title.replace(" ", "_")),
        license="CC-BY-SA",
        language=root.get(_XML_LANGUAGE),
        date=timestamp[:10] or None,
    )


FORMAT = Format(read, re.compile(r".*\.xml(-p\d+p\d+.*)?"), ".xml.bz2, .xml")
