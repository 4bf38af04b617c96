"""The report of a curation, recounted from the documents that were written; the same bytes however it was made."""

import ast
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import matplotlib
import pytest
import zstandard

from data import account, curate, report, units
from data.account import Account
from data.contamination import Contamination
from data.curate import Settings
from data.documents import read_documents
from data.filters import RULES as FILTER_RULES
from data.identities import RULES as DUPLICATE_RULES
from data.language import ENGLISH_WORDS, detect
from data.licences import license_class
from data.report_rules import DUPLICATES, READING
from data.report_text import inline
from data.tokenizer import load_tokenizer
from data.words import fold, split_words

REPOSITORY = Path(__file__).resolve().parents[2]
QUESTION = "Which of these drugs is given first to adults with acute gout?"
FILES = ("report.json", "report.md", "report.png", "provenance.json", "contamination.jsonl")
NOUNS = [
    "aspirin", "heparin", "insulin", "kidney", "liver", "fever", "cough", "dose", "trial", "patient", "artery", "placebo",
    "infection", "cohort", "survival", "tumour", "glucose", "pressure", "therapy", "relapse", "biopsy", "serum", "vaccine",
]  # fmt: skip
LINKS = [
    "of the",
    "with a",
    "and",
    "in this",
    "was given for",
    "has been seen after",
    "is not",
    "from",
    "between",
    "by",
]


def prose(number, sentences=6):
    """English-like sentences that no two numbers share."""
    chance = random.Random(number)
    text = []
    for _ in range(sentences):
        nouns = chance.sample(NOUNS, 5)
        links = chance.sample(LINKS, 4)
        words = [word for pair in zip(nouns, links, strict=False) for word in pair]
        text.append(f"The {' '.join(words)} {nouns[-1]} ({chance.randint(1, 9999)} mg).")
    return " ".join(text)


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_raw(folder):
    """Two jsonl sources with every kind of drop, a damaged article, and two benchmarks."""
    licenses = ("CC-BY-4.0", "CC-BY-NC-4.0", "MIT", None)
    notes = [{"id": f"n{n}", "text": prose(n, 3 + n % 9), "date": f"{1990 + n % 30}-05" if n % 5 else None,
              "license": licenses[n % 4], "language": ("en", "fr", None)[n % 3]} for n in range(40)]  # fmt: skip
    notes += [
        {"id": "copy", "text": prose(3, 6).upper()},
        {"id": "exam", "text": f"{prose(100)} {QUESTION} {prose(101)}"},
        {"id": "article", "pmid": "77", "doi": "10.1/abc", "text": prose(102)},
        {"id": "short", "text": "stub"},
        {"id": "mark", "text": f"{prose(103)} Write to ann@example.com.\n\n© 2012 Elsevier Ltd. All rights reserved."},
        {"id": "fence", "text": f"{prose(104)}\n````\ncode ``` in it\n````\n"},
        {"id": 7},
    ]
    write_lines(folder / "notes" / "a|b`c.jsonl", notes)
    (folder / "notes" / "pages.docx").write_text("passed over")
    papers = [{"id": f"p{n}", "text": prose(n + 200)} for n in range(5)]
    papers += [{"id": "same-doi", "doi": "10.1/ABC", "text": prose(300)}, {"id": "again", "text": prose(5, 8)}]
    write_lines(folder / "papers.jsonl", papers)
    (folder / "jats").mkdir()
    (folder / "jats" / "broken.nxml").write_text("<article><p>cut")
    choices = {"options": {"A": "x", "B": "y"}, "answer": "A"}
    write_lines(
        folder / "own.jsonl", [{"question": QUESTION, **choices}, {"question": "Vitamin D deficiency?", **choices}]
    )
    (folder / "pubmedqa").mkdir()
    record = {
        "QUESTION": "Does the cold weather raise the number of strokes?",
        "CONTEXTS": ["x"],
        "final_decision": "yes",
    }
    (folder / "pubmedqa" / "ori_pqal.json").write_text(json.dumps({"77": record}))
    (folder / "pubmedqa" / "test_ground_truth.json").write_text(json.dumps({"77": "yes"}))


def settings(raw, out, **changes):
    sources = (f"jsonl:notes={raw}/notes", f"jsonl:papers={raw}/papers.jsonl", f"jats={raw}/jats")
    benchmarks = (f"mcq={raw}/own.jsonl", f"pubmedqa={raw}/pubmedqa")
    return Settings(**{"source": sources, "benchmark": benchmarks, "out": str(out), "redact": "email", **changes})


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder)
    return folder


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("curated") / "out"
    assert curate.run(settings(raw, folder, tokenizer=str(tiny_tokenizer))) == 2  # of the broken article
    return folder


