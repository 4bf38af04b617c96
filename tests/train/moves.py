"""Ranks of test_checkpoints.py: several runs of train.py, one after another in the same processes, in the layouts and
with the damage that a list of jobs says. Each rank writes what it saw of every job.
"""

import errno
import json
import sys
from pathlib import Path

import torch

import train as training_command
from data.settings import parse
from parallel.grid import Grid
from parallel.host_file import HostFile
from parallel.launch import launched_processes, start_processes, stop_processes
from training.settings import Settings, check

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def flip(trainer, rank, name, element):
    """Change the lowest bit of one weight on one rank."""
    if trainer.grid.world.rank != rank:
        return
    (parameter,) = (p for p in trainer.model.buffer.parameters if p.record.name == name)
    parameter.data.view(-1).view(BITS[parameter.data.element_size()])[element] ^= 1


def train(trainer, job):
    with trainer:
        trainer.train()


def compare_damaged(trainer, job):
    """Every one of the job's flips, undone afterwards; the texts of the errors."""
    texts = []
    for rank, name, element in job["flips"]:
        flip(trainer, rank, name, element)
        try:
            trainer.save()
        except ValueError as error:
            texts.append(str(error))
        flip(trainer, rank, name, element)
    return texts


def fill_the_disk(trainer, job):
    """One rank's second checkpoint finds no room."""

    def write(self, folder, *arguments, original=HostFile.write):
        if trainer.grid.world.rank == job["rank"] and "00000002" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device", self.path)
        original(self, folder, *arguments)

    original, HostFile.write = HostFile.write, write
    try:
        train(trainer, job)
    finally:
        HostFile.write = original


def main(file):
    rank, _, _ = launched_processes()
    device = start_processes("cpu", 240)
    torch.set_num_threads(1)
    training_command.peak_flops = lambda device, dtype: (1e12, "not measured")  # which takes longer than a run here
    seen = []
    for job in json.loads(Path(file).read_text()):
        settings = parse(Settings, job["arguments"], program="train.py", description="")
        check(settings)
        try:
            trainer = training_command.Trainer(settings, Grid.create(settings.tp, settings.pp, 240), device)
            seen.append(globals()[job["action"]](trainer, job))
        except ValueError as error:
            if not job.get("fails"):
                raise
            seen.append(str(error))
    Path(file).with_name(f"seen-{rank}.json").write_text(json.dumps(seen))
    stop_processes()


if __name__ == "__main__":
    main(sys.argv[1])
