"""Stopped, killed and moved to another layout: a run ends with the same weights."""

import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import torch

from tests.train.runs import ROOT, assert_same_run, command, launch, metrics, python, train, weights
from train import Trainer


def test_stop_and_resume_is_bit_identical(straight, shards, tmp_path):
    train(shards, tmp_path / "run", stop_step=3)
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    train(shards, tmp_path / "run")
    first, second = weights(straight, 6), weights(tmp_path / "run", 6)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    kept = ("step", "loss", "lr", "grad_norm", "validation_loss")
    assert [{k: line.get(k) for k in kept} for line in metrics(straight)] == [
        {k: line.get(k) for k in kept} for line in metrics(tmp_path / "run")
    ]


def start_and_signal(shards, run, signal_number, processes=1, **flags):
    """Start a run far too long to end by itself, send a signal after its first checkpoint; the launcher's exit code.

    With two processes only the second rank gets the signal: the stop has to reach the first over the network.
    """
    launched = subprocess.Popen(
        [*python(processes), *command(shards, run, steps=5000, checkpoint_every=1, validation_every=0, **flags)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(run.glob("checkpoints/step-*")):
        assert launched.poll() is None
        time.sleep(0.01)
    if processes == 1:
        launched.send_signal(signal_number)
    else:
        ranks = sorted(psutil.Process(launched.pid).children(), key=lambda child: int(child.environ()["RANK"]))
        ranks[-1].send_signal(signal_number)
    return launched.wait(timeout=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_the_step_at_hand(shards, tmp_path, processes):
    assert start_and_signal(shards, tmp_path / "run", signal.SIGTERM, processes) == 0
    last = [line["step"] for line in metrics(tmp_path / "run")][-1]
    assert last < 5000
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name == f"step-{last:08d}"


def test_killed_run_continues_bit_for_bit(shards, tmp_path):
    """After SIGKILL the last whole checkpoint counts; what it left half written is replaced."""
    run = tmp_path / "run"
    assert start_and_signal(shards, run, signal.SIGKILL) == -signal.SIGKILL
    reached = [line["step"] for line in metrics(run)][-1]
    flags = {"steps": 5000, "validation_every": 0, "stop_step": reached + 3}
    train(shards, run, **flags)
    train(shards, tmp_path / "straight", **flags)
    first, second = weights(tmp_path / "straight", reached + 3), weights(run, reached + 3)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert [line["step"] for line in metrics(run)] == list(range(1, reached + 4))


def test_a_layout_equals_one_process(shards, tmp_path):
    """As a user starts it, validation included, and continued on one process; in float64, with a vocabulary that 2 does
    not divide."""
    train(shards, tmp_path / "one", dtype="float64")
    split = {"tp": 2, "pp": 2, "schedule": "zb", "stop_step": 3}
    result = launch(shards, tmp_path / "split", 4, dtype="float64", **split)
    assert result.returncode == 0, result.stderr
    train(shards, tmp_path / "split", dtype="float64")
    assert len(weights(tmp_path / "one", 6)["lm_head.weight"]) % 2 == 1
    assert_same_run(tmp_path / "split", tmp_path / "one", step=6)


def test_a_skipped_step_is_remembered(shards, straight, tmp_path, monkeypatch):
    """One poisoned step: its samples are written down, AdamW does not count it, and a resume agrees bit for bit."""

    def poison(self, micro_batches, original=Trainer.train_step):
        if self.position.step == 1:
            self.model.buffer.parameters[0].main_grad[0, 0] = float("nan")
        return original(self, micro_batches)

    monkeypatch.setattr(Trainer, "train_step", poison)
    train(shards, tmp_path / "whole")
    train(shards, tmp_path / "halves", stop_step=3)
    train(shards, tmp_path / "halves")
    for run in ("whole", "halves"):
        state = json.loads((tmp_path / run / "checkpoints/step-00000006/training/state.json").read_text())
        assert state["skipped"] == [[8, 16]]
        assert state["optimizer_steps"] == 5
        assert [line["skipped"] for line in metrics(tmp_path / run) if "loss" in line] == [False, True] + [False] * 4
    first, second = weights(tmp_path / "whole", 6), weights(tmp_path / "halves", 6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], tensor) for name, tensor in weights(straight, 6).items())


def test_resume_needs_neither_the_first_model_nor_the_same_path_of_the_data(straight, shards, tmp_path):
    """Both may have moved; the checkpoint has its own shape, weights and tokenizer, and data is compared by content."""
    first = tmp_path / "first"
    shutil.copytree(straight, first)
    train(shards, tmp_path / "run", model=str(first), stop_step=2)
    shutil.rmtree(first)
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    train(moved, tmp_path / "run", model=str(first))
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]
