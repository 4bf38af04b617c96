"""Pass B, per partition of the key space: which documents have a better copy.

What is superseded first, then identical copies (`data.deduplicate`), then among the survivors the near-duplicates
(`data.near_duplicates`): candidates per partition, and their verification per part of the worse document. Each task
leaves one file in a folder named by all that the search depends on, so that a stopped search goes on; `gather` joins
them to one row a dropped document.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.deduplicate import DROP, Parts, first_drops, identical, key_slice, places, superseded
from data.near_duplicates import PAIR, Order, candidate_pairs, verified
from data.scratch import ScratchReader, load_array, save_array
from data.shared import Shared

MEMORY_FACTOR = 8
"""Memory that a partition takes, in multiples of its rows: themselves, sorted copies and the sort's indices."""
PARTS_FILE = "parts.npy"
READERS_OPEN = 64
"""Each holds two files open, of the 1,024 that a process often may."""


@dataclass(frozen=True)
class Partition:
    """One of `count` key ranges over the records of all parts; `folder` is that of the search."""

    folder: Path
    number: int
    count: int

    def file(self, name: str) -> Path:
        """Where the task's result goes."""
        return self.folder / f"{name}-{self.number:05d}-of-{self.count:05d}.npy"


def save_parts(folder: Path, keys: Sequence[str], parts: Parts) -> None:
    """Write what the tasks read once a process, instead of carrying it in each."""
    rows = list(zip(keys, parts.source, parts.rank, parts.revises, strict=True))
    dtype = [("key", f"S{max(map(len, keys), default=1)}"), ("source", "<i8"), ("rank", "<i8"), ("revises", "<i8")]
    save_array(folder / PARTS_FILE, np.array(rows, dtype=dtype))


@functools.lru_cache(1)
def _load_parts(folder: Path) -> tuple[tuple[str, ...], Parts]:
    rows = np.load(folder / PARTS_FILE, allow_pickle=False)
    keys = tuple(key.decode() for key in rows["key"])
    return keys, Parts(*(np.ascontiguousarray(rows[name]) for name in ("source", "rank", "revises")))


def partition_count(input_bytes: int, memory: int) -> int:
    """Partitions so that one of them takes at most `memory` bytes. The result of the pass does not depend on it."""
    return max(1, -(-input_bytes * MEMORY_FACTOR // memory))


def table_bytes(shared: Shared, keys: Sequence[str], name: str) -> int:
    """Bytes of all parts' `identities` or `bands`."""
    return sum((shared.units / f"{key}.{name}.npy").stat().st_size for key in keys)


def _once(task: Callable[[], np.ndarray], path: Path) -> None:
    """Do a task unless an earlier run has done it."""
    if not path.exists():
        save_array(path, task())


def _slices(partition: Partition, shared: Shared, name: str, field: str) -> list[np.ndarray]:
    keys, _ = _load_parts(partition.folder)
    tables = (load_array(shared.units / f"{key}.{name}.npy") for key in keys)
    return [key_slice(table, field, partition.number, partition.count) for table in tables]


def find_superseded(partition: Partition, shared: Shared) -> None:
    """Step 1 of the identities of one partition -> `superseded-...npy`, DROP rows."""
    _, parts = _load_parts(partition.folder)
    slices = functools.partial(_slices, partition, shared, "identities", "high")
    _once(lambda: superseded(slices(), parts), partition.file("superseded"))


def find_identical(partition: Partition, shared: Shared) -> None:
    """Step 2 -> `identical-...npy`, DROP rows."""
    _, parts = _load_parts(partition.folder)
    slices = functools.partial(_slices, partition, shared, "identities", "high")
    gone = _gone(partition.folder / "superseded.npy")
    _once(lambda: identical(slices(), parts, gone), partition.file("identical"))


def find_candidates(partition: Partition, shared: Shared) -> None:
    """The pairs of one partition of the bands that are worth comparing -> `candidates-...npy`, PAIR rows."""
    _, parts = _load_parts(partition.folder)
    slices = functools.partial(_slices, partition, shared, "bands", "key")
    order = Order(_Readers(partition.folder, shared), parts)
    gone = _gone(partition.folder / "identical.npy")
    _once(lambda: candidate_pairs(slices(), gone, order), partition.file("candidates"))


def _gone(path: Path) -> np.ndarray:
    drops = load_array(path)
    return np.unique(places(np.array(drops["worse_part"]), np.array(drops["worse_position"])))


class _Readers(Sequence):
    """Opens a part's scratch files when they are asked for, and holds the last of them."""

    def __init__(self, folder: Path, shared: Shared):
        self.keys, _ = _load_parts(folder)
        # without a reference to itself: the files are to be closed with it, not at the next garbage collection
        self.open = functools.lru_cache(READERS_OPEN)(functools.partial(ScratchReader, shared.units))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> ScratchReader:
        return self.open(self.keys[int(number)])


@dataclass(frozen=True)
class Verification:
    """The candidate pairs whose worse document is in part number `part`."""

    folder: Path
    part: int
    partitions: int


def verify_candidates(task: Verification, shared: Shared) -> int:
    """Compares one part's candidates -> `near-...npy`, DROP rows. Returns how many pairs were compared."""
    found = [np.empty(0, PAIR)]
    for number in range(task.partitions):
        pairs = load_array(Partition(task.folder, number, task.partitions).file("candidates"))
        first, last = np.searchsorted(np.array(pairs["worse_part"]), [task.part, task.part + 1])
        found.append(np.array(pairs[first:last]))
    pairs = np.unique(np.concatenate(found))
    readers = _Readers(task.folder, shared)
    _once(lambda: verified(pairs, shared.near_duplicates, readers), task.folder / f"near-{task.part:05d}.npy")
    return len(pairs)


def gather(files: Sequence[Path]) -> np.ndarray:
    """The DROP rows of all files, one a document."""
    return first_drops(np.concatenate([np.empty(0, DROP), *(np.load(path, allow_pickle=False) for path in files)]))
