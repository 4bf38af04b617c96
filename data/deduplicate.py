"""Exact duplicates: the same text, or the same PMID, PMCID or DOI, found without holding the documents.

Pass A writes for every document one 34-byte record a key (the seeded 128-bit xxh3 of its normalised text, and of each
identifier), sorted by key. Pass B takes one range of keys from every unit's records, groups equal keys, and names in
each group the best document and the worse ones. A document is dropped if and only if it is not the best with one of its
keys; where that key is a DOI and both have a PMID, the two must be the same (conference books give one DOI to many
articles). "Better" is one total order, so two documents can never drop each other, and nothing depends on who ran
first:

1. full text before abstract,  2. higher version,  3. the source named earlier,  4. the later file and place (update
   files revise).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash

from data.documents import Document
from data.readers.interface import Deletion

RULES = ("deleted-by-publisher", "same-pmid", "same-pmcid", "same-doi", "same-text")
"""A document dropped for several reasons is counted under the first of them."""
DELETED, PMID, PMCID, DOI, TEXT = range(len(RULES))

RECORD = np.dtype([
    ("high", "<u8"), ("low", "<u8"), ("pmid", "<u8"), ("rule", "u1"), ("deletion", "u1"), ("version", "<u4"),
    ("position", "<u4"),
])  # fmt: skip
PAIR = np.dtype([
    ("worse_unit", "<u4"), ("worse_position", "<u4"), ("better_unit", "<u4"), ("better_position", "<u4"),
    ("rule", "u1"),
])  # fmt: skip
BYTES_A_PARTITION = 1 << 30
"""Input bytes for which one partition's records are held in memory: about half a million abstracts, 68 MB of
records."""

_FORMS = {"pmid": re.compile(r"[1-9][0-9]*"), "pmcid": re.compile(r"PMC[0-9]+"), "doi": re.compile(r"10\..+")}
_DOI_ADDRESS = re.compile(r"^(?:https?://)?(?:dx\.)?doi\.org/|^doi:\s*", re.IGNORECASE)


def normalised(text: str) -> str:
    """What two copies of a text share: compatibility forms, case and white space folded; every sign and digit kept."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalised_doi(doi: str) -> str:
    """A DOI without its address, in lower case (DOIs ignore case)."""
    return _DOI_ADDRESS.sub("", doi.strip()).lower()


def drop_false_identifiers(document: Document, notes: Counter[str]) -> None:
    """Sets to None what is no identifier ("0", "n/a"): it would make duplicates of unlike documents. Counts in
    `notes`."""
    for name, form in _FORMS.items():
        value = getattr(document, name)
        if value and form.fullmatch(normalised_doi(value) if name == "doi" else value) is None:
            notes[f"{name} of no real form left out"] += 1
            setattr(document, name, None)


class Records:
    """Gathers the records of one unit."""

    def __init__(self, seed: int):
        self.seed = seed
        self.rows: list[tuple[int, ...]] = []

    def add(self, document: Document, position: int) -> None:
        """The keys of the document that is number `position` of its unit."""
        version = max(0, document.version or 0)
        self._row(TEXT, normalised(document.text), 0, version, position)
        if document.pmid:
            self._row(PMID, document.pmid, 0, version, position)
        if document.pmcid:
            self._row(PMCID, document.pmcid, 0, version, position)
        if document.doi:
            self._row(DOI, normalised_doi(document.doi), 0, version, position, document.pmid)

    def delete(self, deletion: Deletion, position: int) -> None:
        """A deletion that stands before document number `position`."""
        self._row(PMID, deletion.pmid, 1, 0, position)

    def _row(self, rule: int, key: str, deletion: int, version: int, position: int, pmid: str | None = None) -> None:
        digest = xxhash.xxh3_128_intdigest(f"{rule}:{key}".encode(), seed=self.seed)
        article = xxhash.xxh3_64_intdigest(pmid.encode(), seed=self.seed) if pmid else 0
        high, low = digest >> 64, digest & (2**64 - 1)
        self.rows.append((high, low, article, rule, deletion, min(version, 2**32 - 1), position))

    def array(self) -> np.ndarray:
        """All records sorted by key."""
        records = np.array(self.rows, dtype=RECORD)
        return records[np.lexsort((records["position"], records["low"], records["high"]))]


