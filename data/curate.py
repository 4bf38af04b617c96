"""`python -m data curate`: raw sources to clean, deduplicated, decontaminated documents with a train/validation split.

The output depends on the input and the settings alone: one worker or many, in one go or after a stop, the bytes are the
same.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data import deduplicate, passes
from data.decontaminate import read_questions
from data.documents import temporary_name
from data.lock import locked
from data.passes import Output, Partition, Shared, Summary
from data.readers import FORMATS, find_format
from data.report import Report
from data.settings import parse_assignment
from data.units import Source, Unit, parse_source, plan
from data.workers import Result, Workers


@dataclass
class Settings:
    source: tuple[str, ...] = ()
    """What to read: KIND=PATH or KIND:NAME=PATH, a file or a folder, repeatable. KIND: medline, jats, guidelines,
    wikipedia, jsonl, text. NAME (default KIND) is the output folder. Of two copies of a document the source named
    first is kept; sources of kind medline are one stream (base files, then updates): there the later copy is kept."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks to keep out: NAME=PATH, repeatable, with the names that eval.py knows. Documents with a whole
    question of 8 or more words in them go, and those whose PMID a PubMedQA question has."""
    out: str = "corpus"
    """Folder of the documents and the report. Its work/ folder lets a stopped run go on and may be deleted with the
    whole folder only."""
    workers: int = 1
    """Processes. The output does not depend on it."""
    min_characters: int = 50
    """Shortest text kept, in characters: below are headings, stubs and leftovers of conversion."""
    validation: float = 0.03
    """Share of the documents put into the validation split, by a hash of each one's PMID, else DOI, else id."""
    guidelines_validation: float = 0.05
    """The same for sources of kind guidelines, which are few."""
    seed: int = 0
    """Seed of the split's and the duplicate search's hashes."""


def run(settings: Settings) -> int:
    """Curate; returns 0, or 2 when files were damaged (all else is finished then). Raises ValueError for what a user
    can mend."""
    sources = _sources(settings)
    planned = [plan(source, place) for place, source in enumerate(sources)]
    units = [unit for source_units, _ in planned for unit in source_units]
    benchmarks = [parse_assignment(text, "--benchmark") for text in settings.benchmark]
    questions = read_questions(benchmarks)
    shares = {kind: settings.guidelines_validation if kind == "guidelines" else settings.validation for kind in FORMATS}
    out = Path(settings.out).expanduser()
    shared = Shared(out, settings.min_characters, settings.seed, shares, questions)
    with _claimed(out, _identity(settings, sources, benchmarks)):
        paths = [str(source.path.resolve()) for source in sources]
        _log(out, f"settings {asdict(settings)}; paths {paths}")
        report = Report([(source.kind, source.name) for source in sources], questions)
        for source, (source_units, passed_over) in zip(sources, planned, strict=True):
            report.add_plan(source.name, source_units, passed_over)
        with Workers(shared, min(settings.workers, len(units))) as workers:
            summaries = _pass_a(units, workers, out)
            tasks, outputs = _passes_b_and_c(units, summaries, workers)
        for unit, summary in zip(units, summaries, strict=True):
            report.add_summary(unit.source_name, summary)
        for unit, counts in zip(units, outputs, strict=True):
            report.add_output(unit.source_name, counts, lambda number: units[int(number)].source_name)
        _remove_stale(shared, tasks, outputs)
        _log(out, f"finished: {report.total_documents()} documents")
        damage = _damage(sources, units, summaries)
        _print_unsupported(units, summaries)
        if report.total_documents() == 0:
            drops = report.drops_in_words()
            reason = f"damaged: {damage}" if damage else "look at --source and its files"
            raise ValueError(f"nothing is left of {report.total_records()} records: {drops}; {reason}")
        if damage:
            print(f"error: damaged, left out, all else is done: {damage}", file=sys.stderr)
        report.write(out)
    print(report.table())
    print(f"documents: {out}  report: {out / 'report.md'}")
    return 2 if damage else 0


def _sources(settings: Settings) -> list[Source]:
    if not settings.source:
        raise ValueError("no --source given; for example: --source medline=pubmed/ --source guidelines=guidelines/")
    if settings.workers < 1:
        raise ValueError(f"--workers {settings.workers}: at least 1")
    for flag, share in (
        ("--validation", settings.validation),
        ("--guidelines-validation", settings.guidelines_validation),
    ):
        if not 0 <= share < 1:
            raise ValueError(f"{flag} {share}: a share from 0 to below 1")
    if settings.seed < 0:
        raise ValueError(f"--seed {settings.seed}: 0 or more")
    sources = [parse_source(text) for text in settings.source]
    names = [source.name for source in sources]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ValueError(f"two sources named {repeated}; tell them apart: --source KIND:NAME=PATH")
    return sources


def _identity(settings: Settings, sources: Sequence[Source], benchmarks: Sequence[tuple[str, Path]]) -> dict:
    """What makes two runs the same run: settings and sources by name. Changed or added files are seen by their
    content."""
    values = asdict(settings)
    for name in ("source", "benchmark", "out", "workers"):
        del values[name]
    values["sources"] = [[source.kind, source.name, source.path.resolve().name] for source in sources]
    values["benchmarks"] = [[name, path.resolve().name] for name, path in benchmarks]
    return values


