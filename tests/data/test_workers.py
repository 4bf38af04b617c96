"""Worker processes: results by number, errors where they belong, no process left behind."""

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import mpi
from data.workers import Workers, check_workers

REPOSITORY = Path(__file__).resolve().parents[2]
SLEEPER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from data.workers import Workers

def leave_pid(task, shared):
    Path(shared, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    with Workers(sys.argv[1], 2) as workers:
        dict(workers.run(leave_pid, range(2)))
"""


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_is_answered_by_its_number(count):
    with Workers(10, count) as workers:
        assert dict(workers.run(operator.add, [1, 2, 3])) == {0: 11, 1: 12, 2: 13}
        assert dict(workers.run(operator.mul, [4])) == {0: 40}
        assert dict(workers.run(operator.mul, [])) == {}
        with pytest.raises(TypeError):
            dict(workers.run(operator.add, ["text"]))


def test_a_killed_worker_is_one_clear_error():
    with Workers(["false"], 2) as workers, pytest.raises(ValueError, match="a worker process was killed"):
        dict(workers.run(os.execv, ["/bin/false"]))  # the process is replaced by one that ends at once


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, how):
    """SIGKILL reaches the first process only; SIGINT, as from a terminal, reaches all and leaves no worker's
    traceback."""
    program, folder = tmp_path / "program.py", tmp_path / "pids"
    program.write_text(SLEEPER.format(repository=str(REPOSITORY)))
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, program, folder], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in folder.iterdir()]) < 2:
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.01)
    if how == signal.SIGKILL:
        os.kill(process.pid, how)
    else:
        os.killpg(process.pid, how)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "SpawnProcess" not in err  # how a worker's traceback begins; the first process has no run_command here
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline + 30, "a worker lives on"
        time.sleep(0.01)


def test_a_number_of_workers_that_cannot_be(monkeypatch):
    check_workers(1)
    check_workers(8)
    with pytest.raises(ValueError, match="--workers 0: at least 1"):
        check_workers(0)
    monkeypatch.setattr(mpi, "_world", object())
    check_workers(1)
    with pytest.raises(ValueError, match="--workers 2 under mpiexec"):
        check_workers(2)
