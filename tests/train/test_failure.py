"""A rank killed in the middle of a run: the others end without saving, and a restart continues."""

import signal
import socket
import sys
import time

import psutil
import pytest

from tests.train.runs import TORCHRUN, command, metrics, train, weights
from tests.train.test_launchers import by_hand, free_port, start


def wait_for(condition, launched):
    while not condition():
        assert all(process.poll() is None for process in launched)
        time.sleep(0.01)


def steps_done(run):
    return len(metrics(run)) if (run / "metrics.jsonl").is_file() else 0


def test_a_killed_rank_ends_all_others_and_nothing_is_saved(shards, tmp_path):
    """Also where the others are asked to stop, and to save, just then, as torchrun and queues do."""
    run, port = tmp_path / "run", free_port()
    words = command(shards, run, steps=100_000, validation_every=0, heartbeat_limit=6, global_batch_size=6)
    started = [start([sys.executable, *words], **by_hand(rank, 3), MASTER_PORT=port) for rank in range(3)]
    wait_for(lambda: steps_done(run) >= 3, started)
    started[2].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    for survivor in started[:2]:
        survivor.send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in started]
    assert time.monotonic() - begin < 30
    assert [process.returncode for process in started] == [1, 1, -signal.SIGKILL]
    last = errors[0].strip().splitlines()[-1]
    assert last.startswith(f"rank 2 on host {socket.gethostname()}: no sign of life for 6 s; it wa"), errors[0]
    assert errors[1] == ""
    assert not list((run / "checkpoints").glob("step-*"))


def test_torchrun_restarts_from_the_last_whole_checkpoint(shards, tmp_path):
    """And ends as if nothing had happened."""
    run = tmp_path / "run"
    flags = {"steps": 20, "checkpoint_every": 6, "validation_every": 0, "dtype": "float64"}
    words = command(shards, run, heartbeat_limit=6, **flags)
    launched = start([*TORCHRUN, 2, "--max-restarts", 1, *words])
    wait_for(lambda: list(run.glob("checkpoints/step-*")), [launched])
    ranks = sorted(psutil.Process(launched.pid).children(), key=lambda child: int(child.environ()["RANK"]))
    ranks[1].send_signal(signal.SIGKILL)
    train(shards, tmp_path / "unbroken", **flags)
    error = launched.communicate(timeout=120)[1]
    assert launched.returncode == 0, error
    assert "rank 1 on host" in error and "no sign of life for 6 s" in error
    assert [line["step"] for line in metrics(run)] == list(range(1, 21))
    expected = weights(tmp_path / "unbroken", 20)
    for name, tensor in weights(run, 20).items():
        assert (tensor - expected[name]).abs().max() <= 1e-9 * expected[name].abs().max(), name
    for ours, theirs in zip(metrics(run), metrics(tmp_path / "unbroken"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
