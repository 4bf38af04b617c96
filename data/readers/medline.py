"""MEDLINE/PubMed XML (`pubmed24n0001.xml.gz`): a document a citation that has an abstract, title first, section labels
kept.

The copyright line is left out, and so are further abstracts in languages that are not wanted. The citation's
`<Language>` is the article's, not the abstract's, so nothing is judged by it.
"""

import re
from collections import Counter
from collections.abc import Iterator

from lxml import etree

from data.documents import Document
from data.readers.inline import simple_text, squeeze
from data.readers.interface import Deletion, Drop, Format, InputFile, Item, Retraction
from data.readers.medline_bytes import Malformed, iterate
from data.readers.medline_languages import two_letters
from data.words import fold, split_words

RETRACTED = "Retracted Publication"
"""The publication type by which MEDLINE marks what was retracted."""
_RETRACTIONS = frozenset(("RetractionIn", "RetractedandRepublishedIn"))
_NOTICES = frozenset(("RetractionOf", "RetractedandRepublishedFrom"))
"""What a notice, and an article published anew, is to the article that was taken back. Partial retractions are errata:
most of the article stands."""
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_BRACKETED = re.compile(r"\[(.*)\](\.?)", re.DOTALL)
_KINDS = {"plain-language-summary": "Plain-language summary"}
"""Kinds of further abstracts that are not the name of who wrote them (Publisher, PIP, NASA, ...)."""
_YEAR = re.compile(r"\b(1[5-9]|20)\d\d\b")

Children = dict[str, etree._Element]
"""The first child of each tag."""


def read(file: InputFile) -> Iterator[Item]:
    """Documents of one MEDLINE file in its order; a citation without abstract is a Drop, and so is a record that is not
    well-formed XML; `DeleteCitation` gives Deletions, a notice of retraction Retractions."""
    unknown: Counter[str] = Counter()
    for element in iterate(file.stream, file.name, unknown):
        if isinstance(element, Malformed):
            # About no citation: even the number in it may be another's, and an earlier version that was whole should
            # not go for a revision that nobody can read.
            yield Drop("bad-record", f"{file.name}: {element.place}: not well-formed XML ({element.reason})")
        elif element.tag == "DeleteCitation":
            yield from (Deletion(_text(pmid)) for pmid in element.iterfind("PMID"))
        elif element.tag == "PubmedBookArticle":
            pmid = squeeze(element.findtext("BookDocument/PMID") or "")
            yield Drop("book-record", f"{file.name}: {pmid or 'without PMID'}", _about(pmid, file))
        else:
            record = _children(element)
            citation = _children(record.get("MedlineCitation"))
            yield _document(record, citation, file)
            if "CommentsCorrectionsList" in citation:
                yield from _retractions(citation, file)
    file.note_entities(unknown)


def _children(element: etree._Element | None) -> Children:
    return {child.tag: child for child in element[::-1]} if element is not None else {}


def _each(parents: Children, parent: str, *tags: str) -> Iterator[etree._Element]:
    """The children named `tags` of one of `parents`, if it is there."""
    return parents[parent].iterchildren(*tags) if parent in parents else iter(())


def _text(element: etree._Element | None) -> str:
    """What an element holds that has no children."""
    return squeeze(element.text or "") if element is not None else ""


def _document(record: Children, citation: Children, file: InputFile) -> Document | Drop:
    article = _children(citation.get("Article"))
    pmid = _text(citation.get("PMID"))
    if not (pmid and article):
        lacking = "Article" if pmid else "PMID"
        return Drop("bad-record", f"{file.name}: a citation without {lacking}", _about(pmid, file))
    sections = abstract_sections(article.get("Abstract"))
    if "OtherAbstract" in citation:
        _add_further_abstracts(sections, record["MedlineCitation"], file)
    title = title_text(article.get("ArticleTitle"))
    text = "\n\n".join(sections)
    journal = _children(article.get("Journal"))
    pmcid, doi = _identifiers(_children(record.get("PubmedData")), article)
    document = Document(
        id=f"pmid:{pmid}",
        source=file.source,
        title=title,
        text=f"# {title}\n\n{text}" if title else text,
        url=f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/",
        language=two_letters(_text(article.get("Language"))) or None,
        journal=_text(journal.get("Title")) or None,
        types=_types(citation, article),
        mesh=_mesh(citation),
        date=_date(_children(_children(journal.get("JournalIssue")).get("PubDate"))),
        pmid=pmid,
        pmcid=pmcid,
        doi=doi,
        version=_version(citation["PMID"]),
    )
    return document if sections else Drop("no-abstract", about=document)


def _about(pmid: str, file: InputFile) -> Document | None:
    """A citation of which only the PMID is known."""
    return Document(f"pmid:{pmid}", file.source, None, "", pmid=pmid) if pmid else None


