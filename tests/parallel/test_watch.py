"""Ranks that raise, block, stop or die: all others end, and the cause stands last."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest

from parallel.comm import Group
from parallel.watch import Watcher, hang_report
from tests.parallel.test_launch import bare_environment
from tests.train.runs import TORCHRUN

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 8
"""Seconds of the timeout and of the heartbeat limit below. All cases start at once, on perhaps two cores."""
RANKS = {"blocked": 4, "raise": 3, "user": 2, "together": 2, "dead": 2, "frozen": 2, "locked": 2}
HOST = socket.gethostname()

PROGRAM = """
import ctypes, os, sys, time
import torch
from parallel import comm, launch
from parallel.grid import Grid, world_group
from parallel.watch import Watcher
case, limit = sys.argv[1], int(sys.argv[2])
device = launch.start_processes("cpu", 120)
world = world_group()
with Watcher(world, limit, limit):
    grid = Grid.create(tp=1, pp=1, timeout_seconds=120)
    comm.barrier(world, device)
    print(f"ready {world.rank}", flush=True)
    if case in ("dead", "frozen"):
        time.sleep(1000)
    if case == "locked" and world.rank == 1:
        ctypes.PyDLL(None).sleep(1000)
    if case == "raise" and world.rank == 1:
        raise RuntimeError("seven is not prime")
    if case == "user" and world.rank == 1:
        raise ValueError("one file is\\\\n damaged")
    if case == "together":
        raise ValueError("a wrong flag")
    if case == "blocked" and world.rank == 1:
        pair = comm.Group("pair", (0, 1), 1, world.handle)
        comm.start_receive(torch.zeros(2, 3), pair).wait()
    if case == "blocked" and world.rank == 2:
        ctypes.CDLL(None).sleep(1000)
    if case == "blocked" and world.rank == 3:
        launch.connect("nobody", 1000).get("never set")
    comm.barrier(world, device)
    raise AssertionError("the barrier was passed")
""".replace("\\\\", "\\")


def start(case, ranks):
    """The program in processes as Slurm would start them; all write to one screen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = bare_environment() | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    reading, writing = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, case, str(LIMIT)],
            cwd=ROOT, stdout=writing, stderr=writing, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    os.close(writing)
    return processes, os.fdopen(reading)


def end_after(first, second):
    """Kill `first` once `second` has ended: who stands still keeps the screen open."""
    try:
        second.wait(timeout=60)
    finally:
        first.kill()


def finish(case, processes, screen):
    """Lines on the screen, exit codes in rank order, and seconds since the last rank was ready."""
    begin, lines = time.monotonic(), []
    for line in screen:
        if line.startswith("ready"):
            begin = time.monotonic()
            if line == "ready 0\n" and case in ("dead", "frozen"):
                processes[0].send_signal(signal.SIGKILL if case == "dead" else signal.SIGSTOP)
                Thread(target=end_after, args=processes).start()
        elif line.strip():
            lines.append(line.rstrip())
    return lines, [process.wait(timeout=60) for process in processes], time.monotonic() - begin


@pytest.fixture(scope="module")
def outcomes():
    """Outcome of each case. They start together, because most of their time is waiting."""
    running = {case: start(case, ranks) for case, ranks in RANKS.items()}
    with ThreadPoolExecutor(len(RANKS)) as pool:
        results = {case: pool.submit(finish, case, *started) for case, started in running.items()}
    return {case: result.result() for case, result in results.items()}


def line_of(text):
    """Number of the program's line that holds `text`."""
    return next(number for number, line in enumerate(PROGRAM.splitlines(), 1) if text in line)


def test_ranks_blocked_outside_python_end_and_the_report_says_where_each_is(outcomes):
    lines, codes, seconds = outcomes["blocked"]
    assert codes == [1, 1, 1, 1]
    assert seconds < 30
    assert lines == [
        f"hang: an operation has not ended within {LIMIT} s (--timeout)",
        "  rank 0: all_reduce of 1 float32 in group world (ranks 0-3)",
        "  rank 1: receive of 2x3 float32 in group pair (ranks 0-1)",
        f"  rank 2 on host {HOST} waits in no operation; it is at <string>:{line_of('ctypes.CDLL')} in <module>",
        f"  rank 3 on host {HOST} waits in no operation; it is at <string>:{line_of('never set')} in <module>",
    ]


