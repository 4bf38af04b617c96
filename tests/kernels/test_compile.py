"""Every Triton kernel through the real compiler, for GPUs that need not be here, with both Triton versions: none of the
defects that `bench/compile_report.py` is there to find.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
OTHER_TRITON = Path(sys.prefix) / "triton-3.6.0"
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "safe": 99 * 1024}
"""Bytes a block may use, by tile table."""
ATTENTION = ("attention._forward_kernel", "attention_backward._key_value_kernel", "attention_backward._query_kernel")
PREFILL = "paged_prefill._prefill_kernel"
KEY_VALUE = "attention_backward._key_value_kernel"
STACK_REASONS: dict[tuple[str, str, int | None], str] = {
    ("sm_80", KEY_VALUE, 64): "64 columns instead of 32 halve how often K and V fragments are read from shared memory",
    ("sm_80", KEY_VALUE, 96): "as head_dim 64",
    ("sm_80", KEY_VALUE, 128): "32 columns instead of 16 halve how often K and V fragments are read from shared memory",
}
"""(tile table, kernel, head_dim) -> why up to 128 bytes of stack, outside the loops, are the lesser evil there."""


def run_report(out, *options):
    """What `bench/compile_report.py` writes. In a process of its own: with TRITON_INTERPRET set, this one has no
    compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "bench" / "compile_report.py", "--jobs", "2", "--json", out, *options]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text())


def triton_options(folder):
    """Options of the report for the Triton in this folder; None: the one that is installed."""
    if folder and not folder.is_dir():
        pytest.skip(f"no second Triton in {folder}; `make test` installs it on Linux")
    return ["--triton", folder] if folder else []


@pytest.fixture(scope="module", params=[None, OTHER_TRITON], ids=["triton", "triton-3.6.0"])
def report(request, tmp_path_factory):
    """The report of one Triton version: over all tile tables, or for the older one over that of the GPUs it is mostly met
    on. `--every-table` leaves nothing out."""
    options = triton_options(request.param)
    if not request.config.getoption("--every-table"):
        options += ["--quick", *(["--arch", "sm_90"] if request.param else [])]
    return run_report(tmp_path_factory.mktemp("report") / "report.json", *options)


def assert_none(rows, is_wrong):
    """None of the rows is wrong; else the message has a line for each that is."""
    keys = ("triton", "table", "kernel", "head_dim", "window", "constants", "registers", "stack", "local", "shared")
    wrong = [" ".join(f"{key}={row[key]}" for key in keys) for row in rows if is_wrong(row)]
    assert not wrong, "\n" + "\n".join(wrong)


def matrix_loops(row):
    return [loop for loop in row["loops"] if loop["matrix"]]


def test_every_kernel_is_compiled_for_every_table(report):
    kernels = {
        f"{path.stem}.{function.name}"
        for path in (ROOT / "kernels").glob("*.py")
        for function in ast.parse(path.read_text()).body
        if isinstance(function, ast.FunctionDef) and function.name.endswith("_kernel")
    }
    assert len(kernels) > 8
    assert set(report["variants"]) <= set(SHARED_MEMORY)
    for table in report["variants"]:
        assert {row["kernel"] for row in report["rows"] if row["table"] == table} == kernels


@pytest.mark.parametrize("triton", [None, OTHER_TRITON], ids=["triton", "triton-3.6.0"])
@pytest.mark.parametrize("capability", ["86", "120"])
def test_the_safe_table_on_the_other_gpus_it_is_for(request, tmp_path, capability, triton):
    """`report` compiles it for sm_89."""
    if not request.config.getoption("--every-table"):
        pytest.skip("minutes of compilation: only with --every-table")
    options = [*triton_options(triton), "--arch", "safe", "--safe-capability", capability]
    rows = run_report(tmp_path / "report.json", *options)["rows"]
    assert {row["capability"] for row in rows} == {int(capability)}
    assert_none(rows, lambda row: row["shared"] > SHARED_MEMORY["safe"] or row["stack"] > 128 or row["fp64"])
    assert_none(rows, lambda row: any(loop["local"] for loop in matrix_loops(row)))


def test_variants_do_not_depend_on_the_batch(report):
    """Any number of tokens, 1 included, runs what was compiled for another."""
    assert report["more_variants_at_other_batch_sizes"] == dict.fromkeys(report["variants"], 0)


