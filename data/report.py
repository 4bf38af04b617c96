"""The account of a curation: what came in, what was dropped by which rule, what came out. `report.json` and
`report.md`."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.decontaminate import SHORTEST_QUESTION, Questions
from data.passes import DETAILS_KEPT, SPLITS, Summary
from data.units import Unit


@dataclass
class SourceReport:
    """The account of one source. `records` = sum of `dropped` + sum of `documents`."""

    kind: str
    files: int = 0
    bytes: int = 0
    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    kept_instead: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


class Report:
    """Gathers the counts of all units; the same input gives the same bytes."""

    def __init__(self, sources: Sequence[tuple[str, str]], questions: Questions):
        """`sources`: (kind, name) in the order of the command line."""
        self.sources = {name: SourceReport(kind) for kind, name in sources}
        self.questions = questions

    def add_plan(self, name: str, units: Sequence[Unit], passed_over: Counter[str]) -> None:
        """The input of one source, and how many files of other suffixes lay beside it."""
        source = self.sources[name]
        source.files = len({file.name for unit in units for file in unit.files})
        source.bytes = sum(unit.size for unit in units)
        source.passed_over = passed_over

    def add_summary(self, name: str, summary: Summary) -> None:
        """What pass A did to one unit."""
        source = self.sources[name]
        source.records += summary.records
        source.dropped += summary.dropped
        source.notes += summary.notes
        source.contaminated += summary.contaminated
        source.details = (source.details + summary.details)[:DETAILS_KEPT]
        source.damaged |= summary.damaged

    def add_output(self, name: str, counts: dict[str, Counter[str]], source_of: Callable[[str], str]) -> None:
        """What pass C wrote of one unit; `source_of` names the source of a unit number."""
        source = self.sources[name]
        source.dropped += counts["dropped"]
        source.documents += counts["documents"]
        source.characters += counts["characters"]
        for unit, count in counts["better"].items():
            source.kept_instead[source_of(unit)] += count

    def total_documents(self) -> int:
        """Documents written, all sources and splits."""
        return sum(source.documents.total() for source in self.sources.values())

    def total_records(self) -> int:
        """Records read, all sources."""
        return sum(source.records for source in self.sources.values())

    def drops_in_words(self) -> str:
        """The dropping rules and their counts over all sources, for a message."""
        total: Counter[str] = Counter()
        for source in self.sources.values():
            total += source.dropped
            total["damaged files"] += len(source.damaged)
        return ", ".join(f"{count} {rule}" for rule, count in sorted((+total).items())) or "the files hold no records"

    def table(self) -> str:
        """The Markdown table of all sources."""
        lines = [
            "| source | kind | records in | dropped | documents out | validation | characters out |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, source in self.sources.items():
            counts = (source.records, source.dropped.total(), source.documents.total())
            counts += (source.documents["validation"], source.characters.total())
            lines.append(f"| {name} | {source.kind} | " + " | ".join(f"{count:,}" for count in counts) + " |")
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """`report.md`, then `report.json`, whose presence means that the output is whole."""
        (out / "report.md").write_text(self._markdown(), encoding="utf-8")
        values = {
            "sources": {name: _plain(source) for name, source in self.sources.items()},
            "benchmarks": {
                name: {
                    "questions_checked": self.questions.checked[name],
                    "questions_too_short_to_check": self.questions.too_short[name],
                    "documents_dropped": sum(source.contaminated[name] for source in self.sources.values()),
                }
                for name in self._benchmarks()
            },
        }
        temporary = out / "work" / "report.json"
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(out / "report.json")

    def _benchmarks(self) -> list[str]:
        return sorted(self.questions.checked | self.questions.too_short)

    def _markdown(self) -> str:
        parts = ["# Curation report", self.table()]
        for name, source in self.sources.items():
            parts.append(f"## {name}")
            parts.append(f"{source.files:,} files, {source.bytes:,} bytes.")
            for title, counts in (
                ("Dropped, by rule", source.dropped),
                ("Of the duplicates dropped, the copy kept is in", source.kept_instead),
                ("Files of other kinds passed over, by suffix", source.passed_over),
                ("Left out or changed inside documents", source.notes),
            ):
                if counts:
                    parts.append(_list(title, [f"{key}: {count:,}" for key, count in sorted(counts.items())]))
            if source.details:
                parts.append(_list(f"The first {len(source.details)} drops that name their place", source.details))
            if source.damaged:
                lines = [f"{file}: {reason}" for file, reason in sorted(source.damaged.items())]
                parts.append(_list("Damaged files, of which nothing was used", lines))
        benchmarks = []
        for name in self._benchmarks():
            dropped = sum(source.contaminated[name] for source in self.sources.values())
            benchmarks.append(
                f"{name}: {self.questions.checked[name]:,} questions checked, {dropped:,} documents dropped; "
                f"{self.questions.too_short[name]:,} questions of under {SHORTEST_QUESTION} words not checked"
            )
        if benchmarks:
            parts += ["## Benchmarks kept out", _list("Whole questions looked for", benchmarks)]
        return "\n\n".join(parts) + "\n"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)


def _plain(source: SourceReport) -> dict:
    """For JSON: every counter with sorted keys."""
    values = {
        key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in vars(source).items()
    }
    for split in SPLITS:
        values["documents"].setdefault(split, 0)
        values["characters"].setdefault(split, 0)
    return values