def _retractions(citation: Children, file: InputFile) -> Iterator[Retraction]:
    """What this citation says of others that were taken back, by PMID; of itself it would say it in another way."""
    own = _text(citation.get("PMID"))
    for notice in _each(citation, "CommentsCorrectionsList", "CommentsCorrections"):
        if notice.get("RefType") not in _NOTICES:
            continue
        pmid = notice.find("PMID")
        number = _text(pmid)
        if not number:
            file.notes["retraction notice without PMID"] += 1
        elif number != own:
            about = Document(f"pmid:{number}", file.source, None, "", pmid=number, version=_version(pmid))
            yield Retraction(about)


def title_text(element: etree._Element | None) -> str | None:
    """The title; the brackets that mark a translated one (`[Title].`) are taken off."""
    title = simple_text(element) if element is not None else ""
    bracketed = _BRACKETED.fullmatch(title) if title.startswith("[") else None
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


def abstract_sections(abstract: etree._Element | None) -> list[str]:
    """All sections that hold text, `LABEL: text` where they are labelled."""
    sections = []
    for section in abstract.iterchildren("AbstractText") if abstract is not None else ():
        text = simple_text(section)
        label = squeeze(section.get("Label", "")).rstrip(":")
        if text:
            sections.append(f"{label}: {text}" if label and label.upper() != "UNLABELLED" else text)
    return sections


def _add_further_abstracts(sections: list[str], citation: etree._Element, file: InputFile) -> None:
    """Append the further abstracts whose own language is wanted, named by their kind; the others are counted."""
    wanted = file.settings.languages
    for abstract in citation.iterchildren("OtherAbstract"):
        language = two_letters(abstract.get("Language", "eng"))  # the DTD's default
        found = abstract_sections(abstract)
        if wanted and "" not in wanted and language not in wanted:
            file.notes[f"further abstract in language {language} left out"] += 1
        elif found and _repeats("\n".join(found), "\n".join(sections)):
            file.notes["further abstract that repeats the first left out"] += 1
        elif found:
            kind = squeeze(abstract.get("Type", ""))
            name = _KINDS.get(kind.lower(), f"Abstract ({kind})" if kind else "Abstract")
            sections += [f"{name}: {found[0]}", *found[1:]]


def _repeats(text: str, other: str) -> bool:
    """Whether more than half of the three-word sequences of `text` occur in `other`.

    Of 76 English ones in two real files, six do; they are edited copies. Summaries for laymen share at most 38 %.
    """
    sequences = _three_words(text)
    return 2 * len(sequences & _three_words(other)) > len(sequences)


def _three_words(text: str) -> set[tuple[str, str, str]]:
    words = split_words(fold(text))
    return set(zip(words, words[1:], words[2:], strict=False))


def _identifiers(data: Children, article: Children) -> tuple[str | None, str | None]:
    """PMCID and DOI of the citation itself (the lists inside its references are others')."""
    found = {"pmc": "", "doi": ""}
    for identifier in _each(data, "ArticleIdList", "ArticleId"):
        kind = identifier.get("IdType")
        if kind in found:
            found[kind] = found[kind] or _text(identifier)
    if not found["doi"] and "ELocationID" in article:
        locations = article["ELocationID"].getparent().iterchildren("ELocationID")
        dois = (_text(location) for location in locations if location.get("EIdType") == "doi")
        found["doi"] = next(filter(None, dois), "")
    return found["pmc"] or None, found["doi"] or None


def _types(citation: Children, article: Children) -> list[str]:
    """Publication types; what a notice of retraction names is a retracted publication, marked as one or not."""
    types = [_text(kind) for kind in _each(article, "PublicationTypeList", "PublicationType")]
    notices = _each(citation, "CommentsCorrectionsList", "CommentsCorrections")
    if RETRACTED not in types and any(notice.get("RefType") in _RETRACTIONS for notice in notices):
        types.append(RETRACTED)
    return types


def _mesh(citation: Children) -> list[str] | None:
    names = []
    for heading in _each(citation, "MeshHeadingList", "MeshHeading"):
        parts = [_text(part) for part in heading.iterchildren("DescriptorName", "QualifierName")]
        names += [f"{parts[0]}/{qualifier}" for qualifier in parts[1:]] or parts
    return names or None


def _date(parts: Children) -> str | None:
    """ISO, as exact as known; of a range (`1998 Dec-1999 Jan`, `2000 Spring`) its first year."""
    year = _YEAR.search(_text(parts.get("Year")) or _text(parts.get("MedlineDate")))
    if year is None or "Year" not in parts:
        return year.group() if year else None
    month = _text(parts.get("Month"))
    number = _number(month) or _MONTHS.get(month[:3].lower(), 0)
    if not 1 <= number <= 12:
        return year.group()
    day = _number(_text(parts.get("Day")))
    return f"{year.group()}-{number:02d}" + (f"-{day:02d}" if 1 <= day <= 31 else "")


def _version(pmid: etree._Element) -> int:
    return _number(pmid.get("Version", "")) or 1


def _number(text: str) -> int:
    """A number of up to four digits; 0 for anything else."""
    return int(text) if text.isdecimal() and len(text) <= 4 else 0


FORMAT = Format(read, re.compile(r".*\.xml"), ".xml, .xml.gz", revises=True)
