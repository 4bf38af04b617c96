"""Every schedule is complete, legal, free of deadlock and within its bytes, and as short as published."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.schedule import COMPUTE, Costs, Kind, build, validation, virtual_stage
from parallel.simulate import check, peak_bytes, simulate
from parallel.zero_bubble import default_limit, least_limit

ROOT = Path(__file__).resolve().parents[2]
LLAMA = 22.75  # bytes a micro-batch holds from forward to backward in Costs.uniform


@st.composite
def pipelines(draw):
    """(name, stages, micro_batches, chunks, costs): shapes of every kind, costs equal or all different."""
    name = draw(st.sampled_from(["1f1b", "interleaved", "zb"]))
    stages, micro_batches = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    chunks = {"1f1b": 1, "interleaved": draw(st.integers(2, 4)), "zb": draw(st.integers(1, 3))}[name]
    if draw(st.booleans()):
        return name, stages, micro_batches, chunks, Costs.uniform(stages, chunks)
    count = stages * chunks
    column = st.lists(st.floats(0.1, 4), min_size=count, max_size=count).map(tuple)
    return name, stages, micro_batches, chunks, Costs(*(draw(column) for _ in range(5)))


@settings(deadline=None, max_examples=120)
@given(pipelines(), st.floats(0, 2))
def test_every_list_is_legal_and_ends(pipeline, transfer_time):
    name, stages, micro_batches, chunks, costs = pipeline
    lists = build(name, stages, micro_batches, chunks, costs)
    check(lists, micro_batches, chunks)
    timeline = simulate(lists, costs, transfer_time)
    work = micro_batches * sum(costs.forward + costs.backward + costs.weight)
    assert sum(one.end - one.start for passes in timeline.passes for one in passes) == pytest.approx(work)
    assert timeline.bubble == pytest.approx(1 - work / (stages * timeline.total))


@settings(deadline=None, max_examples=120)
@given(pipelines(), st.floats(1, 3))
def test_bytes_stay_within_the_limit(pipeline, share):
    """Whatever the limit is, down to the least; without one, 1F1B's worst rank and what one micro-batch gains."""
    name, stages, micro_batches, chunks, costs = pipeline
    if name == "zb":
        lists = build(name, stages, micro_batches, chunks, costs)
        assert max(peak_bytes(lists, costs)) <= default_limit(stages, micro_batches, chunks, costs) * (1 + 1e-9)
        limit = least_limit(stages, chunks, costs) * share
        lists = build(name, stages, micro_batches, chunks, costs, limit)
        check(lists, micro_batches, chunks)
        assert max(peak_bytes(lists, costs)) <= limit * (1 + 1e-9)
    else:
        need = max(peak_bytes(build(name, stages, micro_batches, chunks, costs), costs))
        assert build(name, stages, micro_batches, chunks, costs, need)
        with pytest.raises(ValueError, match=rf"--schedule {name} holds .* above the limit"):
            build(name, stages, micro_batches, chunks, costs, need * 0.999)


@settings(deadline=None, max_examples=60)
@given(pipelines())
def test_zero_bubble_is_never_slower_than_the_plain_order_that_fits(pipeline):
    _, stages, micro_batches, chunks, costs = pipeline
    plain = build("1f1b" if chunks == 1 else "interleaved", stages, micro_batches, chunks, costs)
    if max(peak_bytes(plain, costs)) <= default_limit(stages, micro_batches, chunks, costs):
        zero_bubble = simulate(build("zb", stages, micro_batches, chunks, costs), costs)
        assert zero_bubble.total <= simulate(plain, costs).total * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 20), st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0.1, 3))
def test_1f1b_bubble_and_bytes(stages, micro_batches, forward, backward, weight):
    """(p - 1) / (m + p - 1), and min(p - r, m) micro-batches on rank r (arXiv 2104.04473, section 2.2)."""
    costs = Costs.uniform(stages, forward=forward, backward=backward, weight=weight)
    timeline = simulate(build("1f1b", stages, micro_batches, 1, costs), costs)
    if micro_batches >= stages:
        assert timeline.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))
    expected = [LLAMA * min(stages - rank, micro_batches) for rank in range(stages)]
    assert timeline.peak_bytes == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(2, 4))
