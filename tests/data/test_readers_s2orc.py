"""S2ORC in all its forms: title first, sections by depth, captions, MEDITRON's tokens at the spans, and identifiers."""

import dataclasses
import io
import json
from pathlib import Path

import pytest

from data.documents import Document
from data.readers.interface import Drop, InputFile, ReadSettings
from data.readers.s2orc import read
from data.special_tokens import spell


def opened(*records, tokens=False, tables=True, name="a.jsonl"):
    lines = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    settings = ReadSettings(special_tokens=tokens, tables=tables)
    return InputFile(io.BytesIO(lines.encode()), name, "s2orc", settings=settings)


def one(record, **settings):
    (item,) = read(opened(record, **settings))
    return item


TEXT = "Gout is treated (Smith, 2001; Doe 2002) with 500 µg (Fig. 2A) and rest [3]; see Table 1 and E = EQUATION."


def span(text, identity=None, **more):
    return {"start": TEXT.index(text), "end": TEXT.index(text) + len(text), "text": text, "ref_id": identity, **more}


PARSE = {
    "abstract": [{"text": "Crystals (p < 0.05).", "cite_spans": [], "ref_spans": [], "section": "Abstract"}],
    "body_text": [
        {
            "text": TEXT,
            "cite_spans": [span("(Smith, 2001;", "B0"), span("Doe 2002)", "B1"), span("[3]", "B9")],
            "ref_spans": [span("(Fig. 2A)", "F0"), span("Table 1", "T0")],
            "eq_spans": [span("EQUATION", "E0", raw_str="m c 2")],
            "section": "Introduction",
        },
        {"text": "Doses of 1-2 mg [range 0.5-3].", "cite_spans": [], "ref_spans": [], "section": "2.1 Low doses"},
        {"text": "We thank all.", "cite_spans": [], "ref_spans": [], "section": "Acknowledgments"},
    ],
    "back_matter": [
        {"text": "Nobody paid.", "cite_spans": [], "ref_spans": [], "section": ""},
        {"text": "More doses.", "cite_spans": [], "ref_spans": [], "section": "Appendix"},
    ],
    "bib_entries": {
        "B0": {"title": "A trial of " + "very " * 12 + "long names", "authors": [{"first": "A", "last": "Smith"}]},
        "B1": {"title": "Colchicine", "authors": []},
        "B9": {"title": "", "authors": [{"last": "Nil"}]},
    },
    "ref_entries": {
        "F0": {"text": "Figure 2. Pain by day (n = 30). All of it.", "type": "figure"},
        "F1": {"text": "Figure 2. Pain by day (n = 30). All of it.", "type": "figure"},
        "T0": {"text": "Doses", "type": "table", "html": "<table><tr><td>A</td><td>5 mg</td></tr></table>"},
        "E0": {"text": "", "latex": "m c^2", "type": "equation"},
    },
}
METADATA = {
    "title": "[Gout and its doses].",
    "authors": [{"first": "A", "last": "Smith"}],
    "abstract": None,
    "year": "2019",
    "pmc_id": "PMC12",
    "pubmed_id": "34",
    "doi": "10.1/x",
    "venue": "V",
    "journal": "Journal of Gout",
}
PLAIN = (
    "# Gout and its doses.\n\n## Abstract\n\nCrystals (p < 0.05).\n\n## Introduction\n\n"
    "Gout is treated (Smith, 2001; Doe 2002) with 500 µg (Fig. 2A) and rest [3]; see Table 1 and E = $m c^2$.\n\n"
    "### 2.1 Low doses\n\nDoses of 1-2 mg [range 0.5-3].\n\n## Appendix\n\nMore doses.\n\n"
    "Figure 2. Pain by day (n = 30). All of it.\n\nDoses\n\n| A | 5 mg |"
)
MARKED = (
    "Gout is treated [bib_ref] A trial of very very very very very very very very very..., Smith [/bib_ref] "
    "[bib_ref] Colchicine [/bib_ref] with 500 µg [fig_ref] Figure 2A: Pain by day [/fig_ref] and rest [3]; "
    "see [fig_ref] Table 1: Doses [/fig_ref] and E = [formula] $m c^2$ [/formula]."
)


