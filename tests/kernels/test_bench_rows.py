"""The benchmark's rows on the CPU: tiny inputs, ours and plain torch against the reference, formulas by hand.

Their Triton kernels need a GPU; this shows that inputs, references, candidates and verdicts fit together.
"""

import dataclasses
import math
import time
from types import SimpleNamespace

import pytest
import torch

from bench import measure
from bench.measure import OURS, Work, check, in_turns, input_sets, relative_error
from bench.row import Goal
from bench.test_kernels import HEADER, ROWS, cells, measure_row, table, verdict, versions
from kernels.attention import attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.rmsnorm import add_rmsnorm, rmsnorm
from kernels.rope import rope
from kernels.swiglu import swiglu
from tests.kernels import test_gpu

CPU = torch.device("cpu")
BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_ours_and_plain_torch_agree_with_the_reference(row, dtype):
    inputs = row.inputs(row.tiny, CPU, dtype, 0)
    reference = row.reference(inputs)
    names = [
        OURS,
        *(name for name in row.candidates if name in ("eager", "torch-fused") or name.startswith(OURS + "-")),
    ]
    assert "eager" in names
    for name in names:
        work = row.candidates[name](inputs)
        for _ in range(2):  # the second run finds what the first one overwrote brought back
            if work.reset is not None:
                work.reset()
            results = work.run()
            if name == "torch-fused" or (row.name == "adamw" and name == OURS):
                results = row.candidates[name](inputs).run()  # these go on from step to step
            assert check(results, reference, dtype) is None, name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_measured_and_printed(row, monkeypatch):
    """Everything but the GPU's clock. Peers without a CPU version are named with their reason."""
    plain = {name: row.candidates[name] for name in row.candidates if name != "compile"}
    monkeypatch.setitem(row.__dict__, "candidates", plain)
    figures = measure_row(row, row.tiny, CPU, torch.float32, rounds=2)
    assert set(figures["ratios"]) | set(figures["unavailable"]) | {OURS} == set(plain)
    assert all(figures["unavailable"].values())
    assert figures["fraction"] is None or figures["fraction"] > 0
    line = cells(row, figures)
    assert len(line) == len(HEADER)
    assert row.name in table({row.name: figures})


def test_every_row_stands_in_the_table():
    """Measured or not."""
    text = table({})
    assert all(f"| {row.name} |" in text for row in ROWS)
    assert text.count("not measured") == len(ROWS)


def test_names_are_files_names_and_differ():
    assert len(BY_NAME) == len(ROWS)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in BY_NAME)


def test_bytes_and_flops_by_hand():
    def amount(name):
        row = BY_NAME[name]
        return row.amount(row.size, 2)

    assert amount("rmsnorm_forward-4096") == 2 * 32768 * 4096 * 2  # x and y
    assert amount("add_rmsnorm_backward-8192") == 4 * 16384 * 8192 * 2  # dy, x, dsummed, dx
    assert amount("rope_forward") == 2 * 32768 * 40 * 128 * 2  # q and k, read and written
    assert amount("swiglu_backward") == 5 * 8192 * 14336 * 2  # dout, gate, up, both gradients
    assert amount("cross_entropy-128k") == 4 * 8192 * 128256
    assert amount("adamw") == 30 * (1 << 26)
    assert amount("linear_cross_entropy-32k") == 3 * 2 * 8192 * 4096 * 32000
    forward = 4 * 8192 * 8192 * 64 * 128 / 2  # two products of 2 s^2 d FLOPs a head, half of them
    assert amount("attention_forward-64_8") == forward
    assert amount("attention_backward-64_8") == 2.5 * forward
    documents = 4 * (187 * 350**2 + 86**2) * 32 * 128 / 2  # 65,536 = 187 x 350 + 86
    assert amount("attention_forward-documents") == documents
    queries = sum(range(3073, 4097))  # of 1,024 new tokens the first reads 3,073 keys, the last all; halves its own
    assert amount("paged_prefill") == 4 * 4 * 32 * 128 * (queries - 1024 / 2)
    assert amount("decode-4k") == 2 * 64 * 4096 * 8 * 128 * 2


