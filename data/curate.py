"""`python -m data curate`: raw sources to clean, deduplicated, decontaminated documents with a train/validation split.

The output depends on the input and the settings alone: one worker or many, in one go or after a stop, the bytes are the
same. Nothing is sent anywhere.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data.claim import claimed, log
from data.clusters import write_clusters
from data.decontaminate import read_questions
from data.disk import check_space, estimate
from data.filters import Filters, parse_overrides
from data.language import CANDIDATES
from data.licences import parse_licenses
from data.readers import FORMATS
from data.readers.interface import ReadSettings
from data.readers.jsonl import FIELDS
from data.redact import Redactor, parse_kinds
from data.report import Report
from data.settings import parse_assignment
from data.shared import Shared, code_version
from data.steps import Steps, streams
from data.summary import Summary
from data.tokenizer import load_tokenizer
from data.units import Source, Unit, missing_releases, parse_source, plan
from data.workers import Workers, check_workers
from data.write_pass import Output, Written

SMALL_INPUT = 64 << 20
"""Bytes."""


@dataclass
class Settings:
    source: tuple[str, ...] = ()
    """What to read: KIND=PATH or KIND:NAME=PATH, a file or a folder, repeatable. KIND: medline, jats, s2orc,
    guidelines, wikipedia, jsonl, text. NAME (default KIND) is the output folder. Of two copies of a document the source
    named first is kept; sources of kind medline are one stream in the order of the release's file numbers: there the
    later record is kept."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks to keep out: NAME=PATH, repeatable, with the names that eval.py knows. Documents in which 80 % of a
    question's words stand in order go, and those whose PMID, PMCID or DOI a PubMedQA question has."""
    out: str = "corpus"
    """Folder of the documents and the report. Its work/ folder lets a stopped run go on and may be deleted with the
    whole folder only."""
    workers: int = 1
    """Processes of this machine; with mpiexec every rank is one worker instead. The output does not depend on it."""
    memory: int = 4096
    """MiB that a worker may take to look for duplicates: the search is cut into as many parts as that needs. The output
    does not depend on it."""
    tables: bool = True
    """Keep tables, as Markdown rows; without, only their captions and footnotes."""
    special_tokens: bool = False
    """Put citations, references to figures and tables, captions and formulas between MEDITRON's special tokens
    ([bib_ref] ... [/bib_ref]); then tokenise with --special-tokens too."""
    field: tuple[str, ...] = ()
    """For jsonl with other keys: NAME:FIELD=KEY, repeatable. NAME is the source's, FIELD ours (text, id, title, url,
    license, language, journal, date, pmid, pmcid, doi, types, mesh, version), KEY theirs, with dots into objects."""
    profile: Literal["biomedical", "none"] = "biomedical"
    """Rules by which documents are dropped; none keeps all but empty and very short ones."""
    filter: tuple[str, ...] = ()
    """RULE=NUMBER, RULE=off or RULE=on, repeatable: another threshold for a rule, no rule, or one that the profile
    lacks with its own."""
    languages: str = "en"
    """Languages kept, two-letter codes with commas, judged on the text itself; all keeps every language."""
    licenses: str = ""
    """Licence classes kept, with commas: cc0, cc-by, cc-by-sa, cc-by-nc, ..., unknown. Empty keeps all."""
    redact: str = ""
    """What to replace by a mark, with commas: email, phone, url, mrn. This is no de-identification."""
    near_duplicates: float = 0.7
    """Jaccard similarity of word 5-grams from which the lesser of two documents is dropped; 0 turns the search off."""
    validation: float = 0.03
    """Share of the documents put into the validation split, by a hash of each one's PMID, else DOI, else id."""
    guidelines_validation: float = 0.05
    """The same for sources of kind guidelines, which are few."""
    tokenizer: str | None = None
    """Tokenizer (as for `tokenize`) to count tokens with, on a sample of each source, for the report."""
    samples: bool = True
    """Show five texts of each source in the report, as read and as kept; leave it off for confidential texts."""
    seed: int = 0
    """Seed of the split's, the samples' and the duplicate search's hashes."""


