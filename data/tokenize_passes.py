"""The two passes of tokenisation: a document file to sorted chunks of tokens, and chunks to one shard.

Both depend on the input alone, so the bytes are the same for any number of workers:

1. Each document file is tokenised into chunks, sorted by a seeded hash of the document id. A finished file is kept
   under a name made of its content and the settings: a run that was stopped continues from there.
2. Each shard is a range of that hash: its documents are taken from all chunks and written in the order of the hash.
   That is the shuffle; memory is bounded by one shard, however large the corpus.
"""

import functools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data.documents import read_documents
from data.fast_tokenizer import FastModel, FastTokenizer
from data.shards import shard_file, token_dtype
from data.tokenizer import Encoded, Tokenizer, load_tokenizer, reordered

CHUNK_TOKENS = 1 << 24  # of a worker's memory: 32 MiB as uint16, and as much again while it is sorted
BATCH_CHARACTERS = 1 << 20  # given to the tokenizer at once: enough to drown the cost of a call
HASH_SPACE = 1 << 64


class Encoding(NamedTuple):
    """How texts become tokens: the same in every worker process."""

    tokenizer: Path
    sha256: str
    """Of the tokenizer, against another file under the same name."""
    seed: int
    fast: FastModel | None
    """None: the tokenizer itself."""
    check_below: int
    """Documents whose hash is below are tokenised both ways and compared."""
    unequal: Path
    """Written, with the document's id, when the two ways differ; the files not yet begun are then left out."""


class Unit(NamedTuple):
    """One document file, and where its tokens go."""

    file: Path
    result: Path


class ShardJob(NamedTuple):
    """One shard to write: range `number` of `count` of the hash, out of the results of a split's units."""

    folder: Path
    number: int
    count: int
    results: tuple[Path, ...]


class Chunk(NamedTuple):
    """Documents in the order of their hash: tokens [t], offsets int64 [n + 1], hashes uint64 [n], ids bytes [n]."""

    tokens: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    ids: np.ndarray


class UnequalIds(Exception):
    """The fast tokenizer gives a document other ids; the argument is the document's id."""


def tokenize_file(unit: Unit, encoding: Encoding) -> int:
    """Pass 1: one document file to chunks and counts in `unit.result`, which exists whole or not at all.

    Returns the number of documents; 0, and no result, once the fast tokenizer has given other ids anywhere.
    """
    if unit.result.exists():
        return json.loads((unit.result / "counts.json").read_text())["documents"]
    if encoding.fast and encoding.unequal.exists():
        return 0
    partial = unit.result.with_name(unit.result.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts = {"documents": 0, "tokens": 0, "characters": 0, "skipped": 0, "checked": 0}
    licenses: Counter[str] = Counter()
    try:
        for number, chunk in enumerate(_chunks(_batches(_usable(unit.file, counts, licenses)), encoding, counts)):
            counts["documents"] += len(chunk.ids)
            counts["tokens"] += len(chunk.tokens)
            for name, array in chunk._asdict().items():
                np.save(partial / f"{number:05d}-{name}.npy", array, allow_pickle=False)
    except UnequalIds as error:
        encoding.unequal.write_text(f"{unit.file}: document {error}", encoding="utf-8")
        return 0
    counts["licenses"] = dict(licenses)
    (partial / "counts.json").write_text(json.dumps(counts))
    os.replace(partial, unit.result)
    return counts["documents"]


def write_shard(job: ShardJob, _: None) -> dict | None:
    """Pass 2: one shard's three files. `{"number", "documents", "tokens"}`, or None for a range without documents."""
    parts = [_slice_of_chunk(result, stem, job) for result in job.results for stem in _stems(result)]
    if not sum(len(part.ids) for part in parts):
        return None
    whole = _concatenated(parts)
    order = np.argsort(whole.hashes, kind="stable")  # equal ids keep the order of the files
    tokens, offsets = reordered(Encoded(whole.tokens, whole.offsets), order)
    job.folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("tokens", tokens), ("documents", offsets), ("ids", whole.ids[order])):
        np.save(job.folder / shard_file(kind, job.number), array, allow_pickle=False)
    return {"number": job.number, "documents": len(order), "tokens": len(tokens)}


def _usable(file: Path, counts: dict, licenses: Counter) -> Iterator[tuple[str, str]]:
    """(id, text) of a file's records; those without an id or a text are counted, and said once a file."""
    for number, record in enumerate(read_documents(file), start=1):
        identity, text = record.get("id"), record.get("text")
        if not (isinstance(identity, str) and identity and isinstance(text, str) and text):
            if not counts["skipped"]:
                print(f"warning: {file}: record {number} has no id or no text; such are skipped", file=sys.stderr)
            counts["skipped"] += 1
            continue
        counts["characters"] += len(text)
        licenses[record.get("license") or "unknown"] += 1
        yield identity, text


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """(ids, texts) of `BATCH_CHARACTERS` each."""
    ids, texts, characters = [], [], 0
    for identity, text in documents:
        ids.append(identity)
        texts.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield ids, texts
            ids, texts, characters = [], [], 0
    if ids:
        yield ids, texts


