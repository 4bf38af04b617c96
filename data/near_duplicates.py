"""Near-duplicates: candidates that share a MinHash band, each pair verified by its Jaccard similarity.

Only documents that survive `data.deduplicate` take part. A document is dropped if and only if a better one with a
verified similarity of at least the threshold exists; there is no chaining through unlike texts. "Better", one total
order:

1. full text before abstract,  2. the higher version,  3. the longer text,  4. the source named earlier,  5. the later
file, and the later place in it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from data.deduplicate import DROP, Parts, first_of_equals, places
from data.identities import NEAR
from data.minhash import BAND, jaccard
from data.scratch import ScratchReader
from data.words import Words, fold

BEST_OF_BUCKET = 16
"""Each document of a bucket is compared with so many of its best, and with the so many ranked just before it: a
template that a million texts share costs 32 million pairs, not 10^12."""
PHRASES_HELD = 1 << 24
"""Hashes (8 bytes) of phrases that are kept while the pairs of one part are verified."""
PAIR = np.dtype([("worse_part", "<u4"), ("worse_position", "<u4"), ("better_part", "<u4"), ("better_position", "<u4")])


class Order:
    """Ranks documents of all parts by what their rows say."""

    def __init__(self, readers: Sequence[ScratchReader], parts: Parts):
        self.readers = readers
        self.parts = parts

    def ranked(self, part: np.ndarray, position: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Indices that sort documents (part, position) by group, the best of a group first."""
        abstract_only, version, characters = np.empty((3, len(part)), np.int64)
        for number in np.unique(part):
            of_part = np.flatnonzero(part == number)
            rows = self.readers[number].rows[position[of_part]]
            abstract_only[of_part], characters[of_part] = rows["abstract_only"], rows["characters"]
            version[of_part] = np.maximum(rows["version"], 1)
        return np.lexsort((
            -position.astype(np.int64), -part.astype(np.int64), -self.parts.rank[part], self.parts.source[part],
            -characters, -version, abstract_only, groups,
        ))  # fmt: skip


def candidate_pairs(slices: Sequence[np.ndarray], gone: np.ndarray, order: Order) -> np.ndarray:
    """PAIR rows of one partition: documents with a band in common, sorted by the worse one, each pair once.

    `slices[p]` are part p's BAND rows in this partition, `gone` the sorted `places` of what is dropped already.
    """
    part = np.repeat(np.arange(len(slices), dtype=np.uint32), [len(rows) for rows in slices])
    bands = np.concatenate([*slices, np.empty(0, BAND)])
    kept = _with_equals(bands["key"])
    part, bands = part[kept], bands[kept]
    left = ~np.isin(places(part, bands["position"]), gone)
    part, bands = part[left], bands[left]
    kept = _with_equals(bands["key"])
    part, bands = part[kept], bands[kept]
    if not len(bands):
        return np.empty(0, PAIR)
    ranked = order.ranked(part, bands["position"], bands["key"])
    part, position, key = part[ranked], bands["position"][ranked], bands["key"][ranked]
    worse, better = (np.concatenate(side) for side in zip(*_bucket_pairs(key), strict=True))
    return _unique_pairs(places(part, position), worse, better)


def _with_equals(keys: np.ndarray) -> np.ndarray:
    """Indices, ordered by key, of the rows whose key another row has too."""
    ranked = np.argsort(keys, kind="stable")
    first = np.append(first_of_equals(keys[ranked]), True)
    return ranked[~(first[:-1] & first[1:])]


def _bucket_pairs(key: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(worse, better) indices of rows with equal keys, of which the better stands before the worse."""
    for distance in range(1, min(len(key), BEST_OF_BUCKET + 1)):
        worse = np.flatnonzero(key[distance:] == key[:-distance]) + distance
        if not len(worse):
            return
        yield worse, worse - distance
    first = np.maximum.accumulate(np.where(first_of_equals(key), np.arange(len(key)), 0))
    deep = np.flatnonzero(np.arange(len(key)) - first > BEST_OF_BUCKET)
    for rank in range(BEST_OF_BUCKET if len(deep) else 0):
        yield deep, first[deep] + rank


def _unique_pairs(documents: np.ndarray, worse: np.ndarray, better: np.ndarray) -> np.ndarray:
    """PAIR rows without repeats, and without a document beside itself (two of its bands with one key)."""
    worse, better = documents[worse], documents[better]
    order = np.lexsort((better, worse))
    worse, better = worse[order], better[order]
    chosen = first_of_equals(worse, better) & (worse != better) if len(worse) else np.zeros(0, bool)
    pairs = np.empty(np.count_nonzero(chosen), PAIR)
    for side, values in (("worse", worse[chosen]), ("better", better[chosen])):
        pairs[f"{side}_part"], pairs[f"{side}_position"] = values >> np.uint64(32), values & np.uint64(2**32 - 1)
    return pairs


class _Phrases:
    """The different phrases of documents, as sorted hashes; those asked for last are kept."""

    def __init__(self, readers: Sequence[ScratchReader]):
        self.readers = readers
        self.kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.held = 0

    def of(self, part: int, position: int) -> np.ndarray:
        """uint64 [different phrases]."""
        place = (part, position)
        if place in self.kept:
            self.kept.move_to_end(place)
            return self.kept[place]
        (text,) = self.readers[part].texts([position])
        found = self.kept[place] = np.unique(Words([fold(text)]).phrases(0))
        self.held += len(found)
        while self.held > PHRASES_HELD and len(self.kept) > 1:
            self.held -= len(self.kept.popitem(last=False)[1])
        return found


def verified(pairs: np.ndarray, threshold: float, readers: Sequence[ScratchReader]) -> np.ndarray:
    """DROP rows of the pairs whose Jaccard similarity of phrases of five words reaches `threshold`."""
    phrases = _Phrases(readers)
    found = []
    for pair in pairs.tolist():
        worse, better = pair[:2], pair[2:]
        similarity = jaccard(phrases.of(*worse), phrases.of(*better))
        if similarity >= threshold:
            found.append((*worse, *better, similarity, NEAR))
    return np.array(found, dtype=DROP)