def test_the_form_of_2019_as_printed():
    document = one(
        {"paper_id": "7", "metadata": METADATA, "s2_pdf_hash": "x", "grobid_parse": PARSE, "latex_parse": None}
    )
    assert document == Document(
        id="7", source="s2orc", title="Gout and its doses.", text=PLAIN, url="https://doi.org/10.1/x",
        journal="Journal of Gout", date="2019", pmid="34", pmcid="PMC12", doi="10.1/x",
    )  # fmt: skip


def test_special_tokens_are_placed_by_the_spans():
    document = one({"paper_id": "7", "metadata": METADATA, "grobid_parse": PARSE}, tokens=True)
    text = spell(document.text)
    assert MARKED in text
    assert text.endswith(
        "[fig] Figure 2. Pain by day (n = 30). All of it. [/fig]\n\n[table] Doses [/table]\n\n| A | 5 mg |"
    )


def test_tables_can_be_left_out_and_what_is_left_out_is_counted():
    file = opened({"paper_id": "7", "metadata": METADATA, "grobid_parse": PARSE}, tables=False)
    (document,) = read(file)
    assert document.text == PLAIN.removesuffix("\n\n| A | 5 mg |")
    assert file.notes == {
        "paragraphs of acknowledgements, funding, interests and references left out": 1,
        "paragraphs without a header behind the text left out": 1,
    }


def test_the_form_of_2020_takes_title_and_identifiers_from_its_other_file():
    others = [
        {"paper_id": str(n), "title": f"T{n}", "pubmed_id": str(n), "has_pdf_parse": n != 5} for n in (5, 7, 6, 8)
    ]
    parses = [{"paper_id": n, "_pdf_hash": "x", **PARSE} for n in ("6", "7", "8", "9")]
    first, second, third, fourth = read(dataclasses.replace(opened(*parses), companion=opened(*others)))
    assert [(d.id, d.title, d.pmid) for d in (first, second, third)] == [
        ("6", "T6", "6"),
        ("7", "T7", "7"),
        ("8", "T8", "8"),
    ]
    assert (fourth.title, fourth.pmid, fourth.text) == (None, None, PLAIN.partition("\n\n")[2])
    assert first.text == PLAIN.replace("Gout and its doses.", "T6")


def test_doc2json_and_cord19():
    document = one({"paper_id": "c" * 40, "metadata": {"title": "T", "authors": [], "year": "2011-11"}, **PARSE})
    assert (document.title, document.date, document.id) == ("T", "2011-11", "c" * 40)
    nested = {
        "paper_id": "d",
        "title": "T",
        "abstract": "By the publisher.",
        "year": 2020,
        "identifiers": {"doi": "10.1/y"},
    }
    document = one({**nested, "venue": "V", "pdf_parse": {**PARSE, "body_text": PARSE["body_text"][:1]}})
    assert document.text.startswith("# T\n\n## Abstract\n\nBy the publisher.\n\n## Introduction\n\nGout")
    assert (document.doi, document.journal, document.date) == ("10.1/y", "V", "2020")


