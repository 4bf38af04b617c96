"""How far a pass is: a bar on a terminal, a line a minute in a log file.

Remaining time goes by bytes of input, the one thing known before the start. What an earlier run finished counts as done
and not into the rates: it takes no time and would promise too much.
"""

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60
"""Of a log file: a run of a day writes some 1,400 lines, not one a work unit."""


class Progress:
    """`with Progress("read and clean", total_bytes) as progress: progress.add(documents, bytes)` as units finish.

    `unit` is "B" where sizes are bytes; for anything else (a pass over partitions) it is the word for it, and there is
    no MB/s.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str = "B",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.description, self.total, self.unit = description, total, unit
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.done = self.resumed = self.documents = 0
        self.started = self.last_line = clock()
        self.bar: tqdm | None = None

    def __enter__(self) -> Self:
        if self.stream.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} {postfix}"
            self.bar = tqdm(total=self.total, desc=self.description, file=self.stream, bar_format=form)
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif error is None:
            self._line()

    def add(self, documents: int, size: int, *, resumed: bool = False) -> None:
        """A unit of so many documents and `size` is done; `resumed`: it was done by an earlier run."""
        self.done += size
        if resumed:
            self.resumed += size
            if self.done == self.resumed:
                self.started = self.clock()  # until here only old results were looked up
        else:
            self.documents += documents
        if self.bar is not None:
            self.bar.set_postfix_str(self.rates(), refresh=False)
            self.bar.update(size)
        elif self.clock() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def rates(self) -> str:
        """`1,234 documents/s, 12.3 MB/s, 0:01:30 left`; what is not known yet is left out."""
        seconds, fresh = self.clock() - self.started, self.done - self.resumed
        if seconds <= 0 or fresh == 0:
            return ""
        parts = [f"{self.documents / seconds:,.0f} documents/s"] if self.documents else []
        if self.unit == "B":
            parts.append(f"{fresh / seconds / 1e6:,.1f} MB/s")
        if self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / fresh * seconds)} left")
        return ", ".join(parts)

    def _line(self) -> None:
        self.last_line = self.clock()
        total = f"{self.total / 1e6:,.1f} MB" if self.unit == "B" else f"{self.total:,} {self.unit}"
        before = f", {100 * self.resumed // self.total} % by an earlier run" if self.resumed else ""
        percent = 100 * self.done // self.total if self.total else 100
        words = [f"{self.description}: {percent} % of {total}{before}", self.rates()]
        print(", ".join(word for word in words if word), file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """`0:01:30`, `25:00:00`: hours, minutes, seconds."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{left:02d}"