def test_streaming_rows_exceed_the_cache_four_times():
    """60 MB is the largest L2 cache here (H200)."""
    for name in ("rmsnorm_forward-4096", "rope_forward", "swiglu_forward", "cross_entropy-128k", "adamw", "decode-4k"):
        row = BY_NAME[name]
        assert row.amount(row.size, 2) / 2 >= 4 * (60 << 20)


def test_candidates_take_turns_and_are_reset():
    log = []

    def work(name, number):
        return Work(lambda: log.append(f"{name}{number}"), lambda: log.append("reset"))

    times = in_turns(
        {"a": [work("a", 0), work("a", 1)], "b": [Work(lambda: log.append("b"))]}, 2, lambda run: run() or 1.5
    )
    assert times == {"a": [1.5, 1.5], "b": [1.5, 1.5]}
    rounds = measure.WARM_UP + 2
    assert [x for x in log if x.startswith("a")] == [f"a{n % 2}" for n in range(rounds)]
    assert log.count("reset") == rounds
    assert log[:6] == ["reset", "a0", "b", "b", "reset", "a1"]


def test_wrong_results_do_not_count():
    exact = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert check((exact.bfloat16(),), (exact,), torch.bfloat16) is None
    assert "wrong" in check((exact.bfloat16() * 1.02,), (exact,), torch.bfloat16)
    assert "wrong" in check((exact.bfloat16() * torch.nan,), (exact,), torch.bfloat16)
    assert check((exact, exact), (exact,), torch.bfloat16) == "2 results instead of 1"
    assert relative_error(torch.zeros(3), torch.zeros(4)) == math.inf
    row = BY_NAME["swiglu_forward"]
    inputs = [row.inputs(row.tiny, CPU, torch.float32, 0)]

    def broken(i):
        raise RuntimeError("not on this machine\nand more")

    def wrong(i):
        return Work(lambda: (i.dout * 2,))

    peers = {OURS: row.candidates[OURS], "broken": broken, "wrong": wrong}
    ready, failed = measure.prepare(peers, inputs, row.reference(inputs[0]), torch.float32)
    assert set(ready) == {OURS}
    assert failed["broken"] == "RuntimeError: not on this machine"
    assert failed["wrong"].startswith("wrong: relative errors")
    for bad, error in ((broken, RuntimeError), (wrong, AssertionError)):
        with pytest.raises(error):
            measure.prepare({OURS: bad}, inputs, row.reference(inputs[0]), torch.float32)


def test_an_element_that_nobody_writes_is_found():
    def forgetful(i):
        return Work(lambda: (torch.empty(4),))

    with pytest.raises(AssertionError, match="wrong"):
        measure.prepare({OURS: forgetful}, [None], [torch.zeros(4)], torch.float32)


def test_verdict():
    row = BY_NAME["attention_backward-64_8"]
    seconds = {OURS: 0.010, "sdpa-flash-deterministic": 0.012}
    found = verdict(row, 3e12, seconds, None, None)
    assert found["must"] == {"250 TFLOP/s": True, "1.3x deterministic SDPA-flash": False}
    assert found["aim"] == {"360 TFLOP/s": False}
    linear = BY_NAME["linear_cross_entropy-32k"]
    found = verdict(linear, 1e12, {OURS: 0.010, "cublas": 0.009}, "cublas", 2_000_000_000)
    assert found["must"] == {"85% of cuBLAS": True, "< 1 GB of workspace": False}
    norm = BY_NAME["rmsnorm_forward-4096"]
    found = verdict(norm, 1e9, {OURS: 0.010, "copy": 0.009}, "copy", None)
    assert found["must"] == {"88% of copy": True, "Liger's speed": None}
    assert isinstance(norm.must[0], Goal)


def test_versions_name_what_is_missing():
    found = versions()
    assert found["liger-kernel"] is None or found["liger-kernel"][0].isdigit()
    assert set(found) >= {"triton", "liger-kernel"}


