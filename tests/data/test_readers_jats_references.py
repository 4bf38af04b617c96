"""JATS with special tokens: each reference by the id it points to, captions and formulas marked, brackets gone."""

import io
import re

import pytest

from data.readers.interface import InputFile, ReadSettings
from data.readers.jats import read
from data.special_tokens import SPECIAL_TOKENS, enclose, spell

REFERENCES = """<ref-list>
  <ref id="B1"><mixed-citation><person-group><name><surname>Siegel</surname></name><name><surname>Miller</surname></name></person-group>
    <article-title>Cancer statistics, 2023.</article-title><source>CA</source></mixed-citation></ref>
  <ref id="B2"><element-citation><collab>WHO</collab><source>A book</source></element-citation></ref>
  <ref id="B3"><mixed-citation>Only words, without mark-up</mixed-citation></ref>
  <ref id="B4"><citation><name><surname>Roe</surname></name><article-title>One two three four five six seven eight nine ten
    eleven twelve, thirteen</article-title></citation></ref></ref-list>"""
FLOATS = """<floats-group><fig id="F1"><label>Figure 1.</label><caption><p>Overall survival (months) of <xref rid="B1">1</xref>.</p>
  </caption></fig><table-wrap id="T1"><label>Table 1</label><caption><title>Baseline values; all patients</title></caption>
  <table><tr><td>5 mg<xref ref-type="bibr" rid="B2">2</xref></td></tr></table></table-wrap></floats-group>"""
SIEGEL = "[bib_ref] Cancer statistics, 2023, Siegel [/bib_ref]"
BOOK = "[bib_ref] A book, WHO [/bib_ref]"
LONG = "[bib_ref] One two three four five six seven eight nine ten eleven twelve..., Roe [/bib_ref]"
FIGURE = "[fig_ref] Figure 1: Overall survival [/fig_ref]"


def document(body, settings=ReadSettings(special_tokens=True), notes=None):  # noqa: B008
    source = f"""<article xmlns:mml="http://www.w3.org/1998/Math/MathML"><front><article-meta><title-group>
      <article-title>T</article-title></title-group></article-meta></front><body><p>{body}</p></body><back>{REFERENCES}</back>
      {FLOATS}</article>"""
    file = InputFile(io.BytesIO(source.encode()), "a.nxml", "jats", settings=settings)
    (found,) = read(file)
    if notes is not None:
        notes.update(file.notes)
    return spell(found.text).split("\n\n")[1:]


def cite(name, mark):
    return f'<xref ref-type="bibr" rid="{name}">{mark}</xref>'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"rises [{cite('B1', 1)}].", f"rises {SIEGEL}."),
        (f"rises {cite('B1', '[1]')}–{cite('B4', '[4]')}.", f"rises {SIEGEL} {BOOK} {LONG}."),
        (f"rises [{cite('B1', 1)},{cite('B2', 2)}] in", f"rises {SIEGEL} {BOOK} in"),
        (f"rises<sup>{cite('B1', 1)},{cite('B2', 2)}</sup> in", f"rises {SIEGEL} {BOOK} in"),
        (f"rises{cite('B1', '<sup>1</sup>')}. In", f"rises {SIEGEL}. In"),
        (f"10<sup>9{cite('B1', 1)}</sup>", f"10⁹ {SIEGEL}"),
        (f"rises ({cite('B1', 'Siegel, 2023')}; {cite('B2', 'WHO')}).", f"rises {SIEGEL} {BOOK}."),
        (f"rises (reviewed in {cite('B1', 1)}) and", f"rises (reviewed in {SIEGEL}) and"),
        (f"rises {cite('B1 B2', '1, 2')}", f"rises {SIEGEL} {BOOK}"),
        # what has no title, or is not there, is left out with its brackets
        (f"rises [{cite('B3', 3)}]. Then", "rises. Then"),
        (f"Smith {cite('B3 B1', '(2003)')} found", f"Smith {SIEGEL} found"),
        # what is not in the list stays as it is printed
        (f"rises [{cite('B9', 9)},{cite('B1', 1)}] and", f"rises [9, {SIEGEL}] and"),
        (f"the {cite('B8', 7)}{cite('B9', '-9')} and {cite('', '(Smith, 2003)')}", "the 7-9 and (Smith, 2003)"),
        (f"rises<sup>{cite('B9', 9)}</sup>, 10<sup>9{cite('B9', 3)}</sup>", "rises [9], 10⁹ [3]"),
        (f"rises<sup>{cite('B9', 9)},{cite('B1', 1)}</sup>", f"rises 9, {SIEGEL}"),
        # a number before a citation stays raised
        (f"10<sup>3,{cite('B1', 7)}</sup>", f"10³, {SIEGEL}"),
        (f"kg<sup>0.75,{cite('B1', 7)}</sup>", f"kg^0.75, {SIEGEL}"),
        (f"Smith {cite('B3', '(2003)')} found", "Smith found"),
        # figures and tables, with or without the word in the reference
        ('see <xref ref-type="fig" rid="F1">Fig. 1B</xref>.', "see [fig_ref] Fig. 1B: Overall survival [/fig_ref]."),
        ('(Figure <xref ref-type="fig" rid="F1">1</xref>A, C)', "([fig_ref] Figure 1A: Overall survival [/fig_ref], C)"),
        ('in Figs. <xref rid="F1">1</xref> and <xref rid="F1">1C</xref>', f"in {FIGURE} and {FIGURE.replace('1:', '1C:')}"),
        ('see <xref ref-type="table" rid="T1">Table 1</xref>', "see [fig_ref] Table 1: Baseline values [/fig_ref]"),
        ('see <xref ref-type="fig" rid="F9">Figure 9</xref>', "see Figure 9"),
        ('20<xref ref-type="fn" rid="fn1">a</xref>, <xref ref-type="sec" rid="s1">Methods</xref>', "20ᵃ, Methods"),
        # formulas
        ("if <inline-formula><tex-math>$x^2$</tex-math></inline-formula> holds", "if [formula] $x^2$ [/formula] holds"),
        ("if <inline-formula><inline-graphic/></inline-formula> holds", "if [formula] [/formula] holds"),
        ("if <inline-formula><chem-struct><tex-math>$x$</tex-math></chem-struct></inline-formula>", "if [formula] $x$ [/formula]"),
        # no citation of the article: brackets stay
        ("range [4–7] (2.5–5)", "range [4–7] (2.5–5)"),
    ],
)  # fmt: skip
def test_running_text(body, expected):
    assert document(body)[0] == expected


