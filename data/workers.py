"""Worker processes: run one function over many tasks, in whatever order; the results do not know who made them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Self, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_shared: Any = None  # in a worker process: what every task of this pool may use


def _start(shared: object) -> None:
    global _shared
    _shared = shared


def _call(function: Callable[[Task, Any], Result], task: Task) -> Result:
    return function(task, _shared)


class Workers:
    """`count` processes, started fresh so that no state leaks into them; one worker is this process itself.

    `shared` goes to each process once. Use as a context manager: leaving it on an error drops the tasks not yet begun.
    """

    def __init__(self, shared: object, count: int):
        self.shared = shared
        self.pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (shared,)) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Task, Any], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """`(number, function(task, shared))` of every task as it finishes. An error in a task is raised here."""
        if self.pool is None:
            yield from ((number, function(task, self.shared)) for number, task in enumerate(tasks))
            return
        waiting = {self.pool.submit(_call, function, task): number for number, task in enumerate(tasks)}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed (out of memory?); run the same command with fewer --workers to go on"
            ) from error
