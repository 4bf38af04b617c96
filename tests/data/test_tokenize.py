"""Tokenising against a naive walk over the documents; same bytes, resume, refusal of other settings."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import tokenize as tokenizing
from data import tokenize_passes as passes
from data.documents import read_documents, write_documents
from data.lock import locked
from data.shards import Shards, token_dtype
from data.tokenize import find_documents, tokenize
from data.tokenizer import load_tokenizer


def tree(folder):
    """{relative path: sha256} of all files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_back(shards):
    """{(source, split): [(id, ids of tokens)] in the order of the shards}."""
    found = {}
    for source, splits in shards.sources.items():
        for split, files in splits.items():
            documents = found.setdefault((source, split), [])
            for index in range(len(files)):
                tokens, offsets = files[index]
                ids = shards.document_ids(source, split, index)
                assert len(ids) == len(offsets) - 1
                documents += [
                    (identity, tokens[begin:end].tolist())
                    for identity, begin, end in zip(ids, offsets[:-1], offsets[1:], strict=True)
                ]
    return found


@pytest.fixture
def several_shards(monkeypatch):
    """Shards of 200 bytes of compressed documents and chunks of 500 tokens instead of 128 MiB and 16 million."""
    monkeypatch.setattr(tokenizing, "SHARD_UNIT", 200)
    monkeypatch.setattr(passes, "CHUNK_TOKENS", 500)
    monkeypatch.setattr(passes, "BATCH_CHARACTERS", 300)


def test_every_document_is_there_once_as_bos_text_eos(corpus, tiny_tokenizer, tmp_path, several_shards):
    shards = tokenize(corpus, tiny_tokenizer, tmp_path / "shards", shard_size=1)
    tokenizer = load_tokenizer(tiny_tokenizer)
    found = read_back(shards)
    assert len(shards.sources["drugs"]["train"]) > 2
    assert set(found) == {(name, split) for name in ("drugs", "fever") for split in ("train", "validation")}
    for source, splits in find_documents(corpus).items():
        for split, files in splits.items():
            documents = [document for file in files for document in read_documents(file)]
            expected = {d["id"]: [tokenizer.bos_id, *tokenizer.encode(d["text"]), tokenizer.eos_id] for d in documents}
            assert dict(found[source, split]) == expected
            assert len(found[source, split]) == len(expected)
            order = [identity for identity, _ in found[source, split]]
            assert order != list(expected)  # shuffled
            counts = shards.manifest["sources"][source][split]
            assert counts["documents"] == len(documents)
            assert counts["tokens"] == sum(map(len, expected.values()))
            assert counts["characters"] == sum(len(d["text"]) for d in documents)
            assert counts["licenses"] == Counter(d["license"] or "unknown" for d in documents)


def test_saved_tokenizer_is_the_one_given(corpus, tiny_tokenizer, tmp_path):
    shards = tokenize(corpus, tiny_tokenizer, tmp_path / "shards")
    copy = load_tokenizer(shards.tokenizer_path)
    assert copy.sha256 == shards.tokenizer_sha256 == load_tokenizer(tiny_tokenizer).sha256
    assert shards.vocab_size == copy.vocab_size