def test_interleaved_bubble_and_bytes(stages, groups, chunks):
    """Idle over working time (p - 1) / (v m), bytes 1 + (p - 1) / (p v) of 1F1B's (section 2.2.2), for whole groups."""
    micro_batches = groups * stages
    costs = Costs.uniform(stages, chunks, backward=1.2, weight=0.8)
    timeline = simulate(build("interleaved", stages, micro_batches, chunks, costs), costs)
    idle = (stages - 1) / (chunks * micro_batches)
    assert timeline.bubble == pytest.approx(idle / (1 + idle))
    share = 1 + (stages - 1) / (stages * chunks) if groups > 1 else 1.0
    assert max(timeline.peak_bytes) == pytest.approx(LLAMA * stages * share)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 6, 7, 9])
def test_interleaved_bytes_of_uneven_groups(micro_batches):
    costs = Costs.uniform(4, 2)
    lists = build("interleaved", 4, micro_batches, 2, costs)
    assert max(peak_bytes(lists, costs)) <= LLAMA * 4 * (1 + 3 / 8) + 1e-9


@pytest.mark.parametrize(
    ("name", "stages", "micro_batches", "chunks", "bubble"),
    [
        ("1f1b", 4, 64, 1, 0.045),  # the figures written about Megatron's and Meditron's layouts
        ("interleaved", 4, 64, 5, 0.009),
        ("1f1b", 8, 128, 1, 0.052),
        ("1f1b", 8, 32, 1, 0.179),
        ("zb", 8, 32, 1, 0.0944),  # 106 units of time; 107 and 108 at the same bytes by a plain greedy rule
        ("zb", 8, 32, 2, 0.040),
    ],
)
def test_known_bubbles(name, stages, micro_batches, chunks, bubble):
    costs = Costs.uniform(stages, chunks)
    timeline = simulate(build(name, stages, micro_batches, chunks, costs), costs)
    assert timeline.bubble == pytest.approx(bubble, abs=0.0005)
    if name == "zb":
        assert max(timeline.peak_bytes) / (stages * LLAMA) <= 1.0515


def test_zero_bubble_without_need_of_bytes_is_zb_h1():
    """(p - 1) (F + B - W) idle on each rank, a third of 1F1B's (arXiv 2401.10241, table 1), at p micro-batches put off."""
    stages, micro_batches = 8, 32
    costs = Costs.uniform(stages)
    timeline = simulate(build("zb", stages, micro_batches, 1, costs, byte_limit=stages * 32.1), costs)
    assert timeline.total == pytest.approx(3 * micro_batches + stages - 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(1, 20), st.floats(0.8, 1.2), st.floats(0.8, 1.2))
def test_zero_bubble_is_shorter_than_1f1b(stages, micro_batches, backward, weight):
    costs = Costs.uniform(stages, backward=backward, weight=weight)
    plain = simulate(build("1f1b", stages, micro_batches, 1, costs), costs)
    zero_bubble = simulate(build("zb", stages, micro_batches, 1, costs), costs)
    assert zero_bubble.bubble < plain.bubble - 0.01
    assert max(zero_bubble.peak_bytes) <= plain.peak_bytes[0] + 32.1 - LLAMA + 1e-9


@pytest.mark.parametrize("chunks", [1, 2])
def test_no_weight_gradient_is_put_off_under_full_recompute(chunks):
    """It would hold eight times what recompute leaves: memory is then that of the plain order."""
    costs = Costs.uniform(4, chunks, backward=2, held_forward=4, held_backward=32.1)
    lists = build("zb", 4, 9, chunks, costs)
    assert not [step for instructions in lists for step in instructions if step.kind is Kind.WEIGHT]
    assert max(simulate(lists, costs).peak_bytes) <= 4 * 4 + 1e-9


