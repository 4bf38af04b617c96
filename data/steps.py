"""The passes of a curation one after another, each over all its tasks."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import duplicate_pass, read_pass, write_pass
from data.claim import log
from data.deduplicate import Drops, Parts
from data.duplicate_pass import Partition, Verification
from data.progress import Progress
from data.readers import find_format
from data.scratch import save_array
from data.shared import Shared
from data.summary import CANDIDATES, Part, Sample, Summary
from data.units import Source, Unit, ranks
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
        self.folder = shared.duplicates

    def read_and_clean(self) -> list[Summary]:
        """Pass A over all units; the summaries in their order."""
        found: dict[int, Summary] = {}
        shown: dict[str, list[tuple[Sample, Summary]]] = {}
        reused = 0
        with Progress("read and clean", sum(unit.size for unit in self.units)) as progress:
            for number, (summary, again) in self.workers.run(read_pass.read_and_clean, self.units):
                found[number] = summary
                _keep_best(shown.setdefault(self.units[number].source_name, []), summary)
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

    def find_duplicates(self) -> tuple[Drops, int]:
        """Pass B; returns what is dropped, and how many candidate pairs were compared."""
        keys, parts = [part.key for part in self.parts], self._parts()
        self.folder = self._search_folder(keys, parts)
        duplicate_pass.save_parts(self.folder, keys, parts)
        files = self._partitions(duplicate_pass.find_superseded, "identities", "superseded")
        save_array(self.folder / "superseded.npy", duplicate_pass.gather(files))
        files += self._partitions(duplicate_pass.find_identical, "identities", "identical")
        drops = duplicate_pass.gather(files)
        save_array(self.folder / "identical.npy", drops)
        compared = 0
        if self.shared.near_duplicates:
            count = len(self._partitions(duplicate_pass.find_candidates, "bands", "candidates"))
            tasks = [Verification(self.folder, number, count) for number in range(len(self.parts))]
            for _, pairs in self.workers.run(duplicate_pass.verify_candidates, tasks):
                compared += pairs
            files = [self.folder / f"near-{number:05d}.npy" for number in range(len(self.parts))]
            drops = duplicate_pass.gather([self.folder / "identical.npy", *files])
        Drops.save(self.folder, drops, len(self.parts))
        return Drops.load(self.folder), compared

    def _parts(self) -> Parts:
        rank = ranks(self.units)
        units = [self.units[part.unit] for part in self.parts]
        return Parts(
            np.array([self.streams[unit.source] for unit in units], np.int64),
            np.array([rank[part.unit] for part in self.parts], np.int64),
            np.array([find_format(unit.kind).revises for unit in units], np.int64),
        )

    def _search_folder(self, keys: Sequence[str], parts: Parts) -> Path:
        """Named by all that the search depends on; those of other searches are removed."""
        shared = self.shared
        content = (keys, parts.source.tolist(), parts.rank.tolist(), parts.revises.tolist(), shared.near_duplicates)
        folder = shared.duplicates / hashlib.sha256(f"{content!r}{shared.digest}".encode()).hexdigest()[:32]
        for other in shared.duplicates.iterdir():
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        return folder

    def _partitions(self, function: Callable[[Partition, Shared], None], table: str, result: str) -> list[Path]:
        """Runs `function` over as many partitions of `table` as the memory asks for; returns the files of results."""
        keys = [part.key for part in self.parts]
        count = duplicate_pass.partition_count(duplicate_pass.table_bytes(self.shared, keys, table), self.memory)
        tasks = [Partition(self.folder, number, count) for number in range(count)]
        for _ in self.workers.run(function, tasks):
            pass
        return [task.file(result) for task in tasks]

    def write_survivors(self) -> tuple[list[Output], list[Written]]:
        """Pass C over all parts; what each wrote, in their order."""
        place: Counter[str] = Counter()
        tasks = []
        for number, part in enumerate(self.parts):
            name = self.units[part.unit].source_name
            tasks.append(Output(self.folder, number, place[name], part.key, name))
            place[name] += 1
        found: dict[int, Written] = {}
        sizes = [(self.shared.units / f"{part.key}.jsonl.zst").stat().st_size for part in self.parts]
        with Progress("write documents", sum(sizes)) as progress:
            for number, (written, again) in self.workers.run(write_pass.write_survivors, tasks):
                found[number] = written
                progress.add(written.documents.total(), sizes[number], resumed=again)
        return tasks, [found[number] for number in range(len(tasks))]


def _keep_best(shown: list[tuple[Sample, Summary]], summary: Summary) -> None:
    """Of all summaries of a source only the best CANDIDATES samples are held; the files keep theirs."""
    shown += [(sample, summary) for sample in summary.samples]
    shown.sort(key=lambda pair: pair[0])
    for sample, owner in shown[CANDIDATES:]:
        owner.samples.remove(sample)
    del shown[CANDIDATES:]
