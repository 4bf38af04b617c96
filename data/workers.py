"""Workers: run one function over many tasks, in whatever order; the results do not know who made them.

Processes of this machine, or the ranks of `mpiexec -n N python -m data ...` (data/mpi.py).
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, Self, TypeVar

from data import mpi

Task = TypeVar("Task")
Result = TypeVar("Result")

_shared: Any = None  # in a worker process: what every task of this pool may use


def check_workers(count: int) -> None:
    """ValueError for a `--workers` that cannot be: below 1, or several where MPI has started the processes."""
    if count < 1:
        raise ValueError(f"--workers {count}: at least 1")
    if count > 1 and mpi.world() is not None:
        raise ValueError(
            f"--workers {count} under mpiexec: every MPI rank is one worker; leave --workers out, or start without "
            "mpiexec"
        )


def _start(shared: object) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to all: end without a traceback of every worker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever, and write beside the next run until then."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _call(function: Callable[[Task, Any], Result], task: Task) -> Result:
    return function(task, _shared)


class Workers:
    """`count` processes, started fresh so that no state leaks into them; one worker is this process itself. Under MPI
    every rank is one worker, rank 0 by a process of its own.

    `shared` goes to each worker once. Use as a context manager: leaving it on an error drops the tasks not yet begun.
    """

    def __init__(self, shared: object, count: int):
        check_workers(count)
        self.shared = shared
        self.ranks = None if mpi.world() is None else mpi.Ranks(mpi.world(), shared)
        here = self.ranks is None and count == 1
        self.pool = None if here else ProcessPoolExecutor(count, get_context("spawn"), _start, (shared,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
        if self.ranks is not None:
            self.ranks.settle()

    def run(self, function: Callable[[Task, Any], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """`(number, function(task, shared))` of every task as it finishes. An error in a task is raised here."""
        try:
            if self.pool is None:
                yield from ((number, function(task, self.shared)) for number, task in enumerate(tasks))
            elif self.ranks is None:
                yield from self._run_on_processes(function, tasks)
            else:
                yield from self._run_on_ranks(function, tasks)
        except BrokenProcessPool as error:
            fewer = "fewer --workers" if self.ranks is None else "fewer ranks on each machine"
            raise ValueError(
                f"a worker process was killed (out of memory?); run the same command with {fewer} to go on"
            ) from error

    def _run_on_processes(self, function: Callable, tasks: Sequence) -> Iterator[tuple[int, Any]]:
        waiting = {self.pool.submit(_call, function, task): number for number, task in enumerate(tasks)}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()

    def _run_on_ranks(self, function: Callable, tasks: Sequence) -> Iterator[tuple[int, Any]]:
        """The task that comes next goes to whoever is free: another rank, or the process beside this one."""
        self.ranks.settle()  # of an earlier call that was left halfway
        waiting = deque(enumerate(tasks))
        own: tuple[int, Future] | None = None
        waits = mpi.pauses()
        while waiting or own or self.ranks.busy:
            while waiting and self.ranks.idle:
                number, task = waiting.popleft()
                self.ranks.start(number, function, task)
            if waiting and own is None:
                number, task = waiting.popleft()
                own = number, self.pool.submit(_call, function, task)
            came = list(self.ranks.finished())
            if own and own[1].done():
                came.append((own[0], own[1].result()))
                own = None
            yield from came
            if came:
                waits = mpi.pauses()
            else:
                time.sleep(next(waits))
