"""The account of a curation, gathered from what its passes counted: per source what came in, went and came out."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data.contamination import Contamination
from data.deduplicate import Drops
from data.identities import RULES as DUPLICATE_RULES
from data.licences import license_class
from data.readers import find_format
from data.report_rules import RuleLine, rule_lines
from data.shared import Shared
from data.summary import DETAILS_KEPT, SAMPLES, Part, Sample, Summary
from data.units import Plan, Source, missing_releases
from data.write_pass import LENGTH_EDGES, Written


@dataclass
class SourceReport:
    """The account of one source. `records` = sum of `dropped` + sum of `documents`; `documents`, `characters` and
    `words` are those written, by split; `lengths` counts documents by the power of two at or below their characters."""

    kind: str
    files: int = 0
    bytes: int = 0
    records: int = 0
    characters_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_characters: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    kept_instead: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    token_sample: list[int] = field(default_factory=lambda: [0, 0])
    """Characters and tokens of the documents that the tokenizer was tried on."""
    samples: list[Sample] = field(default_factory=list)

    def tokens(self, characters: int) -> int | None:
        """Tokens of so many characters of this source, estimated from its sample; None without one."""
        sampled, tokens = self.token_sample
        return round(characters * tokens / sampled) if sampled else None

    def license_classes(self) -> Counter[str]:
        """Documents written by licence class."""
        classes: Counter[str] = Counter()
        for name, count in self.licenses.items():
            classes[license_class(None if name == "unknown" else name)] += count
        return classes

    def cleaned_away(self) -> int:
        """Characters that cleaning and redaction took from the documents that passed the filters."""
        before = self.characters_read - sum(
            count for rule, count in self.dropped_characters.items() if rule not in DUPLICATE_RULES
        )
        after = sum(count for rule, count in self.dropped_characters.items() if rule in DUPLICATE_RULES)
        return before - after - self.characters.total()


class Account:
    """Gathers the counts of all units."""

    def __init__(
        self,
        sources: Sequence[Source],
        plans: Sequence[Plan],
        summaries: Sequence[Summary],
        parts: Sequence[Part],
        written: Sequence[Written],
        drops: Drops,
        shared: Shared,
    ):
        """`summaries` of all units, `written` of all their `parts`, in input order."""
        self.shared = shared
        self.plans = plans
        self.summaries = summaries
        self.sources = {source.name: SourceReport(source.kind) for source in sources}
        units = [unit for planned in plans for unit in planned.units]
        self.missing = missing_releases(units)
        names = [unit.source_name for unit in units]
        for source, planned in zip(sources, plans, strict=True):
            self._add_plan(source.name, planned)
        for name, summary in zip(names, summaries, strict=True):
            self._add_summary(name, summary)
        part_names = [names[part.unit] for part in parts]
        for part, output in zip(parts, written, strict=True):
            self._add_output(names[part.unit], output, summaries[part.unit], part_names)
        for name, source in self.sources.items():
            assert source.records == source.dropped.total() + source.documents.total(), f"{name}: records got lost"
        self._choose_samples(names, parts, drops)
        self.contamination = Contamination(names, summaries, parts, drops.rows, shared)
        self.compared = self.clusters = 0

    def add_search(self, compared: int, clusters: int) -> None:
        """How many candidate pairs of the duplicate search were compared, and how many documents have duplicates."""
        self.compared, self.clusters = compared, clusters

    def _add_plan(self, name: str, planned: Plan) -> None:
        source = self.sources[name]
        source.files = len({file.name for unit in planned.units for file in unit.files})
        source.bytes = sum(unit.size for unit in planned.units)
        source.passed_over = planned.passed_over
        source.missing = self.missing if find_format(source.kind).revises else []

    def _add_summary(self, name: str, summary: Summary) -> None:
        source = self.sources[name]
        source.records += summary.records
        source.characters_read += summary.characters
        source.dropped += summary.dropped
        source.dropped_characters += summary.dropped_characters
        source.notes += summary.notes
        source.details = (source.details + summary.details)[:DETAILS_KEPT]
        source.damaged |= summary.damaged
        source.token_sample = [
            ours + more for ours, more in zip(source.token_sample, summary.token_sample, strict=True)
        ]

    def _add_output(self, name: str, written: Written, summary: Summary, names: Sequence[str]) -> None:
        source = self.sources[name]
        for counter in ("documents", "characters", "words", "dropped", "dropped_characters", "lengths", "years"):
            getattr(source, counter).update(getattr(written, counter))
        for unit, count in written.better.items():
            source.kept_instead[names[unit]] += count
        for place, count in written.languages.items():
            source.languages[summary.languages[place]] += count
        for place, count in written.licenses.items():
            source.licenses[summary.licenses[place]] += count

    def _choose_samples(self, names: Sequence[str], parts: Sequence[Part], drops: Drops) -> None:
        """Of each source the documents of the smallest hash, without those that turned out duplicates."""
        number = {part.key: number for number, part in enumerate(parts)}
        for name, summary in zip(names, self.summaries, strict=True):
            kept = [
                sample
                for sample in summary.samples
                if sample.position not in drops.of(number[summary.part_key(sample.part)])["worse_position"]
            ]
            source = self.sources[name]
            source.samples = heapq.nsmallest(SAMPLES, [*source.samples, *kept], key=lambda sample: sample.hash)

    def total_documents(self) -> int:
        """Documents written, all sources and splits."""
        return sum(source.documents.total() for source in self.sources.values())

    def total_records(self) -> int:
        """Records read, all sources."""
        return sum(source.records for source in self.sources.values())

    def drops(self) -> Counter[str]:
        """Records dropped by rule, all sources."""
        return sum((source.dropped for source in self.sources.values()), Counter())

    def drops_in_words(self) -> str:
        """The dropping rules and their counts over all sources, for a message."""
        total = self.drops()
        total["damaged files"] = sum(len(source.damaged) for source in self.sources.values())
        return ", ".join(f"{count} {rule}" for rule, count in sorted((+total).items())) or "the files hold no records"

    def rules(self) -> list[RuleLine]:
        """Every rule that was applied, in the order of the passes, and the reading rules that met something."""
        return rule_lines(self.shared, self.drops())


def octave(number: int) -> str:
    """The characters of the documents counted under `number` of `SourceReport.lengths`."""
    return f"{LENGTH_EDGES[number]}-{2 * LENGTH_EDGES[number] - 1}"


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The highest counts first, equal ones by name: never in the order in which they were met."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
