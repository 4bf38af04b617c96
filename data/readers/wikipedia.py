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

_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def read(file: InputFile) -> Iterator[Document | Drop]:
    """The articles of one dump in its order. Namespaces other than 0 are `not-an-article`, redirects `redirect`."""
    unknown: Counter[str] = Counter()
    base = "https://en.wikipedia.org/wiki/"
    for element in iterate(file.stream, file.name, ("{*}page", "{*}base"), unknown):
        if element.tag.endswith("base"):
            base = (element.text or base).strip().rpartition("/")[0] + "/"
        else:
            yield _article(element, base, file)
    file.note_entities(unknown)


def _article(page: etree._Element, base: str, file: InputFile) -> Document | Drop:
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
        text = plain_text(text, file.notes)
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