def run(settings: Settings) -> int:
    """Curate; returns 0, or 2 when files were damaged (all else is finished then). Raises ValueError for what a user
    can mend."""
    sources = _sources(settings)
    benchmarks = [parse_assignment(text, "--benchmark") for text in settings.benchmark]
    rules = _rules(settings, sources)
    plans = [plan(source, place) for place, source in enumerate(sources)]
    units = [unit for planned in plans for unit in planned.units]
    shared = _shared(settings, benchmarks, *rules)
    _say_missing(units)
    out = shared.out
    check_space(out, estimate(units, near_duplicates=settings.near_duplicates > 0))
    with claimed(out, _identity(settings, sources, benchmarks, shared)):
        paths = [str(source.path.resolve()) for source in sources]
        log(out, f"settings {asdict(settings)}; paths {paths}")
        few = sum(unit.size for unit in units) < SMALL_INPUT  # then more processes than units only take time to start
        with Workers(shared, min(settings.workers, len(units)) if few else settings.workers) as workers:
            steps = Steps(units, streams(sources), shared, workers, settings.memory << 20)
            summaries = steps.read_and_clean()
            drops, compared = steps.find_duplicates()
            outputs, written = steps.write_survivors()
        names = [(output.source_name, output.key) for output in outputs]
        clusters = write_clusters(out, shared.units, names, drops.rows)
        report = Report(sources, plans, summaries, steps.parts, written, drops, shared)
        report.add_search(compared, clusters)
        _remove_stale(shared, summaries, outputs, written)
        log(out, f"finished: {report.total_documents()} documents")
        damage = _damage(sources, units, summaries)
        _print_drops_to_mend(units, summaries)
        if report.total_documents() == 0:
            reason = f"damaged: {damage}" if damage else "look at --source and its files"
            raise ValueError(
                f"nothing is left of {report.total_records()} records: {report.drops_in_words()}; {reason}"
            )
        if damage:
            print(f"error: damaged, left out, all else is done: {damage}", file=sys.stderr)
        report.write(asdict(settings))
    print(report.table())
    print(f"documents: {out}  report: {out / 'report.md'}")
    return 2 if damage else 0


def _sources(settings: Settings) -> list[Source]:
    if not settings.source:
        raise ValueError("no --source given; for example: --source medline=pubmed/ --source guidelines=guidelines/")
    check_workers(settings.workers)
    for flag, share in (
        ("--validation", settings.validation),
        ("--guidelines-validation", settings.guidelines_validation),
        ("--near-duplicates", settings.near_duplicates),
    ):
        if not 0 <= share < 1:
            raise ValueError(f"{flag} {share}: from 0 to below 1")
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"--seed {settings.seed}: from 0 to 2**32 - 1")
    if settings.memory < 64:
        raise ValueError(f"--memory {settings.memory}: at least 64 MiB")
    sources = [parse_source(text) for text in settings.source]
    names = [source.name for source in sources]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ValueError(f"two sources named {repeated}; tell them apart: --source KIND:NAME=PATH")
    return sources


Rules = tuple[dict[str, ReadSettings], Filters, Redactor]


def _rules(settings: Settings, sources: Sequence[Source]) -> Rules:
    """What is done with texts. ValueError for words that mean nothing, before a folder is looked into."""
    languages = _languages(settings.languages)
    fields = _fields(settings.field, sources)
    reading = {
        source.name: ReadSettings(settings.tables, settings.special_tokens, languages, fields.get(source.name, ()))
        for source in sources
    }
    filters = Filters.build(
        settings.profile, parse_overrides(settings.filter), languages, parse_licenses(settings.licenses)
    )
    return reading, filters, Redactor(parse_kinds(settings.redact))


def _shared(
    settings: Settings,
    benchmarks: Sequence[tuple[str, Path]],
    reading: dict[str, ReadSettings],
    filters: Filters,
    redactor: Redactor,
) -> Shared:
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    return Shared(
        out=Path(settings.out).expanduser(),
        code=code_version(),
        seed=settings.seed,
        validation={
            kind: settings.guidelines_validation if kind == "guidelines" else settings.validation for kind in FORMATS
        },
        reading=reading,
        filters=filters,
        redactor=redactor,
        questions=read_questions(benchmarks),
        near_duplicates=settings.near_duplicates,
        samples=settings.samples,
        tokenizer=tokenizer.path if tokenizer else None,
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
    )


