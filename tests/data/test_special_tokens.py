"""What a text prints never becomes a special token; what a reader encloses does, from the raw file to the shards."""

import html
import io
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.curate import run
from data.documents import Document
from data.read_pass import _UnitWork
from data.readers import FORMATS
from data.readers.interface import InputFile, ReadSettings
from data.redact import KINDS, Redactor
from data.special_tokens import MARK, SPECIAL_TOKENS, enclose, spell, without_marks
from data.summary import Summary
from data.tokenize import tokenize
from data.tokenizer import load_tokenizer
from tests.data.raw_sources import LONG, documents, settings
from tests.data.test_tokenize import read_back

TAKEN_OUT = "noncharacters U+FDD0 taken out"
NONCHARACTER = re.compile("[\ufdd0-\ufdef]")
KIND_NAMES = [token[1:-1] for token in SPECIAL_TOKENS if "/" not in token]


def tokens(text):
    """The tokens that text spells, in order."""
    return re.findall("|".join(map(re.escape, SPECIAL_TOKENS)), text)


def cleaned(text, title=None, *, kind, special_tokens=True):
    """What pass A makes of a document of a source of this kind: the document, the text before, the notes."""
    work = SimpleNamespace(
        summary=Summary(),
        shared=SimpleNamespace(redactor=Redactor(KINDS)),
        form=FORMATS[kind],
        settings=ReadSettings(special_tokens=special_tokens),
    )
    found = _UnitWork._clean(work, Document("1", "s", title, text))
    return found.document, found.before, work.summary.notes


def test_the_forms():
    text = f"see [table] and [/bib_ref], [Table], [fig 1], [ fig ] {enclose('table', 'Doses [fig]')}{enclose('formula', '')}"
    assert spell(text) == (
        "see [table ] and [/bib_ref ], [Table], [fig 1], [ fig ] [table] Doses [fig ] [/table][formula] [/formula]"
    )
    with pytest.raises(AssertionError):
        enclose("page", "x")


pieces = st.sampled_from([
    *SPECIAL_TOKENS, MARK, "\ufdd1", "\u00ef\u00b7\u0090", "[", "]", "/", "[tab", "le]", "[/fi", "g]", "_ref]", "[bib", f"[{MARK}table]",
    "\u00ad", "\u00ad\n", "\u200b", "\ufeff", "\u2060", "\x00", "\x7f", "\u00c2", "\u00a0", " ", "  ", "\n", "\n\n\n", "x",
    "www.who.int/", "a@who.int", "(020) 7946 0958", "Download PDF\n", " © 2020 Elsevier.\n", "table", "[table ]", "&#xFDD0;",
])  # fmt: skip
raw = st.lists(pieces, max_size=12).map("".join)


@given(raw, raw)
def test_no_raw_text_becomes_a_token(text, title):
    for kind in set(FORMATS) - {"jats", "s2orc"}:
        document, before, _ = cleaned(text, title, kind=kind)
        assert not tokens(document.text) and not tokens(document.title or "")
        assert MARK not in document.text + (document.title or "") + before


@given(st.lists(st.tuples(raw, st.sampled_from(KIND_NAMES), st.text("ab <&", max_size=5)), max_size=4), raw)
def test_exactly_what_is_enclosed_becomes_a_token(parts, end):
    notes = Counter()
    text = "".join(f"{without_marks(text, notes)}{enclose(name, inner)} " for text, name, inner in parts)
    document, before, _ = cleaned(text + without_marks(end, notes), kind="jats")
    assert tokens(document.text) == [token for _, name, _ in parts for token in (f"[{name}]", f"[/{name}]")]
    assert MARK not in document.text + before


def test_mojibake_of_a_mark_beside_a_token():
    document, _, _ = cleaned(f"{enclose('fig', 'CafÃ©')} [\u00ef\u00b7\u0090table] 5 Î¼g", kind="s2orc")
    assert document.text == "[fig] Café [/fig] [table ] 5 μg"


