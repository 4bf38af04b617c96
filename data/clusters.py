"""`duplicates.jsonl.zst`: which document was kept and which were dropped for it, a cluster a line."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.deduplicate import RULES, VERDICTS
from data.documents import DocumentWriter
from data.scratch import ScratchReader, load_array
from data.shared import Shared

CLUSTERS_FILE = "duplicates.jsonl.zst"


def write_clusters(out: Path, shared: Shared, units: Sequence[tuple[str, str]]) -> int:
    """Writes the clusters in the order of the documents kept; returns how many. `units`: (source name, key) of each
    part by number.

    A line: `{"kept": {"source", "id"}, "dropped": [{"source", "id", "rule", "similarity", "better"}]}`. `better` is the
    document whose comparison decided; it can have been dropped for a better one itself, and so on up to the one kept.
    """
    drops = load_array(shared.duplicates / "dropped.npy")
    drops = np.asarray(drops[drops["rule"] >= VERDICTS])
    roots = kept_documents(drops)
    order = np.lexsort((drops["worse_position"], drops["worse_unit"], roots))
    drops, roots = drops[order], roots[order]
    reader = functools.lru_cache(256)(lambda unit: ScratchReader(shared.units, units[unit][1]))

    def name(unit: int, position: int) -> dict[str, str]:
        return {"source": units[unit][0], "id": reader(unit).identity(position)}

    count = 0
    with DocumentWriter(out / CLUSTERS_FILE) as writer:
        for root, members in _groups(roots, drops):
            writer.write({
                "kept": name(root >> 32, root & (2**32 - 1)),
                "dropped": [
                    {
                        **name(int(drop["worse_unit"]), int(drop["worse_position"])),
                        "rule": RULES[drop["rule"]],
                        "similarity": round(float(drop["similarity"]), 3),
                        "better": name(int(drop["better_unit"]), int(drop["better_position"]))["id"],
                    }
                    for drop in members
                ],
            })  # fmt: skip
            count += 1
    return count


def kept_documents(drops: np.ndarray) -> np.ndarray:
    """For each DROP row (sorted by document, one each) the document at the end of its chain of better ones, as uint64
    `unit << 32 | position`."""
    worse = drops["worse_unit"].astype(np.uint64) << np.uint64(32) | drops["worse_position"]
    better = drops["better_unit"].astype(np.uint64) << np.uint64(32) | drops["better_position"]
    if not len(worse):
        return worse
    while True:  # "better" is a total order, so every step comes nearer to the end of each chain
        place = np.minimum(np.searchsorted(worse, better), len(worse) - 1)
        dropped = worse[place] == better
        if not dropped.any():
            return better
        better = np.where(dropped, better[place], better)


def _groups(roots: np.ndarray, drops: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    borders = [0, *(np.flatnonzero(roots[1:] != roots[:-1]) + 1).tolist(), len(roots)]
    for first, last in itertools.pairwise(borders):
        if last > first:
            yield int(roots[first]), drops[first:last]