def api(version=1, **more):
    """A record of the Datasets API: text and spans as JSON strings."""
    parts = [
        ("title", "Gout\ntoday", None), ("author", "A. Smith", None), ("abstract", "Short.", None),
        ("sectionheader", "Methods", {"n": "2."}), ("paragraph", "Colchicine [1] 500 µg,\ngiven (Fig. 1).", None),
        ("formula", "E = mc 2", None), ("sectionheader", "Doses", {"n": "2.1"}), ("paragraph", "Every 8 h.", None),
        ("sectionheader", "Funding", None), ("paragraph", "Money.", None), ("figure", "Figure 1: Pain.", {"id": "fig_0"}),
        ("table", "5 mg 10 mg", {"id": "tab_0"}), ("bibentry", "Doe J. A trial. 2001", {"id": "b0"}),
    ]  # fmt: skip
    text, spans = "", {}

    def add(kind, start, end, attributes=None):
        entry = {"start": str(start), "end": end} | ({"attributes": attributes} if attributes else {})
        spans.setdefault(kind, []).append(entry)

    for kind, words, attributes in parts:
        start = len(text)
        text += words + "\n"
        add(kind, start, start + len(words), attributes)
        for part, inner, found in (
            ("[1]", "bibref", {"ref_id": "b0"}), ("(Fig. 1)", "figureref", {"ref_id": "fig_0"}),
            ("Figure 1: Pain.", "figurecaption", None), ("A trial", "bibtitle", None), ("Doe", "bibauthorlastname", None),
        ):  # fmt: skip
            if part in words:
                add(inner, start + words.index(part), start + words.index(part) + len(part), found)
    annotations = {kind: json.dumps(found) for kind, found in spans.items()} | {"venue": None, "publisher": ""}
    if version == 2:
        names = {"sectionheader": "section_header", "bibref": "bib_ref", "figureref": "figure_ref",
                 "figurecaption": "figure_caption", "bibentry": "bib_entry", "bibtitle": "bib_title",
                 "bibauthorlastname": "bib_author_last_name"}  # fmt: skip
        annotations = {names.get(kind, kind): found for kind, found in annotations.items()}
        references = {kind: annotations.pop(kind) for kind in ("bib_entry", "bib_title", "bib_author_last_name")}
        info = {
            "externalids": {"DOI": "10.1/z", "PubMedCentral": "9"},
            "license": "CCBYNCND",
            "url": "u",
            "status": "GOLD",
        }
        return {"corpusid": 5, "title": "Gout today", "openaccessinfo": info, "body": {"text": text, "annotations": annotations},
                "bibliography": {"text": text, "annotations": references}, **more}  # fmt: skip
    source = {"pdfurls": None, "pdfsha": "x", "oainfo": {"license": "CCBY", "openaccessurl": "u", "status": "GOLD"}}
    names = {"arxiv": None, "pubmed": "34", "pubmedcentral": "12", "doi": "10.1/z"}
    return {
        "corpusid": 5,
        "externalids": names,
        "content": {"source": source, "text": text, "annotations": annotations},
        **more,
    }


API_TEXT = (
    "# Gout today\n\n## Abstract\n\nShort.\n\n## 2 Methods\n\nColchicine [1] 500 µg, given (Fig. 1).\n\nE = mc 2\n\n"
    "### 2.1 Doses\n\nEvery 8 h.\n\nFigure 1: Pain."
)


@pytest.mark.parametrize("version", [1, 2])
def test_annotated_texts_of_the_datasets_api(version):
    document = one(api(version))
    assert document.text == API_TEXT
    assert (document.id, document.title, document.url, document.doi) == ("5", "Gout today", "u", "10.1/z")
    expected = ("CC-BY", "34", "PMC12") if version == 1 else ("CC-BY-NC-ND", None, "PMC9")
    assert (document.license, document.pmid, document.pmcid) == expected
    marked = spell(one(api(version), tokens=True).text)
    assert (
        "Colchicine [bib_ref] A trial, Doe [/bib_ref] 500 µg, given [fig_ref] Figure 1: Pain [/fig_ref].\n\n"
        "[formula] E = mc 2 [/formula]" in marked
    )
    assert marked.endswith("[fig] Figure 1: Pain. [/fig]")