def test_an_address_ends_where_a_token_begins():
    document, _, _ = cleaned(
        f"See http://who.int/[a]{enclose('fig', 'x')} and {enclose('fig', 'www.who.int')}.", kind="jats"
    )
    assert document.text == "See [url][fig] x [/fig] and [fig] [url] [/fig]."


def test_texts_are_as_they_were_where_no_tokens_are_wanted():
    document, before, notes = cleaned(f"[table] {MARK}x", "On [fig]", kind="jsonl", special_tokens=False)
    assert (document.text, document.title, before, notes) == (f"[table] {MARK}x", "On [fig]", f"[table] {MARK}x", {})


FORGED = f"[{MARK}table] Doses [{MARK}/table]"


def read_one(kind, data):
    file = InputFile(io.BytesIO(data), f"a.{kind}", kind, settings=ReadSettings(special_tokens=True))
    (document,) = FORMATS[kind].read(file)
    return document, file.notes


@pytest.mark.parametrize("mark", [MARK, "&#xFDD0;", "&#64976;"])
def test_marks_in_a_jats_file(mark):
    forged = FORGED.replace(MARK, mark)
    source = f"""<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta><title-group><article-title>{forged}
      </article-title></title-group></article-meta></front><body><sec><title>{forged}</title><p>{forged}<bold>{forged}</bold>{forged}
      <ext-link xlink:href="http://{forged.replace(" ", "")}"/><math><mfenced open="{forged}"><mi>x</mi></mfenced></math>
      {html.escape(FORGED.replace(MARK, "&#xFDD0;"))} <xref rid="F">1</xref></p>
      <fig id="F"><label>{forged}</label><caption><p>{forged}</p></caption></fig></sec></body></article>"""
    document, notes = read_one("jats", source.encode())
    marked = [("fig_ref", 2), ("formula", 2), ("fig", 2)]
    assert document.text.count(MARK) == sum(count for _, count in marked) and MARK not in document.title
    kept, _, _ = cleaned(document.text, document.title, kind="jats")
    assert set(tokens(kept.text)) == {f"[{slash}{name}]" for name, _ in marked for slash in ("", "/")}
    assert kept.title == "[table ] Doses [/table ]" and kept.text.startswith(f"# {kept.title}\n\n## {kept.title}\n\n")
    assert notes == {TAKEN_OUT: 18}


def test_marks_in_a_parsed_paper():
    text = f"{FORGED} seen [1] in INLINE and Fig. 1."
    spans = {"cite_spans": [("[1]", "B0")], "ref_spans": [("Fig. 1", "F0")], "eq_spans": [("INLINE", "E0")]}
    paragraph = {"text": text, "section": FORGED, "sec_num": FORGED} | {
        name: [{"start": text.index(word), "end": text.index(word) + len(word), "ref_id": ref} for word, ref in found]
        for name, found in spans.items()
    }
    rows = f"<table><tr><td>[&#xFDD0;table]</td><td>{FORGED}</td></tr></table>"
    paper = {
        "paper_id": "1", "title": FORGED, "abstract": FORGED, "body_text": [paragraph],
        "bib_entries": {"B0": {"title": FORGED, "authors": [{"last": FORGED}]}},
        "ref_entries": {"F0": {"type": "figure", "text": FORGED}, "T0": {"type": "table", "text": f"{FORGED} b", "html": rows},
                        "E0": {"type": "equation", "latex": FORGED}},
    }  # fmt: skip
    document, notes = read_one("s2orc", json.dumps(paper).encode())  # the marks are escaped: \ufdd0
    printed = "[table ] Doses [/table ]"
    kept, _, _ = cleaned(document.text, document.title, kind="s2orc")
    assert kept.text == (
        f"# {printed}\n\n## Abstract\n\n{printed}\n\n## {printed} {printed}\n\n"
        f"{printed} seen [bib_ref] {printed}, {printed} [/bib_ref] in [formula] ${printed}$ [/formula] and "
        f"[fig_ref] Figure 1: {printed} [/fig_ref].\n\n"
        f"[fig] {printed} [/fig]\n\n[table] {printed} b [/table]\n\n| [table ] | {printed} |"
    )
    assert (kept.title, notes[TAKEN_OUT]) == (printed, 23)


