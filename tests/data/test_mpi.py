"""The ranks of mpiexec as workers: every task done once, errors and kills end all ranks, one voice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import mpi

REPOSITORY = Path(__file__).resolve().parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
# Prefixes of what launchers set: the tests' own environment must not look like one's.
LAUNCHERS = ("PMI", "MPI_", "MPIEXEC", "HYDRA", "OMPI_", "PMIX_", "SLURM_", "FI_")
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside this python (pip install mpi4py mpich)")

PROGRAM = """
import json, os, sys, time
from pathlib import Path

sys.path.insert(0, {repository!r})
from data import mpi
from data.workers import Workers, check_workers


class Awkward(Exception):
    def __init__(self, one, two):
        super().__init__("awkward")


def measure(task, shared):
    time.sleep(shared["seconds"])
    return task * shared["factor"], os.getpid(), mpi.launched()[0]


def fail(task, shared):
    if task == 3:
        raise {{"value": ValueError("task three cannot be"), "awkward": Awkward(1, 2), "bug": KeyError("x")}}[shared]
    time.sleep(0.01)
    return task


def leave_pid(task, shared):
    Path(shared, f"{{mpi.launched()[0]}}-{{os.getpid()}}").touch()
    time.sleep(60)


def work(kind, *words):
    if kind == "measure":
        with Workers({{"factor": 10, "seconds": float(words[0])}}, 1) as workers:
            first = dict(workers.run(measure, range(40)))
            for _ in workers.run(measure, range(6)):
                break  # the results of a run that is left halfway must not appear in the next one
            again = dict(workers.run(measure, range(100, 103)))
            assert dict(workers.run(measure, [])) == {{}}
        with Workers({{"factor": 2, "seconds": 0}}, 1) as workers:
            other = dict(workers.run(measure, [7]))
        print(json.dumps([sorted(results.items()) for results in (first, again, other)]))
    elif kind == "fail":
        with Workers(words[0], 1) as workers:
            print(dict(workers.run(fail, range(10))))
    elif kind == "several":
        check_workers(2)
    elif kind == "big":
        with Workers(bytes(1 << 28), 1) as workers:
            print(dict(workers.run(length, [0])))
    elif kind == "sleep":
        with Workers(words[0], 1) as workers:
            print(dict(workers.run(leave_pid, range(10))))
    return int(words[0]) if kind == "code" else 0


def length(task, shared):
    return len(shared)


if __name__ == "__main__":
    mpi.run_on_ranks(lambda: work(*sys.argv[1:]))
"""


@pytest.fixture
def start(tmp_path):
    """`start(ranks, *words)`: the program above as a process group of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(repository=str(REPOSITORY)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    started = []

    def launch(ranks, *words, **variables):
        command = [MPIEXEC, "-n", ranks, sys.executable, program, *words]
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | variables,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ours(text):
    """The lines that are not mpiexec's own."""
    return [line for line in text.splitlines() if line.startswith(("error:", "Traceback", "Abort"))]


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_task_is_done_once_and_every_rank_works(start, ranks):
    code, out, err = finish(start(ranks, "measure", 0.05))
    assert code == 0, err
    first, again, other = json.loads(out)
    assert [(number, result[0]) for number, result in first] == [(number, number * 10) for number in range(40)]
    assert {result[2] for _, result in first} == set(range(ranks))  # rank 0 too
    assert len({result[1] for _, result in first}) == ranks
    assert [(number, result[0]) for number, result in again] == [(0, 1000), (1, 1010), (2, 1020)]
    assert [(number, result[0]) for number, result in other] == [(0, 14)]


@needs_mpi
def test_shared_objects_may_be_big(start):
    code, out, err = finish(start(3, "big"))
    assert (code, out.strip()) == (0, f"{{0: {1 << 28}}}"), err


@needs_mpi
def test_an_error_of_a_task_is_one_line_and_ends_all_ranks(start):
    code, out, err = finish(start(3, "fail", "value"))
    assert code == 2
    assert ours(err) == ["error: task three cannot be"]
    assert out.strip() == ""


@needs_mpi
@pytest.mark.parametrize("kind", ["awkward", "bug"])
def test_a_bug_in_a_task_is_one_traceback_with_its_place_and_no_hang(start, kind):
    code, _, err = finish(start(3, "fail", kind))
    assert code == 1
    assert "in fail" in err  # the line of the task itself
    assert "Awkward" in err if kind == "awkward" else "KeyError" in err


@needs_mpi
@pytest.mark.parametrize("code", [0, 2])
def test_all_ranks_end_with_the_command_s_code(start, code):
    assert finish(start(3, "code", code))[0] == code


@needs_mpi
def test_workers_and_ranks_together_are_refused(start):
    code, _, err = finish(start(2, "several"))
    assert code == 2
    assert ours(err) == ["error: --workers 2 under mpiexec: every MPI rank is one worker; leave --workers out, or start without mpiexec"]  # fmt: skip


@needs_mpi
def test_without_mpi4py_the_remedy_is_said_once(start, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no mpi4py here')")
    code, _, err = finish(start(2, "code", 0))
    assert code == 2
    (line,) = ours(err)
    assert line.startswith("error: started as 2 MPI ranks, and mpi4py cannot be loaded (no mpi4py here); run: pip install mpi4py mpich")  # fmt: skip


@needs_mpi
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_the_job_and_leaves_no_process(start, tmp_path, victim):
    """Rank 0 works through a process of its own: killed, it is a clear error; any other rank is mpiexec's affair."""
    folder = tmp_path / "pids"
    folder.mkdir()
    process = start(3, "sleep", folder)
    deadline = time.monotonic() + 60
    while len(at_work := dict(path.name.split("-") for path in folder.iterdir())) < 3:
        assert time.monotonic() < deadline, "not all ranks took a task"
        time.sleep(0.01)
    os.kill(int(at_work[str(victim)]), signal.SIGKILL)
    if victim == 0:  # the others finish what they are at: not for this test to wait for
        time.sleep(0.5)
        os.kill(int(at_work["1"]), signal.SIGKILL)
    code, _, _ = finish(process)
    assert code != 0
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in at_work.values()):
        assert time.monotonic() < deadline, "a process of the job lives on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script: no step of several
    ],
)
def test_ranks_as_the_launchers_give_them(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mpi.launched() == expected
