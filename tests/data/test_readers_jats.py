"""JATS: every block once, in order, with its signs; no authors, references or licence text."""

import io

import pytest

from data.readers.interface import Drop, InputFile
from data.readers.jats import read


def article(body="", meta="", back="", title="The title", attributes=""):
    return f"""<?xml version="1.0"?><!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS-archivearticle1.dtd">
    <article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML" {attributes}><front>
    <journal-meta><journal-title-group><journal-title>J Med</journal-title></journal-title-group></journal-meta>
    <article-meta><article-id pub-id-type="pmid">11</article-id><article-id pub-id-type="pmc">22</article-id>
    <article-id pub-id-type="doi">10.1/x</article-id><title-group><article-title>{title}</article-title></title-group>
    <contrib-group><contrib><name><surname>Author</surname></name></contrib></contrib-group>
    <pub-date pub-type="epub"><day>2</day><month>3</month><year>2020</year></pub-date>{meta}</article-meta></front>
    <body>{body}</body><back>{back}<ref-list><title>References</title><ref><mixed-citation>Cited</mixed-citation></ref></ref-list></back>
    </article>"""


def document_of(*arguments, **keywords):
    (document,) = read(InputFile(io.BytesIO(article(*arguments, **keywords).encode()), "a.nxml", "jats"))
    return document


def body_of(body):
    return document_of(body).text.removeprefix("# The title").strip()


def test_fields_and_order():
    document = document_of(
        "<sec><label>1.</label><title>Methods:</title><p>One.</p><sec><title>Drugs</title><p>Two.</p></sec></sec>",
        meta="""<abstract><sec><title>Aim</title><p>Why.</p></sec></abstract>
          <abstract abstract-type="summary"><title>Lay summary</title><p>Plain.</p></abstract>""",
        back="""<ack><p>We thank.</p></ack><app-group><app><title>Appendix</title><p>More.</p></app></app-group>
          <glossary><title>Abbreviations</title><def-list><def-item><term>BP</term><def><p>blood pressure</p></def></def-item></def-list>
          </glossary>""",
        attributes='article-type="research-article" xml:lang="EN"',
    )
    assert document.text == (
        "# The title\n\n## Abstract\n\n### Aim\n\nWhy.\n\n## Lay summary\n\nPlain.\n\n## 1. Methods\n\nOne.\n\n### Drugs\n\nTwo.\n\n"
        "## Appendix\n\nMore.\n\n## Abbreviations\n\n- BP: blood pressure"
    )
    assert (document.id, document.pmid, document.pmcid, document.doi) == ("PMC22", "11", "PMC22", "10.1/x")
    assert (document.journal, document.date, document.language) == ("J Med", "2020-03-02", "en")
    assert document.types == ["research-article"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<p>10<sup>9</sup>/L, Ca<sup>2+ </sup>ions, anx<sup>-/-</sup>, mol·L<sup>−1</sup></p>", "10⁹/L, Ca²⁺ ions, anx⁻/⁻, mol·L⁻¹"),
        ("<p>CO<sub>2</sub>, IC<sub>50</sub>, 8<sub>2</sub></p>", "CO2, IC50, 8₂"),
        ("<p>rate<sup>a</sup> and cases<xref ref-type='table-fn'><sup>d</sup></xref></p>", "rateᵃ and casesᵈ"),
        ("<p>shown<sup><xref ref-type='bibr'>12</xref>,<xref ref-type='bibr'>13</xref></sup>.</p>", "shown [12,13]."),
        ("<p>5 &mu;g (p &lt; 0.05) [0.3–7.1]&nbsp;mg</p>", "5 μg (p < 0.05) [0.3–7.1] mg"),
        ("<p>see <xref ref-type='fig'>Figure 1</xref> and <ext-link>the site</ext-link></p>", "see Figure 1 and the site"),
        ("<p>a<break/>b <italic>c</italic><bold>d</bold></p>", "a b cd"),
        ("<p>x <inline-formula><tex-math>$a^2$</tex-math></inline-formula> y</p>", "x $a^2$ y"),
        (
            r"<p><disp-formula><label>(1)</label><tex-math>\documentclass{x}\begin{document}$$ E=mc^2 $$\end{document}</tex-math>"
            "</disp-formula></p>",
            "$E=mc^2$ (1)",
        ),
        ("<p><mml:math><mml:mfrac><mml:mi>a</mml:mi><mml:mn>2</mml:mn></mml:mfrac></mml:math></p>", "a/2"),
        ("<p>A<mml:math><mml:msup><mml:mi>r</mml:mi><mml:mrow><mml:mn>2</mml:mn><mml:mi>n</mml:mi></mml:mrow></mml:msup></mml:math></p>",
         "A r^(2 n)"),
        ("<disp-formula><graphic/><alt-text>x over y</alt-text></disp-formula>", "x over y"),
        ("<p>before<fn><p>a note</p></fn> after</p>", "before (a note) after"),
        ("<disp-quote><p>said</p></disp-quote>", "said"),
        ("<p>one</p><supplementary-material><caption><p>click here</p></caption></supplementary-material>", "one"),
        ("<sec><title>Downloads</title><supplementary-material/></sec><p>x</p>", "x"),
    ],
)  # fmt: skip
def test_running_text(body, expected):
    assert body_of(body) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ('Hard passages<xref ref-type="fn" rid="f1">*</xref> of text', "Hard passages of text"),
        ('Hard passages<sup><xref ref-type="author-notes" rid="f1">1</xref></sup>', "Hard passages"),
        ('IL<sup>2</sup>, after <xref ref-type="bibr" rid="b1">Smith</xref>', "IL², after Smith"),
    ],
)
def test_marks_of_notes_are_no_part_of_a_title(title, expected):
    document = document_of("<p>x</p>", title=title)
    assert (document.title, document.text) == (expected, f"# {expected}\n\nx")


