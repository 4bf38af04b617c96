"""`duplicates.jsonl.zst`: which document was kept and which were dropped for it, a cluster a line."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.deduplicate import first_of_equals, places
from data.documents import DocumentWriter
from data.identities import RULES, VERDICTS
from data.scratch import Ids

CLUSTERS_FILE = "duplicates.jsonl.zst"


def write_clusters(out: Path, units: Path, parts: Sequence[tuple[str, str]], drops: np.ndarray) -> int:
    """Writes the clusters in the order of the documents kept; returns how many.

    `units` is the folder of the scratch files, `parts` (source name, key) by number, `drops` the DROP rows, one a
    document.
    A line: `{"kept": {"source", "id"}, "dropped": [{"source", "id", "rule", "similarity", "better"}]}`. `better` is the
    document whose comparison decided; it can have been dropped for a better one itself, and so on up to the one kept.
    """
    drops = np.array(drops[drops["rule"] >= VERDICTS])
    roots = kept_documents(drops)
    order = np.lexsort((drops["worse_position"], drops["worse_part"], roots))
    drops, roots = drops[order], roots[order]
    ids = functools.cache(lambda part: Ids(units, parts[part][1]))  # some 30 bytes a document, of parts with duplicates

    def name(part: int, position: int) -> dict[str, str]:
        return {"source": parts[part][0], "id": ids(part)[position]}

    count = 0
    with DocumentWriter(out / CLUSTERS_FILE) as writer:
        for root, members in _groups(roots, drops):
            writer.write({
                "kept": name(root >> 32, root & (2**32 - 1)),
                "dropped": [
                    {
                        **name(int(drop["worse_part"]), int(drop["worse_position"])),
                        "rule": RULES[drop["rule"]],
                        "similarity": round(float(drop["similarity"]), 3),
                        "better": name(int(drop["better_part"]), int(drop["better_position"]))["id"],
                    }
                    for drop in members
                ],
            })  # fmt: skip
            count += 1
    return count


def kept_documents(drops: np.ndarray) -> np.ndarray:
    """For each DROP row (sorted by document, one each) the document at the end of its chain of better ones, as uint64
    `part << 32 | position`."""
    worse = places(drops["worse_part"], drops["worse_position"])
    better = places(drops["better_part"], drops["better_position"])
    if not len(worse):
        return worse
    while True:  # "better" is a total order, so every step comes nearer to the end of each chain
        place = np.minimum(np.searchsorted(worse, better), len(worse) - 1)
        dropped = worse[place] == better
        if not dropped.any():
            return better
        better = np.where(dropped, better[place], better)


def _groups(roots: np.ndarray, drops: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    begins = np.flatnonzero(first_of_equals(roots)).tolist() if len(roots) else []
    for first, last in itertools.pairwise([*begins, len(roots)] if begins else []):
        yield int(roots[first]), drops[first:last]
