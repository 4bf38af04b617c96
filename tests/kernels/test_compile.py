"""Every Triton kernel through the real compiler, for GPUs that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "safe": 99 * 1024}
"""Bytes a block may use."""


@pytest.fixture(scope="module", params=["sm_80", "sm_90", "safe"])
def rows(request, tmp_path_factory):
    """One row a compiled kernel. In a process of its own: with TRITON_INTERPRET set this one has no compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    root = Path(__file__).resolve().parents[2]
    environment["PYTHONPATH"] = str(root)
    program = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run([sys.executable, program, request.param], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_kernels_compile_without_defects(rows):
    """Within the shared memory, on the matrix units, without fp64, without spills where the time goes."""
    assert len(rows) == 22
    for row in rows:
        assert row["shared"] <= SHARED_MEMORY[row["architecture"]], row
        assert not row["fp64"], row
        if not row["num_stages"]:  # a streaming kernel
            assert row["stack"] <= 16, row
            continue
        assert row["matrix"] == ("wgmma" if row["architecture"] == "sm_90" else "mma"), row
        assert row["registers"] >= 64, row  # fewer: the compiler has given up and keeps everything in memory
        # head_dim 256 on sm_90: two accumulators of [64, 256] leave no room, see the table of tiles
        assert row["stack"] == 0 or (row["architecture"], row["head_dim"]) == ("sm_90", 256), row
        if row["kernel"] == "attention_backward._key_value_kernel":
            assert not row["stmatrix"], row  # probabilities must not pass through shared memory
