"""The same run under each launcher, and ranks that do not fit together."""

import dataclasses
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from parallel.comm import Group
from tests.parallel.test_launch import MPIEXEC, bare_environment
from tests.train.runs import ROOT, TORCHRUN, command, metrics, train
from training import process
from training.settings import Settings


def start(words, cwd=ROOT, **variables):
    return subprocess.Popen(
        [str(word) for word in words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=bare_environment() | {name: str(value) for name, value in variables.items()},
    )  # fmt: skip


def finish(started):
    """(exit code, stderr) of each."""
    return [(process.returncode, err) for process in started for _, err in [process.communicate(timeout=300)]]


def slurm(rank, ranks):
    """What srun sets."""
    return {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": ranks, "SLURM_STEP_NUM_TASKS": ranks,
            "SLURM_STEP_ID": 0, "SLURM_JOB_ID": os.getpid(), "SLURM_STEP_NODELIST": "localhost"}  # fmt: skip


def by_hand(rank, ranks):
    """What torchrun sets, but for the port."""
    return {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost"}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_each_launcher_trains_the_same(shards, tmp_path):
    flags = {"dtype": "float64", "tp": 2, "steps": 3}

    def words(out):
        return [ROOT / "train.py", *command(shards, tmp_path / out, **flags)[1:]]

    started = [
        start([*TORCHRUN, 4, *words("torchrun")]),
        start([MPIEXEC, "-n", 4, sys.executable, *words("mpiexec")]),
    ]
    assert [code for code, _ in finish(started)] == [0, 0]
    started = [start([sys.executable, *words("srun")], **slurm(rank, 2)) for rank in range(2)]
    train(shards, tmp_path / "one", **flags | {"tp": 1})
    results = finish(started)
    assert [code for code, _ in results] == [0, 0], results
    expected = metrics(tmp_path / "one")
    for out in ("torchrun", "mpiexec", "srun"):
        for ours, theirs in zip(metrics(tmp_path / out), expected, strict=True):
            for key in ("loss", "grad_norm", "validation_loss"):
                if key in theirs:
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-9), (out, key)
    # The layout is the same: so are all bits.
    assert [line.get("loss") for line in metrics(tmp_path / "torchrun")] == [
        line.get("loss") for line in metrics(tmp_path / "mpiexec")
    ]


def test_ranks_that_do_not_fit_together_end_with_one_line(shards, tmp_path):
    """Another setting on one rank, another folder for --out, and too few processes: each ends all ranks alike."""
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    data = command(shards, "run")[1:]
    settings, folders = free_port(), free_port()
    started = [
        start([sys.executable, *command(shards, run, lr=lr)], **by_hand(rank, 2), MASTER_PORT=settings)
        for rank, lr in enumerate((0.001, 0.002))
    ]
    started += [
        start([sys.executable, ROOT / "train.py", *data], cwd, **by_hand(rank, 2), MASTER_PORT=folders)
        for rank, cwd in enumerate((tmp_path, other))
    ]
    started += [
        start([sys.executable, *command(shards, run, tp=4)], **slurm(1, 2)),
        start([MPIEXEC, "-n", 2, sys.executable, *command(shards, run, tp=4)]),
    ]
    results = finish(started)
    assert [code for code, _ in results[:5]] == [2] * 5
    assert results[5][0] in (2, 9)  # mpiexec kills what is left when the first one has ended
    errors = [[line for line in err.splitlines() if line.startswith("error: ")] for _, err in results]
    host = socket.gethostname()
    assert errors[0] == errors[1] == [
        f"error: rank 1 on host {host} has --lr 0.002, rank 0 on host {host} has 0.001; "
        "start all ranks with the same command and versions"
    ]  # fmt: skip
    assert errors[2] == errors[3] == [
        f"error: rank 1 on host {host} does not see in {other / 'run'} what rank 0 on host {host} writes in "
        f"{tmp_path / 'run'}; --out must be on a file system that all nodes see"
    ]  # fmt: skip
    needs = "error: --tp 4 --pp 1 needs 4 processes or a multiple of it, not 2; run: "
    assert [line.startswith(f"{needs}srun --ntasks 4 python train.py --data") for line in errors[4]] == [True]
    assert {line.startswith(f"{needs}mpiexec -n 4 python train.py --data") for line in errors[5]} == {True}
    assert not any("Traceback" in err for _, err in results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
    assert list(other.iterdir()) == []


WORLD, CPU = Group("world", (0, 1), 0, None), torch.device("cpu")


def gathering(change):
    """`gather_json` of two ranks: rank 1 sends what `change` makes of what rank 0 sends."""

    def gather(value, world, device):
        return [value, change(value)]

    return gather


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: own | {"versions": own["versions"] | {"torch": "2.11.0"}} if "versions" in own else own,
            rf"^rank 1 on host \S+ has torch 2\.11\.0, rank 0 on host \S+ has {re.escape(torch.__version__)}",
        ),
        (
            lambda own: (
                own | {"code": "0" * 64, "host": "b"} if "versions" in own else own | {"model/llama.py": "0" * 64}
            ),
            r"^rank 1 on host b runs other code than rank 0 on host \S+: model/llama.py differs; use the same checkout",
        ),
    ],
)
def test_other_versions_and_code_are_named(monkeypatch, change, message):
    monkeypatch.setattr(process, "gather_json", gathering(change))
    with pytest.raises(ValueError, match=message):
        process.check_ranks_agree(Settings(), WORLD, CPU)


def test_equal_ranks_agree(monkeypatch):
    monkeypatch.setattr(process, "gather_json", gathering(lambda own: own))
    process.check_ranks_agree(dataclasses.replace(Settings(), lr=0.5), WORLD, CPU)


def test_the_code_that_is_compared_is_all_that_runs():
    files = process.source_sha256()
    assert {"train.py", "kernels/tiles.json", "parallel/watch.py", "training/process.py"} <= set(files)
    assert not any(name.startswith(("tests", ".venv")) for name in files)


@pytest.mark.parametrize("made", [(), ("run",), ("run", "old")])
def test_looking_for_a_shared_folder_leaves_nothing_behind(monkeypatch, tmp_path, made):
    """Whether the run folder is there or not, empty or not."""
    (tmp_path.joinpath(*made)).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(process, "gather_json", gathering(lambda own: own))
    process.check_out_is_shared(str(tmp_path / "run"), WORLD, CPU)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setattr(process, "gather_json", gathering(lambda own: own))
    with pytest.raises(ValueError, match=r"--out /proc/run: rank 0 on host \S+ cannot write to /proc"):
        process.check_out_is_shared("/proc/run", WORLD, CPU)
