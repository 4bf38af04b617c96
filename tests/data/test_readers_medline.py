"""MEDLINE: every section, sign and identifier; nothing of the publisher's boilerplate."""

import gzip
import io

import pytest

from data.documents import Document
from data.files import DamagedFile, open_input
from data.readers.interface import Deletion, Drop, InputFile, ReadSettings
from data.readers.medline import read


def citation(
    pmid="1", title="A title.", abstract="<AbstractText>Text.</AbstractText>", version="1", more="", pubmed=""
):
    abstract = f"<Abstract>{abstract}</Abstract>" if abstract else ""
    return f"""<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID>
      <Article><Journal><JournalIssue><PubDate><Year>2021</Year><Month>Mar</Month><Day>9</Day></PubDate></JournalIssue>
      <Title>The Journal</Title></Journal><ArticleTitle>{title}</ArticleTitle>{abstract}<Language>eng</Language>
      <PublicationTypeList><PublicationType UI="D1">Journal Article</PublicationType></PublicationTypeList></Article>{more}
      </MedlineCitation><PubmedData>{pubmed}</PubmedData></PubmedArticle>"""


def read_all(*citations, source="medline"):
    data = f"<PubmedArticleSet>{''.join(citations)}</PubmedArticleSet>".encode()
    return list(read(InputFile(io.BytesIO(data), "a.xml", source)))


def test_fields():
    more = """<MeshHeadingList><MeshHeading><DescriptorName>Cocaine</DescriptorName><QualifierName>metabolism</QualifierName>
      <QualifierName>toxicity</QualifierName></MeshHeading><MeshHeading><DescriptorName>Male</DescriptorName></MeshHeading></MeshHeadingList>"""
    pubmed = """<ArticleIdList><ArticleId IdType="pubmed">7</ArticleId><ArticleId IdType="doi">10.1/AbC</ArticleId>
      <ArticleId IdType="pmc">PMC9</ArticleId></ArticleIdList><ReferenceList><Reference><ArticleIdList>
      <ArticleId IdType="doi">10.9/other</ArticleId></ArticleIdList></Reference></ReferenceList>"""
    (document,) = read_all(citation("7", more=more, pubmed=pubmed, version="3"))
    assert document == Document(
        id="pmid:7", source="medline", title="A title.", text="# A title.\n\nText.", url="https://pubmed.ncbi.nlm.nih.gov/7/",
        language="en", journal="The Journal", types=["Journal Article"],
        mesh=["Cocaine/metabolism", "Cocaine/toxicity", "Male"], date="2021-03-09", pmid="7", pmcid="PMC9", doi="10.1/AbC", version=3,
    )  # fmt: skip


def test_sections_keep_labels_and_the_copyright_line_goes():
    abstract = """<AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">One.</AbstractText>
      <AbstractText Label="RESULTS:">Two <i>in vivo</i>.</AbstractText><AbstractText Label="EMPTY"/>
      <AbstractText Label="UNLABELLED">Three.</AbstractText><CopyrightInformation>Copyright Elsevier.</CopyrightInformation>"""
    (document,) = read_all(citation(abstract=abstract))
    assert document.text == "# A title.\n\nBACKGROUND: One.\n\nRESULTS: Two in vivo.\n\nThree."


def test_signs_survive():
    abstract = """<AbstractText>10<sup>9</sup> CFU, Ca<sup>2+</sup>, CO<sub>2</sub>, m<sup>-2</sup>, 5 &mu;g [3-7], p &lt; 0.05,
      P&amp;lt;0.01, log<sub>10</sub>2<sub>3</sub>, 4<sup>th</sup>, x<sup>a+b</sup>, 2<sup>max</sup>, CD25<sup>high</sup></AbstractText>"""
    (document,) = read_all(citation(abstract=abstract))
    assert document.text.endswith(
        "10⁹ CFU, Ca²⁺, CO2, m⁻², 5 μg [3-7], p < 0.05, P<0.01, log₁₀2₃, 4th, xᵃ⁺ᵇ, 2^max, CD25high"
    )


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("[Treatment of gout].", "Treatment of gout."),
        ("[Is it gout?].", "Is it gout?"),
        ("[Gout] in men [and women].", "[Gout] in men [and women]."),
        ("[Effects of [3H]ouabain].", "Effects of [3H]ouabain."),
        ("Gout [letter].", "Gout [letter]."),
        ("Effect of H<sub>2</sub>O<sub>2</sub>.", "Effect of H2O2."),
    ],
)
def test_titles(title, expected):
    (document,) = read_all(citation(title=title))
    assert document.title == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("<Year>1999</Year>", "1999"),
        ("<Year>1999</Year><Month>12</Month>", "1999-12"),
        ("<Year>1999</Year><Season>Spring</Season>", "1999"),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", "1998"),
        ("<MedlineDate>Winter</MedlineDate>", None),
        ("<Year>1999</Year><Month>13</Month><Day>9</Day>", "1999"),
        ("<Year>1999</Year><Month>Feb</Month><Day>99</Day>", "1999-02"),
        ("<Year>in press</Year>", None),
    ],
)
def test_dates(date, expected):
    source = citation().replace("<Year>2021</Year><Month>Mar</Month><Day>9</Day>", date)
    (document,) = read_all(source)
    assert document.date == expected


