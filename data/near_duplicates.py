"""Near-duplicates: candidates that share a MinHash band, each pair verified by its exact Jaccard similarity.

Only documents that survive `data.deduplicate` take part. A document is dropped if and only if a better one with a
verified similarity of at least the threshold exists; there is no chaining through unlike texts. "Better", one total
order:

1. full text before abstract,  2. the higher version,  3. the longer text,  4. the source named earlier,  5. the later
file, and the later place in it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.deduplicate import DROP, NEAR
from data.minhash import BAND, jaccard
from data.scratch import ScratchReader
from data.words import fold, phrases, split_words

BEST_OF_BUCKET = 64
"""Each document of a bucket is compared with so many of its best: a template that a million texts share costs 64
million pairs, not 10^12."""
TEXTS_HELD = 4096
"""Phrase sets kept of documents in other units while the pairs of one unit are verified."""
PAIR = np.dtype([("worse_unit", "<u4"), ("worse_position", "<u4"), ("better_unit", "<u4"), ("better_position", "<u4")])


class Order:
    """Ranks documents of all units by what their rows say."""

    def __init__(self, readers: Sequence[ScratchReader], sources: Sequence[int]):
        self.readers = readers
        self.sources = np.asarray(sources, dtype=np.int64)

    def ranked(self, unit: np.ndarray, position: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Indices that sort documents (unit, position) by group, the best of a group first."""
        abstract_only, version, characters = np.empty((3, len(unit)), np.int64)
        for number in np.unique(unit):
            of_unit = np.flatnonzero(unit == number)
            rows = self.readers[number].rows[position[of_unit]]
            abstract_only[of_unit], characters[of_unit] = rows["abstract_only"], rows["characters"]
            version[of_unit] = np.maximum(rows["version"], 1)
        return np.lexsort((
            -position.astype(np.int64), -unit.astype(np.int64), self.sources[unit], -characters, -version,
            abstract_only, groups,
        ))  # fmt: skip


def candidate_pairs(slices: Sequence[np.ndarray], dropped: np.ndarray, order: Order) -> np.ndarray:
    """PAIR rows of one partition: documents with a band in common, sorted by the worse one, each pair once.

    `slices[u]` are unit u's BAND rows in this partition, `dropped` the sorted uint64 `unit << 32 | position` of what is
    gone already.
    """
    unit = np.repeat(np.arange(len(slices), dtype=np.uint32), [len(part) for part in slices])
    bands = np.concatenate([*slices, np.empty(0, BAND)])
    shared = _shared(bands["key"])
    unit, bands = unit[shared], bands[shared]
    gone = np.isin(unit.astype(np.uint64) << np.uint64(32) | bands["position"], dropped)
    unit, bands = unit[~gone], bands[~gone]
    shared = _shared(bands["key"])
    unit, bands = unit[shared], bands[shared]
    if not len(bands):
        return np.empty(0, PAIR)
    ranked = order.ranked(unit, bands["position"], bands["key"])
    unit, position, key = unit[ranked], bands["position"][ranked], bands["key"][ranked]
    pairs = []
    for distance in range(1, len(key)):  # the i-th of a bucket against the one `distance` before it ...
        same = key[distance:] == key[:-distance]
        if not same.any():
            break
        pairs.append(_pairs(unit, position, np.flatnonzero(same) + distance, distance))
        if distance == BEST_OF_BUCKET:
            pairs.append(_against_best(unit, position, key))
            break
    return np.unique(np.concatenate(pairs))


def _shared(keys: np.ndarray) -> np.ndarray:
    """Indices, ordered by key, of the rows whose key another row has too."""
    ranked = np.argsort(keys, kind="stable")
    keys = keys[ranked]
    same = np.zeros(len(keys) + 1, dtype=bool)
    same[1:-1] = keys[1:] == keys[:-1]
    return ranked[same[1:] | same[:-1]]


def _pairs(unit: np.ndarray, position: np.ndarray, worse: np.ndarray, better: np.ndarray | int) -> np.ndarray:
    """PAIR rows of the places `worse` and `better` (an int: so many places before)."""
    better = worse - better if isinstance(better, int) else better
    pairs = np.empty(len(worse), PAIR)
    pairs["worse_unit"], pairs["worse_position"] = unit[worse], position[worse]
    pairs["better_unit"], pairs["better_position"] = unit[better], position[better]
    return pairs[(unit[worse] != unit[better]) | (position[worse] != position[better])]


def _against_best(unit: np.ndarray, position: np.ndarray, key: np.ndarray) -> np.ndarray:
    """PAIR rows of what stands deeper in its bucket than BEST_OF_BUCKET against the best of the bucket."""
    begins = np.ones(len(key), dtype=bool)
    begins[1:] = key[1:] != key[:-1]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(key)), 0))
    deep = np.flatnonzero(np.arange(len(key)) - first > BEST_OF_BUCKET)
    return np.concatenate([_pairs(unit, position, deep, first[deep] + rank) for rank in range(BEST_OF_BUCKET)])


def verified(pairs: np.ndarray, threshold: float, readers: Sequence[ScratchReader]) -> np.ndarray:
    """DROP rows of the pairs whose Jaccard similarity of word 5-grams reaches `threshold`."""

    @lru_cache(TEXTS_HELD)
    def phrase_set(unit: int, position: int) -> frozenset[str]:
        (text,) = readers[unit].texts([position])
        return frozenset(phrases(split_words(fold(text))))

    found = []
    for pair in pairs:
        worse = (int(pair["worse_unit"]), int(pair["worse_position"]))
        better = (int(pair["better_unit"]), int(pair["better_position"]))
        similarity = jaccard(phrase_set(*worse), phrase_set(*better))
        if similarity >= threshold:
            found.append((*worse, *better, NEAR, similarity))
    return np.array(found, dtype=DROP)