def test_records_without_full_text_are_their_abstract_or_a_drop():
    papers = {"corpusid": 1, "externalids": {"PubMed": "3", "DOI": "10.1/a"}, "title": "T", "journal": {"name": "J"},
              "publicationdate": "1989-10-24", "publicationtypes": ["Review"], "year": 1989}  # fmt: skip
    abstract, drop = read(opened({**papers, "abstract": "Words."}, papers))
    assert abstract == Document(
        id="1:abstract", source="s2orc", title="T", text="# T\n\nWords.", url="https://doi.org/10.1/a", journal="J",
        types=["Review", "abstract"], date="1989-10-24", pmid="3", doi="10.1/a",
    )  # fmt: skip
    assert drop == Drop(
        "no-text", f"a.jsonl@{len(json.dumps({**papers, 'abstract': 'Words.'})) + 1}: neither abstract nor text"
    )
    empty = {"paper_id": "1", "metadata": {"title": "T"}, "grobid_parse": None, "latex_parse": None}
    assert one(empty).rule == "no-text"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "peS2o", "added": "x"}, "no form of S2ORC that is known; keys: text, added"),
        ({"paper_id": "1", "body_text": ["x"]}, "body_text is no list of paragraphs"),
        ({"paper_id": "1", "body_text": [{"text": "x", "cite_spans": [{"start": 0}]}]}, "a span without start and end"),
        ({"paper_id": "1", "body_text": [], "bib_entries": [1]}, "bib_entries is no object"),
        ({"corpusid": 1, "content": {"text": "x", "annotations": [1]}}, "content.annotations is no object"),
        (
            {"corpusid": 1, "content": {"text": "x", "annotations": {"paragraph": "[{"}}},
            "content.annotations.paragraph is no list of spans",
        ),
        (
            {"corpusid": 1, "body": {"text": "x", "annotations": {"paragraph": '[{"start": 1}]'}}},
            "body.annotations.paragraph is no list of spans",
        ),
        ("{cut", "not JSON"),
    ],
)
def test_what_is_no_paper_is_a_bad_record(record, reason):
    drop, good = read(opened(record, api()))
    assert drop.rule == "bad-record"
    assert drop.detail.startswith("a.jsonl@0: ")
    assert reason in drop.detail
    assert good.text == API_TEXT


def test_spans_outside_the_text_or_inside_others_are_passed_over():
    paragraph = {"text": "One [1] two.", "cite_spans": [{"start": 4, "end": 7, "ref_id": "B1"}, {"start": 5, "end": 6, "ref_id": "B1"},
                 {"start": 11, "end": 99, "ref_id": "B1"}, {"start": -4, "end": 2, "ref_id": "B1"}]}  # fmt: skip
    document = one(
        {"paper_id": "1", "body_text": [paragraph], "bib_entries": {"B1": {"title": "C", "authors": []}}}, tokens=True
    )
    assert spell(document.text) == "One [bib_ref] C [/bib_ref] two."


def test_latex_placeholders_become_their_formula():
    text = "Let INLINEFORM0 be 5."
    span = {"start": 4, "end": 15, "text": "INLINEFORM0", "latex": "\\alpha_1", "ref_id": "INLINEFORM0"}
    parse = {
        "body_text": [
            {"text": text, "eq_spans": [span], "section": [[None, "Intro"], ["1.1", "Setting"]], "sec_num": "1.1"}
        ]
    }
    assert one({"paper_id": "1", "latex_parse": parse}).text == "## 1.1 Setting\n\nLet $\\alpha_1$ be 5."


SIGNS = str.maketrans("ϩϪϫϭϮϳϽϾ", "+−×=±~<>")


def test_real_papers(assets):
    paths = sorted(Path(assets / "s2orc").glob("2*.json"))
    assert len(paths) == 8
    for path in paths:
        record = json.loads(path.read_text())
        parse = record.get("grobid_parse") or record
        with path.open("rb") as stream:
            (document,) = read(InputFile(stream, path.name, "s2orc"))
        with path.open("rb") as stream:
            (marked,) = read(InputFile(stream, path.name, "s2orc", settings=ReadSettings(special_tokens=True)))
        title = (record.get("metadata") or {}).get("title")
        assert document.title == title
        assert title is None or document.text.startswith(f"# {title}\n\n")
        for paragraph in [*parse["body_text"], *({"text": entry["text"]} for entry in parse["ref_entries"].values())]:
            printed = " ".join(paragraph["text"].split()).translate(SIGNS)
            assert (printed in document.text) is not printed.startswith("This work was partially supported by FEDER")
        paragraphs = [*parse["body_text"], *(() if "metadata" in record else parse["abstract"])]
        if record["paper_id"] == "18980463":  # its parser took paragraphs of the introduction for the abstract too
            paragraphs = [*parse["body_text"][:1], *parse["body_text"][2:], *parse["abstract"][:3]]
        resolved = [
            span
            for paragraph in paragraphs
            for span in paragraph["cite_spans"]
            if span["ref_id"] and parse["bib_entries"][span["ref_id"]]["title"]
        ]
        text = spell(marked.text)
        assert text.count("[bib_ref]") == text.count("[/bib_ref]") == len(resolved)