def test_drops_and_deletions_in_order():
    items = read_all(citation("1"), citation("2", abstract=""), "<DeleteCitation><PMID>1</PMID><PMID>9</PMID></DeleteCitation>",
                     "<PubmedBookArticle><BookDocument><PMID>5</PMID></BookDocument></PubmedBookArticle>")  # fmt: skip
    assert [type(item) for item in items] == [Document, Drop, Deletion, Deletion, Drop]
    assert (items[1].rule, items[1].about.pmid) == ("no-abstract", "2")
    assert items[2:4] == [Deletion("1"), Deletion("9")]
    assert items[4].rule == "book-record"


def read_with(languages, *citations):
    file = InputFile(
        io.BytesIO(f"<S>{''.join(citations)}</S>".encode()),
        "a.xml",
        "medline",
        settings=ReadSettings(languages=languages),
    )
    return list(read(file)), file.notes


SPANISH = '<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Texto.</AbstractText><CopyrightInformation>(c) Ed.</CopyrightInformation></OtherAbstract>'
LAY = '<OtherAbstract Type="plain-language-summary" Language="eng"><AbstractText Label="WHY">So that all see.</AbstractText><AbstractText>Two.</AbstractText></OtherAbstract>'
PIP = '<OtherAbstract Type="PIP"><AbstractText>Contraceptives were studied.</AbstractText></OtherAbstract>'


def test_further_abstracts_in_other_languages_are_counted():
    (document,), notes = read_with(("en",), citation(more=SPANISH + SPANISH.replace("spa", "xyz")))
    assert document.text == "# A title.\n\nText."
    assert notes == {f"further abstract in language {name} left out": 1 for name in ("es", "xyz")}


def test_further_abstracts_in_wanted_languages_follow_under_their_kind():
    (document,), notes = read_with(("en",), citation(more=LAY + PIP + SPANISH))
    assert document.text == (
        "# A title.\n\nText.\n\nPlain-language summary: WHY: So that all see.\n\nTwo.\n\nAbstract (PIP): Contraceptives were studied."
    )
    assert notes == {"further abstract in language es left out": 1}
    for every in ((), ("",)):
        (document,), notes = read_with(every, citation(more=SPANISH))
        assert document.text == "# A title.\n\nText.\n\nAbstract (Publisher): Texto."
        assert not notes


def test_a_citation_with_only_a_further_abstract_is_a_document_where_it_is_wanted():
    only = citation("5", abstract="", more=SPANISH)
    (document,), _ = read_with(("es",), only)
    assert document.text == "# A title.\n\nAbstract (Publisher): Texto."
    (drop,), notes = read_with(("en",), only)
    assert (drop.rule, drop.about.pmid) == ("no-abstract", "5")
    assert notes.total() == 1


def test_a_further_abstract_that_repeats_the_first_is_counted():
    words = "Bone loss was less than was expected from studies with placebo in women."
    changed = words.replace("expected", "awaited")
    record = citation(
        abstract=f"<AbstractText>{words}</AbstractText>",
        more=f'<OtherAbstract Type="PIP"><AbstractText>{changed}</AbstractText></OtherAbstract>',
    )
    (document,), notes = read_with(("en",), record)
    assert document.text == f"# A title.\n\n{words}"
    assert notes == {"further abstract that repeats the first left out": 1}


def notice(kind):
    return f'<CommentsCorrectionsList><CommentsCorrections RefType="CommentIn"><PMID>8</PMID></CommentsCorrections><CommentsCorrections RefType="{kind}"><PMID Version="2">9</PMID></CommentsCorrections></CommentsCorrectionsList>'


@pytest.mark.parametrize("kind", ["RetractionIn", "RetractedandRepublishedIn"])
def test_what_was_retracted_has_the_type_once(kind):
    unmarked = citation(more=notice(kind))
    marked = unmarked.replace(
        "</PublicationTypeList>", "<PublicationType>Retracted Publication</PublicationType></PublicationTypeList>"
    )
    for record in (unmarked, marked):
        (document,) = read_all(record)
        assert document.types == ["Journal Article", "Retracted Publication"]