def test_the_first_error_stands_alone_and_last(outcomes):
    lines, codes, seconds = outcomes["raise"]
    assert codes == [1, 1, 1]
    assert seconds < 30
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == ["RuntimeError: seven is not prime", f"rank 1 on host {HOST} failed"]
    assert sum(line.startswith("Traceback") for line in lines) == 1


def test_a_user_error_of_one_rank_says_whose_it_is(outcomes):
    lines, codes, _ = outcomes["user"]
    assert codes == [2, 2]
    assert lines == [f"error: rank 1 on host {HOST}: one file is damaged"]


def test_a_user_error_of_all_ranks_is_printed_by_all(outcomes):
    lines, codes, _ = outcomes["together"]
    assert codes == [2, 2]
    assert lines == ["error: a wrong flag"] * 2


def test_a_dead_keeper_of_the_store_is_noticed(outcomes):
    """Rank 0 cannot even be asked for its last heartbeat. torch prints C++ of its own before."""
    lines, codes, seconds = outcomes["dead"]
    assert codes == [-signal.SIGKILL, 1]
    assert seconds < 30
    assert lines[-1].startswith("rank 0 on host localhost is gone: its store at port")


def test_a_frozen_keeper_of_the_store_is_noticed(outcomes):
    """Its machine answers nothing, and closes no connection."""
    lines, codes, _ = outcomes["frozen"]
    assert codes == [-signal.SIGKILL, 1]
    assert [line.partition(" at port ")[0] for line in lines] == ["rank 0 on host localhost is gone: its store"]


def test_a_rank_that_holds_the_interpreter_is_reported_and_ends_itself(outcomes):
    lines, codes, seconds = outcomes["locked"]
    assert codes == [1, 1]
    assert seconds < 30
    assert lines[0].startswith(f"rank 1 on host {HOST}: no sign of life for {LIMIT} s; it was at ")
    assert lines[1].startswith("Timeout")
    assert lines[-1].strip() == f'File "<string>", line {line_of("ctypes.PyDLL")} in <module>'


def test_torchruns_summary_names_the_same_cause():
    result = subprocess.run(
        [*TORCHRUN, "3", "--no-python", sys.executable, "-c", PROGRAM, "raise", str(LIMIT)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=bare_environment(),
    )  # fmt: skip
    ours, _, summary = result.stderr.partition("Root Cause (first observed failure):")
    assert f"RuntimeError: seven is not prime\nrank 1 on host {HOST} failed\n" in ours
    assert re.search(r"rank +: 1 \(local_rank: 1\)", summary)
    assert "RuntimeError: seven is not prime" in summary


def test_one_process_is_not_watched():
    with pytest.raises(RuntimeError, match="boom"), Watcher(Group("world"), 600, 15) as watch:
        watch.fail(RuntimeError("boom"))
    with Watcher(Group("world"), 600, 15):
        pass


def test_hang_report_groups_ranks_by_what_they_wait_in():
    states = [{"host": "a", "operation": "all_gather of 4 in group tp (ranks 0-2)", "place": "x.py:1 in f"}] * 2
    states += [{"host": "b", "operation": None, "place": "train.py:7 in load"}, {"host": "b", "finished": True}]
    states += [{"host": "c", "operation": "receive of 8 in group forward (ranks 2, 4)", "place": "y.py:2 in g"}]
    assert hang_report(states, 600).splitlines() == [
        "hang: an operation has not ended within 600 s (--timeout)",
        "  ranks 0-1: all_gather of 4 in group tp (ranks 0-2)",
        "  rank 4: receive of 8 in group forward (ranks 2, 4)",
        "  rank 2 on host b waits in no operation; it is at train.py:7 in load",
        "  rank 3 on host b has finished",
    ]
