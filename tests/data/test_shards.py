"""Opening and verifying token shards, and Megatron pairs: what is damaged is refused and named."""

import json
import re
import struct

import numpy as np
import pytest

from data.megatron import HEADER, MAGIC, find_megatron, open_megatron
from data.shards import Shards
from data.tokenize import tokenize
from tests.data.megatron_files import write_megatron


@pytest.fixture
def shards(corpus, tiny_tokenizer, tmp_path):
    return tokenize(corpus, tiny_tokenizer, tmp_path / "shards")


def change_manifest(shards, change):
    path = shards.path / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_array(shards, name, array):
    """Put another array in a shard's place, with a manifest that agrees about its size."""
    np.save(shards.path / name, array)
    size = (shards.path / name).stat().st_size
    change_manifest(shards, lambda manifest: manifest["files"][name].update(bytes=size))


def test_whole_shards_open_and_verify(shards):
    opened = Shards(shards.path)
    opened.verify()
    train = opened.sources["drugs"]["train"]
    assert (train.documents, len(train)) == (70, 1)
    assert isinstance(train[0].tokens, np.memmap)
    assert train[0].tokens.dtype == np.uint16
    assert train.tokens == len(train[0].tokens)
    assert opened.sources["fever"]["validation"].documents == 5
    assert len(opened.document_ids("fever", "validation", 0)) == 5


def test_every_file_but_the_manifest_is_in_the_manifest(shards):
    files = {path.relative_to(shards.path).as_posix() for path in shards.path.rglob("*") if path.is_file()}
    assert set(shards.manifest["files"]) == files - {"manifest.json"}


@pytest.mark.parametrize("kind", ["tokens", "documents", "ids"])
def test_one_changed_byte_is_found(shards, kind):
    path = shards.path / "drugs" / "train" / f"{kind}-00000.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: wrong sha256"):
        Shards(shards.path).verify()


def test_missing_or_cut_files_are_found_at_once(shards):
    path = shards.path / "fever" / "train" / "tokens-00000.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: {len(content) - 2} bytes, the manifest says"):
        Shards(shards.path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: named by the manifest but missing"):
        Shards(shards.path)


def test_manifests_that_are_not_ours_are_refused(shards, tmp_path):
    with pytest.raises(ValueError, match=r"nothing: no manifest\.json"):
        Shards(tmp_path / "nothing")
    change_manifest(shards, lambda manifest: manifest.update(version=99))
    with pytest.raises(ValueError, match=r"manifest\.json: schema \('materia-token-shards', 99\)"):
        Shards(shards.path)
    change_manifest(shards, lambda manifest: manifest.update(version=1, files=None))
    with pytest.raises(ValueError, match=r"manifest\.json: no files in it"):
        Shards(shards.path)
    (shards.path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"manifest\.json: schema None"):
        Shards(shards.path)
    (shards.path / "manifest.json").write_text('{"schema"')
    with pytest.raises(ValueError, match=r"manifest\.json: not valid JSON"):
        Shards(shards.path)


def test_arrays_that_are_not_the_manifest_s_are_refused(shards):
    tokens, offsets = (np.array(array) for array in shards.sources["fever"]["train"][0])
    names = [f"fever/train/{kind}-00000.npy" for kind in ("tokens", "documents")]
    cases = [
        (names[0], tokens.astype(np.float32), "dtype float32"),
        (names[0], tokens.astype(np.uint32), "dtype uint32"),
        (names[0], tokens[:-1], "shape"),
        (names[1], offsets[:-1], "shape"),
        (names[1], offsets + 1, "do not span"),
    ]
    for name, array, reason in cases:
        replace_array(shards, name, array)
        with pytest.raises(ValueError, match=reason):
            Shards(shards.path)
        replace_array(shards, name, tokens if name == names[0] else offsets)
        Shards(shards.path)


def test_pickled_and_garbled_arrays_are_refused(shards):
    name = "fever/train/tokens-00000.npy"
    replace_array(shards, name, np.array([{"an": "object"}], dtype=object))
    with pytest.raises(ValueError, match=r"tokens-00000\.npy: not a readable npy file"):
        Shards(shards.path)
    (shards.path / name).write_bytes(b"garbage")
    change_manifest(shards, lambda manifest: manifest["files"][name].update(bytes=7))
    with pytest.raises(ValueError, match=r"tokens-00000\.npy: not a readable npy file"):
        Shards(shards.path)


def test_megatron_pair(tmp_path):
    prefix = tmp_path / "text.v1_document"
    documents = [[1, 2, 3], [], [4], [5, 60_000]]
    write_megatron(prefix, documents)
    for name in ("", ".bin", ".idx"):
        assert find_megatron(tmp_path / f"text.v1_document{name}") == prefix
    assert find_megatron(tmp_path / "other") is None
    with pytest.raises(ValueError, match=r"name the Megatron pairs in it one by one: .*/text\.v1_document$"):
        find_megatron(tmp_path)
    split = open_megatron(prefix)
    assert split[0].tokens.tolist() == [1, 2, 3, 4, 5, 60_000]
    assert split[0].documents.tolist() == [0, 3, 4, 6]  # the empty document is none
    assert (split.tokens, split.documents) == (6, 3)


def test_half_a_megatron_pair_is_named(tmp_path):
    (tmp_path / "text.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.bin: text\.idx is not beside it"):
        find_megatron(tmp_path / "text.bin")


def test_megatron_fixture_has_its_documents(assets):
    prefix = assets / "general" / "megatron_fixture" / "meg-gpt2-openwebtext_text_document"
    split = open_megatron(prefix)
    assert (split.tokens, split.documents) == (1_361_845, 1_000)
    tokens, offsets = split[0]
    assert tokens.dtype == np.uint16
    ends = tokens[offsets[1:] - 1]
    assert len(set(ends.tolist())) == 1  # each document ends in the end-of-text id


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"NOTINDEX" + data[8:], "not a Megatron index"),
        (lambda data: data[:-40], "cut off"),
        (lambda data: data[:9] + struct.pack("<Q", 2) + data[17:], "version 2"),
        (lambda data: data[:17] + b"\x06" + data[18:], "dtype code 6"),
        (lambda data: data[: HEADER.size] + struct.pack("<i", 1) + data[HEADER.size + 4 :], "one after another"),
        (lambda data: data[:-8] + struct.pack("<q", 9), "does not exist"),
    ],
)
def test_damaged_megatron_indexes_are_refused(tmp_path, damage, reason):
    prefix = tmp_path / "text"
    write_megatron(prefix, [[1, 2, 3], [4], [5, 6]])
    index = tmp_path / "text.idx"
    assert index.read_bytes().startswith(MAGIC)
    index.write_bytes(damage(index.read_bytes()))
    with pytest.raises(ValueError, match=rf"text\.idx: .*{reason}"):
        open_megatron(prefix)


def test_megatron_data_of_another_size_is_refused(tmp_path):
    prefix = tmp_path / "text"
    write_megatron(prefix, [[1, 2, 3]])
    (tmp_path / "text.bin").write_bytes(b"\x00" * 5)
    with pytest.raises(ValueError, match=r"text\.bin: missing, or not the 6 bytes"):
        open_megatron(prefix)
    (tmp_path / "text.bin").unlink()
    with pytest.raises(ValueError, match=r"text\.bin: missing"):
        open_megatron(prefix)