def _languages(text: str) -> tuple[str, ...]:
    """The codes in `--languages en,fr`; () for all."""
    codes = tuple(code for part in text.split(",") if (code := part.strip().lower()))
    unknown = [code for code in codes if code not in CANDIDATES]
    if codes == ("all",):
        return ()
    if unknown or not codes:
        named = f"no language {', '.join(unknown)}" if unknown else "no language named"
        raise ValueError(f"--languages {text!r}: {named}; choose from {', '.join(CANDIDATES)}, or all alone")
    return codes


def _fields(assignments: Sequence[str], sources: Sequence[Source]) -> dict[str, tuple[tuple[str, str], ...]]:
    """`--field NAME:FIELD=KEY` by source name."""
    kinds = {source.name: source.kind for source in sources}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for text in assignments:
        declared, sign, key = text.partition("=")
        name, colon, field = declared.partition(":")
        if not (sign and colon and name and field and key):
            raise ValueError(f"--field {text!r}: expected NAME:FIELD=KEY, e.g. notes:text=body")
        if name not in kinds:
            raise ValueError(f"--field {text!r}: no source is named {name}; named are {', '.join(kinds)}")
        if kinds[name] != "jsonl":
            raise ValueError(f"--field {text!r}: {name} is of kind {kinds[name]}; only jsonl has fields to map")
        if field not in FIELDS:
            raise ValueError(f"--field {text!r}: no field {field}; choose from {', '.join(FIELDS)}")
        if field in dict(found.get(name, ())):
            raise ValueError(f"--field {text!r}: {field} of {name} is mapped twice; name one key")
        found[name] = (*found.get(name, ()), (field, key))
    return found


def _identity(
    settings: Settings, sources: Sequence[Source], benchmarks: Sequence[tuple[str, Path]], shared: Shared
) -> dict:
    """What makes two runs the same run: settings and sources by name. Changed or added files are seen by their
    content."""
    values = asdict(settings)
    for name in ("source", "benchmark", "out", "workers", "memory"):
        del values[name]
    values |= {"field": list(settings.field), "filter": list(settings.filter)}
    values["sources"] = [[source.kind, source.name, source.path.resolve().name] for source in sources]
    values["benchmarks"] = [[name, path.resolve().name] for name, path in benchmarks]
    values["tokenizer"] = shared.tokenizer_sha256
    return values


def _say_missing(units: Sequence[Unit]) -> None:
    missing = missing_releases(units)
    if missing:
        print(f"note: files of the release that are not there: {', '.join(missing)}", file=sys.stderr)


def _remove_stale(
    shared: Shared, summaries: Sequence[Summary], outputs: Sequence[Output], written: Sequence[Written]
) -> None:
    """Removes what an earlier run of this folder left for input that has changed since."""
    current = {
        shared.out / output.source_name / f"{split}-{output.place:05d}.jsonl.zst"
        for output, counts in zip(outputs, written, strict=True)
        for split in counts.documents
    }
    for name in {output.source_name for output in outputs}:
        for path in (shared.out / name).glob("*.jsonl.zst*"):
            if path not in current:
                path.unlink()
    keys = {summary.key for summary in summaries}
    for path in shared.units.iterdir():
        if path.name.partition(".")[0].partition("-")[0] not in keys:
            path.unlink()


def _print_drops_to_mend(units: Sequence[Unit], summaries: Sequence[Summary]) -> None:
    """Files that a user would want to convert: said where they are seen, not only in the report."""
    for unit, summary in zip(units, summaries, strict=True):
        for detail in summary.details:
            if detail.startswith(("unsupported-format", "no-text-in-pdf")):
                print(f"note: {unit.source_name}: {detail}", file=sys.stderr)


def _damage(sources: Sequence[Source], units: Sequence[Unit], summaries: Sequence[Summary]) -> str:
    """The first damaged file with its reason and how many more there are; "" when all are sound."""
    damaged = []
    for unit, summary in zip(units, summaries, strict=True):
        root = sources[unit.source].path
        for name, reason in sorted(summary.damaged.items()):
            damaged.append(f"{root / name if root.is_dir() else root.parent / name}: {reason}")
    more = "" if len(damaged) <= 1 else f" (and {len(damaged) - 1} more, listed in report.md)"
    return damaged[0] + more if damaged else ""
