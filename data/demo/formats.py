"""The demo's documents in the file formats of the real sources: MEDLINE XML, JATS, HTML, jsonl.

Every writer is deterministic: fixed order, no time stamps, gzip without file name or time.
"""

import gzip
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from lxml import etree
from lxml.builder import E

from data.demo.papers import Abstract, Article, Guideline, QuestionPage
from data.demo.replay import GeneralPage

LICENSE = "CC0-1.0"
_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"

_MEDLINE_DOCTYPE = (
    '<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2019//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_190101.dtd">'
)
_JATS_DOCTYPE = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.2 20190208//EN" '
    '"JATS-archivearticle1.dtd">'
)
_JOURNALS = ("Annals of Imagined Medicine", "The Journal of Invented Diseases", "Fictional Therapeutics")
_AUTHORS = (("Berg", "Ada"), ("Holm", "Erik"), ("Lind", "Nora"), ("Vale", "Peter"), ("Moss", "Rita"))


def write_medline(path: Path, abstracts: Iterable[Abstract]) -> None:
    """A gzipped `PubmedArticleSet`."""
    root = E.PubmedArticleSet(*(_medline_record(abstract) for abstract in abstracts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(_xml(root, _MEDLINE_DOCTYPE), mtime=0))


def _medline_record(abstract: Abstract) -> etree._Element:
    texts = []
    for label, text in abstract.sections:
        labels = {"Label": label, "NlmCategory": label} if label else {}
        texts.append(E.AbstractText(text, **labels))
    family, given = _AUTHORS[abstract.pmid % len(_AUTHORS)]
    article = E.Article(
        E.Journal(
            E.JournalIssue(E.PubDate(E.Year(str(abstract.year))), CitedMedium="Internet"),
            E.Title(_JOURNALS[abstract.pmid % len(_JOURNALS)]),
        ),
        E.ArticleTitle(f"{abstract.title}."),
        E.Abstract(*texts),
        E.AuthorList(E.Author(E.LastName(family), E.ForeName(given), E.Initials(given[0])), CompleteYN="Y"),
        E.Language("eng"),
        E.PublicationTypeList(*(E.PublicationType(kind) for kind in abstract.types)),
        PubModel="Electronic",
    )
    headings = ["Humans", "Adult", abstract.condition.name]
    return E.PubmedArticle(
        E.MedlineCitation(
            E.PMID(str(abstract.pmid), Version="1"),
            E.DateRevised(E.Year(str(abstract.year)), E.Month("12"), E.Day("01")),
            article,
            E.MeshHeadingList(*(E.MeshHeading(E.DescriptorName(h, MajorTopicYN="N")) for h in headings)),
            Status="MEDLINE",
            Owner="NLM",
        ),
        E.PubmedData(E.ArticleIdList(E.ArticleId(str(abstract.pmid), IdType="pubmed"))),
    )


def write_jats(folder: Path, articles: Iterable[Article]) -> None:
    """One `.nxml` an article."""
    folder.mkdir(parents=True, exist_ok=True)
    for article in articles:
        name = f"PMC{9_000_000 + article.number}.nxml"
        (folder / name).write_bytes(_xml(_jats_article(article), _JATS_DOCTYPE))


def _jats_article(article: Article) -> etree._Element:
    link = "{http://www.w3.org/1999/xlink}href"
    journal = _JOURNALS[article.number % len(_JOURNALS)]
    license = E("license", E("license-p", "Public domain (CC0)."), {link: _CC0})
    front = E.front(
        E("journal-meta", E("journal-title-group", E("journal-title", journal))),
        E(
            "article-meta",
            E("article-id", str(9_000_000 + article.number), {"pub-id-type": "pmc"}),
            E("article-id", f"10.5555/materia.{article.number}", {"pub-id-type": "doi"}),
            E("title-group", E("article-title", article.title)),
            E("pub-date", E.year(str(article.year)), {"pub-type": "epub"}),
            E.permissions(license),
            E.abstract(E.p(article.abstract)),
        ),
    )
    sections = []
    for number, (title, paragraphs) in enumerate(article.sections):
        section = E.sec(E.title(title), *(E.p(text) for text in paragraphs), id=f"s{number}")
        if 0 < number <= len(article.references):  # the section of condition `number` cites the abstract about it
            first = section.find("p")
            first.text = first.text.removesuffix(".") + " ["
            citation = E.xref(str(number), {"ref-type": "bibr", "rid": f"b{number}"})
            citation.tail = "]."
            first.append(citation)
        sections.append(section)
    sections[-1].append(_jats_table(article))
    back = E.back(E("ref-list", *(_jats_reference(n, a) for n, a in enumerate(article.references, start=1))))
    return E.article(front, E.body(*sections), back, {"article-type": "review-article"})


def _jats_table(article: Article) -> etree._Element:
    head = E.tr(*(E.th(text) for text in ("Condition", "First-line drug", "Adult dose", "Do not combine with")))
    rows = [E.tr(*(E.td(cell) for cell in row)) for row in article.table]
    return E(
        "table-wrap",
        E.label("Table 1"),
        E.caption(E.p("Treatment of the conditions of this review")),
        E.table(E.thead(head), E.tbody(*rows)),
        id="t1",
    )


def _jats_reference(number: int, cited: Abstract) -> etree._Element:
    family, given = _AUTHORS[cited.pmid % len(_AUTHORS)]
    author = E.name(E.surname(family), E("given-names", given))
    citation = E(
        "element-citation",
        E("person-group", author, {"person-group-type": "author"}),
        E("article-title", cited.title),
        E.source(_JOURNALS[cited.pmid % len(_JOURNALS)]),
        E.year(str(cited.year)),
        E("pub-id", str(cited.pmid), {"pub-id-type": "pmid"}),
        {"publication-type": "journal"},
    )
    return E.ref(E.label(str(number)), citation, id=f"b{number}")


def _xml(root: etree._Element, doctype: str) -> bytes:
    return etree.tostring(root, xml_declaration=True, encoding="utf-8", doctype=doctype)


def write_guidelines(folder: Path, guidelines: Iterable[Guideline]) -> None:
    """One HTML page a condition, with headings, a list, a table, and the navigation and footer that real pages have."""
    folder.mkdir(parents=True, exist_ok=True)
    for guideline in guidelines:
        c = guideline.condition
        body = [
            f"<h1>{html.escape(c.name)}</h1>",
            "<h2>Overview</h2>",
            _paragraph(guideline.overview),
            "<h2>Treatment</h2>",
            _paragraph(guideline.treatment[:2]),
            _list(guideline.treatment[2:]),
            "<table><tr><th>Drug</th><th>Adult dose</th></tr>",
            f"<tr><td>{html.escape(c.drug)}</td><td>{html.escape(c.dose)}</td></tr></table>",
            "<h2>Interactions</h2>",
            _paragraph(guideline.warnings),
        ]
        (folder / f"{slug(c.name)}.html").write_text(_page(f"Guideline: {c.name}", body), encoding="utf-8")


def write_question_pages(folder: Path, pages: Iterable[QuestionPage]) -> None:
    """One HTML page of questions and answers each."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        body = [f"<h1>{html.escape(page.title)}</h1>"]
        body += ["<p>" + "<br>\n".join(html.escape(line) for line in lines) + "</p>" for lines in page.paragraphs]
        (folder / f"{slug(page.title)}.html").write_text(_page(page.title, body), encoding="utf-8")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>body {{ margin: 2em }}</style></head>
<body>
<nav><a href="index.html">All pages</a> <a href="about.html">About this site</a></nav>
<main>
{body}
</main>
<footer>CC0-1.0, a fictional world</footer>
</body>
</html>
"""


def _page(title: str, body: list[str]) -> str:
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _paragraph(sentences: list[str]) -> str:
    return f"<p>{html.escape(' '.join(sentences))}</p>"


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def slug(text: str) -> str:
    """A file name from a title."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_replay(path: Path, pages: Iterable[GeneralPage | QuestionPage]) -> None:
    """One JSON object a line: `id, title, text, license`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, page in enumerate(pages):
            record = {"id": f"replay-{number:05d}", "title": page.title, "text": plain_text(page), "license": LICENSE}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def plain_text(page: GeneralPage | QuestionPage) -> str:
    """The page's text, paragraphs separated by an empty line."""
    if isinstance(page, QuestionPage):
        return "\n\n".join("\n".join(lines) for lines in page.paragraphs)
    return "\n\n".join(page.paragraphs)
