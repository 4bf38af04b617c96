"""Everything from MEDLINE XML to token shards: beside SentencePiece alone, on two workers, beside datatrove, and in how
much memory.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_scale.py -s

The input is 48,000 records (for two workers and memory 120,000) made of the 4,000 real ones (bench/medline_copies.py),
in files of 4,000, each a work unit; all public benchmarks are kept out. Ours is always the two commands `python -m data
curate` and `python -m data tokenize` with all their processes, start of the interpreter included.
"""

import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.curation import NOT_INSTALLED, real_file
from bench.medline_copies import write_copies
from data.documents import read_documents
from data.shards import Shards
from data.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
FILES, RECORDS = 12, 4000
MORE_FILES = 30
"""Where two workers and memory are measured. With fewer, what is done once counts: libraries, questions, the picture,
four seconds."""
ROUNDS = int(os.environ.get("MATERIA_ROUNDS", "3"))
"""How often each side runs, in turns; the best counts."""
BENCHMARKS = {
    "pubmedqa": ("pubmedqa",),
    "medqa4": ("medqa",),
    "medmcqa": ("medmcqa", "dev.json"),
    "mmlu-medical": ("mmlu",),
    "truthfulqa-medical": ("truthfulqa",),
}
"""Kept out of the corpus, below the folder of evaluation files."""
MEMORY = 64
"""MiB of --memory where memory is measured."""

SENTENCEPIECE = """
import json, sys, time
import sentencepiece
texts = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
model = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
start = time.process_time()
tokens = sum(len(model.encode(text)) + 2 for text in texts)
print(json.dumps(dict(cpu_seconds=time.process_time() - start, tokens=tokens)))
"""

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter


def run(name, *steps, tasks=1):
    LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=f"{name}.log").run()


if __name__ == "__main__":
    texts, tokenizer = sys.argv[1:3]
    # With its own 0.8 a third of the abstracts would go and never be tokenised.
    quality = GopherQualityFilter(max_non_alpha_words_ratio=0.5)
    run("filter", JsonlReader(texts), GopherRepetitionFilter(), quality, JsonlWriter("filtered"))
    run("sign", JsonlReader("filtered"), MinhashDedupSignature("signatures"))
    run("buckets", MinhashDedupBuckets("signatures", "buckets"), tasks=14)
    run("cluster", MinhashDedupCluster("buckets", "remove"))
    run("dedup", JsonlReader("filtered"), MinhashDedupFilter("remove"), JsonlWriter("kept"))
    tokens = DocumentTokenizer("tokens", tokenizer, eos_token="</s>", local_working_dir="tokens.work")
    run("tokens", JsonlReader("kept"), tokens)
"""


def cpu_seconds(*commands: list[object], folder: Path = REPOSITORY) -> float:
    """User and system seconds of commands with all their processes. RuntimeError with the output of one that fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[:6]} failed:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def curate(source: Path, out: Path, *more: object) -> list[object]:
    """The command's words."""
    questions = [f"{name}={real_file('eval', *path)}" for name, path in BENCHMARKS.items()]
    command = [sys.executable, "-m", "data", "curate", "--source", f"medline={source}", "--benchmark", *questions]
    return [*command, "--out", out / "corpus", *more]


def tokenize(model: Path, out: Path, *more: object) -> list[object]:
    """The command's words."""
    return [
        sys.executable,
        "-m",
        "data",
        "tokenize",
        out / "corpus",
        "--tokenizer",
        model,
        "--out",
        out / "shards",
        *more,
    ]


def best(*sides: Callable[[], float]) -> list[float]:
    """The best of ROUNDS of each side, in turns."""
    rounds = [[side() for side in sides] for _ in range(ROUNDS)]
    return [min(of_side) for of_side in zip(*rounds, strict=True)]


def verdict(name: str, ratio: float, bar: float) -> str:
    """A line for people."""
    return f"{name}: {ratio:.2f}x; bar {bar:g}x {'reached' if ratio >= bar else 'NOT reached'}"


class Folders:
    """A fresh folder for every run."""

    def __init__(self, base: Path):
        self.base = base
        self.last = base

    def new(self) -> Path:
        """The next one."""
        self.last = Path(tempfile.mkdtemp(dir=self.base))
        return self.last


@pytest.fixture
def folders(tmp_path) -> Folders:
    """Where runs write."""
    return Folders(tmp_path)