@pytest.mark.parametrize("name", ["1f1b", "zb"])
def test_one_stage_frees_each_micro_batch_before_the_next(name):
    (instructions,) = build(name, 1, 3, 1, Costs.uniform(1))
    passes = [(step.kind.value, step.micro_batch) for step in instructions if step.kind in COMPUTE]
    assert passes == [("F", 0), ("B", 0), ("F", 1), ("B", 1), ("F", 2), ("B", 2)]
    assert len(instructions) == len(passes) + 2  # the two markers: nothing is sent


def test_a_list_in_full():
    """Each RECEIVE stands one pass before its use, and gradients leave before what only this rank waits for."""
    first, second = build("1f1b", 2, 2, 1, Costs.uniform(2))
    assert [(step.kind.name, step.micro_batch, step.peer) for step in first] == [
        ("WEIGHTS_NEEDED", 0, -1),
        ("FORWARD", 0, -1),
        ("SEND_FORWARD", 0, 1),
        ("RECEIVE_BACKWARD", 0, 1),
        ("FORWARD", 1, -1),
        ("SEND_FORWARD", 1, 1),
        ("RECEIVE_BACKWARD", 1, 1),
        ("BACKWARD", 0, -1),
        ("BACKWARD", 1, -1),
        ("GRADIENTS_COMPLETE", 0, -1),
    ]
    assert [(step.kind.name, step.micro_batch, step.peer) for step in second] == [
        ("RECEIVE_FORWARD", 0, 0),
        ("WEIGHTS_NEEDED", 0, -1),
        ("FORWARD", 0, -1),
        ("RECEIVE_FORWARD", 1, 0),
        ("BACKWARD", 0, -1),
        ("SEND_BACKWARD", 0, 0),
        ("FORWARD", 1, -1),
        ("BACKWARD", 1, -1),
        ("SEND_BACKWARD", 1, 0),
        ("GRADIENTS_COMPLETE", 0, -1),
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 10), st.integers(1, 4))
def test_validation_streams(stages, micro_batches, chunks):
    lists = validation(stages, micro_batches, chunks)
    check(lists, micro_batches, chunks, training=False)
    if micro_batches % stages == 0:
        total = simulate(lists, Costs.uniform(stages, chunks, forward=chunks)).total
        assert total == pytest.approx(chunks * micro_batches + stages - 1)


def test_virtual_stages():
    assert [virtual_stage(rank, chunk, 4) for chunk in range(2) for rank in range(4)] == list(range(8))


def test_every_process_builds_the_same_lists():
    """Whatever the seed of Python's hashes."""
    program = (
        "from parallel.schedule import *; times = tuple(1 + 0.1 * (i * 7 % 5) for i in range(8)); "
        "print(build('zb', 4, 9, 2, Costs(times, times, times, times, times)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1 and "WEIGHT" in outputs.pop()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1f1b", 4, 8, 2), "--schedule 1f1b takes one chunk, not 2: use --chunks 1, or --schedule interleaved"),
        (("interleaved", 4, 8, 1), "--schedule interleaved needs two or more chunks: add --chunks 2"),
        (("gpipe", 4, 8, 1), "--schedule gpipe: expected one of 1f1b, interleaved, zb"),
        (("zb", 4, 0, 1), "micro-batches must be 1 or more, not 0"),
        (("zb", 4, 8, 1, 22.7), "a limit of 22.7 bytes is below the 22.75 that any order needs"),
        (("zb", 1, 8, 1, 22.7), "--schedule zb holds 22.75 bytes, above the limit of 22.7"),
    ],
)
def test_bad_requests(arguments, words):
    name, stages, micro_batches, chunks, *limit = arguments
    with pytest.raises(ValueError, match=words):
        build(name, stages, micro_batches, chunks, Costs.uniform(stages, chunks), *limit)


def test_costs_are_positive():
    with pytest.raises(ValueError, match="times must be positive"):
        Costs.uniform(2, weight=0)