def test_seconds_on_the_cpu():
    assert measure.seconds_of(lambda: time.sleep(0.01), CPU) >= 0.01


def test_seconds_on_a_gpu_are_taken_behind_a_pause(monkeypatch):
    """The order of what is asked of the device, with a device that only keeps a log."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 2.5

    other = SimpleNamespace(sum=lambda: log.append("other memory"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("pause"))
    monkeypatch.setattr(measure, "_other_memory", lambda device: other)
    assert measure.seconds_of(lambda: log.append("run"), torch.device("cuda")) == 0.0025
    assert log == ["synchronize", "other memory", "pause", "event", "run", "event", "wait"]


def test_sets_on_a_gpu_exceed_the_cache_four_times(monkeypatch):
    properties = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    sets = input_sets(lambda seed: SimpleNamespace(x=torch.zeros(300), name="x", seed=seed), torch.device("cuda"))
    assert [one.seed for one in sets] == [0, 1, 2, 3]
    assert sum(one.x.nbytes for one in sets) >= 4000


def test_sets_of_inputs_differ():
    row = BY_NAME["swiglu_forward"]
    first, second = input_sets(lambda seed: row.inputs(row.tiny, CPU, torch.float32, seed), CPU)
    assert not torch.equal(first.gate_up, second.gate_up)


# ---- the bodies of the GPU tests -------------------------------------------------------------------------------------


@pytest.fixture
def tiny_gpu_tests(monkeypatch):
    """`test_gpu` on the CPU, its rows tiny."""
    monkeypatch.setattr(test_gpu, "DEVICE", CPU)
    monkeypatch.setattr(test_gpu, "ROWS", {row.name: dataclasses.replace(row, size=row.tiny) for row in ROWS})
    for sizes in ("REAL_SIZES", "REPEATED"):
        monkeypatch.setattr(test_gpu, sizes, {name: {} for name in getattr(test_gpu, sizes)})
    return test_gpu


@pytest.mark.parametrize("name", test_gpu.REAL_SIZES)
def test_accuracy_as_on_a_gpu(tiny_gpu_tests, name, assert_accurate):
    tiny_gpu_tests.test_bfloat16_at_real_sizes(name, assert_accurate)


@pytest.mark.parametrize("name", test_gpu.FLOAT32)
def test_float32_as_on_a_gpu(tiny_gpu_tests, name):
    tiny_gpu_tests.test_float32_is_not_rounded_to_tf32(name)


@pytest.mark.parametrize("name", test_gpu.REPEATED)
def test_repeated_as_on_a_gpu(tiny_gpu_tests, name):
    tiny_gpu_tests.test_a_hundred_runs_give_the_same_bits(name)


def test_the_block_of_the_gpu_tests_is_the_public_operators(tiny_gpu_tests):
    """Its gradient in bfloat16 against autograd through the same layer in float64."""
    weights = tiny_gpu_tests.block_weights()
    wide = {name: weight.double() for name, weight in weights.items()}
    x, targets, documents = tiny_gpu_tests.block_inputs(40, [0, 13, 40], 0)
    heads, kv_heads = test_gpu.HEADS, test_gpu.KV_HEADS
    leaf = x.double().requires_grad_()
    turn = (wide["cos"], wide["sin"], documents.positions, heads, kv_heads)
    qkv = rope(rmsnorm(leaf, wide["norm"], 1e-5) @ wide["qkv"].t(), *turn)
    projected = attention(*test_gpu.heads_of(qkv), documents).flatten(1) @ wide["out"].t()
    normed, summed = add_rmsnorm(projected, leaf, wide["norm"], 1e-5)
    hidden = summed + swiglu(normed @ wide["up"].t()) @ wide["down"].t()
    loss = linear_cross_entropy(hidden, wide["head"], targets)
    (dx,) = torch.autograd.grad(loss, leaf)
    ours = tiny_gpu_tests.block(weights, x, targets, documents)
    assert relative_error(ours[0], loss.detach()) < 1e-3
    assert relative_error(ours[1], dx) < 1e-2
