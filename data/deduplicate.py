"""Identical documents: the same text, or the same PMID, PMCID or DOI, found without holding the documents.

Pass A leaves the records of `data.identities`, sorted by key. Pass B takes one range of keys from every part's records,
in two steps:

1. `superseded`: what a verdict reaches, and what a later record of the same stream with its PMID replaces. These
   documents take no further part: a citation that was deleted must not drop a copy of itself.
2. `identical`: of the rest, equal keys are grouped, and all but the best of a group are dropped. Where the key is a DOI
   and both have a PMID, the two must be the same; a DOI that articles of different PMIDs have (conference books give
   one to many) says nothing.

"Better" is one total order, so two documents can never drop each other, and nothing depends on who ran first:

1. full text before abstract,  2. the source named earlier,  3. the later file (update files revise),  4. the higher
version,  5. the later place in the file.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from data.identities import DOI, PMID, RECORD, Action
from data.scratch import load_array, save_array

DROP = np.dtype([
    ("worse_part", "<u4"), ("worse_position", "<u4"), ("better_part", "<u4"), ("better_position", "<u4"),
    ("similarity", "<f4"), ("rule", "<u4"),
])  # fmt: skip
"""A dropped document and the better one; for a verdict, `better` is where the verdict stands."""


@dataclass(frozen=True)
class Parts:
    """What is known of the parts, each field int64 [parts]: the place of the `source` on the command line (of those
    that are one stream the first), the `rank` of the file in its source or stream, whether later files revise earlier
    ones."""

    source: np.ndarray
    rank: np.ndarray
    revises: np.ndarray


class Drops:
    """The dropped documents of a run: DROP rows sorted by document, one each, mapped."""

    def __init__(self, rows: np.ndarray, borders: np.ndarray):
        self.rows = rows
        self.borders = borders

    def of(self, part: int) -> np.ndarray:
        """The rows of one part's documents."""
        return np.array(self.rows[self.borders[part] : self.borders[part + 1]])

    @staticmethod
    def save(folder: Path, rows: np.ndarray, parts: int) -> None:
        """Write the rows and where each part's begin."""
        borders = np.searchsorted(np.ascontiguousarray(rows["worse_part"]), np.arange(parts + 1))
        save_array(folder / "dropped-borders.npy", borders)
        save_array(folder / "dropped.npy", rows)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        return cls(load_array(folder / "dropped.npy"), load_array(folder / "dropped-borders.npy"))


