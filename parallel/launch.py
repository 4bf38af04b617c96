"""Joining the other processes: ranks as torchrun, MPI or Slurm gives them, and the store they meet at."""

import os
import re
import socket
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

_COMMANDS = {
    "torchrun": "torchrun --nproc-per-node {} {}",
    "mpiexec": "mpiexec -n {} python {}",
    "srun": "srun --ntasks {} python {}",
}
_meeting: tuple[str, int] | None = None
"""Address of the store, once the processes have met there."""


def launcher() -> str:
    """`torchrun`, `mpiexec` or `srun`: who started this process; `torchrun` for one that nobody did.

    torchrun comes first, because it may itself run under the others. mpiexec's own variables come before Slurm's,
    because it starts its processes through srun where there is one; srun in turn may set PMI_SIZE.
    """
    if "WORLD_SIZE" in os.environ:
        return "torchrun"
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "MPI_LOCALNRANKS" in os.environ:
        return "mpiexec"
    if _slurm_tasks() > 1:
        return "srun"
    return "mpiexec" if "PMI_SIZE" in os.environ else "torchrun"


def launched_processes() -> tuple[int, int, int]:
    """(rank, local rank, number of processes) as the launcher gives them; (0, 0, 1) without one.

    ValueError when mpiexec has started several and mpi4py is missing or belongs to another MPI.
    """
    kind = launcher()
    if kind == "srun":
        return int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_LOCALID", 0)), _slurm_tasks()
    if kind == "mpiexec":
        size = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1)
        return _mpi_ranks(size) if size > 1 else (0, 0, 1)
    return int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_process_count(processes: int, tp: int, pp: int, command: str) -> None:
    """ValueError with the exact command, for the launcher in use, when `processes` cannot form a grid of tp x pp."""
    if tp < 1 or pp < 1:
        raise ValueError(f"--tp {tp} --pp {pp}: both must be at least 1")
    needed = tp * pp
    if processes % needed:
        raise ValueError(
            f"--tp {tp} --pp {pp} needs {needed} processes or a multiple of it, not {processes}; "
            f"run: {_COMMANDS[launcher()].format(needed, command)}"
        )


def start_processes(device_type: str, timeout_seconds: float) -> torch.device:
    """Join the other processes (NCCL for CUDA, gloo for CPU) and return this rank's device.

    ValueError when there is no GPU for this process, or no meeting the others.
    """
    rank, local_rank, processes = launched_processes()
    device = _device(device_type, local_rank)
    if processes > 1:
        # Without `device_id` each group's communicator is made when first used, by its members alone; with it every
        # group would be split off by all ranks of the world.
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=dist.PrefixStore(f"{_attempt()}/groups", _meet(rank, timeout_seconds)),
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=timeout_seconds),
        )
    return device


def connect(purpose: str, timeout_seconds: float) -> dist.Store:
    """A connection of its own to the store where the processes met, with keys of its own.

    A thread that waits for an answer holds its connection, so another thread needs another one. Every start of a job
    that is restarted begins with new keys.
    """
    host, port = meeting_point()
    client = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    return dist.PrefixStore(f"{_attempt()}/{purpose}", client)


def meeting_point() -> tuple[str, int]:
    """Host and port of the store where the processes met."""
    assert _meeting is not None, "start_processes comes first"
    return _meeting


def store_rank() -> int | None:
    """The rank whose process keeps the store, which ends with it; None where torchrun keeps it."""
    return None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0


def stop_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(device_type: str, local_rank: int) -> torch.device:
    if device_type != "cuda":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if launcher() == "srun" and gpus == 1:
        local_rank = 0  # srun --gpus-per-task shows each process its own GPU only; NCCL refuses two ranks on one
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} of this node has no GPU: there are {gpus}; start {gpus} processes on each node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _meet(rank: int, timeout_seconds: float) -> dist.TCPStore:
    """The store of all processes: opened by rank 0, or there already under torchrun."""
    global _meeting
    kind, timeout, hosted = launcher(), timedelta(seconds=timeout_seconds), None
    host, port = _address(kind)
    try:
        if rank == store_rank():
            hosted = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout)
        if kind == "mpiexec":
            host, port = _mpi_broadcast((host, hosted.port) if hosted else None)
        _meeting = (host, port)
        return hosted or dist.TCPStore(host, port, is_master=False, timeout=timeout)
    except RuntimeError as error:
        what = "cannot open" if rank == store_rank() else "cannot reach"
        raise ValueError(
            f"rank {rank} {what} the meeting point {host}:{port} ({str(error).splitlines()[0]}); "
            "MASTER_ADDR and MASTER_PORT name another host of rank 0 and a free port on it"
        ) from None


def _address(kind: str) -> tuple[str, int]:
    """Host of rank 0 and the port its store listens at (0: any free one). MASTER_ADDR and MASTER_PORT go before all."""
    given = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if kind == "mpiexec":
        host, port = socket.gethostname(), 0
    elif kind == "srun":
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
        if not (given[0] or nodes):
            raise ValueError("neither SLURM_STEP_NODELIST nor MASTER_ADDR says where rank 0 is; start with srun")
        host = first_host(nodes) if nodes else ""
        # One port a job step, of those that no system gives to outgoing connections.
        port = 20000 + (int(os.environ.get("SLURM_JOB_ID", 0)) + 131 * int(os.environ.get("SLURM_STEP_ID", 0))) % 10000
    else:
        if not all(given):
            raise ValueError("WORLD_SIZE is set, but MASTER_ADDR and MASTER_PORT do not say where rank 0 is")
        host, port = "", 0
    return given[0] or host, int(given[1] or port)


def _attempt() -> str:
    """Name of this start of the job: torchrun restarts all processes, its store stays."""
    return f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


# --- Slurm ---


def _slurm_tasks() -> int:
    """Processes of the job step this one belongs to; 1 outside of a step.

    In a batch script and in the shell of salloc SLURM_NTASKS tells how many srun would start. Processes without a step
    are ranks only where MASTER_ADDR says where to meet.
    """
    if "SLURM_PROCID" not in os.environ:
        return 1
    if "SLURM_STEP_ID" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
    return int(os.environ.get("SLURM_NTASKS") or 1) if "MASTER_ADDR" in os.environ else 1


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `node01` of `node[01-03,7],gpu2`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise ValueError(f"{nodes!r} is not a list of Slurm nodes; set MASTER_ADDR to the host of rank 0")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


# --- MPI, which gives ranks and an address, and is left before training starts ---


@cache
def _mpi_ranks(size: int) -> tuple[int, int, int]:
    """(rank, local rank, number of processes) of COMM_WORLD; ValueError where it does not hold `size` processes."""
    mpi = _mpi()
    world = mpi.COMM_WORLD
    if world.size != size:
        raise ValueError(
            f"mpi4py sees {world.size} process where mpiexec started {size}: it was built for another MPI "
            f"({mpi.Get_library_version().split(',')[0].split()[0]}); use that one's mpiexec"
        )
    node = world.Split_type(mpi.COMM_TYPE_SHARED)
    ranks = world.rank, node.rank, world.size
    node.Free()
    return ranks


def _mpi_broadcast(value: Any) -> Any:
    """Rank 0's value on every rank, as the last thing MPI does: later it would end peers in its own way, and busily
    wait beside the training.
    """
    mpi = _mpi()
    value = mpi.COMM_WORLD.bcast(value, root=0)
    mpi.Finalize()
    return value


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise ValueError(
            f"mpiexec started this process, and mpi4py cannot be loaded ({str(error).splitlines()[0]}); "
            "run: pip install mpi4py mpich"
        ) from None
    return MPI
