"""Ranks from each launcher; MPI's and Slurm's ways to meet, in real processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from parallel import launch
from parallel.launch import check_process_count, first_host, launched_processes, launcher

ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
         "TORCHELASTIC_RESTART_COUNT")  # fmt: skip
PREFIXES = ("SLURM_", "OMPI_", "PMI_", "MPI_")


def bare_environment():
    """This environment without what any launcher sets, and one thread a process."""
    kept = {name: v for name, v in os.environ.items() if name not in NAMES and not name.startswith(PREFIXES)}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher in place of those of any other."""
    for name in set(os.environ) - set(bare_environment()):
        monkeypatch.delenv(name)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


SLURM = {"SLURM_PROCID": 3, "SLURM_LOCALID": 1, "SLURM_NTASKS": 4, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 4}


@pytest.mark.parametrize(
    ("variables", "kind", "ranks"),
    [
        ({}, "torchrun", (0, 0, 1)),
        ({"RANK": 3, "LOCAL_RANK": 1, "WORLD_SIZE": 4}, "torchrun", (3, 1, 4)),
        (SLURM, "srun", (3, 1, 4)),
        (SLURM | {"PMI_SIZE": 4, "PMI_RANK": 3}, "srun", (3, 1, 4)),  # srun --mpi=pmi2
        (SLURM | {"RANK": 9, "LOCAL_RANK": 2, "WORLD_SIZE": 32}, "torchrun", (9, 2, 32)),  # torchrun on each node
        ({"OMPI_COMM_WORLD_SIZE": 1}, "mpiexec", (0, 0, 1)),
        ({"PMI_SIZE": 1}, "mpiexec", (0, 0, 1)),
    ],
)
def test_ranks_of_each_launcher(environment, variables, kind, ranks):
    environment(**variables)
    assert (launcher(), launched_processes()) == (kind, ranks)


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": 4, "SLURM_JOB_ID": 7},  # the shell of salloc
        {"SLURM_NTASKS": 4, "SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_LOCALID": 0},  # a batch script
        {"SLURM_NTASKS": 4, "SLURM_STEP_ID": 4294967290, "SLURM_STEP_NUM_TASKS": 1, "SLURM_PROCID": 0},  # salloc's step
    ],
)
def test_a_plain_command_in_a_slurm_job_is_one_process(environment, variables):
    environment(**variables)
    assert launched_processes() == (0, 0, 1)


def test_slurm_ranks_started_by_hand_name_their_meeting_point(environment):
    environment(SLURM_PROCID=1, SLURM_NTASKS=2, SLURM_LOCALID=1, MASTER_ADDR="localhost", MASTER_PORT=29000)
    assert launched_processes() == (1, 1, 2)
    assert launch._address("srun") == ("localhost", 29000)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("node[01-03,7],gpu2", "node01"),
        ("gpu2,node[01-03]", "gpu2"),
        ("rack[2-3]node[05,09-11]x,y", "rack2node05x"),
        ("a-b.site,c", "a-b.site"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_slurm_address_is_the_first_host_and_a_port_of_the_step(environment):
    environment(**SLURM, SLURM_JOB_ID=123456, SLURM_STEP_NODELIST="node[01-03]", SLURM_JOB_NODELIST="other[1-9]")
    host, port = launch._address("srun")
    assert host == "node01"
    assert 20000 <= port < 30000
    environment(SLURM_STEP_ID=1)
    assert launch._address("srun")[1] != port
    environment(MASTER_ADDR="login")
    assert launch._address("srun")[0] == "login"


def test_addresses_that_are_missing_are_asked_for(environment):
    environment(**SLURM)
    with pytest.raises(ValueError, match="neither SLURM_STEP_NODELIST nor MASTER_ADDR says where rank 0 is"):
        launch._address("srun")
    environment(WORLD_SIZE=2, MASTER_ADDR="localhost")
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT do not say where rank 0 is"):
        launch._address("torchrun")
    with pytest.raises(ValueError, match="not a list of Slurm nodes"):
        first_host("[1-2")


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, "torchrun --nproc-per-node 8 train.py --tp 4 --pp 2"),
        ({"PMI_SIZE": 1}, "mpiexec -n 8 python train.py --tp 4 --pp 2"),
        (SLURM, "srun --ntasks 8 python train.py --tp 4 --pp 2"),
    ],
)
def test_wrong_number_of_processes_names_the_command_of_the_launcher(environment, variables, command):
    environment(**variables)
    with pytest.raises(ValueError, match=f"needs 8 processes or a multiple of it, not 3; run: {command}$"):
        check_process_count(3, 4, 2, "train.py --tp 4 --pp 2")
    check_process_count(16, 4, 2, "train.py")


def test_missing_mpi4py_is_named(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    environment(OMPI_COMM_WORLD_SIZE=2)
    with pytest.raises(ValueError, match=r"mpi4py cannot be loaded .*; run: pip install mpi4py mpich"):
        launched_processes()


PROGRAM = """
import torch
from parallel import comm
from parallel.grid import world_group
from parallel.launch import launched_processes, start_processes, stop_processes
device = start_processes("cpu", 60)
world = world_group()
total = comm.all_reduce(torch.tensor([2.0 ** world.rank]), world)
print(f"{launched_processes()} {int(total)}\\n", end="", flush=True)
comm.barrier(world, device)
stop_processes()
"""


def test_processes_of_mpi_meet():
    result = subprocess.run(
        [MPIEXEC, "-n", "2", sys.executable, "-c", PROGRAM],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=bare_environment(),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["(0, 0, 2) 3", "(1, 1, 2) 3"]


def test_an_mpi_that_does_not_know_the_launcher_is_named():
    """Variables of Open MPI around an mpi4py of MPICH: every process would be rank 0 of one."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env=bare_environment() | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    )  # fmt: skip
    assert "ValueError: mpi4py sees 1 process where mpiexec started 2" in result.stderr


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            env=bare_environment() | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port},
        )  # fmt: skip
    assert f"ValueError: rank 0 cannot open the meeting point localhost:{port}" in result.stderr
    assert "a free port" in result.stderr
