"""The passes of a curation one after another, each over all its tasks."""

from collections import Counter
from collections.abc import Callable, Sequence

from data import duplicate_pass, read_pass, write_pass
from data.claim import log
from data.duplicate_pass import Partition, Units, Verification
from data.progress import Progress
from data.readers import find_format
from data.shared import Shared
from data.summary import Part, Summary
from data.units import Source, Unit
from data.workers import Workers
from data.write_pass import Output, Written


def streams(sources: Sequence[Source]) -> list[int]:
    """The place of each source; those of a kind that revises share that of the first: they are one stream."""
    first = {source.kind: place for place, source in reversed(list(enumerate(sources)))}
    return [first[source.kind] if find_format(source.kind).revises else place for place, source in enumerate(sources)]


class Steps:
    """The three passes, to be called in their order.

    `units` in input order, `streams` by source place, `memory` in bytes for a partition of the duplicate search.
    """

    def __init__(self, units: Sequence[Unit], streams: Sequence[int], shared: Shared, workers: Workers, memory: int):
        self.units = units
        self.streams = streams
        self.shared = shared
        self.workers = workers
        self.memory = memory
        self.summaries: list[Summary] = []
        self.parts: list[Part] = []

    def read_and_clean(self) -> list[Summary]:
        """Pass A over all units; the summaries in their order."""
        found: dict[int, Summary] = {}
        reused = 0
        with Progress("read and clean", sum(unit.size for unit in self.units)) as progress:
            for number, (summary, again) in self.workers.run(read_pass.read_and_clean, self.units):
                found[number] = summary
                reused += again
                progress.add(summary.records, self.units[number].size, resumed=again)
        log(self.shared.out, f"read {len(self.units)} units, {reused} of them finished before")
        self.summaries = [found[number] for number in range(len(self.units))]
        self.parts = [
            Part(number, summary.part_key(place))
            for number, summary in enumerate(self.summaries)
            for place in range(summary.parts)
        ]
        return self.summaries

    def find_duplicates(self) -> int:
        """Pass B; returns how many candidate pairs were compared."""
        shared = self.shared
        for leftover in shared.duplicates.iterdir():
            leftover.unlink()
        path = shared.duplicates / "units.npy"
        duplicate_pass.save_units(
            path,
            Units(
                tuple(part.key for part in self.parts),
                tuple(self.streams[self.units[part.unit].source] for part in self.parts),
            ),
        )
        count = self._partitions(duplicate_pass.find_identical, "identities")
        duplicate_pass.gather(shared, "identical", count, "identical.npy")
        tasks: list[Verification] = []
        compared = 0
        if shared.near_duplicates:
            count = self._partitions(duplicate_pass.find_candidates, "bands")
            tasks = [Verification(number, path, count) for number in range(len(self.parts))]
            for _, pairs in self.workers.run(duplicate_pass.verify_candidates, tasks):
                compared += pairs
        duplicate_pass.gather(shared, "near", len(tasks), "dropped.npy", "identical.npy")
        return compared

    def _partitions(self, function: Callable[[Partition, Shared], None], table: str) -> int:
        """Runs `function` over as many partitions of `table` as the memory asks for; returns how many."""
        keys = [part.key for part in self.parts]
        count = duplicate_pass.partition_count(duplicate_pass.table_bytes(self.shared, keys, table), self.memory)
        tasks = [Partition(number, count, self.shared.duplicates / "units.npy") for number in range(count)]
        for _ in self.workers.run(function, tasks):
            pass
        return count

    def write_survivors(self) -> tuple[list[Output], list[Written]]:
        """Pass C over all parts; what each wrote, in their order."""
        place: Counter[str] = Counter()
        tasks = []
        for number, part in enumerate(self.parts):
            name = self.units[part.unit].source_name
            tasks.append(Output(number, place[name], part.key, name))
            place[name] += 1
        found: dict[int, Written] = {}
        sizes = [(self.shared.units / f"{part.key}.jsonl.zst").stat().st_size for part in self.parts]
        with Progress("write documents", sum(sizes)) as progress:
            for number, written in self.workers.run(write_pass.write_survivors, tasks):
                found[number] = written
                progress.add(written.documents.total(), sizes[number])
        return tasks, [found[number] for number in range(len(tasks))]
