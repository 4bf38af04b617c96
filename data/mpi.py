"""Tasks over the ranks of `mpiexec -n N python -m data ...`: MPI hands out work units and takes their results, no more.

Rank 0 runs the command; the others wait for tasks. Rank 0 computes too, in a child process (data/workers.py), so that
its own process is free to answer: with two ranks both work. The alternatives were a counter in rank 0's memory that the
others raise from outside (fetch-and-op), which on many networks moves only when rank 0 itself calls MPI, and a thread
of rank 0, which shares the interpreter's lock with the computation and asks more of the MPI library than one thread.

Waiting is probing with short sleeps: a blocking receive would keep a core busy in most MPI libraries.
"""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from data.settings import run_command

LONGEST_PAUSE = 0.02
"""Seconds between two looks for a message when nothing has come for a while: far below the time of a work unit."""

_TASK, _SHARED, _STOP = "task", "shared", "stop"
_world: Any = None  # mpi4py's COMM_WORLD, in rank 0 while the others serve it


def launched() -> tuple[int, int]:
    """(rank, number of ranks) as Open MPI's, MPICH's or Slurm's variables say; (0, 1) for one process."""
    for rank, ranks in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ):
        if rank in os.environ and int(os.environ.get(ranks) or 1) > 1:
            return int(os.environ[rank]), int(os.environ[ranks])
    return 0, 1


def run_on_ranks(main: Callable[[], int | None]) -> NoReturn:
    """`run_command(main)` on rank 0, which alone prints; the other ranks do its tasks. All end with the same code."""
    global _world
    rank, ranks = launched()
    if ranks == 1:
        run_command(main)
    if rank:
        try:
            world = _join(ranks)
        except ValueError:
            sys.exit(2)  # rank 0 says it
        sys.exit(_serve(world))
    code = 1  # of an error that run_command lets through
    try:
        run_command(lambda: _lead(main, ranks))
    except SystemExit as end:
        code = end.code or 0
        raise
    finally:
        if _world is not None:
            for other in range(1, ranks):
                _world.send((_STOP, code), other)
            _world = None


def world() -> Any:
    """COMM_WORLD where this is rank 0 and the other ranks wait for its tasks, else None."""
    return _world


class Ranks:
    """The other ranks, as rank 0 sees them: idle, or at work on one task. `shared` goes to all of them once."""

    def __init__(self, world: Any, shared: object):
        self.world = world
        self.idle = list(range(1, world.size))
        self.busy: dict[int, int] = {}
        for rank in self.idle:
            world.send((_SHARED,), rank)
        world.bcast(shared, 0)

    def start(self, number: int, function: Callable, task: object) -> None:
        """Give task `number` to an idle rank."""
        rank = self.idle.pop()
        self.busy[rank] = number
        self.world.send((_TASK, function, task), rank)

    def finished(self) -> Iterator[tuple[int, Any]]:
        """(number, result) of what has come in by now; raises a task's error."""
        while self.busy and self.world.Iprobe():
            number, succeeded, result = self._receive()
            if not succeeded:
                raise result
            yield number, result

    def settle(self) -> None:
        """Wait for the tasks under way; their results are not wanted."""
        waits = pauses()
        while self.busy:
            if self.world.Iprobe():
                self._receive()
            else:
                time.sleep(next(waits))

    def _receive(self) -> tuple[int, bool, Any]:
        rank, outcome = self.world.recv()
        number = self.busy.pop(rank)
        self.idle.append(rank)
        return number, *pickle.loads(outcome)


def pauses() -> Iterator[float]:
    """Seconds to sleep between looks: short at first, then the longest."""
    pause = 0.0005
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _lead(main: Callable[[], int | None], ranks: int) -> int | None:
    global _world
    _world = _join(ranks)
    return main()


def _join(ranks: int) -> Any:
    """COMM_WORLD. ValueError where mpi4py is missing or was built for another MPI than the launcher's."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise ValueError(
            f"started as {ranks} MPI ranks, and mpi4py cannot be loaded ({str(error).splitlines()[0]}); "
            "run: pip install mpi4py mpich (or mpi4py built for the cluster's MPI)"
        ) from None
    if ranks != MPI.COMM_WORLD.size:
        library = MPI.Get_library_version().split(",")[0].split()[0]
        raise ValueError(
            f"mpi4py sees {MPI.COMM_WORLD.size} rank where the launcher started {ranks}: it was built for another MPI "
            f"({library}); use that one's mpiexec"
        )
    return MPI.COMM_WORLD


def _serve(world: Any) -> int:
    """Do rank 0's tasks until it ends; its exit code. What goes wrong outside of a task ends the whole job."""
    try:
        shared: Any = None
        while True:
            waits = pauses()
            while not world.Iprobe(source=0):
                time.sleep(next(waits))
            kind, *content = world.recv(source=0)
            if kind == _STOP:
                return content[0]
            elif kind == _SHARED:
                shared = world.bcast(None, 0)
            else:
                world.send((world.rank, _outcome(*content, shared, world.rank)), 0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.Abort(1)
        raise


def _outcome(function: Callable, task: object, shared: object, rank: int) -> bytes:
    """Pickled (whether it succeeded, result or error). An error that does not survive the journey goes as its text."""
    try:
        return pickle.dumps((True, function(task, shared)))
    except Exception as error:
        error.add_note(f"on MPI rank {rank}:\n{traceback.format_exc()}")
        try:
            outcome = pickle.dumps((False, error))
            pickle.loads(outcome)
        except Exception:
            text = RuntimeError(f"{type(error).__name__}: {error}")
            text.add_note(error.__notes__[-1])
            outcome = pickle.dumps((False, text))
        return outcome