@pytest.mark.parametrize("kind", ["CommentOn", "ErratumIn", "ErratumFor", "PartialRetractionIn", "PartialRetractionOf"])
def test_other_notices_are_no_retractions(kind):
    (document,) = read_all(citation(more=notice(kind)))
    assert document.types == ["Journal Article"]


@pytest.mark.parametrize("kind", ["RetractionOf", "RetractedandRepublishedFrom"])
@pytest.mark.parametrize("abstract", ["", "<AbstractText>Text.</AbstractText>"])
def test_a_notice_takes_back_what_it_names(kind, abstract):
    item, retraction = read_all(citation(more=notice(kind), abstract=abstract))
    assert (item if abstract else item.about).types == ["Journal Article"]
    assert (retraction.about.pmid, retraction.about.version) == ("9", 2)
    assert len(read_all(citation("9", more=notice(kind)))) == 1  # itself


def test_a_notice_without_pmid_is_counted():
    more = notice("RetractionOf").replace('<PMID Version="2">9</PMID>', "<RefSource>Gut. 1999;1:1</RefSource>")
    items, notes = read_with(("en",), citation(more=more))
    assert (len(items), notes) == (1, {"retraction notice without PMID": 1})


def test_every_drop_of_a_citation_names_its_pmid():
    items = read_all(
        citation("2", abstract="<AbstractText> </AbstractText>"),
        "<PubmedArticle><MedlineCitation><PMID>3</PMID></MedlineCitation></PubmedArticle>",
        "<PubmedBookArticle><BookDocument><PMID>5</PMID></BookDocument></PubmedBookArticle>",
        citation("", title="No number."),
        "<PubmedArticle/>",
    )
    assert [(item.rule, item.about and item.about.pmid) for item in items] == [
        ("no-abstract", "2"), ("bad-record", "3"), ("book-record", "5"), ("bad-record", None), ("bad-record", None),
    ]  # fmt: skip


def test_language_is_the_articles_in_two_letters():
    for code, expected in (("eng", "en"), ("pol", "pl"), ("und", "und"), ("", None)):
        (document,) = read_all(citation().replace("<Language>eng<", f"<Language>{code}<"))
        assert document.language == expected


def test_comments_and_what_is_empty_are_no_values():
    more = "<MeshHeadingList><!-- a --><MeshHeading/><MeshHeading><!-- b --><DescriptorName>Gout</DescriptorName></MeshHeading></MeshHeadingList>"
    record = citation(more=more, pubmed="<ArticleIdList><?x y?></ArticleIdList>").replace(
        "<PublicationTypeList>", "<PublicationTypeList><!-- c -->"
    )
    (document,) = read_all(record)
    assert (document.mesh, document.types, document.doi) == (["Gout"], ["Journal Article"], None)


@pytest.mark.parametrize(("version", "expected"), [("2", 2), ("", 1), ("x", 1), ("9" * 5000, 1)])
def test_versions(version, expected):
    (document,) = read_all(citation(version=version))
    assert document.version == expected


def test_the_doi_comes_from_the_list_or_from_the_article():
    location = '<ELocationID EIdType="pii">S1</ELocationID><ELocationID EIdType="doi">10.1/x</ELocationID><Language>'
    (document,) = read_all(citation().replace("<Language>", location))
    assert (document.doi, document.pmcid) == ("10.1/x", None)


def test_real_file(assets):
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    with open_input(path, path.name) as stream:
        items = list(read(InputFile(stream, path.name, "medline")))
    documents = [item for item in items if isinstance(item, Document)]
    assert len(items) == 4000
    assert len(documents) == 3368
    assert all(document.text.startswith(f"# {document.title}\n\n") for document in documents)
    assert all(document.date and document.pmid and document.journal for document in documents)
    assert not any("Copyright © 2021 Elsevier" in document.text for document in documents)
    assert sum("p < 0.05" in document.text for document in documents) > 30


def test_cut_files_are_damaged(tmp_path):
    data = f"<PubmedArticleSet>{citation() * 50}</PubmedArticleSet>".encode()
    for name, content in (("a.xml", data[:-100]), ("a.xml.gz", gzip.compress(data)[:-30])):
        path = tmp_path / name
        path.write_bytes(content)
        with open_input(path, name) as stream, pytest.raises(DamagedFile, match=name):
            list(read(InputFile(stream, name, "medline")))


def test_exponents_never_fuse_and_a_strange_month_is_none():
    abstract = "70 kg<sup>0.75</sup>, e<sup>-kt</sup>, 10<i><sup>3.5</sup></i>, log<sub>2</sub>3, CD25<sup>high</sup>"
    record = citation(abstract=f"<AbstractText>{abstract}</AbstractText>").replace("<Month>Mar<", "<Month>²<")
    (document,) = read_all(record)
    assert document.text.endswith("70 kg^0.75, e^(-kt), 10^3.5, log₂3, CD25high")
    assert document.date == "2021"
