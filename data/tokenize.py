"""`python -m data tokenize`: curated documents to memory-mapped token shards, shuffled.

Two passes, both over parts that depend on the input alone, so the bytes are the same for any number of workers:

1. Each document file is tokenised into chunks, sorted by a seeded hash of the document id. A finished file is kept
   under a name made of its content and the settings: a run that was stopped continues from there.
2. Each shard is a range of that hash: its documents are taken from all chunks and written in the order of the hash.
   That is the shuffle; memory is bounded by one shard, however large the corpus.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
import xxhash

from data.documents import read_documents
from data.lock import locked
from data.settings import POSITIONAL
from data.shards import SCHEMA, SPLITS, VERSION, Shards, file_sha256, read_manifest, shard_file, token_dtype
from data.tokenizer import Tokenizer, load_tokenizer

CHUNK_TOKENS = 1 << 24  # of a worker's memory: 32 MiB as uint16, and as much again while it is sorted
BATCH_CHARACTERS = 1 << 20  # given to the tokenizer at once: enough to drown the cost of a call
HASH_SPACE = 1 << 64
SHARD_UNIT = 1 << 20  # bytes of Settings.shard_size


@dataclass(kw_only=True)
class Settings:
    folder: str = field(default="corpus", metadata=POSITIONAL)
    """Folder of curated documents: NAME/train-*.jsonl.zst and NAME/validation-*.jsonl.zst."""
    tokenizer: str
    """Tokenizer: a tokenizer.model, a tokenizer.json, or a Hugging Face folder that holds one."""
    out: str = "shards"
    """Folder to write."""
    workers: int = 1
    """Processes; the bytes written do not depend on it."""
    seed: int = 0
    """Seed of the order of documents."""
    shard_size: int = 128
    """MiB of compressed documents a shard (about 100 million tokens): it bounds a worker's memory to about 1 GB, and 50
    billion tokens are still only some 500 files."""


class Unit(NamedTuple):
    """One document file, and where its tokens go."""

    file: Path
    result: Path
    tokenizer: Path
    tokenizer_sha256: str
    seed: int


class ShardJob(NamedTuple):
    """One shard to write: range `number` of `count` of the hash, out of the results of a split's units."""

    folder: Path
    number: int
    count: int
    results: tuple[Path, ...]
    vocab_size: int


class Chunk(NamedTuple):
    """Documents in the order of their hash: tokens [t], offsets int64 [n + 1], hashes uint64 [n], ids bytes [n]."""

    tokens: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    ids: np.ndarray


def run(settings: Settings) -> int:
    """Tokenise as set; prints a line per source. ValueError names what is wrong with the input or the output folder."""
    shards = tokenize(
        settings.folder, settings.tokenizer, settings.out,
        workers=settings.workers, seed=settings.seed, shard_size=settings.shard_size,
    )  # fmt: skip
    for name, splits in shards.manifest["sources"].items():
        for split, counts in splits.items():
            skipped = f", {counts['skipped']:,} records without id or text skipped" if counts["skipped"] else ""
            print(f"{name} {split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens{skipped}")
    return 0


def tokenize(
    documents: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    seed: int = 0,
    shard_size: int = 128,
) -> Shards:
    """Write token shards of a folder of documents, unless they are there already, and open them (see `Settings`)."""
    if workers < 1 or shard_size < 1:
        raise ValueError(f"--workers {workers}, --shard-size {shard_size}: both must be at least 1")
    if not 0 <= seed < HASH_SPACE:
        raise ValueError(f"--seed {seed}: must be from 0 to 2**64 - 1")
    documents, out = Path(documents), Path(out)
    files = find_documents(documents)
    loaded = load_tokenizer(tokenizer)
    made_from = {
        "documents": {file.relative_to(documents).as_posix(): file_sha256(file) for file in _all(files)},
        "tokenizer": loaded.sha256,
        "seed": seed,
        "shard_size": shard_size,
    }
    if _already_there(out, made_from):
        return Shards(out)
    work = out.with_name(out.name + ".work")
    with locked(work / "lock", out, "tokenisation"):
        if not _already_there(out, made_from):  # another run may have finished since
            result = _write(work, files, documents, loaded, made_from, workers)
            os.replace(result, out)
        shutil.rmtree(work)
    return Shards(out)


