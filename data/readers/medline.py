"""MEDLINE/PubMed XML (`pubmed24n0001.xml.gz`): a document a citation that has an abstract, title first, section labels
kept.

The publisher's copyright line and abstracts in other languages are left out of the text.
"""

import re
from collections import Counter
from collections.abc import Iterator

from lxml import etree

from data.documents import Document
from data.readers.inline import simple_text, squeeze
from data.readers.interface import Deletion, Drop, Format, InputFile
from data.xml import iterate

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_BRACKETED = re.compile(r"\[(.*)\](\.?)", re.DOTALL)
_LANGUAGES = {
    "eng": "en",
    "fre": "fr",
    "ger": "de",
    "spa": "es",
    "ita": "it",
    "por": "pt",
    "rus": "ru",
    "jpn": "ja",
    "chi": "zh",
}
"""ISO 639-2/B codes of MEDLINE's most frequent languages to two letters; others stay as they are."""


def read(file: InputFile) -> Iterator[Document | Drop | Deletion]:
    """Documents of one MEDLINE file in its order; a citation without abstract is a Drop; `DeleteCitation` gives
    Deletions."""
    unknown: Counter[str] = Counter()
    tags = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")
    for element in iterate(file.stream, file.name, tags, unknown):
        if element.tag == "DeleteCitation":
            yield from (Deletion(squeeze(pmid.text or "")) for pmid in element.iterfind("PMID"))
        elif element.tag == "PubmedBookArticle":
            yield Drop("book-record", f"{file.name}: {element.findtext('BookDocument/PMID')}")
        else:
            yield _document(element, file)
    file.note_entities(unknown)


def _document(record: etree._Element, file: InputFile) -> Document | Drop:
    citation = record.find("MedlineCitation")
    article = citation.find("Article") if citation is not None else None
    pmid = squeeze(citation.findtext("PMID") or "") if citation is not None else ""
    if article is None or not pmid:
        return Drop("bad-record", f"{file.name}: a citation without PMID or Article")
    other = len(citation.findall("OtherAbstract"))
    if other:
        file.notes["abstracts in another language or wording left out"] += other
    text = abstract_text(article.find("Abstract"))
    if not text:
        return Drop("no-abstract")
    title = title_text(article)
    identifiers = _identifiers(record, article)
    version = citation.find("PMID").get("Version", "1")
    language = squeeze(article.findtext("Language") or "").lower()
    return Document(
        id=f"pmid:{pmid}",
        source=file.source,
        title=title,
        text=f"# {title}\n\n{text}" if title else text,
        url=f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/",
        language=_LANGUAGES.get(language, language) or None,
        journal=squeeze(article.findtext("Journal/Title") or "") or None,
        types=[squeeze(kind.text or "") for kind in article.iterfind("PublicationTypeList/PublicationType")],
        mesh=_mesh(citation),
        date=_date(article.find("Journal/JournalIssue/PubDate")),
        pmid=pmid,
        pmcid=identifiers.get("pmc"),
        doi=identifiers.get("doi"),
        version=int(version) if version.isdecimal() else 1,
    )


def title_text(article: etree._Element) -> str | None:
    """The title; the brackets that mark a translated one (`[Title].`) are taken off."""
    element = article.find("ArticleTitle")
    title = simple_text(element) if element is not None else ""
    bracketed = _BRACKETED.fullmatch(title)
    if bracketed and _balanced(bracketed.group(1)):
        title = bracketed.group(1).strip()
        title += "" if title.endswith((".", "?", "!")) else bracketed.group(2)
    return title or None


def _balanced(text: str) -> bool:
    """Whether the brackets inside `text` close in it, so that an outer pair really is one pair."""
    depth = 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return False
    return depth == 0


def abstract_text(abstract: etree._Element | None) -> str:
    """All sections, a paragraph each, `LABEL: text` where they are labelled."""
    if abstract is None:
        return ""
    sections = []
    for section in abstract.iterfind("AbstractText"):
        text = simple_text(section)
        label = squeeze(section.get("Label", "")).rstrip(":")
        if text:
            sections.append(f"{label}: {text}" if label and label.upper() != "UNLABELLED" else text)
    return "\n\n".join(sections)


def _identifiers(record: etree._Element, article: etree._Element) -> dict[str, str]:
    """`pmc` and `doi` of the citation itself (the lists inside its references are others')."""
    found = {}
    for identifier in record.iterfind("PubmedData/ArticleIdList/ArticleId"):
        found.setdefault(identifier.get("IdType"), squeeze(identifier.text or ""))
    for location in article.iterfind("ELocationID[@EIdType='doi']"):
        found.setdefault("doi", squeeze(location.text or ""))
    return {kind: value for kind, value in found.items() if value}


def _mesh(citation: etree._Element) -> list[str] | None:
    names = []
    for heading in citation.iterfind("MeshHeadingList/MeshHeading"):
        descriptor = squeeze(heading.findtext("DescriptorName") or "")
        qualifiers = [squeeze(qualifier.text or "") for qualifier in heading.iterfind("QualifierName")]
        names += [f"{descriptor}/{qualifier}" for qualifier in qualifiers] or [descriptor]
    return names or None


def _date(element: etree._Element | None) -> str | None:
    if element is None:
        return None
    year = element.findtext("Year")
    if year is None:  # MedlineDate: "1998 Dec-1999 Jan", "2000 Spring"
        found = re.search(r"\b(1[5-9]|20)\d\d\b", element.findtext("MedlineDate") or "")
        return found.group() if found else None
    month = squeeze(element.findtext("Month") or "")
    number = int(month) if month.isdecimal() else _MONTHS.get(month[:3].lower(), 0)
    day = squeeze(element.findtext("Day") or "")
    if not number:
        return squeeze(year)
    return f"{squeeze(year)}-{number:02d}" + (f"-{int(day):02d}" if day.isdecimal() else "")


FORMAT = Format(read, re.compile(r".*\.xml"), ".xml, .xml.gz")
