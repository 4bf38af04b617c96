"""Process counts and groups; two real gloo processes against one."""

import subprocess
import sys
from pathlib import Path

import pytest

from parallel.executor import Instruction, Kind, training_schedule, validation_schedule
from parallel.launch import check_process_count, launched_processes

ROOT = Path(__file__).resolve().parents[2]


def test_wrong_number_of_processes_names_the_command():
    with pytest.raises(
        ValueError,
        match=r"needs 8 processes or a multiple of it, not 3; run: torchrun --nproc-per-node 8 train\.py --tp 4",
    ):
        check_process_count(3, 4, 2, "train.py --tp 4 --pp 2")
    with pytest.raises(ValueError, match="at least 1"):
        check_process_count(1, 0, 1, "train.py")
    check_process_count(16, 4, 2, "train.py")


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_ranks_of_other_launchers_are_refused(monkeypatch, name):
    """They would all be rank 0 of one process and write into one run folder."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match=f"{name}=4: this version takes its ranks from torchrun only"):
        launched_processes()
    monkeypatch.setenv(name, "1")
    assert launched_processes() == (0, 0, 1)
    monkeypatch.setenv(name, "4")
    for key, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(key, value)
    assert launched_processes() == (3, 1, 4)


def test_schedules():
    forward, backward = Kind.FORWARD, Kind.BACKWARD
    assert training_schedule(2) == [
        Instruction(forward, 0),
        Instruction(backward, 0),
        Instruction(forward, 1),
        Instruction(backward, 1),
    ]
    assert validation_schedule(3) == [Instruction(forward, index) for index in range(3)]


def run_two_processes(program):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return subprocess.run(
        [*command, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_rank_does_not_wait_longer_than_the_timeout():
    """In the groups of the grid as in the group of all."""
    program = """
import time
import torch
from parallel import comm
from parallel.grid import Grid
from parallel.launch import start_processes
start_processes("cpu", 3)
grid = Grid.create(tp=1, pp=1, timeout_seconds=3)
if grid.world.rank == 0:
    begin = time.time()
    try:
        comm.all_reduce(torch.ones(1), grid.dp)
    except RuntimeError:
        print("gave up", time.time() - begin < 30, flush=True)
else:
    time.sleep(12)
"""
    assert run_two_processes(program).stdout.splitlines() == ["gave up True"]


def test_collectives_of_two_processes():
    """Sums, pieces and groups on gloo, counted in bytes; run in real processes."""
    program = """
import torch
from parallel import comm
from parallel.grid import Grid
from parallel.launch import start_processes, stop_processes
start_processes("cpu", 60)
grid = Grid.create(tp=1, pp=1)
rank = grid.world.rank
assert grid.dp.ranks == (0, 1) and grid.dp.rank == rank and grid.tp.size == grid.pp.size == 1
assert comm.all_reduce(torch.tensor([1.0, rank]), grid.dp).tolist() == [2.0, 1.0]
piece = comm.reduce_scatter(torch.arange(4.0) * (rank + 1), grid.dp)
assert piece.tolist() == ([0.0, 3.0] if rank == 0 else [6.0, 9.0])
whole = torch.zeros(4)
whole[2 * rank : 2 * rank + 2] = piece
assert comm.all_gather(whole[2 * rank : 2 * rank + 2], grid.dp, whole).tolist() == [0.0, 3.0, 6.0, 9.0]
assert comm.traffic == {("all_reduce", "dp"): 8, ("reduce_scatter", "dp"): 16, ("all_gather", "dp"): 16}
values = comm.gather_json({"rank": rank, "text": "µ" * rank}, grid.world, torch.device("cpu"))
assert values == [{"rank": 0, "text": ""}, {"rank": 1, "text": "µ"}]
model_parallel = Grid.create(tp=2, pp=1)
assert model_parallel.tp.ranks == (0, 1) and model_parallel.dp.size == 1
comm.barrier(grid.world, torch.device("cpu"))
stop_processes()
print(f"fine {rank}\\n", end="", flush=True)
"""
    result = run_two_processes(program)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["fine 0", "fine 1"]