@pytest.fixture(scope="module")
def all_files(tmp_path_factory) -> list[Path]:
    """MORE_FILES MEDLINE files of RECORDS records."""
    source = real_file("medline", "pubmed21n1298.first4000.xml.gz")
    return write_copies(source, tmp_path_factory.mktemp("medline"), MORE_FILES, RECORDS)


def folder_of(files: list[Path], folder: Path) -> Path:
    """A folder of links to some files."""
    folder.mkdir()
    for path in files:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def medline(all_files, tmp_path) -> Path:
    """A folder of FILES MEDLINE files."""
    return folder_of(all_files[:FILES], tmp_path / "medline")


@pytest.fixture(scope="module")
def model() -> Path:
    """Llama-2's SentencePiece model."""
    return real_file("model", "llama2_tokenizer.model")


def texts_of(corpus: Path) -> list[str]:
    """What a curated folder holds."""
    return [document["text"] for path in sorted(corpus.glob("*/*.zst")) for document in read_documents(path)]


def write_texts(path: Path, texts: list[str], *, records: bool) -> None:
    """A JSON string a line, or an object with id and text as datatrove reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ({"id": str(number), "text": text} for number, text in enumerate(texts)) if records else texts
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(("fast", "bar"), [("on", 0.6), ("off", 0.35)])
def test_all_beside_sentencepiece_alone(medline, model, folders, report, fast, bar):
    def ours() -> float:
        out = folders.new()
        return cpu_seconds(curate(medline, out), tokenize(model, out, "--fast", fast))

    first = ours()
    texts = texts_of(folders.last / "corpus")
    tokens = sum(split["tokens"] for split in Shards(folders.last / "shards").manifest["sources"]["medline"].values())
    write_texts(folders.base / "texts.jsonl", texts, records=False)
    alone: list[dict] = []

    def sentencepiece() -> float:
        command = [sys.executable, "-c", SENTENCEPIECE, model, folders.base / "texts.jsonl"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        alone.append(json.loads(done.stdout))
        return alone[-1]["cpu_seconds"]

    chain, peer = best(ours, sentencepiece)
    chain = min(chain, first)
    name = "gigatoken" if fast == "on" else "SentencePiece"
    print(f"\n{FILES * RECORDS:,} records, {len(texts):,} documents, {tokens:,} tokens kept; CPU seconds: chain with "
          f"{name} {chain:.2f}, SentencePiece alone {peer:.2f}")  # fmt: skip
    print(f"{len(texts) / chain:,.0f} documents/s of CPU time")
    print(verdict(f"MEDLINE XML to shards with {name}, beside SentencePiece alone", peer / chain, bar))
    report(
        {
            "chain_seconds": chain,
            "sentencepiece_seconds": peer,
            "ratio": peer / chain,
            "bar": bar,
            "documents": len(texts),
        }
    )
    assert len(texts) > 0.75 * FILES * RECORDS
    assert {run["tokens"] for run in alone} == {tokens}


def test_two_workers_beside_one(all_files, model, folders, report):
    medline = folder_of(all_files, folders.base / "all")
    cpu: dict[int, float] = {}

    def wall(workers: int) -> Callable[[], float]:
        def side() -> float:
            out = folders.new()
            start = time.monotonic()
            cpu[workers] = cpu_seconds(
                curate(medline, out, "--workers", workers), tokenize(model, out, "--workers", workers)
            )
            return time.monotonic() - start

        return side

    load = os.getloadavg()[0]
    one, two = best(wall(1), wall(2))
    print(f"\nwall seconds on {os.cpu_count()} cores, load before {load:.1f}: one worker {one:.1f}, two {two:.1f}; CPU "
          f"seconds {cpu[1]:.1f} and {cpu[2]:.1f}")  # fmt: skip
    print(verdict("two workers beside one (only of a quiet machine does it say anything)", one / two, 1.8))
    report({"one_seconds": one, "two_seconds": two, "ratio": one / two, "bar": 1.8, "load": load, "cpu_seconds": cpu})


def test_all_beside_datatrove(all_files, model, folders, report):
    """The same steps on the records of two files: filters, near-duplicates, tokens. datatrove starts from the texts,
    ours from XML."""
    some = folder_of(all_files[:2], folders.base / "some")

    def ours() -> float:
        out = folders.new()
        return cpu_seconds(curate(some, out, "--no-samples"), tokenize(model, out))

    first = ours()
    texts = texts_of(folders.last / "corpus")
    write_texts(folders.base / "texts" / "texts.jsonl", texts, records=True)
    load_tokenizer(model).save(folders.base / "tokenizer")
    python = os.environ.get("MATERIA_PEERS", sys.executable)
    probe = [python, "-I", "-c", "import datatrove, nltk, spacy, tokenizers"]
    missing = subprocess.run(probe, capture_output=True, text=True, check=False).stderr.strip().splitlines()
    if missing and missing[-1].startswith(NOT_INSTALLED):
        print(f"\nMEDLINE XML to shards: ours {first:.2f} s of CPU; datatrove not measured ({missing[-1]})")
        report({"ours_seconds": first, "reason": missing[-1]})
        return
    (folders.base / "pipeline.py").write_text(DATATROVE)

    def datatrove() -> float:
        command = [
            python,
            "-I",
            folders.base / "pipeline.py",
            folders.base / "texts",
            folders.base / "tokenizer/tokenizer.json",
        ]
        return cpu_seconds(command, folder=folders.new())

    ours_seconds, peer = best(ours, datatrove)
    ours_seconds = min(ours_seconds, first)
    kept = 0
    for path in folders.last.glob("kept/*.jsonl.gz"):
        with gzip.open(path) as stream:
            kept += sum(1 for _ in stream)
    print(f"\n{len(texts):,} documents; CPU seconds: ours from XML {ours_seconds:.2f}, datatrove from texts {peer:.2f} "
          f"({kept:,} documents tokenised)")  # fmt: skip
    print(verdict("MEDLINE XML to shards, beside datatrove's pipeline", peer / ours_seconds, 5.0))
    report(
        {
            "ours_seconds": ours_seconds,
            "peer_seconds": peer,
            "ratio": peer / ours_seconds,
            "bar": 5.0,
            "tokenised": kept,
        }
    )
    assert kept > 0.9 * len(texts)


def peak_megabytes(command: list[object]) -> dict[str, float]:
    """The largest resident size of a command's first process and of any one of its workers, as the kernel keeps it,
    looked at 50 times a second.

    Not `ru_maxrss`: of a new process it begins with the size of the one that started it, which is pytest with torch.
    """
    words = [str(word) for word in command]
    started = psutil.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks = {"first": 0.0, "worker": 0.0}
    while started.poll() is None:
        with suppress(psutil.Error):  # it has just ended
            for process in [started, *started.children(recursive=True)]:
                role = "first" if process.pid == started.pid else "worker"
                peaks[role] = max(peaks[role], resident_peak(process.pid))
        time.sleep(0.02)
    assert started.returncode == 0, command
    return peaks


def resident_peak(pid: int) -> float:
    """MB that a process has held at most; 0 of one that has ended."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def test_memory_does_not_grow_with_the_input(all_files, model, folders, report):
    """Ten times the files on two workers, with the bounds that a user sets (--memory, --shard-size) low. A German text
    makes a worker load the language model, some 90 MB, which else the one doubtful text among thousands would do."""
    few = MORE_FILES // 10
    german = folders.base / "german.txt"
    german.write_text("Die Patienten wurden mit Colchicin behandelt, bis die Schmerzen nachließen. " * 5)
    other = ["--source", f"text:german={german}"]
    figures: dict[str, dict[str, float]] = {}
    for name, files in (("few", all_files[:few]), ("many", all_files)):
        source, out = folder_of(files, folders.base / name), folders.new()
        figures[f"curate_{name}"] = peak_megabytes(curate(source, out, *other, "--workers", 2, "--memory", MEMORY))
        figures[f"tokenize_{name}"] = peak_megabytes(tokenize(model, out, "--workers", 2, "--shard-size", 1))
    for command in ("curate", "tokenize"):
        for role in ("worker", "first"):
            small, large = figures[f"{command}_few"][role], figures[f"{command}_many"][role]
            flat = "reached" if large <= 1.1 * small else "NOT reached"
            print(f"\n{command}, {role} process: peak {small:.0f} MB on {few} files, {large:.0f} MB on {MORE_FILES}: "
                  f"{large / small:.2f}x; bar 1.1x {flat}")  # fmt: skip
    report(figures)
