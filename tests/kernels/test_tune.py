"""The offline tuner without a GPU: its candidates, its choice with a clock of our own, and the file it writes."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench import tune
from bench.tune import ROWS, TABLE, WORKLOADS, Task, candidates, choose, defect, dump, entries, new_entry, override
from kernels import tiles
from kernels.documents import Documents
from kernels.tiles import Tile, tile, work_blocks

TEXT = TABLE.read_text(encoding="utf-8")
TABLES = json.loads(TEXT)
ENTRIES = [
    (table, kernel, int(size), Tile(*(entry[field] for field in Tile._fields)))
    for table in ("sm_80", "sm_90", "safe")
    for kernel, sizes in TABLES[table].items()
    if kernel in WORKLOADS
    for size, entry in sizes.items()
]


def test_a_table_read_and_written_is_the_same_to_the_byte():
    assert dump(TABLES) == TEXT


def test_every_kernel_of_the_table_has_a_workload():
    """A kernel without one would never be tuned."""
    assert set(WORKLOADS) == set(TABLES["sm_90"])
    assert all(workload.row in ROWS for workload in WORKLOADS.values())


@pytest.mark.parametrize(("table", "kernel", "size", "present"), ENTRIES)
def test_candidates_can_be_launched_and_differ(table, kernel, size, present):
    found = candidates(kernel, size, present)
    assert 1 <= len(found) <= 60
    assert present not in found
    assert len(set(found)) == len(found)
    unread = set(Tile._fields) - set(WORKLOADS[kernel].fields)
    for other in found:
        assert all(getattr(other, field) == getattr(present, field) for field in unread)
        assert other.warps in (1, 2, 4, 8, 16, 32)
        assert all(side & (side - 1) == 0 for side in (other.rows, other.columns))
        assert other.stages >= 1


@pytest.mark.parametrize("kernel", WORKLOADS)
def test_shapes_are_the_rows_own_sizes(kernel):
    """A size of the table changes sizes that the row has, and leaves at least one token."""
    row = ROWS[WORKLOADS[kernel].row]
    for size in map(int, TABLES["sm_90"][kernel]):
        changed = WORKLOADS[kernel].shape(size)
        assert set(changed) <= set(row.size)
        assert all(value >= 1 for value in changed.values())
        assert row.amount({**row.size, **changed}, 2) > 0


def test_override_reaches_launches_and_work_lists_and_ends():
    before, blocks = tile("attention_forward", 128, "sm_90"), work_blocks()
    other = before._replace(rows=32, warps=4)
    with override("sm_90", "attention_forward", 128, other):
        assert tile("attention_forward", 128, "sm_90") == other
        assert 32 in work_blocks()
        assert len(Documents.build([0, 70], "cpu").query_blocks(32)) == 4
    assert tile("attention_forward", 128, "sm_90") == before
    assert work_blocks() == blocks
    with pytest.raises(ZeroDivisionError), override("sm_90", "attention_forward", 128, other):
        _ = 1 / 0
    assert tile("attention_forward", 128, "sm_90") == before


def test_choice():
    present, faster, close = Tile(1, 64, 4, 1, 0), Tile(2, 64, 4, 1, 0), Tile(4, 64, 4, 1, 0)
    assert choose({present: 1.0, faster: 0.9, close: 0.995}, present) == (faster, close)
    assert choose({present: 1.0, close: 0.995}, present) == (present, close), "within the noise nothing changes"
    assert choose({present: 1.0}, present) == (present, None)


def test_entry_says_where_it_was_measured_and_what_came_next():
    row, where = ROWS["swiglu_forward"], "GPU X, 2030-01-02, torch 1, Triton 2"
    present, other = Tile(1, 2048, 4, 1, 0), Tile(1, 1024, 4, 1, 0)
    entry = {**present._asdict(), "reason": "four loads a thread; measured: 3 GB/s on GPU W"}
    kept = new_entry(entry, present, {present: 0.1, other: 0.2}, row, 1e10, where)
    figures = f"100 GB/s in swiglu_forward on {where}; next 1/1024/4/1/0 50 GB/s"
    assert kept == {**present._asdict(), "reason": f"four loads a thread; measured: {figures}"}
    assert new_entry(kept, present, {present: 0.1, other: 0.2}, row, 1e10, where) == kept
    changed = new_entry(entry, present, {present: 0.2, other: 0.1}, row, 1e10, where)
    assert changed["columns"] == 1024
    assert "four loads" not in changed["reason"]
    assert "100 GB/s" in changed["reason"]
    tables = json.loads(TEXT)
    tables["sm_90"]["swiglu_forward"]["16384"] = changed
    lines, wanted = dump(tables).splitlines(), TEXT.splitlines()
    assert sum(a != b for a, b in zip(lines, wanted, strict=True)) == 1


def test_stack_and_shared_memory_are_refused():
    def compiled(spills, shared):
        return SimpleNamespace(n_spills=spills, metadata=SimpleNamespace(shared=shared))

    good, stack, large = compiled(0, 90 << 10), compiled(2, 0), compiled(0, 100 << 10)
    assert defect([("_query_kernel", stack), ("_forward_kernel", good)], "_forward_kernel", "safe") is None
    assert defect([("_forward_kernel", stack)], "_forward_kernel", "safe") == "8 bytes of stack"
    assert "shared memory" in defect([("_forward_kernel", large)], "_forward_kernel", "safe")
    assert defect([("_forward_kernel", large)], "_forward_kernel", "sm_90") is None


def cpu_task(kernel, size, clock, deadline=float("inf")):
    row = ROWS[WORKLOADS[kernel].row]
    return Task(kernel, size, "safe", row.tiny, torch.device("cpu"), torch.float32, clock, deadline)


@pytest.mark.parametrize(("kernel", "size"), [("swiglu_backward", 16384), ("attention_forward", 128)])
def test_the_fastest_candidate_wins_on_a_clock_of_our_own(kernel, size):
    """Everything is run and checked (by the twins); only the seconds are made up, from the configuration in force."""
    present = tile(kernel, size, "safe")
    wanted = candidates(kernel, size, present)[-1]

    def clock(run):
        run()
        return 1.0 if tile(kernel, size, "safe") == wanted else 2.0

    log = []
    seconds = tune.tune(cpu_task(kernel, size, clock), present, log.append)
    assert choose(seconds, present)[0] == wanted
    assert present in seconds
    assert len(seconds) <= tune.FINALISTS + 1
    assert tile(kernel, size, "safe") == present


def test_what_fails_is_discarded_with_its_reason(monkeypatch):
    present = tile("swiglu_forward", 16384, "safe")
    row = ROWS["swiglu_forward"]

    def fails(inputs):
        if tile("swiglu_forward", 16384, "safe") != present:
            raise RuntimeError("out of resource: shared memory")
        return row.candidates[tune.OURS](inputs)

    monkeypatch.setitem(ROWS, "swiglu_forward", dataclasses.replace(row, candidates={tune.OURS: fails}))
    log = []
    task = cpu_task("swiglu_forward", 16384, lambda run: 1.0)
    assert set(tune.tune(task, present, log.append)) == {present}
    assert all("out of resource" in line for line in log if "discarded" in line)
    assert sum("discarded" in line for line in log) == len(candidates("swiglu_forward", 16384, present))


def test_a_late_tuner_tries_only_the_present_entry():
    present = tile("swiglu_forward", 16384, "safe")
    log = []
    assert set(tune.tune(cpu_task("swiglu_forward", 16384, lambda run: 1.0, deadline=0.0), present, log.append)) == {
        present
    }
    assert "time is up" in log[-1]


def test_entries():
    table = TABLES["sm_90"]
    everything = entries(table, None, None)
    assert len(everything) == sum(len(table[kernel]) for kernel in WORKLOADS)
    assert everything[0] == ("attention_forward", 128)
    assert entries(table, ["rope"], None) == [("rope", 256)]
    assert entries(table, ["attention_query"], 64) == [("attention_query", 64)]
    with pytest.raises(ValueError, match="no entry of size 7"):
        entries(table, None, 7)
    with pytest.raises(ValueError, match="--kernel gemm has no workload; known are attention_forward"):
        entries(table, ["gemm"], None)


def test_launches_are_collected(monkeypatch):
    compiled = SimpleNamespace(n_spills=0)
    monkeypatch.setattr(tune.JITFunction, "run", lambda self, *arguments, **options: compiled)
    before, kernels = tune.JITFunction.run, []
    with tune.launched(kernels):
        function = SimpleNamespace(fn=SimpleNamespace(__name__="_a_kernel"))
        assert tune.JITFunction.run(function, 1, grid=(1,)) is compiled
    assert kernels == [("_a_kernel", compiled)]
    assert tune.JITFunction.run is before


def pretend_gpu(monkeypatch, seconds):
    """The command line sees an H100 on which each configuration takes what `seconds` says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU X")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(tiles, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(tune, "tune", lambda task, present, log: seconds(task, present))


