"""Pass A, per unit: read, clean, drop by rule, keep benchmarks out; writes the unit's scratch files (`data.scratch`).

KEY, their name, is a hash of the unit's bytes, the settings and this code, so finished units are found again after a
stop and after new input. A unit of many documents leaves several parts, KEY-00000, KEY-00001, ...: memory does not grow
with the unit.
"""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from data.boilerplate import strip_boilerplate
from data.clean import clean_text
from data.counts import Counts, count
from data.decontaminate import Grams
from data.documents import Document
from data.identities import Action, Identities, drop_false_identifiers, normalised, normalised_doi
from data.language import detect
from data.minhash import Bands
from data.quality import function_word_share
from data.readers import find_format
from data.readers.interface import ABSTRACT, Deletion, Item, Retraction
from data.scratch import ScratchWriter, save_array
from data.shared import SPLITS, Shared
from data.special_tokens import spell, unmarked, without_marks
from data.summary import Summary, place
from data.tokenizer import Tokenizer, load_tokenizer
from data.unit_items import Restart, unit_items
from data.units import Unit, file_hashes
from data.words import Words, fold

PART_DOCUMENTS = 1 << 15
"""Documents of a part: a file of MEDLINE's has 30,000 citations at most. What is held of them until a part is written
takes about 100 MB."""
SUFFIXES = (".identities.npy", ".bands.npy", ".documents.npy", ".ids.npy", ".jsonl.zst")
"""Of a part's files, in the order in which they are written."""
TOKENS_COUNTED = 64
"""One document in so many is tokenised, and the first so many of a unit: tokens are then known to about 1 %."""
BATCH_RECORDS, BATCH_CHARACTERS = 64, 1 << 17
"""Read before the next step is taken with all of them: a call of numpy's costs what its arithmetic on an abstract
does."""
FULL_TEXT_WORDS = 1000
"""From which on a text counts as a full text, where its format does not say; abstracts have 250, seldom 600."""


def unit_key(unit: Unit, shared: Shared) -> tuple[str, dict[str, str]]:
    """The name of the unit's result, and the sha256 of each of its files."""
    hashes = file_hashes(unit)
    values = (unit.kind, unit.source_name, unit.start, sorted(hashes.items()), shared.reading[unit.source_name])
    return hashlib.sha256(f"{values!r}{shared.digest}".encode()).hexdigest(), hashes


def read_and_clean(unit: Unit, shared: Shared) -> tuple[Summary, bool]:
    """Pass A: the unit's summary, and whether a finished result was found and used again.

    A damaged file contributes nothing, so that curating again after it is repaired gives what a clean run gives.
    """
    key, hashes = unit_key(unit, shared)
    finished = _finished(key, shared)
    if finished:
        return finished, True
    damaged: dict[str, str] = {}
    while True:
        _remove_parts(Summary(key=key), shared)
        work = _UnitWork(unit, shared, Summary(key=key, files=hashes, damaged=damaged))
        try:
            work.run()
        except Restart:
            continue
        finally:
            work.part.scratch.abandon()
        return work.summary, False


def _finished(key: str, shared: Shared) -> Summary | None:
    """The summary of a unit that an earlier run has finished, with all files of its parts."""
    path = shared.units / f"{key}.json"
    if not path.exists():
        return None
    summary = Summary.load(path)
    files = (shared.units / f"{summary.part_key(part)}{suffix}" for part in range(summary.parts) for suffix in SUFFIXES)
    return summary if all(file.exists() for file in files) else None


def _remove_parts(summary: Summary, shared: Shared) -> None:
    """What an attempt that was stopped has left."""
    for part in itertools.count():
        files = [shared.units / f"{summary.part_key(part)}{suffix}" for suffix in SUFFIXES]
        if not any(file.exists() for file in files):
            return
        for file in files:
            file.unlink(missing_ok=True)


class _Part:
    """The scratch files of the next documents of a unit."""

    def __init__(self, key: str, shared: Shared):
        self.key = key
        self.folder = shared.units
        self.documents = 0
        self.identities = Identities(shared.seed)
        self.bands = Bands(shared.seed)
        self.scratch = ScratchWriter(self.folder / f"{key}.jsonl.zst")

    def close(self) -> None:
        """Finish the files."""
        save_array(self.folder / f"{self.key}.identities.npy", self.identities.array())
        save_array(self.folder / f"{self.key}.bands.npy", self.bands.array())
        self.scratch.close()


@dataclass(frozen=True, slots=True)
class _Cleaned:
    """A document with its text clean, that text before, and folded."""

    document: Document
    before: str
    folded: str