def language_of(text):
    words = split_words(fold(text))
    return detect(text, sum(word in ENGLISH_WORDS for word in words) / len(words))


def documents(out, name, split="*"):
    return [document for path in sorted((out / name).glob(f"{split}-*.jsonl.zst")) for document in read_documents(path)]


def load(out, name="report.json"):
    return json.loads((out / name).read_text())


def test_every_number_is_that_of_the_documents(out, tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer)
    values = load(out)
    for name, source in values["sources"].items():
        found = documents(out, name)
        assert source["records"] == sum(source["dropped"].values()) + len(found)
        for split in ("train", "validation"):
            texts = [document["text"] for document in documents(out, name, split)]
            assert source["documents"][split] == len(texts)
            assert source["characters"][split] == sum(map(len, texts))
            assert source["words"][split] == sum(len(split_words(fold(text))) for text in texts)
        octaves = Counter(2 ** (len(document["text"]).bit_length() - 1) for document in found)
        assert source["lengths"] == {f"{low}-{2 * low - 1}": octaves[low] for low in sorted(octaves)}
        assert source["years"] == Counter((document["date"] or "unknown")[:7].partition("-")[0] for document in found)
        texts = [document["text"] for document in found]
        assert source["languages"] == Counter(language_of(text) or "unknown" for text in texts)
        assert source["licenses"] == Counter(document["license"] or "unknown" for document in found)
        assert source["license_classes"] == Counter(license_class(document["license"]) for document in found)
        if found:  # all of so few documents are tried, those that are duplicates too
            tokens = sum(len(tokenizer.encode(document["text"])) + 2 for document in found)
            assert source["tokens"]["train"] + source["tokens"]["validation"] == pytest.approx(tokens, rel=0.01)
    assert values["documents"] == sum(len(documents(out, name)) for name in values["sources"])
    assert values["records"] == values["documents"] + values["dropped"]


def test_drops_are_counted_by_rule(out):
    values = load(out)
    notes = values["sources"]["notes"]
    assert notes["dropped"] == {
        "bad-record": 1, "benchmark-pmid": 1, "benchmark-question": 1, "same-text": 1, "too-short": 1,
    }  # fmt: skip
    assert values["sources"]["papers"]["dropped"] == {"benchmark-identity": 1, "same-text": 1}
    assert values["sources"]["papers"]["kept_instead"] == {"notes": 1}
    assert notes["dropped_characters"]["too-short"] == 4
    assert notes["dropped_characters"]["same-text"] == len(prose(3, 6))
    assert notes["cleaned_away"] == (
        notes["characters_read"] - sum(notes["dropped_characters"].values()) - sum(notes["characters"].values())
    )
    assert notes["cleaned_away"] > len("© 2012 Elsevier Ltd. All rights reserved.")
    rules = {rule["rule"]: rule for rule in values["rules"]}
    total = Counter()
    for source in values["sources"].values():
        total.update(source["dropped"])
    assert {name: rule["dropped"] for name, rule in rules.items() if rule["dropped"]} == total
    assert rules["near-duplicate"]["threshold"] == 0.7
    assert rules["too-short"]["threshold"] == next(rule.threshold for rule in FILTER_RULES if rule.name == "too-short")
    assert values["duplicates"]["dropped"] == {"same-text": 2}
    with zstandard.open(out / "duplicates.jsonl.zst", "rt") as lines:
        clusters = [json.loads(line) for line in lines]
    assert values["duplicates"]["clusters"] == len(clusters) == 2
    assert sum(len(cluster["dropped"]) for cluster in clusters) == 2


def test_contamination_is_listed_document_by_document(out):
    rows = [json.loads(line) for line in (out / "contamination.jsonl").read_text().splitlines()]
    pubmedqa = {"benchmark": "pubmedqa", "question": "pubmedqa:77", "share": 1.0}
    assert rows == [
        {
            "source": "notes",
            "id": "exam",
            "rule": "benchmark-question",
            "benchmark": "mcq",
            "question": "mcq:0",
            "share": 1.0,
        },
        {"source": "notes", "id": "article", "rule": "benchmark-pmid", **pubmedqa},
        {"source": "papers", "id": "same-doi", "rule": "benchmark-identity", **pubmedqa},
    ]
    benchmarks = load(out)["benchmarks"]
    assert benchmarks["mcq"]["not_checked"] == ["mcq:1"]
    assert (benchmarks["mcq"]["questions"], benchmarks["mcq"]["checked"], benchmarks["mcq"]["documents_dropped"]) == (
        2,
        1,
        1,
    )
    assert benchmarks["pubmedqa"]["dropped"] == {"benchmark-pmid": 1, "benchmark-identity": 1}
    assert benchmarks["mcq"]["left"]["in_common_8"] == 0