def test_lists_nest_and_paragraphs_break_around_them():
    body = """<p>Give:<list list-type="order"><list-item><p>first <bold>10 mg</bold></p><list list-type="bullet"><list-item><p>inner</p>
      </list-item></list></list-item><list-item><p>second</p><p>more</p></list-item></list>then stop.</p>"""
    assert body_of(body) == "Give:\n\n1. first 10 mg\n  - inner\n2. second\n  more\n\nthen stop."


def test_own_labels_of_list_items_are_kept():
    assert body_of("<list><list-item><label>(iv)</label><p>four</p></list-item></list>") == "(iv) four"


def test_table_with_spans_caption_and_footnotes():
    body = """<table-wrap><label>Table 1</label><caption><title>Doses.</title><p>In adults.</p></caption><table>
      <thead><tr><th rowspan="2">Drug</th><th colspan="2">Dose</th></tr><tr><th>mg</th><th>per day</th></tr></thead>
      <tbody><tr><td>A|B</td><td>5</td><td>2<xref ref-type="table-fn"><sup>a</sup></xref></td></tr><tr><td/><td>&lt; 7</td><td/></tr></tbody>
      </table><table-wrap-foot><fn><label>a</label><p>with food</p></fn></table-wrap-foot></table-wrap>"""
    assert body_of(body) == (
        "Table 1. Doses. In adults.\n\n| Drug | Dose |  |\n| --- | --- | --- |\n|  | mg | per day |\n| A\\|B | 5 | 2ᵃ |\n|  | < 7 |  |\n\n"
        "a with food"
    )


def test_figures_boxes_and_floats_come_once():
    body = """<p>x</p><fig><label>Figure 1</label><caption><title>T.</title><p>Words.</p></caption><graphic/></fig>
      <boxed-text><caption><title>Box 1</title></caption><p>In the box.</p></boxed-text>"""
    source = article(body).replace(
        "</back>", "</back><floats-group><fig><label>Fig 2</label><caption><p>Far.</p></caption></fig></floats-group>"
    )
    (document,) = read(InputFile(io.BytesIO(source.encode()), "a.nxml", "jats"))
    assert document.text == "# The title\n\nx\n\nFigure 1. T. Words.\n\nBox 1\n\nIn the box.\n\nFig 2. Far."


def test_a_default_namespace_changes_nothing():
    source = article("<sec><title>A</title><p>b</p></sec>")
    plain = read(InputFile(io.BytesIO(source.encode()), "a.nxml", "jats"))
    spaced = source.replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.0/" ')
    assert list(read(InputFile(io.BytesIO(spaced.encode()), "a.nxml", "jats"))) == list(plain)


def test_pictures_without_text_are_counted():
    file = InputFile(
        io.BytesIO(article("<p><inline-formula><inline-graphic/></inline-formula> x</p>").encode()), "a", "jats"
    )
    list(read(file))
    assert file.notes["formulas given only as a picture"] == 1


def test_other_roots_are_dropped():
    (drop,) = read(InputFile(io.BytesIO(b"<html><p>x</p></html>"), "a.xml", "jats"))
    assert isinstance(drop, Drop)
    assert drop.rule == "not-an-article"


def test_real_articles(assets):
    paths = sorted((assets / "jats").rglob("*.nxml"))
    assert len(paths) == 108
    for path in paths:
        with path.open("rb") as stream:
            (document,) = read(InputFile(stream, path.name, "jats"))
        assert document.title
        assert document.text.startswith(f"# {document.title}\n\n")
        assert document.doi or document.pmid
        assert document.date
        assert document.types


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('10<sup>9<xref ref-type="bibr">3</xref></sup>/L', "10⁹ [3]/L"),
        ('10<xref ref-type="bibr"><sup>3</sup></xref>', "10 [3]"),
        ('20<xref ref-type="bibr">4</xref>', "20 [4]"),
        ('[<xref ref-type="bibr">4</xref>,<xref ref-type="bibr">5</xref>]', "[4,5]"),
        ('20<xref ref-type="table-fn">a</xref>, 3<xref ref-type="fn">1</xref>', "20ᵃ, 3¹"),
        ("10<italic><bold><sup>3.5</sup></bold></italic>", "10^3.5"),
        ("log<sub>2</sub>3, CO<sub>2</sub>", "log₂3, CO2"),
    ],
)
def test_references_and_scripts_never_fuse_with_a_number(source, expected):
    assert body_of(f"<p>{source}</p>") == expected


def test_a_table_in_a_cell_is_written_once():
    inner = "<table><tr><td>inner</td></tr></table>"
    text = body_of(f"<table-wrap><table><tr><td>outer {inner}</td></tr></table></table-wrap>")
    assert (text.count("inner"), text.count("outer")) == (1, 1)
