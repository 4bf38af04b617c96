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
from data.readers.interface import Drop, Format, InputFile, Item, Retraction
from data.readers.jats_blocks import Blocks
from data.readers.jats_front import (
    article_date,
    article_identifiers,
    article_licence,
    publication_types,
    retracted_articles,
)
from data.readers.jats_inline import Conversion
from data.readers.jats_references import References
from data.special_tokens import MARK, without_marks
from data.xml import parse

_NOTES_OF_TITLE = ("fn", "author-notes", "corresp")
"""Values of ref-type whose marks in a title point to notes that are left out."""
_APPENDICES = ("app-group", "app", "glossary")
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_MATHML = "http://www.w3.org/1998/Math/MathML"


def read(file: InputFile) -> Iterator[Item]:
    """The article of one file, or those of an article set, and what a retraction notice takes back. A file without an
    article is a `not-an-article` Drop."""
    unknown: Counter[str] = Counter()
    root = parse(file.stream, file.name, unknown)
    file.note_entities(unknown)
    _take_namespaces_off(root)
    if file.settings.special_tokens:
        _take_marks_out(root, file.notes)
    articles = [root] if root.tag == "article" else list(root.iter("article"))
    if not articles:
        yield Drop("not-an-article", f"{file.name}: root element <{root.tag}>")
    for number, article in enumerate(articles, 1):
        yield article_document(article, file, file.name if len(articles) == 1 else f"{file.name}#{number}")
        for identifiers in retracted_articles(article):
            if identifiers:
                yield Retraction(Document("", file.source, None, "", **identifiers))
            else:
                file.notes["retraction notice that names no PMID, PMCID or DOI"] += 1


def _take_namespaces_off(root: etree._Element) -> None:
    """Plain tag names for the elements of the root's namespace, if it has one, and of MathML."""
    for namespace in filter(None, (etree.QName(root).namespace, _MATHML)):
        for element in list(root.iter(f"{{{namespace}}}*")):
            element.tag = local_name(element)


def _take_marks_out(root: etree._Element, notes: Counter[str]) -> None:
    """Nothing that a file holds, numeric references included, can be taken for a special token of ours."""
    if MARK.encode() not in etree.tostring(root, encoding="utf-8"):  # as good as always
        return
    for element in root.iter():
        element.text = without_marks(element.text or "", notes)
        element.tail = without_marks(element.tail or "", notes)
        for name, value in element.items():
            element.set(name, without_marks(value, notes))


def article_document(article: etree._Element, file: InputFile, name: str) -> Document:
    """The document of an <article> element whose tags are in no namespace; `name` is its id if it has no PMCID."""
    meta = article.find("front/article-meta")
    identifiers = article_identifiers(meta)
    pmcid = identifiers.get("pmc")
    title, text = article_text(article, meta, file)
    url = f"https://www.ncbi.nlm.nih.gov/pmc/articles/{pmcid}/" if pmcid else None
    if url is None and "doi" in identifiers:
        url = f"https://doi.org/{identifiers['doi']}"
    journal = next(article.iter("journal-title"), None)
    return Document(
        id=pmcid or name,
        source=file.source,
        title=title,
        text=text,
        url=url,
        license=article_licence(meta),
        language=(article.get(_LANGUAGE) or "").lower() or None,
        journal=squeeze("".join(journal.itertext())) or None if journal is not None else None,
        types=publication_types(article, meta, title) or None,
        date=article_date(meta),
        pmid=identifiers.get("pmid"),
        pmcid=pmcid,
        doi=identifiers.get("doi"),
    )


def article_text(article: etree._Element, meta: etree._Element | None, file: InputFile) -> tuple[str | None, str]:
    """`(title, Markdown)` of an article: title, abstracts, body, appendices and glossary, floats that stand apart."""
    conversion = Conversion(file.notes, file.settings.tables)
    if file.settings.special_tokens:
        conversion.references = References(article, Blocks(Conversion()).line)
    blocks = Blocks(conversion)
    title = None
    if meta is not None:
        titles = meta.find("title-group")
        for mark in titles.iter("xref") if titles is not None else ():
            if mark.get("ref-type") in _NOTES_OF_TITLE:
                mark.clear(keep_tail=True)
        title = (blocks.child_line(titles, "article-title") or None) if titles is not None else None
        if title:
            blocks.add(f"# {title}")
            blocks.add(blocks.child_line(titles, "subtitle"))
        for abstract in meta.iterchildren("abstract", "trans-abstract"):
            if abstract.tag == "abstract" or _wanted(abstract, file):
                blocks.section(abstract, 2, default_title="Abstract")
    for part in article:
        if part.tag == "body":
            blocks.children(part, 1)
        elif part.tag == "floats-group":
            blocks.children(part, 2)
        elif part.tag == "back":
            for element in part:
                # older articles keep their figures and tables in a section of the back matter
                displays = element.tag == "sec" and next(element.iter("fig", "table-wrap"), None) is not None
                if displays or element.tag in _APPENDICES:
                    blocks.section(element, 2)
    return title, blocks.text()


def _wanted(translation: etree._Element, file: InputFile) -> bool:
    """Whether a translated abstract is in a language that is asked for; the others are counted."""
    language = (translation.get(_LANGUAGE) or "").lower()
    wanted = "" in file.settings.languages or language[:2] in file.settings.languages
    if not wanted:
        file.notes["translated abstracts in other languages"] += 1
    return wanted


FORMAT = Format(
    read, re.compile(r".*\.n?xml"), ".xml, .nxml, .tar.gz of them", archives=True, full_text=True, marks=True
)