@pytest.mark.parametrize(
    ("body", "works"),
    [
        (f"[{cite('R1', 1)}–{cite('R4', 4)}]", [1, 2, 3, 4]),
        (f"{cite('R1', '[1]')}-{cite('R3', '[3]')}, {cite('R5', '[5]')}", [1, 2, 3, 5]),
        (f"<sup>{cite('R2', 2)},{cite('R4', 4)}–{cite('R6', 6)}</sup>", [2, 4, 5, 6]),
        (cite("R1 R3", "1–3"), [1, 2, 3]),
        (cite("R1 R2 R3", "1–3"), [1, 2, 3]),
        (f"{cite('R1', 1)}{cite('R3', '–3')}", [1, 2, 3]),
        (f"{cite('R6', 6)}–{cite('C8', 8)}", [6, 7, 8]),
        (f"{cite('R1', 1)}, {cite('R3', 3)}", [1, 3]),
        (f"{cite('R1', 11)}–{cite('R4', 13)}", [1, 4]),  # another numbering than the list's
        (f"{cite('R1', 'Roe 2001')}–{cite('R3', 'Doe 2003')}", [1, 3]),
        (f"{cite('R1', 1)}–{cite('R12', 12)}", list(range(1, 13))),
        (f"{cite('R1', 1)}–{cite('R13', 13)}", [1, 13]),
        (f"{cite('R4', 4)}–{cite('R1', 1)}", [4, 1]),
    ],
)
def test_ranges_give_the_works_between_their_ends(body, works):
    entry = '<ref id="R{0}"><mixed-citation id="C{0}"><article-title>Work {0}</article-title></mixed-citation></ref>'
    entries = "".join(entry.format(number) for number in range(1, 14))
    source = f"<article><body><p>x {body}</p></body><back><ref-list>{entries}</ref-list></back></article>"
    file = InputFile(io.BytesIO(source.encode()), "a.nxml", "jats", settings=ReadSettings(special_tokens=True))
    (found,) = read(file)
    assert spell(found.text) == " ".join(["x", *(f"[bib_ref] Work {number} [/bib_ref]" for number in works)])


def test_captions_and_rows():
    assert document("x")[1:] == [
        f"[fig] Figure 1. Overall survival (months) of {SIEGEL}. [/fig]",
        "[table] Table 1. Baseline values; all patients [/table]",
        f"| 5 mg {BOOK} |",
    ]


def test_without_special_tokens_marks_stay_as_printed():
    body = f"rises [{cite('B1', 1)}] and {cite('B3', '(Smith, 2003)')}, see <xref ref-type='fig' rid='F1'>Fig. 1</xref>"
    assert document(body, ReadSettings())[0] == "rises [1] and (Smith, 2003), see Fig. 1"


def test_without_rows_captions_stay_and_the_tables_are_counted():
    notes = {}
    assert document("x", ReadSettings(tables=False), notes)[1:] == [
        "Figure 1. Overall survival (months) of 1.",
        "Table 1. Baseline values; all patients",
    ]
    assert notes == {"tables without their rows, as asked for": 1}


def test_the_tokens():
    assert len(set(SPECIAL_TOKENS)) == 12
    assert spell(enclose("fig", "x")) == "[fig] x [/fig]"
    assert spell(enclose("formula", "")) == "[formula] [/formula]"


def test_real_articles_close_what_they_open(assets):
    kinds = ("bib_ref", "fig_ref", "fig", "table", "formula")
    total = dict.fromkeys(kinds, 0)
    for path in sorted((assets / "jats").rglob("*.nxml"))[::4]:
        texts = []
        for settings in (ReadSettings(special_tokens=True), ReadSettings()):
            with path.open("rb") as stream:
                texts += [spell(found.text) for found in read(InputFile(stream, path.name, "jats", settings=settings))]
        marked, plain = texts
        assert not re.search(r"[\x00-\x08]", marked)
        assert not any(token in plain for token in SPECIAL_TOKENS)
        for kind in kinds:
            spans = re.findall(rf"\[{kind}\] (.*?) ?\[/{kind}\]", marked)
            assert len(spans) == marked.count(f"[{kind}]") == marked.count(f"[/{kind}]")
            total[kind] += len(spans)
    assert total["bib_ref"] > 1000
    assert total["fig_ref"] > 500
