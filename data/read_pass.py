"""Pass A, per unit: read, clean, drop by rule, keep benchmarks out; writes the unit's scratch files (`data.scratch`).

KEY, their name, is a hash of the unit's bytes, the settings and this code, so finished units are found again after a
stop and after new input. A unit of many documents leaves several parts, KEY-00000, KEY-00001, ...: memory does not grow
with the unit.
"""

import functools
import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import xxhash

from data.boilerplate import strip_boilerplate
from data.clean import clean_text
from data.deduplicate import Action, Identities, drop_false_identifiers, normalised, normalised_doi
from data.documents import Document
from data.files import DamagedFile, is_documentation, open_input, open_range
from data.language import detect
from data.medline_files import check_md5
from data.minhash import Bands
from data.readers import find_format
from data.readers.interface import ABSTRACT, Deletion, Drop, Format, InputFile, ReadSettings
from data.scratch import ScratchWriter, save_array
from data.shared import SPLITS, Shared
from data.summary import Summary, place
from data.tokenizer import Tokenizer, load_tokenizer
from data.units import Unit, UnitFile, file_hashes, is_archive
from data.words import fold, phrase_hashes, split_words, word_hashes

PART_DOCUMENTS = 1 << 15
"""Documents of a part: a file of MEDLINE's has 30,000 citations at most. What is held of them until a part is written
takes about 100 MB."""
TOKENS_COUNTED = 64
"""One document in so many is tokenised, and the first so many of a unit: tokens are then known to about 1 %."""


_VERDICTS = {"retracted": Action.RETRACTED, "benchmark-pmid": Action.BENCHMARK}
"""Rules that say something of the article wherever else it stands."""


class _Restart(Exception):
    """A file turned out damaged after some of its documents were taken: the unit starts again without it."""


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
    if (shared.units / f"{key}.json").exists():
        return Summary.load(shared.units / f"{key}.json"), True
    damaged: dict[str, str] = {}
    while True:
        for leftover in shared.units.glob(f"{key}-*"):
            leftover.unlink()
        work = _UnitWork(unit, shared, Summary(key=key, files=hashes, damaged=damaged))
        try:
            work.run()
        except _Restart:
            continue
        finally:
            work.part.scratch.abandon()
        return work.summary, False


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
        for item in _items(self.unit, self.settings, self.summary):
            if isinstance(item, Deletion):
                self._judge_pmid(item.pmid, Action.DELETED)
                continue
            self.summary.records += 1
            if isinstance(item, Drop):
                self.summary.drop(item.rule, item.detail)
                if item.pmid and self.form.revises:
                    self._judge_pmid(item.pmid, Action.REVISED)
            else:
                self._document(item)
            if self.part.documents == PART_DOCUMENTS:
                self._end_part()
        self._end_part()
        self.summary.overlap = self.overlap.to_json()
        self.summary.save(self.shared.units / f"{self.summary.key}.json")

    def _end_part(self) -> None:
        self.part.close()
        self.summary.parts += 1
        self.part = _Part(self.summary.part_key(self.summary.parts), self.shared)

    def _judge_pmid(self, pmid: str, action: Action) -> None:
        self.part.identities.judge_pmid(pmid, action, self.part.documents)

    def _document(self, document: Document) -> None:
        summary, shared = self.summary, self.shared
        drop_false_identifiers(document, summary.notes)
        before = document.text
        summary.characters += len(before)
        text = shared.redactor.redact(strip_boilerplate(clean_text(before), summary.notes), summary.notes)
        document.text = text
        title = shared.redactor.redact(clean_text(document.title), summary.notes) if document.title else ""
        document.title = " ".join(title.split()) or None
        folded = fold(text)
        words = split_words(folded)
        hashes = word_hashes(words)
        phrases = phrase_hashes(hashes)
        rule = shared.filters.failed(document, words, phrases)
        match = None if rule else shared.questions.examine(document, words, hashes, self.overlap)
        if rule or match:
            detail = f"{document.id} ({match.benchmark} {match.question})" if match else None
            summary.drop(rule or match.rule, detail, len(before))
            if match:
                summary.contaminated.append([document.id, *match])
            self._judge(document, rule or match.rule)
            return
        self._keep(document, words, phrases, normalised(folded), before)

    def _judge(self, document: Document, rule: str) -> None:
        """What a dropped document says of others with its identifiers."""
        if rule in _VERDICTS:
            self.part.identities.judge(document, _VERDICTS[rule], self.part.documents)
        if document.pmid and self.form.revises:
            self._judge_pmid(document.pmid, Action.REVISED)

    def _keep(
        self, document: Document, words: list[str], phrases: np.ndarray, normalised_text: str, before: str
    ) -> None:
        summary, shared, part = self.summary, self.shared, self.part
        position = part.documents
        share = shared.validation[self.unit.kind]
        document.split = split_of(document, share, shared.seed)
        abstract_only = not self.form.full_text or ABSTRACT in (document.types or ())
        part.identities.add(document, normalised_text, position, abstract_only=abstract_only)
        if shared.near_duplicates:
            part.bands.add(phrases, position)
        year = (document.date or "")[:4]
        part.scratch.add(
            document,
            words=len(words),
            year=int(year) if year.isdecimal() else 0,
            language=place(summary.languages, detect(document.text, words) or "unknown"),
            license=place(summary.licenses, document.license or "unknown"),
            split=SPLITS.index(document.split),
            abstract_only=abstract_only,
        )
        number = summary.documents
        part.documents += 1
        summary.documents += 1
        if shared.samples:
            summary.sample(document, summary.parts, position, before, shared.seed)
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