def partition_count(input_bytes: int) -> int:
    """Partitions for an input: from its size alone, never from the number of workers."""
    return -(-max(1, input_bytes) // BYTES_A_PARTITION)


def partition_slice(records: np.ndarray, partition: int, partitions: int) -> np.ndarray:
    """The records of one unit whose keys lie in one of `partitions` equal ranges."""
    borders = [partition * 2**64 // partitions, (partition + 1) * 2**64 // partitions]
    first = np.searchsorted(records["high"], np.uint64(borders[0]))
    last = len(records) if partition + 1 == partitions else np.searchsorted(records["high"], np.uint64(borders[1]))
    return np.asarray(records[first:last])


def worse_documents(slices: Sequence[np.ndarray], sources: Sequence[int], full_text: Sequence[bool]) -> np.ndarray:
    """The (worse, better) pairs of one partition, PAIR rows sorted by the worse one.

    `slices[u]` are the records of unit u in this partition; `sources[u]` is the place of its source on the command
    line. Sources with the same place are one stream, in which later units revise and delete.
    """
    unit = np.repeat(np.arange(len(slices)), [len(part) for part in slices])
    records = np.concatenate([*slices, np.empty(0, RECORD)])
    source = np.asarray(sources, dtype=np.int64)[unit]
    abstract_only = ~np.asarray(full_text, dtype=bool)[unit]
    order = np.lexsort((
        -records["position"].astype(np.int64), -unit, source, -records["version"].astype(np.int64), abstract_only,
        records["low"], records["high"],
    ))  # fmt: skip
    records, unit, source = records[order], unit[order], source[order]
    deleted, deletions = _deleted(records, unit, source)
    living = ~deleted & (records["deletion"] == 0)
    pairs = [deletions]
    records, unit = records[living], unit[living]
    if len(records):
        begins = np.ones(len(records), dtype=bool)
        begins[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
        best = np.maximum.accumulate(np.where(begins, np.arange(len(records)), 0))
        pmid, best_pmid = records["pmid"], records["pmid"][best]  # 0: has none, or the key is no DOI
        worse = np.flatnonzero(~begins & ((pmid == 0) | (best_pmid == 0) | (pmid == best_pmid)))
        pairs.append(_pairs(records, unit, worse, best[worse], records["rule"][worse]))
    found = np.concatenate(pairs)
    return found[np.lexsort((found["rule"], found["worse_position"], found["worse_unit"]))]


def _deleted(records: np.ndarray, unit: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which records a later deletion of the same source and PMID removes: a mask and their pairs."""
    mask = np.zeros(len(records), dtype=bool)
    pairs = []
    for place in np.flatnonzero(records["deletion"] == 1):
        same = (records["high"] == records["high"][place]) & (records["low"] == records["low"][place])
        same &= (source == source[place]) & (records["deletion"] == 0)
        same &= (unit < unit[place]) | ((unit == unit[place]) & (records["position"] < records["position"][place]))
        same &= ~mask
        gone = np.flatnonzero(same)
        mask[gone] = True
        pairs.append(_pairs(records, unit, gone, np.full(len(gone), place), np.full(len(gone), DELETED)))
    return mask, np.concatenate([*pairs, np.empty(0, PAIR)])


def _pairs(
    records: np.ndarray, unit: np.ndarray, worse: np.ndarray, better: np.ndarray, rule: np.ndarray
) -> np.ndarray:
    pairs = np.empty(len(worse), PAIR)
    pairs["worse_unit"], pairs["worse_position"] = unit[worse], records["position"][worse]
    pairs["better_unit"], pairs["better_position"] = unit[better], records["position"][better]
    pairs["rule"] = rule
    return pairs
