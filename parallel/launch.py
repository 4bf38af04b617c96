"""Joining the other processes: ranks as the launcher gives them."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def launched_processes() -> tuple[int, int, int]:
    """(rank, local rank, number of processes) as torchrun sets them; (0, 0, 1) without it.

    ValueError for several processes of another launcher: each would take itself for the only one.
    """
    if "WORLD_SIZE" not in os.environ:
        for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
            if int(os.environ.get(name, 1)) > 1:
                raise ValueError(
                    f"{name}={os.environ[name]}: this version takes its ranks from torchrun only; start it there"
                )
    return int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_process_count(processes: int, tp: int, pp: int, command: str) -> None:
    """ValueError with the exact command when `processes` cannot form a grid of tp x pp."""
    if tp < 1 or pp < 1:
        raise ValueError(f"--tp {tp} --pp {pp}: both must be at least 1")
    needed = tp * pp
    if processes % needed:
        raise ValueError(
            f"--tp {tp} --pp {pp} needs {needed} processes or a multiple of it, not {processes}; "
            f"run: torchrun --nproc-per-node {needed} {command}"
        )


def start_processes(device_type: str, timeout_seconds: float) -> torch.device:
    """Join the other processes (NCCL for CUDA, gloo for CPU) and return this rank's device."""
    rank, local_rank, processes = launched_processes()
    device = torch.device(device_type, local_rank) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; "
                f"use --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(device)
    if processes > 1:
        # Without `device_id` each group's communicator is made when first used, by its members alone; with it every
        # group would be split off by all ranks of the world.
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=timeout_seconds),
        )
    return device


def stop_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