def test_bytes_do_not_depend_on_workers_or_chunks(corpus, tiny_tokenizer, tmp_path, monkeypatch):
    one = tokenize(corpus, tiny_tokenizer, tmp_path / "one", seed=7).path
    two = tokenize(corpus, tiny_tokenizer, tmp_path / "two", seed=7, workers=2).path
    monkeypatch.setattr(passes, "CHUNK_TOKENS", 300)
    monkeypatch.setattr(passes, "BATCH_CHARACTERS", 100)
    chunked = tokenize(corpus, tiny_tokenizer, tmp_path / "chunked", seed=7).path
    assert tree(one) == tree(two) == tree(chunked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunked", "corpus", "one", "two"]  # no scratch left


def test_seed_changes_the_order_only(corpus, tiny_tokenizer, tmp_path):
    first, second = (read_back(tokenize(corpus, tiny_tokenizer, tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    for key, documents in first.items():
        assert documents != second[key]
        assert sorted(documents) == sorted(second[key])


def test_a_stopped_run_continues_with_what_is_finished(corpus, tiny_tokenizer, tmp_path, monkeypatch):
    whole = tokenize(corpus, tiny_tokenizer, tmp_path / "whole").path

    def stop(job, shared):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "write_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenize(corpus, tiny_tokenizer, tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    with monkeypatch.context() as patch:
        patch.setattr(passes, "_chunks", lambda *_: pytest.fail("a finished file was tokenised again"))
        resumed = tokenize(corpus, tiny_tokenizer, tmp_path / "resumed").path
    assert tree(resumed) == tree(whole)


def test_same_settings_again_change_nothing_and_others_are_refused(corpus, tiny_tokenizer, tmp_path):
    out = tmp_path / "shards"
    tokenize(corpus, tiny_tokenizer, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    tokenize(corpus, tiny_tokenizer, out)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match=r"shards: holds shards made from other settings \(seed differ\)"):
        tokenize(corpus, tiny_tokenizer, out, seed=1)
    write_documents(corpus / "drugs" / "train-00002.jsonl.zst", [{"id": "new", "text": "new"}])
    with pytest.raises(ValueError, match=r"\(documents differ\)"):
        tokenize(corpus, tiny_tokenizer, out)
    with pytest.raises(ValueError, match="exists and holds no token shards"):
        tokenize(corpus, tiny_tokenizer, corpus)


def test_records_without_text_are_counted_and_said(tiny_tokenizer, tmp_path, capsys):
    (tmp_path / "corpus" / "notes").mkdir(parents=True)
    records = [{"id": "a", "text": "Aspirin"}, {"id": "b", "text": ""}, {"text": "no id"}, {"id": "d", "text": None}]
    write_documents(tmp_path / "corpus" / "notes" / "train-00000.jsonl.zst", records)
    shards = tokenize(tmp_path / "corpus", tiny_tokenizer, tmp_path / "shards")
    assert shards.document_ids("notes", "train", 0) == ["a"]
    assert shards.manifest["sources"]["notes"]["train"]["skipped"] == 3
    assert "train-00000.jsonl.zst: record 2 has no id or no text" in capsys.readouterr().err


def test_empty_or_damaged_corpora_are_named(corpus, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder of documents"):
        tokenize(tmp_path / "nowhere", tiny_tokenizer, tmp_path / "shards")
    (tmp_path / "empty" / "drugs").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty: no documents"):
        tokenize(tmp_path / "empty", tiny_tokenizer, tmp_path / "shards")
    write_documents(tmp_path / "empty" / "drugs" / "train-00000.jsonl.zst", [])
    with pytest.raises(ValueError, match="the document files hold no document"):
        tokenize(tmp_path / "empty", tiny_tokenizer, tmp_path / "shards")
    file = corpus / "fever" / "train-00000.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"fever/train-00000\.jsonl\.zst"):
        tokenize(corpus, tiny_tokenizer, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("options", [{"workers": 0}, {"shard_size": 0}, {"seed": -1}, {"seed": 1 << 64}])
def test_settings_out_of_range_are_named(corpus, tiny_tokenizer, tmp_path, options):
    with pytest.raises(ValueError, match=f"--{next(iter(options)).replace('_', '-')} {next(iter(options.values()))}"):
        tokenize(corpus, tiny_tokenizer, tmp_path / "shards", **options)


def test_large_vocabularies_take_four_bytes():
    assert [token_dtype(size) for size in (65_535, 65_536, 65_537)] == [np.uint16, np.uint16, np.uint32]


def test_command_line(corpus, tiny_tokenizer, tmp_path):
    root = Path(tokenizing.__file__).resolve().parents[1]
    command = [sys.executable, "-m", "data", "tokenize", str(corpus), "--out", str(tmp_path / "shards"), "--tokenizer"]
    done = subprocess.run([*command, str(tiny_tokenizer)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "drugs train: 70 documents" in done.stdout
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["version"] == 1
    Shards(tmp_path / "shards").verify()
    failed = subprocess.run([*command, str(tmp_path / "no.model")], cwd=root, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1] == f"error: {tmp_path / 'no.model'}: no such tokenizer file or folder"
    assert "Traceback" not in failed.stderr


def test_a_corpus_that_is_not_whole_is_refused(corpus, tiny_tokenizer, tmp_path):
    (corpus / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=f"curation of {corpus} did not finish; run it again"):
        tokenize(corpus, tiny_tokenizer, tmp_path / "shards")
    (corpus / "report.json").write_text("{}")
    tokenize(corpus, tiny_tokenizer, tmp_path / "shards")


def test_two_runs_into_one_folder(corpus, tiny_tokenizer, tmp_path):
    out, work = tmp_path / "shards", tmp_path / "shards.work"
    with locked(work / "lock", out, "tokenisation"):
        (work / "result").mkdir()
        with pytest.raises(ValueError, match="in use by another tokenisation"):
            tokenize(corpus, tiny_tokenizer, out)
        assert (work / "result").is_dir()
    tokenize(corpus, tiny_tokenizer, out)
    assert not work.exists()