def _chunks(batches: Iterable[tuple[list[str], list[str]]], encoding: Encoding, counts: dict) -> Iterator[Chunk]:
    tokenizer = _tokenizer(encoding.tokenizer, encoding.sha256)
    fast = _fast_tokenizer(encoding.fast, tokenizer) if encoding.fast else None
    dtype = token_dtype(tokenizer.vocab_size)
    parts: list[Chunk] = []
    size = 0
    for number, (ids, texts) in enumerate(batches):
        encoded_ids = [identity.encode() for identity in ids]
        hashes = np.array([xxhash.xxh3_64_intdigest(identity, encoding.seed) for identity in encoded_ids], np.uint64)
        encoded = (fast or tokenizer).encode_arrays(texts)
        if fast:
            checked = [index for index, value in enumerate(hashes.tolist()) if value < encoding.check_below]
            checked = checked or [0] * (number == 0)  # of a short file the first document at least
            _check(encoded, checked, ids, texts, tokenizer)
            counts["checked"] += len(checked)
        tokens, offsets = _with_boundaries(encoded, tokenizer.bos_id, tokenizer.eos_id, dtype)
        parts.append(Chunk(tokens, offsets, hashes, np.array(encoded_ids, np.bytes_)))
        size += len(tokens)
        if size >= CHUNK_TOKENS:
            yield _sorted_chunk(parts)
            parts, size = [], 0
    if parts:
        yield _sorted_chunk(parts)


def _check(encoded: Encoded, chosen: list[int], ids: Sequence[str], texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """UnequalIds if the tokenizer gives one of the chosen texts other ids than it was encoded with."""
    if not chosen:
        return
    found = reordered(encoded, np.array(chosen))
    expected = tokenizer.encode_arrays([texts[index] for index in chosen])
    for number, index in enumerate(chosen):
        mine, theirs = (side.tokens[slice(*side.offsets[number : number + 2])] for side in (found, expected))
        if not np.array_equal(mine, theirs):
            raise UnequalIds(ids[index])


def _with_boundaries(encoded: Encoded, bos: int, eos: int, dtype: np.dtype) -> Encoded:
    """Each text as BOS ... EOS, in the dtype of the shards."""
    offsets = encoded.offsets + 2 * np.arange(len(encoded.offsets))
    first, last = offsets[:-1], offsets[1:] - 1
    tokens = np.empty(offsets[-1], dtype)
    inside = np.ones(len(tokens), bool)
    inside[first] = inside[last] = False
    tokens[inside] = encoded.tokens
    tokens[first], tokens[last] = bos, eos
    return Encoded(tokens, offsets)


def _concatenated(parts: Sequence[Chunk]) -> Chunk:
    bases = np.cumsum([0] + [len(part.tokens) for part in parts])
    offsets = [part.offsets[:-1] + base for part, base in zip(parts, bases[:-1], strict=True)]
    tokens, hashes, ids = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "hashes", "ids")
    )
    return Chunk(tokens, np.concatenate([*offsets, bases[-1:]]), hashes, ids)


def _sorted_chunk(parts: Sequence[Chunk]) -> Chunk:
    whole = _concatenated(parts)
    order = np.argsort(whole.hashes, kind="stable")
    return Chunk(*reordered(Encoded(whole.tokens, whole.offsets), order), whole.hashes[order], whole.ids[order])


def _stems(result: Path) -> list[str]:
    return sorted(path.name.removesuffix("-hashes.npy") for path in result.glob("*-hashes.npy"))


def _slice_of_chunk(result: Path, stem: str, job: ShardJob) -> Chunk:
    """A copy of the documents of one chunk whose hash lies in the shard's range."""
    chunk = Chunk(*(np.load(result / f"{stem}-{name}.npy", "r", allow_pickle=False) for name in Chunk._fields))
    bounds = [-(-HASH_SPACE * number // job.count) for number in (job.number, job.number + 1)]
    first, last = (
        len(chunk.hashes) if bound >= HASH_SPACE else int(np.searchsorted(chunk.hashes, np.uint64(bound)))
        for bound in bounds
    )
    offsets = chunk.offsets[first : last + 1] - chunk.offsets[first]
    tokens = chunk.tokens[chunk.offsets[first] : chunk.offsets[last]]
    return Chunk(np.array(tokens), offsets, np.array(chunk.hashes[first:last]), np.array(chunk.ids[first:last]))


@functools.lru_cache(1)
def _tokenizer(path: Path, sha256: str) -> Tokenizer:
    """One tokenizer a worker; the sha256 is part of the key so that another file of the same name is loaded anew."""
    tokenizer = load_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise ValueError(f"{path}: changed while it was in use")
    return tokenizer


_fast_tokenizer = functools.lru_cache(1)(FastTokenizer)
