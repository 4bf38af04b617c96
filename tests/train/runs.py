"""Starting a run of `train.py` in this process or in its own, and reading what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train import main as train_main

ROOT = Path(__file__).resolve().parents[2]


def command(shards, out, **flags):
    options = {
        "data": str(shards), "out": str(out), "steps": 6, "global_batch_size": 8, "micro_batch_size": 2,
        "sequence_length": 64,
        "lr": 1e-3, "warmup_steps": 2, "validation_every": 3, "validation_sequences": 3, "checkpoint_every": 0,
    } | flags  # fmt: skip
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    return ["train.py", *words]


def train(shards, out, **flags):
    """A run in this process: starting Python and torch would take longer than the run.

    With one thread, as in the launched processes, so that results are the same to the bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_main(command(shards, out, **flags)[1:])
    finally:
        torch.set_num_threads(threads)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def python(processes):
    """Words that start Python in so many processes."""
    return [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]


def launch(shards, out, processes=1, **flags):
    """A run in processes of its own, as a user starts it."""
    return start_and_wait([*python(processes), *command(shards, out, **flags)])


def start_and_wait(words):
    """The ended process, with what it printed."""
    return subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for name in set(index["weight_map"].values()):
        tensors |= load_file(folder / name)
    return tensors


def assert_same_run(run, reference, step, tolerance=1e-9):
    """Weights after `step`, losses, gradient norms and validation losses: largest difference over largest magnitude."""
    expected = weights(reference, step)
    found = weights(run, step)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        difference = (tensor - expected[name]).abs().max()
        assert difference <= tolerance * expected[name].abs().max(), f"{run.name} {name} {difference}"
    for ours, theirs in zip(metrics(run), metrics(reference), strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=tolerance), key