def _write(
    work: Path,
    files: dict[str, dict[str, list[Path]]],
    documents: Path,
    loaded: Tokenizer,
    made_from: dict,
    workers: int,
) -> Path:
    """Both passes; returns the finished folder, still inside `work`."""
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    loaded.save(result / "tokenizer")  # first: a tokenizer that cannot be saved must not fail after hours
    units = {file: _unit(file, made_from, documents, work, loaded) for file in _all(files)}
    shard_size = made_from["shard_size"]
    with _Workers(min(workers, len(units))) as run_all:
        for _ in tqdm.tqdm(run_all(tokenize_file, units.values()), "tokenise", len(units), unit="file"):
            pass
        sources = {
            name: {
                split: _write_split(result / name / split, split_files, units, shard_size, loaded.vocab_size, run_all)
                for split, split_files in splits.items()
            }
            for name, splits in files.items()
        }
    if not any(counts["documents"] for splits in sources.values() for counts in splits.values()):
        raise ValueError(f"{documents}: the document files hold no document")
    _write_manifest(result, made_from, loaded, sources)
    return result


def find_documents(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """`{source: {"train": [files], "validation": [files]}}`, sorted. ValueError if there is none, or not all yet."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of documents; make one with `python -m data curate`")
    if (folder / "run.json").exists() and not (folder / "report.json").exists():
        raise ValueError(f"curation of {folder} did not finish; run it again")
    found = {
        source.name: {split: sorted(source.glob(f"{split}-*.jsonl.zst")) for split in SPLITS}
        for source in sorted(folder.iterdir())
        if source.is_dir()
    }
    found = {name: splits for name, splits in found.items() if any(splits.values())}
    if not found:
        raise ValueError(f"{folder}: no documents (NAME/train-*.jsonl.zst); make some with `python -m data curate`")
    return found


def tokenize_file(unit: Unit) -> None:
    """Pass 1: one document file to chunks and counts in `unit.result`, which exists whole or not at all."""
    if unit.result.exists():
        return
    partial = unit.result.with_name(unit.result.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer = _cached_tokenizer(unit.tokenizer, unit.tokenizer_sha256)
    counts = {"documents": 0, "tokens": 0, "characters": 0, "skipped": 0}
    licenses: Counter[str] = Counter()
    chunks = _chunks(_batches(_usable(unit.file, counts, licenses)), tokenizer, unit.seed)
    for number, chunk in enumerate(chunks):
        counts["documents"] += len(chunk.ids)
        counts["tokens"] += len(chunk.tokens)
        for name, array in chunk._asdict().items():
            np.save(partial / f"{number:05d}-{name}.npy", array, allow_pickle=False)
    counts["licenses"] = dict(licenses)
    (partial / "counts.json").write_text(json.dumps(counts))
    os.replace(partial, unit.result)


def write_shard(job: ShardJob) -> dict | None:
    """Pass 2: one shard's three files. `{"number", "documents", "tokens"}`, or None for a range without documents."""
    parts = [_slice_of_chunk(result, stem, job) for result in job.results for stem in _stems(result)]
    hashes = np.concatenate([part.hashes for part in parts]) if parts else np.empty(0, np.uint64)
    if not len(hashes):
        return None
    order = np.argsort(hashes, kind="stable")  # equal ids keep the order of the files
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    bases = np.cumsum([0] + [len(part.tokens) for part in parts[:-1]])
    begins = np.concatenate([base + part.offsets[:-1] for base, part in zip(bases, parts, strict=True)])
    source = np.concatenate([part.tokens for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    tokens = np.empty(offsets[-1], token_dtype(job.vocab_size))
    for target, document in enumerate(order):
        tokens[offsets[target] : offsets[target + 1]] = source[begins[document] : begins[document] + lengths[document]]
    ids = np.concatenate([part.ids for part in parts])[order]
    job.folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("tokens", tokens), ("documents", offsets), ("ids", ids)):
        np.save(job.folder / shard_file(kind, job.number), array, allow_pickle=False)
    return {"number": job.number, "documents": len(ids), "tokens": len(tokens)}


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


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _chunks(batches: Iterable[list[tuple[str, str]]], tokenizer: Tokenizer, seed: int) -> Iterator[Chunk]:
    dtype = token_dtype(tokenizer.vocab_size)
    ids: list[bytes] = []
    documents: list[np.ndarray] = []
    size = 0
    for batch in batches:
        encoded = tokenizer.encode_batch([text for _, text in batch])
        ids += [identity.encode() for identity, _ in batch]
        documents += [np.array([tokenizer.bos_id, *tokens, tokenizer.eos_id], dtype) for tokens in encoded]
        size += sum(map(len, documents[-len(batch) :]))
        if size >= CHUNK_TOKENS:
            yield _sorted_chunk(ids, documents, seed)
            ids, documents, size = [], [], 0
    if documents:
        yield _sorted_chunk(ids, documents, seed)


def _sorted_chunk(ids: list[bytes], documents: list[np.ndarray], seed: int) -> Chunk:
    hashes = np.array([xxhash.xxh3_64_intdigest(identity, seed) for identity in ids], np.uint64)
    order = np.argsort(hashes, kind="stable")
    documents = [documents[index] for index in order]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return Chunk(np.concatenate(documents), offsets, hashes[order], np.array(ids, np.bytes_)[order])


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


def _write_split(
    folder: Path, files: list[Path], units: dict[Path, Unit], shard_size: int, vocab_size: int, run_all: Callable
) -> dict:
    """All shards of one split; returns its entry in the manifest."""
    results = tuple(units[file].result for file in files)
    count = max(1, math.ceil(sum(file.stat().st_size for file in files) / (shard_size * SHARD_UNIT)))
    jobs = [ShardJob(folder, number, count, results, vocab_size) for number in range(count)]
    totals = {"documents": 0, "tokens": 0, "characters": 0, "skipped": 0}
    licenses: Counter[str] = Counter()
    for result in results:
        counts = json.loads((result / "counts.json").read_text())
        licenses.update(counts.pop("licenses"))
        totals = {name: value + counts[name] for name, value in totals.items()}
    shards = [shard for shard in run_all(write_shard, jobs) if shard]
    return {**totals, "licenses": dict(sorted(licenses.items())), "shards": shards}


def _write_manifest(folder: Path, made_from: dict, tokenizer: Tokenizer, sources: dict) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "schema": SCHEMA,
        "version": VERSION,
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "made_from": made_from,
        "sources": sources,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _already_there(out: Path, made_from: dict) -> bool:
    """Whether the output folder holds just these shards. ValueError if it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "manifest.json").is_file():
        raise ValueError(f"{out}: exists and holds no token shards; choose another --out or move it away")
    earlier = read_manifest(out)["made_from"]
    different = sorted(name for name in made_from if earlier.get(name) != made_from[name])
    if different:
        raise ValueError(
            f"{out}: holds shards made from other settings ({', '.join(different)} differ); choose another --out or "
            "delete it"
        )
    return True


def _unit(file: Path, made_from: dict, documents: Path, work: Path, tokenizer: Tokenizer) -> Unit:
    content = made_from["documents"][file.relative_to(documents).as_posix()]
    key = json.dumps([VERSION, content, str(file.relative_to(documents)), made_from["tokenizer"], made_from["seed"]])
    result = work / "units" / hashlib.sha256(key.encode()).hexdigest()
    return Unit(file, result, tokenizer.path, tokenizer.sha256, made_from["seed"])


@functools.cache
def _cached_tokenizer(path: Path, sha256: str) -> Tokenizer:
    """One tokenizer a worker; the sha256 is part of the key so that another file of the same name is loaded anew."""
    tokenizer = load_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise ValueError(f"{path}: changed while it was in use")
    return tokenizer


def _all(files: dict[str, dict[str, list[Path]]]) -> Iterator[Path]:
    for splits in files.values():
        for split_files in splits.values():
            yield from split_files


class _Workers:
    """`with _Workers(n) as run_all`: `run_all(function, items)` gives results in order, from this process or others."""

    def __init__(self, count: int):
        # spawn: forking a process whose tokenizer has started threads can deadlock
        self.pool = ProcessPoolExecutor(count, mp_context=get_context("spawn")) if count > 1 else None

    def __enter__(self) -> Callable:
        return self.pool.map if self.pool else map

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