def test_overlap_that_is_left_is_said(raw, tmp_path):
    long = "A man of 40 years has had pain in his left foot for two days and cannot walk. What is given first?"
    words = long.split()
    write_lines(tmp_path / "mcq.jsonl", [{"question": long, "options": {"A": "x", "B": "y"}, "answer": "A"}])
    write_lines(tmp_path / "a.jsonl", [{"text": f"{prose(1)} {' '.join(words[:9])} {prose(2)}"}])
    out = tmp_path / "out"
    curate.run(Settings(source=(f"jsonl={tmp_path}/a.jsonl",), benchmark=(f"mcq={tmp_path}/mcq.jsonl",), out=str(out)))
    left = load(out)["benchmarks"]["mcq"]["left"]
    assert (left["in_common_8"], left["in_common_13"], left["ids_13"], left["highest_id"]) == (1, 0, [], "mcq:0")
    assert left["highest_share"] >= 9 / len(words) - 0.001
    assert (
        "1 (100.0 %) still have 8 words in a row in common with the corpus and 0 have 13; at most"
        in (out / "report.md").read_text()
    )
    assert (out / "contamination.jsonl").read_bytes() == b""


def test_provenance_names_all_bytes_and_no_place(out, raw, tiny_tokenizer):
    values = load(out, "provenance.json")
    written = {path.relative_to(out).as_posix(): path for path in out.rglob("*")
               if path.is_file() and path.parent.name != "work" and "work" not in path.relative_to(out).parts}  # fmt: skip
    assert set(values["files"]) == set(written) - {"provenance.json", "run.json", "run.log"}
    for name, entry in values["files"].items():
        content = written[name].read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name
    notes = raw / "notes" / "a|b`c.jsonl"
    assert values["sources"][0] == {"name": "notes", "kind": "jsonl", "files": [
        {"name": notes.name, "bytes": notes.stat().st_size, "sha256": hashlib.sha256(notes.read_bytes()).hexdigest()}
    ]}  # fmt: skip
    assert [benchmark["name"] for benchmark in values["benchmarks"]] == ["mcq", "pubmedqa"]
    assert values["benchmarks"][0]["files"][0]["sha256"] == hashlib.sha256((raw / "own.jsonl").read_bytes()).hexdigest()
    assert values["tokenizer"] == load_tokenizer(tiny_tokenizer).sha256
    assert not {"out", "workers", "memory", "source"} & set(values["settings"])
    assert (values["settings"]["seed"], values["settings"]["redact"]) == (0, "email")
    assert {"python", "code", "numpy", "lxml", "matplotlib"} <= set(values["versions"])
    for name in FILES:
        content = (out / name).read_bytes()
        assert str(raw).encode() not in content, name
        assert str(out).encode() not in content, name


def test_a_byte_range_is_named_with_its_range(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "RANGE_BYTES", 4096)
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"id": n, "text": prose(n)} for n in range(40)])
    curate.run(Settings(source=(f"jsonl={path}",), out=str(tmp_path / "out")))
    files = load(tmp_path / "out", "provenance.json")["sources"][0]["files"]
    assert [file["range"][0] for file in files] == list(range(0, path.stat().st_size, 4096))
    assert sum(file["bytes"] for file in files) == path.stat().st_size
    assert len({file["sha256"] for file in files}) == len(files) > 2


def test_the_same_bytes_wherever_and_by_however_many(raw, tmp_path, monkeypatch):
    shutil.copytree(raw, tmp_path / "elsewhere" / "input")
    for workers, source in ((1, raw), (2, tmp_path / "elsewhere" / "input")):
        assert curate.run(settings(source, tmp_path / f"out{workers}", workers=workers)) == 2
        monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)  # as a user's matplotlibrc may
    for name in FILES:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name
    assert b"Software" not in (tmp_path / "out1" / "report.png").read_bytes()


