"""Files and records that are broken, hostile or absurd: a clear line or a counted drop, nothing lost, never a full memory."""

import bz2
import functools
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from data import curate
from data.curate import Settings
from data.documents import read_documents
from data.files import DamagedFile, open_input, open_range, walk
from data.readers import FORMATS
from data.readers.interface import InputFile
from data.readers.records import RECORD_LIMIT
from tests.data.raw_sources import citation, medline

SENTENCE = "Colchicine 500 µg is given twice daily until the pain of the attack has gone (p < 0.05). Case {}."


def read(kind, data, name):
    return list(FORMATS[kind].read(InputFile(io.BytesIO(data), name, kind)))


def run(tmp_path, *sources):
    """Exit code, report of each source, and its texts, of a curation without rules."""
    out = tmp_path / "out"
    code = curate.run(Settings(source=sources, out=str(out), profile="none", languages="all", near_duplicates=0.0))
    report = json.loads((out / "report.json").read_text())["sources"]
    texts = [document["text"] for path in sorted(out.glob("*/*.zst")) for document in read_documents(path)]
    return code, report, texts


def lines(count, start=0):
    return "".join(
        json.dumps({"id": f"n{n}", "text": SENTENCE.format(n)}) + "\n" for n in range(start, start + count)
    ).encode()


# Archives and compression


def test_broken_compression_loses_that_file_only(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(lines(3))
    for suffix, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstandard.compress)):
        whole = compress(lines(2000, start=10))
        for name, data in (("cut", whole[: len(whole) * 2 // 3]), ("empty", b""), ("page", b"<html>404</html>")):
            (folder / f"{name}.jsonl.{suffix}").write_bytes(data)
    code, report, texts = run(tmp_path, f"jsonl={folder}")
    assert code == 2
    assert sorted(texts) == [SENTENCE.format(n) for n in range(3)]
    assert "cut.jsonl.bz2: the compressed file is cut short" in capsys.readouterr().err
    reasons = {"cut": "cut short", "empty": "is empty; a download was broken off", "page": "broken compression"}
    damaged = report["jsonl"]["damaged"]
    assert len(damaged) == 9
    for name, reason in damaged.items():
        assert reasons[name.partition(".")[0]] in reason, name


def test_a_cut_archive_is_named(tmp_path):
    path = tmp_path / "pmc.tar.gz"
    article = "<article><front><article-meta><title-group><article-title>T</article-title></title-group></article-meta></front><body><p>{}</p></body></article>"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(50):
            data = article.format(SENTENCE.replace("<", "&lt;").format(number) + os.urandom(2000).hex()).encode()
            member = tarfile.TarInfo(f"PMC{number}.xml")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:-30_000])
    (tmp_path / "note.txt").write_text(SENTENCE)
    code, report, texts = run(tmp_path, f"jats={path}", f"text={tmp_path / 'note.txt'}")
    assert code == 2
    assert texts == [SENTENCE]
    assert "pmc.tar.gz" in next(iter(report["jats"]["damaged"]))


def test_zstd_of_one_byte_repeated_comes_in_pieces(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as stream:
        for _ in range(100):
            stream.write(bytes(1 << 20))
    with open_input(path, "a") as stream:
        pieces = stream.raw.stream
        longest = total = 0
        while count := stream.readinto(bytearray(1 << 18)):
            total += count
            longest = max(longest, len(pieces.pending))
    assert total == 100 << 20
    assert longest <= 40 << 20


# Records


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "\\ud800"}',
        '{"text": "a\0b"}',
        '{"text": ' + "[" * 100_000,
        '{"text": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        '{"text": "a"',
        "null",
        "NaN",
        "\x00" * 50,
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "s2orc", "guidelines"])
def test_one_bad_line_is_one_drop(kind, line):
    good = json.dumps({"paper_id": "1", "title": "T", "abstract": "A", "text": "A"})
    drop, document = read(kind, f"{line}\n{good}\n".encode(), "a.jsonl")
    assert drop.rule == "bad-record"
    assert drop.detail.startswith("a.jsonl@0: ")
    assert "A" in document.text