@contextmanager
def _claimed(out: Path, identity: dict) -> Iterator[None]:
    """The output folder made ready and locked. ValueError when it holds another run, other files, or is in use."""
    record = out / "run.json"
    if record.exists():
        try:
            held = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{record}: not readable ({error}); delete --out {out} and curate again") from error
        differing = [key for key in identity if held.get(key) != identity[key]]
        if differing:
            key = differing[0]
            change = f"{key} was {json.dumps(held.get(key))}, now {json.dumps(identity[key])}"
            raise ValueError(f"--out {out} holds a different run ({change}); choose another --out or delete it")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / "work" / "lock").exists():
        raise ValueError(f"--out {out} exists and is no curation folder; choose another --out")
    (out / "work" / "units").mkdir(parents=True, exist_ok=True)
    (out / "work").chmod(0o700)  # raw text may be confidential, also while it is on its way
    with locked(out / "work" / "lock", out, "curation"):
        for leftover in (out / "work").rglob("*.part-*"):
            leftover.unlink()
        temporary = temporary_name(out / "work" / "run.json")
        temporary.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(record)
        (out / "report.json").unlink(missing_ok=True)  # its presence means that the output is whole
        yield


def _log(out: Path, message: str) -> None:
    """A line in `run.log`, the one file that may hold times and absolute paths."""
    with (out / "run.log").open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")


def _pass_a(units: Sequence[Unit], workers: Workers, out: Path) -> list[Summary]:
    summaries: list[Summary | None] = [None] * len(units)
    started = time.monotonic()
    reused = 0
    with tqdm(
        total=sum(unit.size for unit in units), unit="B", unit_scale=True, desc="read and clean", file=sys.stderr
    ) as bar:
        for number, (summary, was_there) in workers.run(passes.read_and_clean, units):
            summaries[number] = summary
            reused += was_there
            bar.update(units[number].size)
            bar.set_postfix(records=sum(done.records for done in summaries if done is not None), refresh=False)
    seconds = time.monotonic() - started
    _log(out, f"pass A: {len(units)} units, {reused} of them finished before, {seconds:.1f} s")
    return summaries


def _passes_b_and_c(
    units: Sequence[Unit], summaries: Sequence[Summary], workers: Workers
) -> tuple[list[Output], list[dict]]:
    count = deduplicate.partition_count(sum(unit.size for unit in units))
    keys = tuple(summary.key for summary in summaries)
    # an update revises and deletes what the base files said, also where the two are named as two sources
    medline = min((unit.source for unit in units if unit.kind == "medline"), default=0)
    sources = tuple(medline if unit.kind == "medline" else unit.source for unit in units)
    full_text = tuple(find_format(unit.kind).full_text for unit in units)
    partitions = [Partition(number, count, keys, sources, full_text) for number in range(count)]
    for _ in _bar("find duplicates", workers.run(passes.find_duplicates, partitions), count):
        pass
    places: Counter[int] = Counter()
    tasks = []
    for number, unit in enumerate(units):
        tasks.append(Output(number, places[unit.source], keys[number], unit.source_name, count))
        places[unit.source] += 1
    outputs: list[dict] = [{}] * len(units)
    for number, counts in _bar("write documents", workers.run(passes.write_survivors, tasks), len(tasks)):
        outputs[number] = counts
    return tasks, outputs


def _bar(description: str, results: Iterator[tuple[int, Result]], total: int) -> Iterator[tuple[int, Result]]:
    return tqdm(results, total=total, desc=description, file=sys.stderr)


def _remove_stale(shared: Shared, tasks: Sequence[Output], outputs: Sequence[dict]) -> None:
    """Removes what an earlier run of this folder left for input that has changed since."""
    current = {
        shared.out / task.source_name / f"{split}-{task.place:05d}.jsonl.zst"
        for task, counts in zip(tasks, outputs, strict=True)
        for split in counts["documents"]
    }
    for name in {task.source_name for task in tasks}:
        for path in (shared.out / name).glob("*.jsonl.zst*"):
            if path not in current:
                path.unlink()
    keys = {task.key for task in tasks}
    for path in (shared.work / "units").iterdir():
        if path.name.partition(".")[0] not in keys:
            path.unlink()


def _print_unsupported(units: Sequence[Unit], summaries: Sequence[Summary]) -> None:
    for unit, summary in zip(units, summaries, strict=True):
        for detail in summary.details:
            if detail.startswith("unsupported-format"):
                print(f"note: {unit.source_name}: {detail}", file=sys.stderr)


def _damage(sources: Sequence[Source], units: Sequence[Unit], summaries: Sequence[Summary]) -> str:
    """The first damaged file with its reason and how many more there are; "" when all are sound."""
    damaged = []
    for unit, summary in zip(units, summaries, strict=True):
        root = sources[unit.source].path
        for name, reason in summary.damaged.items():
            damaged.append(f"{root / name if root.is_dir() else root.parent / name}: {reason}")
    more = "" if len(damaged) <= 1 else f" (and {len(damaged) - 1} more, listed in report.md)"
    return damaged[0] + more if damaged else ""