def test_samples_are_kept_documents_and_safe_in_markdown(out):
    text = (out / "report.md").read_text()
    section = text[text.index("## Samples") : text.index("## Provenance")]
    shown = set(re.findall(r"\n`(\S+)`, as read", section))
    kept = {name: {document["id"] for document in documents(out, name)} for name in ("notes", "papers")}
    assert len(shown & kept["notes"]) == 5
    assert 3 <= len(shown & kept["papers"]) <= 5
    assert shown <= kept["notes"] | kept["papers"]  # same-doi and again were among the candidates
    assert "No document was kept." in section  # of the damaged article's source


def test_samples_show_what_cleaning_does(tmp_path):
    records = [{"id": "mark", "text": f"{prose(103)}\n\n© 2012 Elsevier Ltd. All rights reserved."},
               {"id": "fence", "text": f"{prose(104)}\n````\n</details> ``` in it\n````"}]  # fmt: skip
    write_lines(tmp_path / "a.jsonl", records)
    curate.run(Settings(source=(f"jsonl={tmp_path}/a.jsonl",), out=str(tmp_path / "out")))
    text = (tmp_path / "out" / "report.md").read_text()
    as_read, as_kept = text.split("`mark`, as read:")[1].split("as kept:")
    assert "Elsevier" in as_read
    assert "Elsevier" not in as_kept.partition("\n```\n")[0]
    assert f"`````text\n{records[1]['text']}\n`````\n" in text


def test_no_samples_leaves_no_text(raw, tmp_path):
    out = tmp_path / "out"
    curate.run(settings(raw, out, samples=False))
    for name in FILES:
        for document in documents(out, "notes"):
            assert document["text"][:40].encode() not in (out / name).read_bytes()
    assert "## Samples" not in (out / "report.md").read_text()


def test_markdown_says_what_a_person_needs(out):
    text = (out / "report.md").read_text()
    for rule in FILTER_RULES:
        if rule.name != "license":
            assert f"| {rule.name} |" in text
            assert inline(rule.reason) in text
    assert "| near-duplicate | 0.7 Jaccard similarity, at least |" in text
    assert "Redacted: email 1. This is no de-identification" in text
    assert "Redacted: email 0." in text
    assert "copyright statements taken out: 1" in text
    assert "- .docx: 1" in text
    assert "- `broken.nxml`: not well-formed" in text
    assert "| total |  | 54 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_tokens_are_estimated_only_with_a_tokenizer(out, raw, tmp_path):
    assert "tokens out (estimated)" in (out / "report.md").read_text()
    curate.run(Settings(source=(f"jsonl={raw}/papers.jsonl",), out=str(tmp_path / "out")))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "with `--tokenizer FILE` they are estimated" in text
    assert "(estimated)" not in text
    assert load(tmp_path / "out")["sources"]["jsonl"]["tokens"] is None
    assert not (tmp_path / "out" / "contamination.jsonl").exists()
    assert "nothing was kept out of the corpus" in text


def test_report_json_comes_last(raw, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(report, "draw", fail)
    with pytest.raises(OSError, match="no space"):
        curate.run(settings(raw, tmp_path / "out"))
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_record_that_got_lost_is_noticed(raw, tmp_path, monkeypatch):
    original = Account._add_summary

    def lose(self, name, summary):
        summary.records += 1
        original(self, name, summary)

    monkeypatch.setattr(Account, "_add_summary", lose)
    with pytest.raises(AssertionError, match="records got lost"):
        curate.run(settings(raw, tmp_path / "out"))


def test_an_identity_of_several_articles_names_no_question(raw, tmp_path, monkeypatch):
    """Two abstracts of the verdict's unit were dropped: which of them had the DOI is not known."""
    made = []

    def build(*arguments):
        made.append(arguments)
        return Contamination(*arguments)

    monkeypatch.setattr(account, "Contamination", build)
    curate.run(settings(raw, tmp_path / "out"))
    names, summaries, parts, drops, shared = made[0]
    summaries[0].contaminated.append(["other", "benchmark-pmid", "pubmedqa", "pubmedqa:78", 1.0])
    row = Contamination(names, summaries, parts, drops, shared).rows[-1]
    assert (row["id"], row["benchmark"], row["question"]) == ("same-doi", "pubmedqa", None)


def test_every_rule_is_explained():
    """Of readers the first argument of each `Drop(...)`; of the duplicate search its table."""
    used = set()
    for path in (REPOSITORY / "data" / "readers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Drop":
                used |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert used
    assert used <= set(READING)
    assert list(DUPLICATES) == list(DUPLICATE_RULES)
