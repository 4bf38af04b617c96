"""What a document is known by: its text and its identifiers, as records that are compared without the documents.

A record is a 35-byte row: the seeded 128-bit xxh3 of the key, and what decides between two documents that have it.
Besides documents there are verdicts (`Action`): a citation that the publisher deleted or revised, a retraction, an
article that a benchmark was made of. They reach documents that they arrived too late, or in another source, to stop.
"""

import re
import string
import unicodedata
from collections import Counter
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
VERDICTS = 4
"""Rules below this number are verdicts: the better place names no document that was kept."""
LARGEST = 2**32 - 1


class Action(IntEnum):
    """What a record says of its key. DELETED and REVISED reach what the same stream said before; RETRACTED and
    BENCHMARK reach every source, RETRACTED not what its own stream says later."""

    DOCUMENT = 0
    DELETED = 1
    REVISED = 2
    RETRACTED = 3
    BENCHMARK = 4


RECORD = np.dtype([
    ("high", "<u8"), ("low", "<u8"), ("pmid", "<u8"), ("rule", "u1"), ("action", "u1"), ("abstract_only", "u1"),
    ("version", "<u4"), ("position", "<u4"),
])  # fmt: skip
"""`pmid` is a hash of the document's PMID where the key is a DOI, else 0."""

_FORMS = {"pmid": re.compile(r"[1-9][0-9]*"), "pmcid": re.compile(r"PMC[0-9]+"), "doi": re.compile(r"10\..+")}
_DOI_ADDRESS = re.compile(r"^(?:https?://)?(?:dx\.)?doi\.org/|^doi:\s*", re.IGNORECASE)


def normalised(folded: str) -> bytes:
    """What two copies of a text share: of a folded text, every sign and digit without (ASCII's) white space."""
    return folded.encode().translate(None, string.whitespace.encode())


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

    def add(self, document: Document, normalised_text: bytes, position: int, *, abstract_only: bool) -> None:
        """The keys of the document that is number `position` of its unit."""
        merits = _merits(document, int(abstract_only))
        self._row(TEXT, normalised_text, Action.DOCUMENT, merits, position)
        self._identifiers(document, Action.DOCUMENT, merits, position)

    def judge(self, document: Document, action: Action, position: int) -> None:
        """A verdict on a document that was read but not kept, or is only named, before document number `position`; all
        its identifiers bear it."""
        self._identifiers(document, action, _merits(document, 1), position)

    def judge_pmid(self, document: Document, action: Action, position: int) -> None:
        """The same by the PMID alone."""
        if document.pmid:
            self._row(PMID, document.pmid.encode(), action, _merits(document, 1), position)

    def _identifiers(self, document: Document, action: Action, merits: tuple[int, int], position: int) -> None:
        if document.pmid:
            self._row(PMID, document.pmid.encode(), action, merits, position)
        if document.pmcid:
            self._row(PMCID, document.pmcid.encode(), action, merits, position)
        if document.doi:
            self._row(DOI, normalised_doi(document.doi).encode(), action, merits, position, document.pmid)

    def _row(
        self, rule: int, key: bytes, action: Action, merits: tuple[int, int], position: int, pmid: str | None = None
    ) -> None:
        digest = xxhash.xxh3_128_intdigest(b"%d:%b" % (rule, key), seed=self.seed)
        article = xxhash.xxh3_64_intdigest(pmid.encode(), seed=self.seed) if pmid else 0
        high, low = digest >> 64, digest & (2**64 - 1)
        self.rows.append((high, low, article, rule, int(action), *merits, position))

    def array(self) -> np.ndarray:
        """All records sorted by key."""
        records = np.array(self.rows, dtype=RECORD)
        return records[np.lexsort((records["position"], records["low"], records["high"]))]


def _merits(document: Document, abstract_only: int) -> tuple[int, int]:
    return abstract_only, bounded_version(document)


def bounded_version(document: Document) -> int:
    """The version as a table holds it: 0 where there is none."""
    return min(max(0, document.version or 0), LARGEST)
