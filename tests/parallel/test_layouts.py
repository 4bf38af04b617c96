"""Every layout computes what one process computes: losses, gradient norms and weights after three steps, in float64."""

import functools

import pytest
import torch

from parallel import check, comm
from parallel.grid import Grid
from parallel.layouts import VALUES, Layout, covering, every, sizes
from tests.parallel.order import check_order

TOLERANCE = 1e-9
HAND_PICKED = [
    Layout(tp=2, pp=2, dp=2, schedule="zb", micro_batches=1, kv_heads=1, tied=True, pieces=2),  # fewer than stages
    Layout(tp=1, pp=3, dp=1, schedule="interleaved", chunks=2, tied=True, layers=7),  # an odd ring of links
    Layout(tp=1, pp=5, dp=1, schedule="1f1b", micro_batches=7, layers=5),
]


def pytest_generate_tests(metafunc):
    if "layout" in metafunc.fixturenames:
        layouts = every() if metafunc.config.getoption("--every-layout") else [*covering(), *HAND_PICKED]
        metafunc.parametrize("layout", layouts, ids=str)


def run(layout):
    """On one rank: (result, what comm wrote down)."""
    grid = Grid.create(layout.tp, layout.pp)
    comm.record = []
    try:
        result = check.run(layout, grid, torch.device("cpu"), torch.float64)
    finally:
        record, comm.record = comm.record, None
    result.weights = {name: [(o, v.numpy()) for o, v in pieces] for name, pieces in result.weights.items()}
    return result, record


@functools.cache
def reference(layout):
    return check.run(check.one_process(layout), Grid.single(), torch.device("cpu"), torch.float64)


def test_layout_equals_one_process(pool, layout):
    results = pool.run("tests.parallel.test_layouts:run", layout.processes, layout=layout)
    for rank, (result, *_) in enumerate(results):
        result.weights = {name: [(o, torch.from_numpy(v)) for o, v in w] for name, w in result.weights.items()}
        error, name = check.worst(result, reference(layout))
        assert error <= TOLERANCE, f"rank {rank}: {name} differs by {error}"
    assert {name for result, *_ in results for name in result.weights} == set(reference(layout).weights)
    check_order([record for _, record in results])
    for rank, (result, _) in enumerate(results):
        assert result.counted == result.traffic, f"rank {rank}: {result.counted} bytes, by formula {result.traffic}"


def test_the_covering_set_covers():
    layouts = covering()
    assert len(layouts) <= 45
    assert {(x.tp, x.pp, x.dp) for x in layouts} <= set(sizes())
    values = [vars(x) | {"uneven": x.layers % max(2, x.pp * x.chunks) > 0} for x in layouts]
    seen = {(a, x[a], b, x[b]) for x in values for a in x for b in x}
    for first in ("tp", "pp", "dp"):
        for name in set(VALUES) - {"order"}:
            wanted = {(first, s[("tp", "pp", "dp").index(first)], name, v) for s in sizes() for v in VALUES[name]}
            assert wanted <= seen
    for schedule, chunks in VALUES["order"]:
        together = {(x.recompute, x.kv_heads) for x in layouts if (x.schedule, x.chunks) == (schedule, chunks)}
        assert {r for r, _ in together} == set(VALUES["recompute"])
        assert {k for _, k in together} == set(VALUES["kv_heads"])


F64 = torch.float64


def start(number, operation, ranks=(0, 1), group="tp", shape=(4,)):
    return ("start", number, operation, group, ranks, shape, F64)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        # Both send first and wait: on a link each way that ends, on one and the same it would not.
        ([[start(1, "send"), ("wait", 1), start(2, "receive"), ("wait", 2)]] * 2, "rank 0 has send"),
        (
            [
                [start(1, "send", group="a"), ("wait", 1), start(2, "receive", group="b"), ("wait", 2)],
                [start(1, "send", group="b"), ("wait", 1), start(2, "receive", group="a"), ("wait", 2)],
            ],
            r"rank 0 waits for send \(4,\) in a \(0, 1\); rank 1 waits for send",
        ),
        ([[start(1, "all_reduce"), ("wait", 1)], []], "rank 0 waits for all_reduce"),
        ([[start(1, "all_reduce"), start(2, "all_gather")], [start(1, "all_gather"), start(2, "all_reduce")]], "tp: rank"),
        ([[start(1, "all_reduce")], [start(1, "all_reduce", shape=(5,))]], r"\(4,\) .* where rank 1 has all_reduce \(5,\)"),
        ([[start(1, "send")], []], "operations without partners"),
        # Two groups, met in opposite order and waited for at once.
        (
            [
                [start(1, "all_reduce", group="a"), ("wait", 1), start(2, "all_reduce", group="b"), ("wait", 2)],
                [start(1, "all_reduce", group="b"), ("wait", 1), start(2, "all_reduce", group="a"), ("wait", 2)],
            ],
            "rank 0 waits for",
        ),
    ],
)  # fmt: skip
def test_the_order_check_finds(records, message):
    with pytest.raises(AssertionError, match=message):
        check_order(records)


def test_the_order_check_lets_pass():
    check_order(
        [
            [start(1, "send", group="a"), start(2, "receive", group="b"), ("wait", 2), ("wait", 1)],
            [start(1, "send", group="b"), start(2, "receive", group="a"), ("wait", 2)],
        ]
    )