def test_a_malformed_citation_costs_only_itself_and_revises_nothing(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = [citation(pmid, SENTENCE.format(pmid)) for pmid in range(1, 5)]
    (folder / "pubmed24n0001.xml").write_bytes(medline(*good))
    revision = citation(2, SENTENCE.format("two")).replace("</AbstractText>", "")
    (folder / "pubmed24n0002.xml").write_bytes(medline(citation(1, SENTENCE.format("one")), revision))
    code, report, texts = run(tmp_path, f"medline={folder}")
    assert (code, report["medline"]["damaged"]) == (0, {})
    assert report["medline"]["dropped"] == {"bad-record": 1, "same-pmid": 1}
    # what cannot be read takes back nothing: the version before it stays
    assert sorted(text[-4:-1] for text in texts) == ["e 2", "e 3", "e 4", "one"]


def test_nul_escapes_and_stray_nuls_leave_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": SENTENCE.replace("twice", "tw\0ice")}))
    (tmp_path / "b.txt").write_text(SENTENCE * 2 + "\0")
    code, _, texts = run(tmp_path, f"jsonl={tmp_path / 'a.jsonl'}", f"text={tmp_path / 'b.txt'}")
    assert (code, texts) == (0, [SENTENCE, SENTENCE * 2])


def test_documents_with_one_id_are_all_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": "same", "text": SENTENCE.format(n)}) + "\n" for n in range(3)))
    code, report, texts = run(tmp_path, f"jsonl={path}")
    assert code == 0
    assert len(texts) + sum(report["jsonl"]["dropped"].values()) == 3
    assert set(texts) == {SENTENCE.format(n) for n in range(3)}


CHILD = """
import io, resource, sys
from pathlib import Path
from data.files import open_input, open_range
from data.readers import FORMATS
from data.readers.interface import InputFile

kind, path, ranges = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
size = path.stat().st_size
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, size, size // ranges + 1):
    end = min(start + size // ranges + 1, size)
    stream, first = (open_input(path, path.name), 0) if ranges == 1 else open_range(path, path.name, start, end)
    with stream:
        for item in FORMATS[kind].read(InputFile(stream, path.name, "s", first)):
            print(getattr(item, "rule", "document"))
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
LINE = 200 << 20


@pytest.mark.parametrize(
    ("kind", "name", "ranges"),
    [
        ("jsonl", "a.jsonl", 1),
        ("jsonl", "a.jsonl", 4),
        ("jsonl", "a.jsonl.zst", 1),
        ("s2orc", "a.jsonl.gz", 1),
        ("guidelines", "a.jsonl", 1),
    ],
)
def test_a_line_of_200_mb_takes_bounded_memory(tmp_path, kind, name, ranges):
    path = tmp_path / name
    openers = {".gz": functools.partial(gzip.GzipFile, compresslevel=1), ".zst": zstandard.open}
    good = json.dumps({"paper_id": "1", "title": "T", "abstract": "A", "text": "A"}).encode() + b"\n"
    with openers.get(path.suffix, open)(path, "wb") as stream:
        stream.write(good + b'{"paper_id": "2", "text": "')
        for _ in range(LINE >> 20):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n' + good)
    command = [sys.executable, "-c", CHILD, kind, str(path), str(ranges)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    *items, memory = done.stdout.splitlines()
    assert items == ["document", "line-too-long", "document"]
    assert int(memory.split()[1]) < 4 * RECORD_LIMIT >> 20


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "a.jsonl"), ("s2orc", "a.jsonl"), ("wikipedia", "a.xml")])
def test_memory_does_not_grow_with_the_file(tmp_path, kind, name):
    path = tmp_path / name
    line = json.dumps({"paper_id": "1", "title": "T", "abstract": "x" * 5000, "text": "x" * 5000})
    page = f"<page><title>T</title><ns>0</ns><id>1</id><revision><text>{'x' * 10000}</text></revision></page>"
    with path.open("w") as stream:
        stream.write("<mediawiki>" * (kind == "wikipedia"))
        for _ in range(2000):
            stream.write(page if kind == "wikipedia" else line + "\n")
        stream.write("</mediawiki>" * (kind == "wikipedia"))
    command = [sys.executable, "-c", CHILD, kind, str(path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    *items, memory = done.stdout.splitlines()
    assert items == ["document"] * 2000
    assert int(memory.split()[1]) < 10  # of 20 MB


def test_a_json_file_that_is_one_long_value_is_refused(monkeypatch):
    monkeypatch.setattr("data.readers.records.RECORD_LIMIT", 1000)
    for content in (b"[" + b"1," * 600 + b"1]", b"[\n" + b"1,\n" * 600 + b"1]"):
        with pytest.raises(DamagedFile, match=r"write a record a line \(\.jsonl\)"):
            read("jsonl", content, "a.json")


# Files


def test_empty_files_are_counted(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.json", "d.html", "e.md"):
        (tmp_path / name).touch()
    (tmp_path / "note.txt").write_text(SENTENCE)
    sources = (
        "text:a=a.txt",
        "jsonl:b=b.jsonl",
        "guidelines:c=c.json",
        "guidelines:d=d.html",
        "guidelines:e=e.md",
        "text=note.txt",
    )
    code, report, texts = run(tmp_path, *(source.replace("=", f"={tmp_path}/") for source in sources))
    assert (code, texts) == (0, [SENTENCE])
    dropped = {name: counts["dropped"] for name, counts in report.items()}
    assert dropped == {"a": {"empty": 1}, "b": {}, "c": {}, "d": {"empty": 1}, "e": {"empty": 1}, "text": {}}


def test_a_folder_named_like_a_file_is_a_folder(tmp_path):
    folder = tmp_path / "in" / "a.jsonl"
    folder.mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(lines(1))
    assert run(tmp_path, f"jsonl={tmp_path / 'in'}")[2] == [SENTENCE.format(0)]
    with pytest.raises(DamagedFile, match="a: no regular file"):
        open_input(folder, "a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFile, match="a: no regular file"):
        open_input(tmp_path / "pipe", "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_and_folders_without_permission_are_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(1))
    (folder / "b.jsonl").write_bytes(lines(1, start=5))
    (folder / "b.jsonl").chmod(0)
    code, report, texts = run(tmp_path, f"jsonl={folder}")
    assert (code, texts) == (2, [SENTENCE.format(0)])
    assert report["jsonl"]["damaged"] == {"b.jsonl": "Permission denied"}
    folder.chmod(0)
    try:
        with pytest.raises(ValueError, match="the folder cannot be read"):
            list(walk(folder))
    finally:
        folder.chmod(0o700)


def test_an_unreadable_file_or_folder_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x")

    def refuse(*arguments, **more):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"the folder cannot be read \(Permission denied\); allow it or leave it out"):
        list(walk(tmp_path))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DamagedFile, match=r"a\.jsonl: Permission denied"):
        open_input(path, "a.jsonl")


def test_names_that_are_not_utf8_and_links(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text(SENTENCE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.txt").write_text(SENTENCE.format(2))
    (elsewhere / "again").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    assert [name for name, _ in walk(folder)] == ["caf\\xe9.txt", "linked/b.txt"]
    code, _, texts = run(tmp_path, f"text={folder}")
    assert (code, sorted(texts)) == (0, sorted([SENTENCE, SENTENCE.format(2)]))


def test_ranges_of_lines_longer_than_a_range(tmp_path):
    path = tmp_path / "a"
    data = b"a" * 1000 + b"\n" + b"b" * 5 + b"\n\n" + b"c" * 700
    path.write_bytes(data)
    parts = []
    for start in range(0, len(data), 64):
        with open_range(path, "a", start, min(start + 64, len(data)))[0] as stream:
            parts.append(stream.read())
    assert b"".join(parts) == data
    assert sum(bool(part) for part in parts) == 2