def _items(unit: Unit, settings: ReadSettings, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    """Everything the readers find in a unit. Damage is noted in `summary.damaged`; raises _Restart when items must
    be taken back."""
    for file in unit.files:
        if file.name in summary.damaged:
            continue
        taken = False
        try:
            for item in _file_items(unit, file, settings, summary):
                taken = True
                yield item
        except DamagedFile as error:
            summary.damaged[file.name] = error.reason
            if taken:
                raise _Restart from error


def _file_items(
    unit: Unit, file: UnitFile, settings: ReadSettings, summary: Summary
) -> Iterator[Document | Drop | Deletion]:
    check_md5(file.path, file.name)
    if is_archive(file.name):
        yield from _archive_items(unit, file, settings, summary)
        return
    if unit.end is None:
        stream, offset = open_input(file.path, file.name), 0
    else:
        stream, offset = open_range(file.path, file.name, unit.start, unit.end)
    form = find_format(unit.kind)
    opened = InputFile(stream, file.name, unit.source_name, offset, summary.notes, settings)
    companion = form.companion(file.path) if form.companion else None
    with ExitStack() as stack:
        stack.enter_context(stream)
        if companion:
            other = stack.enter_context(open_input(companion, companion.name))
            opened.companion = InputFile(
                other, companion.name, unit.source_name, notes=summary.notes, settings=settings
            )
        yield from _read(form, opened)


def _read(form: Format, file: InputFile) -> Iterator[Document | Drop | Deletion]:
    """What the reader finds. A value that it did not foresee is damage of this file, not the end of the run."""
    try:
        yield from form.read(file)
    except DamagedFile:
        raise
    except ValueError as error:
        raise DamagedFile(file.name, f"cannot be read ({error})") from error


def _archive_items(
    unit: Unit, file: UnitFile, settings: ReadSettings, summary: Summary
) -> Iterator[Document | Drop | Deletion]:
    """The readable members of a tar archive, in its order, in one pass. A damaged member is noted, the others are
    read."""
    form = find_format(unit.kind)
    with open_input(file.path, file.name) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if not member.isfile() or is_documentation(member.name.rpartition("/")[2]):
                        continue
                    if form.pattern.fullmatch(member.name.lower()) is None:
                        continue
                    place_of = f"{file.name}/{member.name}"
                    if place_of not in summary.damaged:
                        opened = InputFile(
                            archive.extractfile(member),
                            place_of,
                            unit.source_name,
                            notes=summary.notes,
                            settings=settings,
                        )
                        yield from _member_items(form, opened, summary)
        except tarfile.TarError as error:
            raise DamagedFile(file.name, f"broken archive ({error})") from error


def _member_items(form: Format, member: InputFile, summary: Summary) -> Iterator[Document | Drop | Deletion]:
    taken = False
    try:
        for item in _read(form, member):
            taken = True
            yield item
    except DamagedFile as error:
        if error.name != member.name:  # the archive itself
            raise
        summary.damaged[member.name] = error.reason
        if taken:
            raise _Restart from error