def test_shared_memory_fits(report):
    assert_none(report["rows"], lambda row: row["shared"] > SHARED_MEMORY[row["table"]] or row["blocks"] < 1)


def test_no_double_precision(report):
    assert_none(report["rows"], lambda row: row["fp64"])


def test_no_spill_in_a_loop_with_matrix_products(report):
    assert_none(report["rows"], lambda row: any(loop["local"] for loop in matrix_loops(row)))


def test_stack(report):
    """None, save for the few named kernels, and there outside every innermost loop."""

    def wrong(row):
        reason = STACK_REASONS.get((row["table"], row["kernel"], row["head_dim"]))
        return row["stack"] > (128 if reason else 0) or any(loop["local"] for loop in row["loops"])

    assert_none(report["rows"], wrong)


def test_stack_reasons_stay_within_the_rule():
    """Forward and dQ up to head_dim 128, and dK/dV up to 128 on sm_90, are never excused."""
    for table, kernel, head_dim in STACK_REASONS:
        forward_or_query = kernel in ("attention._forward_kernel", "attention_backward._query_kernel")
        key_value_on_hopper = kernel == "attention_backward._key_value_kernel" and table == "sm_90"
        assert not ((forward_or_query or key_value_on_hopper) and head_dim <= 128), (table, kernel, head_dim)


def test_matrix_kernels_keep_their_registers(report):
    """Fewer than 64 registers: the compiler has given up and keeps everything in memory."""
    assert_none(report["rows"], lambda row: row["matrix"] and (row["registers"] < 64 or row["stack"] > 256))


def test_matrix_instructions(report):
    """Attention on warpgroup instructions (HGMMA) where there are any, decode's few rows on HMMA everywhere."""

    def wrong(row):
        names = {opcode.partition(".")[0] for opcode in row["matrix"]}
        if row["kernel"] in (*ATTENTION, PREFILL):
            return names != {"HGMMA" if row["table"] == "sm_90" else "HMMA"}
        return row["kernel"] == "decode._decode_kernel" and names != {"HMMA"}

    assert_none(report["rows"], wrong)


def test_attention_has_an_unmasked_and_a_masked_loop(report):
    """In this order, and no third copy of the body, which would cost registers."""

    def wrong(row):
        return row["kernel"] in (*ATTENTION, PREFILL) and [loop["masked"] for loop in matrix_loops(row)] != [
            False,
            True,
        ]

    assert_none(report["rows"], wrong)


def test_probabilities_stay_in_registers(report):
    """dK/dV: transposed scores go from one product into the next without passing through shared memory."""

    def wrong(row):
        return row["kernel"] == "attention_backward._key_value_kernel" and any(x["stsm"] for x in matrix_loops(row))

    assert_none(report["rows"], wrong)


def test_blocks_are_read_and_written_128_bits_at_a_time(report):
    """Narrower accesses only for what a thread has less of: a position, a target, a statistic. Not counted in decode,
    whose block has more rows than a group has heads: the compiler leaves out what they would store."""

    def wrong(row):
        if row["kernel"] == "decode._decode_kernel":
            return False
        wide = sum(number for access, number in row["global"].items() if access.endswith(".128"))
        return wide < row["wide_accesses_needed"]

    assert sum(row["wide_accesses_needed"] for row in report["rows"]) > len(report["rows"])
    assert_none(report["rows"], wrong)


def test_bounds_are_bounds(report):
    loops = [loop for row in report["rows"] for loop in matrix_loops(row)]
    assert loops
    assert all(0 < loop[bound] <= 1 for loop in loops for bound in ("ceiling", "lockstep"))


def test_float32_products_are_not_rounded(tmp_path):
    """On FP32 units: the matrix units would round the operands to TF32."""
    options = ["--arch", "sm_80", "--dtype", "float32", "--head-dim", "64", "--quick"]
    report = run_report(tmp_path / "float32.json", *options, "--kernel", "attention", "--kernel", "decode")
    assert {row["kernel"] for row in report["rows"]} >= {*ATTENTION}
    assert_none(report["rows"], lambda row: row["matrix"] or row["shared"] > SHARED_MEMORY["safe"])
