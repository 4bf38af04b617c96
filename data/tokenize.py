"""`python -m data tokenize`: curated documents to memory-mapped token shards, shuffled (see `data.tokenize_passes`)."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.fast_tokenizer import FastModel, fast_model, gigatoken_version
from data.lock import locked
from data.progress import Progress
from data.settings import POSITIONAL
from data.shards import SCHEMA, SPLITS, VERSION, Shards, file_sha256, read_manifest
from data.special_tokens import SPECIAL_TOKENS
from data.tokenize_passes import HASH_SPACE, Encoding, ShardJob, Unit, tokenize_file, write_shard
from data.tokenizer import Tokenizer, load_tokenizer
from data.workers import Workers, check_workers

SHARD_UNIT = 1 << 20  # bytes of Settings.shard_size
CHECKED_BYTES = 1 << 19
"""Compressed bytes of documents that are tokenised both ways: some 700 abstracts, 200,000 words; in a large corpus one
document of `CHECKED_AT_LEAST`."""
CHECKED_AT_LEAST = 1000
WRITTEN_WHILE_STARTING = 1 << 27
"""Bytes of tokens that one process writes in the half second in which another starts."""

Fast = Literal["auto", "on", "off"]


@dataclass(kw_only=True)
class Settings:
    folder: str = field(default="corpus", metadata=POSITIONAL)
    """Folder of curated documents: NAME/train-*.jsonl.zst and NAME/validation-*.jsonl.zst."""
    tokenizer: str
    """Tokenizer: a tokenizer.model, a tokenizer.json, or a Hugging Face folder that holds one."""
    out: str = "shards"
    """Folder to write."""
    special_tokens: tuple[str, ...] | None = None
    """Tokens to add after the vocabulary: those named, or without a name the twelve that `curate --special-tokens`
    writes into papers ([bib_ref], [/bib_ref], ...). Text that spells one becomes it, so leave this out for documents
    that were curated without them. BOS and EOS never come from text."""
    fast: Fast = "auto"
    """gigatoken instead of SentencePiece, which takes a tenth of the time for the same ids. auto: where it is installed
    and gives a sample of these documents the same ids as SentencePiece, which is said; on: stop where it does not; off:
    never."""
    workers: int = 1
    """Processes; the bytes written do not depend on it. With mpiexec every rank is one instead."""
    seed: int = 0
    """Seed of the order of documents."""
    shard_size: int = 128
    """MiB of compressed documents a shard (about 100 million tokens): it bounds a worker's memory to about 1 GB, and 50
    billion tokens are still only some 500 files."""


def run(settings: Settings) -> int:
    """Tokenise as set; prints a line per source. ValueError names what is wrong with the input or the output folder."""
    named = settings.special_tokens
    special_tokens = () if named is None else named or SPECIAL_TOKENS
    if warning := _unlike_curation(Path(settings.folder), special_tokens):
        print(f"warning: {warning}", file=sys.stderr)
    shards = tokenize(
        settings.folder, settings.tokenizer, settings.out, special_tokens=special_tokens, fast=settings.fast,
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
    special_tokens: Sequence[str] = (),
    fast: Fast = "auto",
    workers: int = 1,
    seed: int = 0,
    shard_size: int = 128,
) -> Shards:
    """Write token shards of a folder of documents, unless they are there already, and open them (see `Settings`).

    What was used to tokenise is printed and nowhere written down: the bytes are the same.
    """
    check_workers(workers)
    if shard_size < 1:
        raise ValueError(f"--shard-size {shard_size}: at least 1")
    if not 0 <= seed < HASH_SPACE:
        raise ValueError(f"--seed {seed}: must be from 0 to 2**64 - 1")
    documents, out = Path(documents), Path(out)
    files = find_documents(documents)
    loaded = load_tokenizer(tokenizer).with_tokens(special_tokens)
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
            result = _write(work, files, documents, loaded, made_from, workers, fast)
            os.replace(result, out)
        shutil.rmtree(work)
    return Shards(out)


def _unlike_curation(folder: Path, special_tokens: Sequence[str]) -> str | None:
    """What to say where documents were curated with special tokens and are tokenised without, or the other way."""
    record = folder / "run.json"  # absent where the documents are not ours
    curated = json.loads(record.read_text(encoding="utf-8")).get("special_tokens") if record.is_file() else None
    if curated is True and not special_tokens:
        return f"{folder} was curated with --special-tokens; without it here {SPECIAL_TOKENS[0]} and the like are text"
    if curated is False and set(special_tokens) & set(SPECIAL_TOKENS):
        return f"{folder} was curated without --special-tokens: text that happens to spell one becomes it"
    return None


def _write(
    work: Path,
    files: dict[str, dict[str, list[Path]]],
    documents: Path,
    loaded: Tokenizer,
    made_from: dict,
    workers: int,
    fast: Fast,
) -> Path:
    """Both passes; returns the finished folder, still inside `work`."""
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    loaded.save(result / "tokenizer")  # first: a tokenizer that cannot be saved must not fail after hours
    units = _tokenize_files(work, documents, loaded, made_from, workers, fast)
    jobs = {
        (name, split): _shard_jobs(result / name / split, split_files, units, made_from["shard_size"], loaded)
        for name, splits in files.items()
        for split, split_files in splits.items()
    }
    shards = _write_shards([job for split_jobs in jobs.values() for job in split_jobs], workers)
    sources = {
        name: {
            split: _totals([units[file].result for file in split_files])
            | {"shards": [shards[job] for job in jobs[name, split] if shards[job]]}
            for split, split_files in splits.items()
        }
        for name, splits in files.items()
    }
    if not any(counts["documents"] for splits in sources.values() for counts in splits.values()):
        raise ValueError(f"{documents}: the document files hold no document")
    _write_manifest(result, made_from, loaded, sources)
    return result


def _tokenize_files(
    work: Path, documents: Path, loaded: Tokenizer, made_from: dict, workers: int, fast: Fast
) -> dict[Path, Unit]:
    """Pass 1 over all document files, by gigatoken if it may and can; says which it was. `{file: unit}`."""
    model, reason = _fast_model(loaded, fast)
    if model is not None:
        units, unequal = _first_pass(work, documents, made_from, model, workers)
        if not unequal.exists():
            checked = sum(_counts(unit.result)["checked"] for unit in units.values())
            print(f"gigatoken {gigatoken_version()}: its ids of {checked:,} documents are those of SentencePiece")
            return units
        reason = f"gigatoken gives other ids, first seen in {unequal.read_text(encoding='utf-8')}"
        if fast == "on":
            raise ValueError(f"--fast on: {reason}; leave it out to tokenise with SentencePiece")
    if reason:
        print(f"not by gigatoken: {reason}")
    return _first_pass(work, documents, made_from, None, workers)[0]


def _fast_model(loaded: Tokenizer, fast: Fast) -> tuple[FastModel | None, str]:
    """What gigatoken is made from, or None and why."""
    if fast == "off":
        return None, ""
    try:
        return fast_model(loaded), ""
    except ValueError as error:
        if fast == "on":
            raise ValueError(f"--fast on: {error}") from error
        return None, str(error)


def _first_pass(
    work: Path, documents: Path, made_from: dict, model: FastModel | None, workers: int
) -> tuple[dict[Path, Unit], Path]:
    """`({file: unit}, file that exists if gigatoken gave other ids)`."""
    by = f"gigatoken {gigatoken_version()}" if model else "the tokenizer"

    def named(*inputs: str) -> Path:
        """Where a result goes that depends on these inputs beside the settings."""
        key = json.dumps([VERSION, *inputs, made_from["tokenizer"], made_from["seed"], by])
        return work / "units" / hashlib.sha256(key.encode()).hexdigest()

    units = [Unit(documents / name, named(name, sha256)) for name, sha256 in made_from["documents"].items()]
    sizes = [unit.file.stat().st_size for unit in units]
    total = sum(sizes)
    # In whole numbers, so that every machine checks the same documents.
    check_below = min(HASH_SPACE, HASH_SPACE // CHECKED_AT_LEAST + HASH_SPACE * CHECKED_BYTES // max(total, 1))
    tokenizer = work / "result" / "tokenizer"
    encoding = Encoding(tokenizer, made_from["tokenizer"], made_from["seed"], model, check_below, named("unequal"))
    finished = [unit.result.exists() for unit in units]
    with Workers(encoding, min(workers, len(units))) as pool, Progress("tokenise", total) as progress:
        for number, count in pool.run(tokenize_file, units):
            progress.add(count, sizes[number], resumed=finished[number])
    return {unit.file: unit for unit in units}, encoding.unequal


def _shard_jobs(
    folder: Path, files: list[Path], units: dict[Path, Unit], shard_size: int, loaded: Tokenizer
) -> list[ShardJob]:
    """The shards of one split."""
    results = tuple(units[file].result for file in files)
    count = max(1, math.ceil(sum(file.stat().st_size for file in files) / (shard_size * SHARD_UNIT)))
    return [ShardJob(folder, number, count, results) for number in range(count)]


def _write_shards(jobs: list[ShardJob], workers: int) -> dict[ShardJob, dict | None]:
    """Pass 2: each shard's entry in the manifest, None for one without documents."""
    shards = {}
    results = {result for job in jobs for result in job.results}
    size = sum(path.stat().st_size for result in results for path in result.glob("*-tokens.npy"))
    worth_starting = max(1, size // WRITTEN_WHILE_STARTING)
    with (
        Workers(None, min(workers, len(jobs), worth_starting)) as pool,
        Progress("write", len(jobs), "shards") as progress,
    ):
        for number, shard in pool.run(write_shard, jobs):
            shards[jobs[number]] = shard
            progress.add(0, 1)
    return shards


def _counts(result: Path) -> dict:
    return json.loads((result / "counts.json").read_text())


def _totals(results: list[Path]) -> dict:
    """What the results of a split's files count together."""
    totals = {"documents": 0, "tokens": 0, "characters": 0, "skipped": 0}
    licenses: Counter[str] = Counter()
    for result in results:
        counts = _counts(result)
        licenses.update(counts["licenses"])
        totals = {name: value + counts[name] for name, value in totals.items()}
    return {**totals, "licenses": dict(sorted(licenses.items()))}


def holds_documents(folder: Path) -> bool:
    """Whether a folder is one of documents, finished or not."""
    return (folder / "run.json").exists() or next(folder.glob("*/*.jsonl.zst"), None) is not None


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


def _all(files: dict[str, dict[str, list[Path]]]) -> Iterator[Path]:
    for splits in files.values():
        for split_files in splits.values():
            yield from split_files