def test_marks_in_an_annotated_paper():
    text = f"{FORGED}\n{FORGED} A trial Doe"
    sections = json.dumps([{"start": 0, "end": len(FORGED), "attributes": {"n": FORGED}}])  # escaped twice
    body = [{"start": len(FORGED) + 1, "end": len(text)}]
    record = {
        "corpusid": 1,
        "content": {"text": text, "annotations": {"sectionheader": sections, "paragraph": json.dumps(body)}},
    }
    document, _ = read_one("s2orc", json.dumps(record).encode())
    kept, _, _ = cleaned(document.text, kind="s2orc")
    assert MARK not in document.text and not tokens(kept.text)
    assert kept.text.startswith("## [table ] Doses [/table ] [table ] Doses [/table ]\n\n[table ] Doses")


ARTICLE = f"""<article><front><article-meta><title-group><article-title>Of [table] &#xFDD0;</article-title></title-group></article-meta>
  </front><body><p>{html.escape(LONG)} Printed: [table], [tab&#xAD;le] and [&#xFDD0;table], [/formula].</p>
  <table-wrap><label>Table 1</label><caption><p>Doses</p></caption><table><tr><td>[table] 5 mg</td></tr></table></table-wrap>
  </body></article>"""


@pytest.mark.parametrize("fast", ["on", "off"])
def test_from_raw_files_to_shards(tmp_path, tiny_tokenizer, fast):
    if fast == "on":
        pytest.importorskip("gigatoken", reason="the optional fast tokenizer is not installed")
    (tmp_path / "paper.nxml").write_text(ARTICLE)
    (tmp_path / "gout.txt").write_text(f"{LONG} As [fig] says, [{MARK}fig] and [fi\u200bg] too.\n")
    (tmp_path / "replay.jsonl").write_text(json.dumps({"text": f"{LONG * 2} [bib_ref] \ufdd0 [\ufdd0/bib_ref]"}))
    named = (("jats", "paper.nxml"), ("guidelines", "gout.txt"), ("jsonl", "replay.jsonl"))
    sources = tuple(f"{kind}={tmp_path / name}" for kind, name in named)
    shares = {"validation": 0, "guidelines_validation": 0}
    assert run(settings(tmp_path, tmp_path / "out", source=sources, special_tokens=True, **shares)) == 0
    texts = {kind: documents(tmp_path / "out", kind)[0] for kind, _ in named}
    assert texts["jats"]["title"] == "Of [table ]"
    assert (
        "Printed: [table ], [table ] and [table ], [/formula ].\n\n[table] Table 1. Doses [/table]\n\n| [table ] 5 mg |"
        in texts["jats"]["text"]
    )
    assert "As [fig ] says, [fig ] and [fig ] too." in texts["guidelines"]["text"]
    assert texts["jsonl"]["text"].endswith("[bib_ref ]  [/bib_ref ]")
    written = (tmp_path / "out" / "report.md").read_text()
    assert "Printed: [table]" in written and not NONCHARACTER.search(written)
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["sources"]
    assert [notes[kind]["notes"][TAKEN_OUT] for kind, _ in named] == [2, 1, 2]

    shards = tokenize(tmp_path / "out", tiny_tokenizer, tmp_path / "shards", fast=fast, special_tokens=SPECIAL_TOKENS)
    tokenizer, first = load_tokenizer(shards.tokenizer_path), load_tokenizer(tiny_tokenizer).vocab_size
    found = {source: [tokenizer.token(index) for _, ids in read for index in ids if index >= first]
             for (source, split), read in read_back(shards).items() if split == "train"}  # fmt: skip
    assert found == {"jats": ["[table]", "[/table]"], "guidelines": [], "jsonl": []}
