"""Pass B, per partition of the key space: which documents have a better copy.

Identical ones first (`data.deduplicate`); among the survivors the near-duplicates (`data.near_duplicates`): candidates
per partition, then their verification per unit of the worse document. Each step leaves one file a task in
`work/duplicates/`; what they say together is gathered into `dropped.npy`, sorted, a row a dropped document.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.deduplicate import DROP, first_drops, key_slice, worse_documents
from data.near_duplicates import PAIR, Order, candidate_pairs, verified
from data.scratch import ScratchReader, load_array, save_array
from data.shared import Shared

MEMORY_FACTOR = 6
"""Memory that a partition takes, in multiples of its rows: themselves, sorted copies and the sort's indices."""


@dataclass(frozen=True)
class Units:
    """The parts of all units, by number: their names and their sources' places."""

    keys: tuple[str, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """One of `count` key ranges over the records of all units; `units` is the file that names them."""

    number: int
    count: int
    units: Path


def save_units(path: Path, units: Units) -> None:
    """Write what the tasks of this pass read once a process, instead of carrying it in each."""
    longest = max(map(len, units.keys), default=1)
    rows = list(zip(units.keys, units.sources, strict=True))
    save_array(path, np.array(rows, dtype=[("key", f"S{longest}"), ("source", "<u4")]))


@functools.lru_cache(1)
def _load_units(path: Path, stamp: int) -> Units:
    values = np.load(path, allow_pickle=False)
    keys = tuple(key.decode() for key in values["key"])
    return Units(keys, tuple(values["source"].tolist()))


def _units(path: Path) -> Units:
    return _load_units(path, path.stat().st_mtime_ns)


def partition_count(input_bytes: int, memory: int) -> int:
    """Partitions so that one of them takes at most `memory` bytes. The result of the pass does not depend on it."""
    return max(1, -(-input_bytes * MEMORY_FACTOR // memory))


def table_bytes(shared: Shared, keys: Sequence[str], name: str) -> int:
    """Bytes of all units' `identities` or `bands`."""
    return sum((shared.units / f"{key}.{name}.npy").stat().st_size for key in keys)


def find_identical(partition: Partition, shared: Shared) -> None:
    """The DROP rows of one partition of the identities -> `identical-NNNNN.npy`."""
    units = _units(partition.units)
    slices = []
    for key in units.keys:
        records = load_array(shared.units / f"{key}.identities.npy")
        slices.append(key_slice(records, "high", partition.number, partition.count))
    drops = worse_documents(slices, units.sources)
    save_array(shared.duplicates / f"identical-{partition.number:05d}.npy", drops)


def find_candidates(partition: Partition, shared: Shared) -> None:
    """The PAIR rows of one partition of the bands -> `candidates-NNNNN.npy`."""
    units = _units(partition.units)
    slices = []
    for key in units.keys:
        slices.append(
            key_slice(load_array(shared.units / f"{key}.bands.npy"), "key", partition.number, partition.count)
        )
    order = Order(_readers(units, shared), units.sources)
    pairs = candidate_pairs(slices, places(load_array(shared.duplicates / "identical.npy")), order)
    save_array(shared.duplicates / f"candidates-{partition.number:05d}.npy", pairs)


class _Readers(Sequence):
    """Opens a unit's scratch files when they are asked for, and holds the last few hundred."""

    def __init__(self, units: Units, shared: Shared):
        self.units = units
        self.open = functools.lru_cache(256)(lambda number: ScratchReader(shared.units, units.keys[number]))

    def __len__(self) -> int:
        return len(self.units.keys)

    def __getitem__(self, number: int) -> ScratchReader:
        return self.open(int(number))


def _readers(units: Units, shared: Shared) -> _Readers:
    return _Readers(units, shared)


def places(drops: np.ndarray) -> np.ndarray:
    """The dropped documents of DROP rows as sorted uint64 `unit << 32 | position`."""
    return np.unique(drops["worse_unit"].astype(np.uint64) << np.uint64(32) | drops["worse_position"])


@dataclass(frozen=True)
class Verification:
    """The candidate pairs whose worse document is in unit number `unit`."""

    unit: int
    units: Path
    partitions: int


def verify_candidates(task: Verification, shared: Shared) -> int:
    """The DROP rows of one unit's candidates -> `near-NNNNN.npy`. Returns how many pairs were compared."""
    parts = [np.empty(0, PAIR)]
    for number in range(task.partitions):
        pairs = load_array(shared.duplicates / f"candidates-{number:05d}.npy")
        first, last = np.searchsorted(pairs["worse_unit"], [task.unit, task.unit + 1])
        parts.append(np.asarray(pairs[first:last]))
    pairs = np.unique(np.concatenate(parts))
    drops = verified(pairs, shared.near_duplicates, _readers(_units(task.units), shared))
    save_array(shared.duplicates / f"near-{task.unit:05d}.npy", drops)
    return len(pairs)


def gather(shared: Shared, pattern: str, count: int, name: str, *others: str) -> np.ndarray:
    """Joins `count` files of DROP rows (and `others`) to one row a document and writes it as `name`."""
    parts = [np.load(shared.duplicates / f"{pattern}-{number:05d}.npy", allow_pickle=False) for number in range(count)]
    parts += [np.load(shared.duplicates / other, allow_pickle=False) for other in others]
    drops = first_drops(np.concatenate([*parts, np.empty(0, DROP)]))
    save_array(shared.duplicates / name, drops)
    return drops
