"""A tokenisation that is killed goes on where it was: real processes, killed with all that they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import tokenize as tokenizing
from data.documents import write_documents
from data.tokenize import tokenize
from tests.data.conftest import SENTENCES
from tests.data.test_tokenize import tree

ROOT = Path(tokenizing.__file__).resolve().parents[1]
FILES = 24
MPIEXEC = Path(sys.executable).with_name("mpiexec")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Files that take long enough for a kill between two of them."""
    folder = tmp_path_factory.mktemp("large") / "corpus"
    (folder / "notes").mkdir(parents=True)
    words = SENTENCES[0].split() + SENTENCES[2].split()
    for number in range(FILES):
        records = [
            {
                "id": f"{number}:{item}",
                "text": " ".join(words[(number + item + k * k) % len(words)] for k in range(1000)),
            }
            for item in range(60)
        ]
        write_documents(folder / "notes" / f"train-{number:05d}.jsonl.zst", records)
    return folder


@pytest.fixture(scope="module")
def whole(large, tiny_tokenizer):
    return tree(tokenize(large, tiny_tokenizer, large.parent / "whole", fast="off", shard_size=1).path)


def start(corpus, tokenizer, out, *more):
    command = [sys.executable, "-m", "data", "tokenize", str(corpus), "--tokenizer", str(tokenizer), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--fast", "off", "--shard-size", "1", *more],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finished_files(out):
    units = out.with_name(out.name + ".work") / "units"
    return {path.name: (path / "counts.json").stat().st_mtime_ns for path in units.glob("*") if "." not in path.name}


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_and_the_same_command_again(large, whole, tiny_tokenizer, tmp_path, workers):
    out = tmp_path / "shards"
    done = {}
    for wanted in (2, 7):  # killed twice
        process = start(large, tiny_tokenizer, out, "--workers", str(workers))
        while len(finished_files(out)) < max(wanted, len(done) + 1) and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = finished_files(out)
        assert done.items() <= found.items()  # what was finished was not made again
        assert len(found) < FILES and not out.exists()
        done = found
    process = start(large, tiny_tokenizer, out, "--workers", str(workers))
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "% by an earlier run" in said
    assert tree(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_one_two_and_four_workers(large, whole, tiny_tokenizer, tmp_path):
    for workers in (2, 4):
        found = tokenize(large, tiny_tokenizer, tmp_path / str(workers), workers=workers, shard_size=1)
        assert tree(found.path) == whole


@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this python (pip install mpi4py mpich)")
def test_ranks_of_mpiexec(large, whole, tiny_tokenizer, tmp_path):
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "data", "tokenize", large, "--tokenizer", tiny_tokenizer]
    words = [str(word) for word in [*command, "--out", tmp_path / "shards", "--shard-size", "1"]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("notes train: 1,440 documents") == 1  # one voice
    assert tree(tmp_path / "shards") == whole