class _UnitWork:
    """One attempt at one unit."""

    def __init__(self, unit: Unit, shared: Shared, summary: Summary):
        self.unit = unit
        self.shared = shared
        self.summary = summary
        self.form = find_format(unit.kind)
        self.settings = shared.reading[unit.source_name]
        self.overlap = shared.questions.new_overlap()
        self.part = _Part(summary.part_key(0), shared)
        self.tokenizer = _tokenizer(shared.tokenizer, shared.tokenizer_sha256) if shared.tokenizer else None

    def run(self) -> None:
        """Every item that the readers find; the summary is written last: its presence says that all parts are whole."""
        batch: list[_Cleaned | Item] = []
        characters = 0
        for item in unit_items(self.unit, self.settings, self.summary):
            if isinstance(item, Document):
                item = self._clean(item)
                characters += len(item.folded)
            batch.append(item)
            if len(batch) == BATCH_RECORDS or characters >= BATCH_CHARACTERS:
                self._take(batch)
                batch.clear()
                characters = 0
        self._take(batch)
        self._end_part()
        self.summary.overlap = self.overlap.to_json()
        self.summary.save(self.shared.units / f"{self.summary.key}.json")

    def _take(self, batch: Sequence["_Cleaned | Item"]) -> None:
        """A batch, in order: what a verdict reaches depends on how many documents were before it."""
        cleaned = [item for item in batch if isinstance(item, _Cleaned)]
        words = Words([item.folded for item in cleaned])
        counts = count([item.document.text for item in cleaned], words)
        found = zip(range(len(words)), counts, self.shared.questions.find(words), strict=True)
        for item in batch:
            if isinstance(item, Deletion):
                citation = Document("", self.unit.source_name, None, "", pmid=item.pmid)
                self.part.identities.judge_pmid(citation, Action.DELETED, self.part.documents)
                continue
            if isinstance(item, Retraction):
                if self.shared.filters.drops_retracted:
                    drop_false_identifiers(item.about, self.summary.notes)
                    self.part.identities.judge(item.about, Action.RETRACTED, self.part.documents)
                continue
            self.summary.records += 1
            if isinstance(item, _Cleaned):
                self._document(item, words, *next(found))
            else:
                self.summary.drop(item.rule, item.detail)
                if item.about:
                    drop_false_identifiers(item.about, self.summary.notes)
                    self._judge(item.about)
            if self.part.documents == PART_DOCUMENTS:
                self._end_part()

    def _is_abstract(self, document: Document, words: int) -> bool:
        if self.form.full_text:
            return ABSTRACT in (document.types or ())
        return self.form.revises or words < FULL_TEXT_WORDS

    def _end_part(self) -> None:
        self.part.close()
        self.summary.parts += 1
        self.part = _Part(self.summary.part_key(self.summary.parts), self.shared)

    def _clean(self, document: Document) -> "_Cleaned":
        summary, redactor = self.summary, self.shared.redactor
        drop_false_identifiers(document, summary.notes)
        text, title, tokens = document.text, document.title or "", self.settings.special_tokens
        if tokens and not self.form.marks:
            text, title = without_marks(text, summary.notes), unmarked(title)
        before = unmarked(text) if tokens else text
        summary.characters += len(before)
        text = redactor.redact(strip_boilerplate(clean_text(text), summary.notes), summary.notes)
        title = redactor.redact(clean_text(title), summary.notes)
        document.text = spell(text) if tokens else text  # cleaning can join the halves of what must not be a token
        document.title = " ".join((spell(title) if tokens else title).split()) or None
        return _Cleaned(document, before, fold(document.text))

    def _document(self, cleaned: "_Cleaned", words: Words, number: int, counts: Counts, grams: Grams) -> None:
        """Text `number` of a batch's words."""
        summary, shared, document = self.summary, self.shared, cleaned.document
        rule = shared.filters.failed(document, counts)
        match = None if rule else shared.questions.examine(document, words.of(number), grams, self.overlap)
        if rule or match:
            detail = f"{document.id} ({match.benchmark} {match.question})" if match else None
            summary.drop(rule or match.rule, detail, len(cleaned.before))
            if match:
                summary.contaminated.append([document.id, *match])
            self._judge(document)
            return
        if shared.near_duplicates:
            self.part.bands.add(words.phrases(number), self.part.documents)
        self._keep(cleaned, counts)

    def _judge(self, document: Document) -> None:
        """What a document that was read and not kept says of others with its identifiers, whatever rule dropped it."""
        identities, position = self.part.identities, self.part.documents
        if self.shared.filters.is_retracted(document):
            identities.judge(document, Action.RETRACTED, position)
        if document.pmid in self.shared.questions.pmids:
            identities.judge(document, Action.BENCHMARK, position)
        if self.form.revises:
            identities.judge_pmid(document, Action.REVISED, position)

    def _keep(self, cleaned: "_Cleaned", counts: Counts) -> None:
        summary, shared, part, document = self.summary, self.shared, self.part, cleaned.document
        position = part.documents
        share = shared.validation[self.unit.kind]
        document.split = split_of(document, share, shared.seed)
        abstract_only = self._is_abstract(document, counts.words)
        part.identities.add(document, normalised(cleaned.folded), position, abstract_only=abstract_only)
        year = (document.date or "")[:4]
        part.scratch.add(
            document,
            words=counts.words,
            year=int(year) if year.isdecimal() else 0,
            language=place(summary.languages, detect(document.text, function_word_share(counts)) or "unknown"),
            license=place(summary.licenses, document.license or "unknown"),
            split=SPLITS.index(document.split),
            abstract_only=abstract_only,
        )
        number = summary.documents
        part.documents += 1
        summary.documents += 1
        if shared.samples:
            summary.sample(document, summary.parts, position, cleaned.before, shared.seed)
        if self.tokenizer is not None and (number < TOKENS_COUNTED or number % TOKENS_COUNTED == 0):
            summary.token_sample[0] += len(document.text)
            summary.token_sample[1] += len(self.tokenizer.encode(document.text)) + 2  # BOS and EOS


@functools.cache
def _tokenizer(path: str, sha256: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise ValueError(f"{path}: changed while it was in use")
    return tokenizer


def split_of(document: Document, validation_share: float, seed: int) -> str:
    """`train` or `validation` by a hash of pmid, else doi, else id: it never changes when other documents come or
    go."""
    identity = document.pmid or (normalised_doi(document.doi) if document.doi else f"{document.source}:{document.id}")
    return SPLITS[xxhash.xxh3_64_intdigest(f"split:{identity}".encode(), seed=seed) < validation_share * 2**64]
