"""Curation of several MEDLINE sources, of values no reader foresaw, and after a run that was cut."""

import dataclasses
import json

import pytest

from data import curate
from data.curate import Settings
from data.documents import read_documents

LONG = "Colchicine 500 µg is given twice daily until the pain has gone (p < 0.05)."


def citation(pmid, text):
    return (
        f"<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article><Abstract><AbstractText>{LONG.replace('<', '&lt;')} {text}"
        "</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
    )


def write(path, *citations):
    path.write_text(f"<PubmedArticleSet>{''.join(citations)}</PubmedArticleSet>", encoding="utf-8")
    return path


def pmids(out, name):
    return [document["pmid"] for path in sorted((out / name).glob("*.zst")) for document in read_documents(path)]


def report(out):
    return json.loads((out / "report.json").read_text())["sources"]


def test_medline_updates_revise_and_delete_across_sources(tmp_path):
    base = write(tmp_path / "base.xml", *(citation(n, f"Old {n}.") for n in (1, 2, 3)))
    deletion = "<DeleteCitation><PMID>2</PMID></DeleteCitation>"
    update = write(tmp_path / "update.xml", citation(1, "New."), deletion)
    out = tmp_path / "out"
    sources = (f"medline:base={base}", f"medline:updates={update}")
    assert curate.run(Settings(source=sources, out=str(out), near_duplicates=0)) == 0
    assert (pmids(out, "base"), pmids(out, "updates")) == (["3"], ["1"])
    assert report(out)["base"]["dropped"] == {"deleted-by-publisher": 1, "same-pmid": 1}


def test_an_unforeseen_value_damages_one_file_only(tmp_path, monkeypatch):
    def read(file):
        yield from ()
        raise ValueError("a value nobody foresaw")

    monkeypatch.setitem(curate.FORMATS, "text", dataclasses.replace(curate.FORMATS["text"], read=read))
    base, note = write(tmp_path / "base.xml", citation(1, "")), tmp_path / "a.txt"
    note.write_text(LONG)
    out = tmp_path / "out"
    assert curate.run(Settings(source=(f"medline={base}", f"text={note}"), out=str(out))) == 2
    assert "nobody foresaw" in report(out)["text"]["damaged"]["a.txt"]
    assert pmids(out, "medline") == ["1"]


def test_a_cut_run_record_is_named_with_the_remedy(tmp_path):
    base, out = write(tmp_path / "base.xml", citation(1, "")), tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text('{"seed":')
    with pytest.raises(ValueError, match=r"out/run\.json: not readable .* delete --out .* and curate again"):
        curate.run(Settings(source=(f"medline={base}",), out=str(out)))
