"""Identical documents: the same text, or the same PMID, PMCID or DOI, found without holding the documents.

Pass A writes for every document one 35-byte record a key (the seeded 128-bit xxh3 of its normalised text, and of each
identifier), sorted by key. Pass B takes one range of keys from every unit's records, groups equal keys, and names in
each group the best document and the worse ones. A document is dropped if and only if it is not the best with one of its
keys; where that key is a DOI and both have a PMID, the two must be the same (conference books give one DOI to many
articles). "Better" is one total order, so two documents can never drop each other, and nothing depends on who ran
first:

1. full text before abstract,  2. the source named earlier,  3. the later file (update files revise),  4. the higher
version,  5. the later place in the file.

Besides documents there are verdicts on an identity (`Action`): a citation that the publisher deleted or revised, a
retraction, an article that a benchmark was made of. They reach documents of pass A that they arrived too late, or in
another source, to stop.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import xxhash

from data.documents import Document

RULES = (
    "deleted-by-publisher", "revised-then-dropped", "retracted-elsewhere", "benchmark-identity", "same-pmid",
    "same-pmcid", "same-doi", "same-text", "near-duplicate",
)  # fmt: skip
"""A document dropped for several reasons is counted under the first of them."""
PMID, PMCID, DOI, TEXT, NEAR = range(4, 9)


class Action(IntEnum):
    """What a record says of its key. DELETED and REVISED reach what the same stream said before; RETRACTED and
    BENCHMARK reach every source."""

    DOCUMENT = 0
    DELETED = 1
    REVISED = 2
    RETRACTED = 3
    BENCHMARK = 4


RECORD = np.dtype([
    ("high", "<u8"), ("low", "<u8"), ("pmid", "<u8"), ("rule", "u1"), ("action", "u1"), ("abstract_only", "u1"),
    ("version", "<u4"), ("position", "<u4"),
])  # fmt: skip
DROP = np.dtype([
    ("worse_unit", "<u4"), ("worse_position", "<u4"), ("better_unit", "<u4"), ("better_position", "<u4"),
    ("rule", "u1"), ("similarity", "<f4"),
])  # fmt: skip
"""A dropped document and the better one; for a verdict, `better` is where the verdict stands."""
VERDICTS = 4
"""Rules below this number are verdicts: the better place names no document that was kept."""

_FORMS = {"pmid": re.compile(r"[1-9][0-9]*"), "pmcid": re.compile(r"PMC[0-9]+"), "doi": re.compile(r"10\..+")}
_DOI_ADDRESS = re.compile(r"^(?:https?://)?(?:dx\.)?doi\.org/|^doi:\s*", re.IGNORECASE)


def normalised(folded: str) -> str:
    """What two copies of a text share: of a folded text, every sign and digit without white space."""
    return "".join(folded.split())


def normalised_doi(doi: str) -> str:
    """A DOI without its address, in lower case (DOIs ignore case)."""
    return _DOI_ADDRESS.sub("", unicodedata.normalize("NFC", doi.strip())).lower()


def drop_false_identifiers(document: Document, notes: Counter[str]) -> None:
    """Sets to None what is no identifier ("0", "n/a"): it would make duplicates of unlike documents. Counts in
    `notes`."""
    for name, form in _FORMS.items():
        value = getattr(document, name)
        if value and form.fullmatch(normalised_doi(value) if name == "doi" else value) is None:
            notes[f"{name} of no real form left out"] += 1
            setattr(document, name, None)


class Identities:
    """Gathers the records of one unit."""

    def __init__(self, seed: int):
        self.seed = seed
        self.rows: list[tuple[int, ...]] = []

    def add(self, document: Document, normalised_text: str, position: int, *, abstract_only: bool) -> None:
        """The keys of the document that is number `position` of its unit."""
        merits = (int(abstract_only), min(max(0, document.version or 0), 2**32 - 1))
        self._row(TEXT, normalised_text, Action.DOCUMENT, merits, position)
        self._identifiers(document, Action.DOCUMENT, merits, position)

    def judge(self, document: Document, action: Action, position: int) -> None:
        """A verdict on a document that was read but not kept, before document number `position`; all its identifiers
        bear it."""
        self._identifiers(document, action, (0, 0), position)

    def judge_pmid(self, pmid: str, action: Action, position: int) -> None:
        """The same for a citation of which only the PMID is known."""
        self._row(PMID, pmid, action, (0, 0), position)

    def _identifiers(self, document: Document, action: Action, merits: tuple[int, int], position: int) -> None:
        if document.pmid:
            self._row(PMID, document.pmid, action, merits, position)
        if document.pmcid:
            self._row(PMCID, document.pmcid, action, merits, position)
        if document.doi:
            self._row(DOI, normalised_doi(document.doi), action, merits, position, document.pmid)

    def _row(
        self, rule: int, key: str, action: Action, merits: tuple[int, int], position: int, pmid: str | None = None
    ) -> None:
        digest = xxhash.xxh3_128_intdigest(f"{rule}:{key}".encode(), seed=self.seed)
        article = xxhash.xxh3_64_intdigest(pmid.encode(), seed=self.seed) if pmid else 0
        high, low = digest >> 64, digest & (2**64 - 1)
        self.rows.append((high, low, article, rule, int(action), *merits, position))

    def array(self) -> np.ndarray:
        """All records sorted by key."""
        records = np.array(self.rows, dtype=RECORD)
        return records[np.lexsort((records["position"], records["low"], records["high"]))]


def key_slice(rows: np.ndarray, field: str, partition: int, partitions: int) -> np.ndarray:
    """The rows, sorted by the uint64 `field`, that lie in one of `partitions` equal ranges of it."""
    borders = [partition * 2**64 // partitions, (partition + 1) * 2**64 // partitions]
    first = np.searchsorted(rows[field], np.uint64(borders[0]))
    last = len(rows) if partition + 1 == partitions else np.searchsorted(rows[field], np.uint64(borders[1]))
    return np.asarray(rows[first:last])


def worse_documents(slices: Sequence[np.ndarray], sources: Sequence[int]) -> np.ndarray:
    """The DROP rows of one partition, sorted by the worse document.

    `slices[u]` are the records of unit u in this partition; `sources[u]` is the place of its source on the command
    line. Sources with the same place are one stream, in which later units revise and delete.
    """
    unit = np.repeat(np.arange(len(slices)), [len(part) for part in slices])
    records = np.concatenate([*slices, np.empty(0, RECORD)])
    source = np.asarray(sources, dtype=np.int64)[unit]
    order = np.lexsort((
        -records["position"].astype(np.int64), -records["version"].astype(np.int64), -unit, source,
        records["abstract_only"], records["low"], records["high"],
    ))  # fmt: skip
    records, unit, source = records[order], unit[order], source[order]
    begins = np.ones(len(records), dtype=bool)
    begins[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    judged, verdicts = _judged(records, unit, source, np.flatnonzero(begins))
    living = ~judged & (records["action"] == Action.DOCUMENT)
    found = np.concatenate([verdicts, _beaten(records[living], unit[living])])
    return found[np.lexsort((found["rule"], found["worse_position"], found["worse_unit"]))]


def _beaten(records: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Of sorted documents' records, those that are not the first with their key."""
    begins = np.ones(len(records), dtype=bool)
    begins[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    best = np.maximum.accumulate(np.where(begins, np.arange(len(records)), 0))
    pmid, best_pmid = records["pmid"], records["pmid"][best]  # 0: has none, or the key is no DOI
    worse = np.flatnonzero(~begins & ((pmid == 0) | (best_pmid == 0) | (pmid == best_pmid)))
    return _drops(records, unit, worse, best[worse], records["rule"][worse])


def _judged(
    records: np.ndarray, unit: np.ndarray, source: np.ndarray, begins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which documents' records a verdict reaches: a mask, and their DROP rows."""
    mask = np.zeros(len(records), dtype=bool)
    is_verdict = records["action"] != Action.DOCUMENT
    counts = np.add.reduceat(is_verdict, begins, dtype=np.int64) if len(begins) else begins
    sizes = np.diff([*begins.tolist(), len(records)])
    drops = []
    for group in np.flatnonzero((counts > 0) & (counts < sizes)):  # keys with both: few, as most verdicts meet nothing
        rows = np.arange(begins[group], begins[group] + sizes[group])
        documents = rows[~is_verdict[rows]]
        for verdict in rows[is_verdict[rows]]:
            reached = documents[_reaches(records, unit, source, verdict, documents) & ~mask[documents]]
            mask[reached] = True
            rule = np.full(len(reached), records["action"][verdict] - 1)
            drops.append(_drops(records, unit, reached, np.full(len(reached), verdict), rule))
    return mask, np.concatenate([*drops, np.empty(0, DROP)])


def _reaches(
    records: np.ndarray, unit: np.ndarray, source: np.ndarray, verdict: int, documents: np.ndarray
) -> np.ndarray:
    """Which of `documents`, which have the verdict's key, it is about: a mask."""
    pmid, own = records["pmid"][documents], records["pmid"][verdict]
    same_article = (pmid == 0) | (own == 0) | (pmid == own)
    if records["action"][verdict] in (Action.RETRACTED, Action.BENCHMARK):
        return same_article
    earlier = (unit[documents] < unit[verdict]) | (
        (unit[documents] == unit[verdict]) & (records["position"][documents] < records["position"][verdict])
    )
    return same_article & earlier & (source[documents] == source[verdict])


def _drops(
    records: np.ndarray, unit: np.ndarray, worse: np.ndarray, better: np.ndarray, rule: np.ndarray
) -> np.ndarray:
    drops = np.zeros(len(worse), DROP)
    drops["worse_unit"], drops["worse_position"] = unit[worse], records["position"][worse]
    drops["better_unit"], drops["better_position"] = unit[better], records["position"][better]
    drops["rule"] = rule
    drops["similarity"] = 1
    return drops


def first_drops(drops: np.ndarray) -> np.ndarray:
    """One row a dropped document, the one of its first rule, sorted by document."""
    better = (drops["better_position"], drops["better_unit"])
    order = (*better, -drops["similarity"], drops["rule"], drops["worse_position"], drops["worse_unit"])
    drops = drops[np.lexsort(order)]
    unit, position = drops["worse_unit"], drops["worse_position"]
    first = np.ones(len(drops), dtype=bool)
    first[1:] = (unit[1:] != unit[:-1]) | (position[1:] != position[:-1])
    return drops[first]