def key_slice(rows: np.ndarray, field: str, partition: int, partitions: int) -> np.ndarray:
    """A copy of the rows, sorted by the uint64 `field`, that lie in one of `partitions` equal ranges of it. (A view of
    a mapped file would keep the file open.)"""

    def border(number: int) -> int:
        return bisect_left(rows, number * 2**64 // partitions, key=lambda row: int(row[field]))

    first, last = border(partition), len(rows) if partition + 1 == partitions else border(partition + 1)
    return np.array(rows[first:last])


def places(part: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Documents as uint64 `part << 32 | position`."""
    return part.astype(np.uint64) << np.uint64(32) | position


class _Records:
    """The records of one partition, the best of each key first."""

    def __init__(self, slices: Sequence[np.ndarray], parts: Parts):
        part = np.repeat(np.arange(len(slices)), [len(rows) for rows in slices])
        rows = np.concatenate([*slices, np.empty(0, RECORD)])
        order = np.lexsort((
            -rows["position"].astype(np.int64), -part, -rows["version"].astype(np.int64), -parts.rank[part],
            parts.source[part], rows["abstract_only"], rows["low"], rows["high"],
        ))  # fmt: skip
        self.rows, self.part = rows[order], part[order]
        self.source, self.rank = parts.source[self.part], parts.rank[self.part]
        self.revises = parts.revises[self.part]
        self.begins = np.flatnonzero(first_of_equals(self.rows["high"], self.rows["low"]))
        self.sizes = np.diff(self.begins, append=len(rows))
        self.is_document = self.rows["action"] == Action.DOCUMENT
        self.ambiguous = self._ambiguous()

    def _ambiguous(self) -> np.ndarray:
        """Whether the key is a DOI of several PMIDs: a mask of records."""
        if not len(self.rows):
            return np.zeros(0, bool)
        pmid = self.rows["pmid"]
        least = np.minimum.reduceat(np.where(pmid == 0, np.uint64(2**64 - 1), pmid), self.begins)
        most = np.maximum.reduceat(pmid, self.begins)
        several = (self.rows["rule"][self.begins] == DOI) & (most != 0) & (least != most)
        return np.repeat(several, self.sizes)

    def same_article(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether records with the same key are of one article: a mask."""
        one, other = self.rows["pmid"][first], self.rows["pmid"][second]
        equal = one == other
        return np.where(self.ambiguous[first], equal & (one != 0), equal | (one == 0) | (other == 0))

    def drops(self, worse: np.ndarray, better: np.ndarray, rule: np.ndarray | int) -> np.ndarray:
        """DROP rows of records."""
        drops = np.zeros(len(worse), DROP)
        drops["worse_part"], drops["worse_position"] = self.part[worse], self.rows["position"][worse]
        drops["better_part"], drops["better_position"] = self.part[better], self.rows["position"][better]
        drops["rule"] = rule
        drops["similarity"] = 1
        return drops


def first_of_equals(*columns: np.ndarray) -> np.ndarray:
    """Of sorted rows, those that differ from the one before in any column: a mask."""
    first = np.ones(len(columns[0]), dtype=bool)
    first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return first


def superseded(slices: Sequence[np.ndarray], parts: Parts) -> np.ndarray:
    """DROP rows of step 1 for one partition; `slices[p]` are part p's records in it."""
    records = _Records(slices, parts)
    drops = [np.empty(0, DROP)]
    verdicts = ~records.is_document
    counts = np.add.reduceat(verdicts, records.begins, dtype=np.int64) if len(verdicts) else records.begins
    for group in np.flatnonzero((counts > 0) & (counts < records.sizes)):  # few: most verdicts meet nothing
        rows = np.arange(records.begins[group], records.begins[group] + records.sizes[group])
        documents = rows[~verdicts[rows]]
        for verdict in rows[verdicts[rows]]:
            reached = documents[_reaches(records, verdict, documents)]
            drops.append(records.drops(reached, np.full(len(reached), verdict), records.rows["action"][verdict] - 1))
    revising = np.flatnonzero(records.is_document & (records.rows["rule"] == PMID) & (records.revises == 1))
    drops.append(_all_but_first(records, revising, records.source))
    return np.concatenate(drops)


def _reaches(records: _Records, verdict: int, documents: np.ndarray) -> np.ndarray:
    """Which of `documents`, which have the verdict's key, it is about: a mask."""
    action, rows = records.rows["action"][verdict], records.rows
    about = records.same_article(documents, np.full(len(documents), verdict))
    if action == Action.BENCHMARK:
        return about
    part, own = records.part[documents], records.part[verdict]
    before = (part < own) | ((part == own) & (rows["position"][documents] < rows["position"][verdict]))
    if action != Action.DELETED:  # a verdict on one version says nothing of a higher one
        before &= rows["version"][documents] <= rows["version"][verdict]
    rank, own_rank = records.rank[documents], records.rank[verdict]
    earlier = (rank < own_rank) | ((rank == own_rank) & before)
    same_stream = records.source[documents] == records.source[verdict]
    if action == Action.RETRACTED:
        return about & (earlier | ~same_stream | (records.revises[verdict] == 0))
    return about & earlier & same_stream


def identical(slices: Sequence[np.ndarray], parts: Parts, gone: np.ndarray) -> np.ndarray:
    """DROP rows of step 2 for one partition; `gone` are the sorted `places` of step 1."""
    records = _Records(slices, parts)
    left = records.is_document & ~np.isin(places(records.part, records.rows["position"]), gone)
    return _all_but_first(records, np.flatnonzero(left))


def _all_but_first(records: _Records, chosen: np.ndarray, *within: np.ndarray) -> np.ndarray:
    """DROP rows: of the `chosen` records, in their order, all but the first of each key (and of each value of the
    columns `within`)."""
    columns = [column[chosen] for column in (records.rows["high"], records.rows["low"], *within)]
    first = first_of_equals(*columns) if len(chosen) else np.zeros(0, bool)
    best = chosen[np.maximum.accumulate(np.where(first, np.arange(len(chosen)), 0))] if len(chosen) else chosen
    worse = ~first & records.same_article(chosen, best)
    return records.drops(chosen[worse], best[worse], records.rows["rule"][chosen[worse]])


def first_drops(drops: np.ndarray) -> np.ndarray:
    """One row a dropped document, the one of its first rule, sorted by document."""
    better = (drops["better_position"], drops["better_part"])
    order = (*better, -drops["similarity"], drops["rule"], drops["worse_position"], drops["worse_part"])
    drops = drops[np.lexsort(order)]
    return drops[first_of_equals(drops["worse_part"], drops["worse_position"])] if len(drops) else drops