def test_real_metadata(assets):
    with (assets / "s2orc" / "metadata_sample.jsonl").open("rb") as stream:
        items = list(read(InputFile(stream, "metadata_sample.jsonl", "s2orc")))
    assert (sum(isinstance(item, Document) for item in items), len(items)) == (488, 1000)
    assert {item.rule for item in items if isinstance(item, Drop)} == {"no-text"}


def test_signs_of_a_mathematical_font_are_themselves_unless_the_text_is_coptic():
    file = opened({"paper_id": "1", "title": "T", "abstract": "R 2 ϭ 0.86; P Ͻ 0.001; 1.3 ϫ 10 28; Ϫ80 ϩ 5 Ϯ 1 Ͼ ϳ4"})
    (document,) = read(file)
    assert document.text == "# T\n\nR 2 = 0.86; P < 0.001; 1.3 × 10 28; −80 + 5 ± 1 > ~4"
    assert file.notes == {"signs of a mathematical font that were read as Coptic letters": 8}
    assert one({"paper_id": "1", "abstract": "the letters ϫ and ϣ"}).text == "the letters ϫ and ϣ"


@pytest.mark.parametrize("tokens", [False, True])
def test_a_citation_that_leads_nowhere_stays_as_printed(tokens):
    text = "it cites [1] and (Doe, 2001) too"
    spans = [{"start": 9, "end": 12, "ref_id": "B7"}, {"start": 17, "end": 28, "ref_id": None}]
    parse = {"paper_id": "1", "body_text": [{"text": text, "cite_spans": spans, "section": ""}]}
    assert one(parse, tokens=tokens).text == text


def test_statements_of_funding_are_no_captions_and_entities_no_names():
    parse = {
        "paper_id": "1",
        "body_text": [{"text": "seen [1]", "cite_spans": [{"start": 5, "end": 8, "ref_id": "B0"}], "section": ""}],
        "bib_entries": {"B0": {"title": "Eyes &amp; flies", "authors": [{"last": "O&apos;neill"}]}},
        "ref_entries": {
            "F0": {"type": "figure", "text": "This work was partially supported by FEDER funds."},
            "F1": {"type": "figure", "text": "Figure 1. This work was supported on poles."},
        },
    }
    file = opened(parse, tokens=True)
    (document,) = read(file)
    assert spell(document.text) == (
        "seen [bib_ref] Eyes & flies, O'neill [/bib_ref]\n\n[fig] Figure 1. This work was supported on poles. [/fig]"
    )
    assert file.notes == {"statements of funding and thanks among the captions left out": 1}


def test_what_is_printed_twice_is_written_once(assets):
    abstract = "Colchicine was given to 30 patients with gout, who took 500 µg twice daily for 5 days until the pain had gone. "
    for twice in (abstract * 2, f"{abstract}::: {abstract}", abstract.strip() * 2):
        file = opened({"paper_id": "1", "abstract": twice})
        (document,) = read(file)
        assert document.text == abstract.strip()
        assert file.notes == {"abstracts printed twice written once": 1}
    parse = {
        "paper_id": "1",
        "abstract": [{"text": "Short."}, {"text": abstract}],
        "body_text": [{"text": f"{abstract}More."}, {"text": "Short."}],
    }
    assert one(parse).text == f"## Abstract\n\nShort.\n\n{abstract}More.\n\nShort."
    with (assets / "s2orc" / "metadata_sample.jsonl").open("rb") as stream:
        file = InputFile(stream, "metadata_sample.jsonl", "s2orc")
        assert sum(isinstance(item, Document) for item in read(file)) == 488
    assert file.notes["abstracts printed twice written once"] == 2
