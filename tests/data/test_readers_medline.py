"""MEDLINE: every section, sign and identifier; nothing of the publisher's boilerplate."""

import gzip
import io

import pytest

from data.documents import Document
from data.files import DamagedFile, open_input
from data.readers.interface import Deletion, Drop, InputFile
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
    assert items[1] == Drop("no-abstract", pmid="2")
    assert items[2:4] == [Deletion("1"), Deletion("9")]
    assert items[4].rule == "book-record"


def test_other_abstracts_are_counted():
    other = '<OtherAbstract Language="spa"><AbstractText>Texto.</AbstractText></OtherAbstract>'
    file = InputFile(io.BytesIO(f"<S>{citation(more=other)}</S>".encode()), "a.xml", "medline")
    (document,) = read(file)
    assert "Texto" not in document.text
    assert sum(file.notes.values()) == 1


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