def test_the_command_changes_one_line(monkeypatch, tmp_path, capsys):
    def twice_as_fast(task, present):
        assert (task.table, task.dtype, task.shape["head_dim"]) == ("sm_90", torch.bfloat16, 64)
        return {present: 0.2, present._replace(columns=512): 0.1}

    pretend_gpu(monkeypatch, twice_as_fast)
    arguments = ["--kernel", "attention_query", "--size", "64", "--out", str(tmp_path / "tiles.json")]
    tune.main([*arguments, "--dry-run"])
    assert not list(tmp_path.iterdir())
    tune.main(arguments)
    lines = (tmp_path / "tiles.json").read_text(encoding="utf-8").splitlines()
    changed = [new for new, old in zip(lines, TEXT.splitlines(), strict=True) if new != old]
    assert len(changed) == 1
    assert '"columns": 512' in changed[0]
    assert "TFLOP/s in attention_backward-32_32 on GPU X" in changed[0]
    assert TABLE.read_text(encoding="utf-8") == TEXT
    assert "attention_query 64 (sm_90)" in capsys.readouterr().out


def test_the_command_stops_in_time_and_refuses_in_one_line(monkeypatch, tmp_path, capsys):
    pretend_gpu(monkeypatch, lambda task, present: {present: 0.1})
    tune.main(["--minutes", "-1", "--out", str(tmp_path / "tiles.json")])
    assert "time is up; not tuned: attention_forward 128" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^tune.py: --kernel gemm has no workload"):
        tune.main(["--kernel", "gemm"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_ends_with_one_line():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "bench/tune.py"]
    run = subprocess.run(command, env=environment, cwd=TABLE.parents[1], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "tune.py: no CUDA GPU here; run it on the GPU whose table is to be written\n"
    assert TABLE.read_text(encoding="utf-8") == TEXT
    assert tiles._tables()["sm_90"]
