"""Token shards on disk: opening, checking and verifying what `python -m data tokenize` wrote.

A folder of shards:

    manifest.json                            schema, tokenizer, counts per source, sha256 of every file
    tokenizer/                               the tokenizer, as `Tokenizer.save` writes it
    <source>/{train,validation}/
        tokens-00000.npy                     uint16 or uint32 [tokens]: documents one after another, each BOS ... EOS
        documents-00000.npy                  int64 [documents + 1]: where each document begins, and the end
        ids-00000.npy                        bytes [documents]: UTF-8 document ids
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

SCHEMA, VERSION = "materia-token-shards", 1
SPLITS = ("train", "validation")
OPEN_SHARDS = 16  # kept mapped per split: an open mapping holds a file descriptor, and 1,024 of them is a common limit


class Shard(NamedTuple):
    """Memory-mapped tokens [tokens] and document offsets int64 [documents + 1], from 0 to tokens."""

    tokens: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class ShardEntry:
    """Size of a shard, and what opens it."""

    tokens: int
    documents: int
    open: Callable[[], Shard]


class SplitShards:
    """The shards of one split of one source, mapped when they are first asked for.

    Attributes:
        entries: one per shard.
        tokens, documents: totals.
    """

    def __init__(self, entries: Sequence[ShardEntry] = ()):
        self.entries = tuple(entries)
        self.tokens = sum(entry.tokens for entry in self.entries)
        self.documents = sum(entry.documents for entry in self.entries)
        self._open = functools.lru_cache(OPEN_SHARDS)(lambda index: self.entries[index].open())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Shard:
        return self._open(index)


class Shards:
    """A folder of token shards, checked when opened.

    Attributes:
        path: the folder.
        manifest: content of its `manifest.json`.
        sources: `{source: {"train": SplitShards, "validation": SplitShards}}`.
        tokenizer_sha256, vocab_size: of the tokenizer that made the ids.
        tokenizer_path: folder with a copy of it.

    Raises:
        ValueError: no manifest, another schema, or a file that is missing, cut off or not what the manifest says.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.tokenizer_sha256: str = self.manifest["tokenizer"]["sha256"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.tokenizer_path = self.path / "tokenizer"
        self.sources = {
            name: {split: self._split(name, split, splits[split]) for split in SPLITS}
            for name, splits in self.manifest["sources"].items()
        }
        self.check()

    def _split(self, name: str, split: str, counts: dict) -> SplitShards:
        folder = self.path / name / split
        return SplitShards(
            [
                ShardEntry(entry["tokens"], entry["documents"], functools.partial(open_shard, folder, entry["number"]))
                for entry in counts["shards"]
            ]
        )

    def check(self) -> None:
        """Compare files' sizes and shards' dtypes, shapes and end offsets with the manifest; no full read."""
        for name, facts in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                raise ValueError(f"{file}: named by the manifest but missing; copy it again or tokenise again")
            size = file.stat().st_size
            if size != facts["bytes"]:
                raise ValueError(f"{file}: {size} bytes, the manifest says {facts['bytes']}; copy it or tokenise again")
        for name, splits in self.sources.items():
            for split, shards in splits.items():
                for entry in shards.entries:
                    self._check_shard(f"{self.path / name / split}", entry)

    def _check_shard(self, where: str, entry: ShardEntry) -> None:
        shard = entry.open()
        if shard.tokens.dtype != token_dtype(self.vocab_size) or shard.documents.dtype != np.int64:
            raise ValueError(
                f"{where}: dtype {shard.tokens.dtype} of tokens and {shard.documents.dtype} of documents; expected "
                f"{token_dtype(self.vocab_size)} for a vocabulary of {self.vocab_size}, and int64"
            )
        if shard.tokens.shape != (entry.tokens,) or shard.documents.shape != (entry.documents + 1,):
            raise ValueError(f"{where}: a shard's shape is not what the manifest says; tokenise again")
        if shard.documents[0] != 0 or shard.documents[-1] != entry.tokens:
            raise ValueError(f"{where}: document offsets do not span a shard's {entry.tokens} tokens; tokenise again")

    def verify(self) -> None:
        """Hash every file. ValueError names the first whose sha256 is not the manifest's."""
        for name, facts in self.manifest["files"].items():
            found = file_sha256(self.path / name)
            if found != facts["sha256"]:
                raise ValueError(
                    f"{self.path / name}: wrong sha256 {found[:16]}..., the manifest says {facts['sha256'][:16]}...; "
                    "the file is damaged: copy it or tokenise again"
                )

    def document_ids(self, source: str, split: str, shard: int) -> list[str]:
        """Ids of the documents of one shard, in its order."""
        number = self.manifest["sources"][source][split]["shards"][shard]["number"]
        ids = np.load(self.path / source / split / shard_file("ids", number), mmap_mode="r", allow_pickle=False)
        return [item.decode() for item in ids]


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_file(kind: str, number: int) -> str:
    """Name of a shard's file; kind is tokens, documents or ids."""
    return f"{kind}-{number:05d}.npy"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_shard(folder: Path, number: int) -> Shard:
    """Map one shard read-only. ValueError names the file that is not a readable npy."""
    return Shard(*(_map(folder / shard_file(kind, number)) for kind in ("tokens", "documents")))


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable npy file: {error}") from error


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder of shards. ValueError: none there, not JSON, or another schema or version."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no manifest.json, so no token shards; make some with `python -m data tokenize`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    found = (manifest.get("schema"), manifest.get("version")) if isinstance(manifest, dict) else None
    if found != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema {found}, this version reads {(SCHEMA, VERSION)}; tokenise again")
    missing = [key for key in ("tokenizer", "made_from", "sources", "files") if not isinstance(manifest.get(key), dict)]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)} in it; tokenise again")
    return manifest
