"""JATS/PMC articles: title, abstracts, body, appendices and floating tables as Markdown; a document an article.

Authors, affiliations, references, acknowledgements and licence text are left out; `data.readers.jats_blocks` turns the
rest into text.
"""

import re
from collections import Counter
from collections.abc import Iterator

from lxml import etree

from data.documents import Document
from data.readers.inline import local_name, squeeze
from data.readers.interface import Drop, Format, InputFile
from data.readers.jats_blocks import Blocks
from data.xml import parse

_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/([0-9.]+))?", re.IGNORECASE)
_DATE_ORDER = ("epub", "ppub", "pub", "collection", "epub-ppub", "pmc-release")
_APPENDICES = ("app-group", "app", "glossary")


def read(file: InputFile) -> Iterator[Document | Drop]:
    """The article of one file. A file whose root is no article is a `not-an-article` Drop."""
    unknown: Counter[str] = Counter()
    root = parse(file.stream, file.name, unknown)
    file.note_entities(unknown)
    article = root if local_name(root) == "article" else next(root.iter("{*}article"), None)
    if article is None:
        yield Drop("not-an-article", f"{file.name}: root element <{local_name(root)}>")
        return
    yield article_document(article, file)


def article_document(article: etree._Element, file: InputFile) -> Document:
    """The document of an <article> element."""
    meta = _descendant(article, "front", "article-meta")
    identifiers = _identifiers(meta)
    pmcid = identifiers.get("pmc")
    title, text = article_text(article, meta, file.notes)
    url = f"https://www.ncbi.nlm.nih.gov/pmc/articles/{pmcid}/" if pmcid else None
    if url is None and "doi" in identifiers:
        url = f"https://doi.org/{identifiers['doi']}"
    return Document(
        id=pmcid or file.name,
        source=file.source,
        title=title,
        text=text,
        url=url,
        license=license_name(meta),
        language=(article.get("{http://www.w3.org/XML/1998/namespace}lang") or "").lower() or None,
        journal=_first_text(article, "journal-title"),
        types=[article.get("article-type")] if article.get("article-type") else None,
        date=_date(meta),
        pmid=identifiers.get("pmid"),
        pmcid=pmcid,
        doi=identifiers.get("doi"),
    )


def article_text(article: etree._Element, meta: etree._Element | None, notes: Counter[str]) -> tuple[str | None, str]:
    """`(title, Markdown)` of an article: title, abstracts, body, appendices and glossary, floats that stand apart."""
    blocks = Blocks(notes)
    title = None
    if meta is not None:
        element = _descendant(meta, "title-group", "article-title")
        title = blocks.line(element) if element is not None else None
        if title:
            blocks.add(f"# {title}")
            subtitle = _descendant(meta, "title-group", "subtitle")
            if subtitle is not None:
                blocks.add(blocks.line(subtitle))
        for abstract in meta:
            if local_name(abstract) == "abstract":
                blocks.section(abstract, 2, default_title="Abstract")
    for part in article:
        name = local_name(part)
        if name == "body":
            blocks.children(part, 1)
        elif name == "floats-group":
            blocks.children(part, 2)
        elif name == "back":
            for element in part:
                # older articles keep their figures and tables in a section of the back matter
                displays = (
                    local_name(element) == "sec" and next(element.iter("{*}fig", "{*}table-wrap"), None) is not None
                )
                if displays or local_name(element) in _APPENDICES:
                    blocks.section(element, 2)
    return title, blocks.text()


def _descendant(element: etree._Element, *names: str) -> etree._Element | None:
    """The first child of the first child ... with these names, in any namespace."""
    for name in names:
        element = next((child for child in element if local_name(child) == name), None)
        if element is None:
            return None
    return element


def _first_text(element: etree._Element, name: str) -> str | None:
    found = next(element.iter(f"{{*}}{name}"), None)
    return squeeze("".join(found.itertext())) or None if found is not None else None


def _identifiers(meta: etree._Element | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for element in meta if meta is not None else ():
        if local_name(element) == "article-id":
            kind = (element.get("pub-id-type") or "").replace("pmcid", "pmc")
            value = squeeze(element.text or "")
            if kind == "pmc" and value:
                value = "PMC" + value.upper().removeprefix("PMC").partition(".")[0]
            if value:
                found.setdefault(kind, value)
    return found


def license_name(meta: etree._Element | None) -> str | None:
    """An SPDX-like name (`CC-BY-4.0`, `CC0-1.0`, `public-domain`) from the licence's address or words; None when
    nothing is said."""
    texts = []
    for name in ("license", "license_ref", "copyright-statement"):
        for element in meta.iter(f"{{*}}{name}") if meta is not None else ():
            for part in element.iter():
                texts += [value for key, value in part.attrib.items() if key.endswith(("href", "license-type"))]
            texts.append("".join(element.itertext()))
    statement = squeeze(" ".join(texts))
    address = _CREATIVE_COMMONS.search(statement)
    if address:
        group, kind, version = address.group(1).lower(), address.group(2).lower(), address.group(3)
        if group == "publicdomain":
            return "CC0-1.0" if kind == "zero" else "public-domain"
        return f"CC-{kind.upper()}" + (f"-{version}" if version else "")
    words = statement.lower()
    if "creative commons attribution" in words:
        noncommercial = (
            "-NC" if re.search(r"non-?commercial", words.partition("creative commons attribution")[2][:60]) else ""
        )
        return f"CC-BY{noncommercial}"
    if "public domain" in words:
        return "public-domain"
    return "open-access" if re.search(r"open[- ]access", words) else None


def _date(meta: etree._Element | None) -> str | None:
    dates = {}
    for element in meta if meta is not None else ():
        if local_name(element) == "pub-date":
            kind = element.get("pub-type") or element.get("date-type") or "pub"
            parts = {local_name(part): squeeze(part.text or "") for part in element}
            dates.setdefault(kind, parts)
    chosen = next((dates[kind] for kind in _DATE_ORDER if kind in dates), next(iter(dates.values()), {}))
    if not chosen.get("year"):
        return None
    date = chosen["year"]
    for part in ("month", "day"):
        if not chosen.get(part, "").isdecimal():
            break
        date += f"-{int(chosen[part]):02d}"
    return date


FORMAT = Format(read, re.compile(r".*\.n?xml"), ".xml, .nxml, .tar.gz of them", archives=True, full_text=True)
