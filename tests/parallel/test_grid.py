"""Groups of the grid, and collectives of real gloo processes."""

import time

import pytest
import torch

from parallel import comm
from parallel.comm import Group
from parallel.grid import Grid
from parallel.parameter import split_heads, split_vocabulary


def groups(tp, pp):
    grid = Grid.create(tp, pp).with_kv_replicas(kv_heads=2)
    names = ("tp", "dp", "pp", "kv", "ends", "to_next", "from_previous", "to_previous", "from_next")
    return {name: getattr(grid, name).ranks for name in names} | {"first": grid.is_first, "last": grid.is_last}


def test_tp_is_innermost_and_pp_outermost(pool):
    found = pool.run("tests.parallel.test_grid:groups", 8, tp=2, pp=2)
    assert found[5] == {
        "tp": (4, 5), "dp": (5, 7), "pp": (1, 5), "kv": (5,), "ends": (1, 5), "first": False, "last": True,
        "to_next": (5, 1), "from_previous": (1, 5), "to_previous": (1, 5), "from_next": (5, 1),
    }  # fmt: skip
    for axis in ("tp", "dp", "pp"):
        for rank in range(8):
            for other in found[rank][axis]:
                assert found[other][axis] == found[rank][axis]


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_every_directed_link_is_a_group_of_its_two_ends(pool, stages):
    found = pool.run("tests.parallel.test_grid:groups", stages, tp=1, pp=stages)
    for rank in range(stages):
        following = (rank + 1) % stages
        assert found[rank]["to_next"] == found[following]["from_previous"] == (rank, following)
        assert found[rank]["from_next"] == found[following]["to_previous"] == (rank, following)
        assert found[rank]["ends"] == ((0, stages - 1) if rank in (0, stages - 1) else (0,))


def test_tp_ranks_with_the_same_heads_are_a_group(pool):
    found = pool.run("tests.parallel.test_grid:groups", 8, tp=8, pp=1)
    assert [found[rank]["kv"] for rank in range(8)] == [(0, 1, 2, 3)] * 4 + [(4, 5, 6, 7)] * 4


def test_replicated_heads_are_one_rectangle():
    tp, kv = Group("tp", tuple(range(8)), 6), Group("kv", (4, 5, 6, 7), 2)
    record = split_heads("k", heads=2, head_dim=16, columns=5, tp=tp, kv=kv)
    assert (record.global_shape, record.offsets, record.shape) == ((32, 5), (16, 0), (16, 5))
    assert (record.sum_groups, record.replicas) == (("kv",), 4)
    record = split_heads("k", heads=8, head_dim=16, columns=5, tp=Group("tp", (0, 1), 1), kv=Group("kv"))
    assert (record.offsets, record.shape, record.sum_groups, record.replicas) == ((64, 0), (64, 5), (), 1)


@pytest.mark.parametrize(("rows", "tp"), [(509, 4), (512, 4), (3, 2), (130, 1)])
def test_slices_of_a_vocabulary_are_equal_with_padding(rows, tp):
    records = [split_vocabulary("e", rows, 4, Group("tp", tuple(range(tp)), rank)) for rank in range(tp)]
    padded = {record.shape[0] + record.padding for record in records}
    assert len(padded) == 1
    assert padded.pop() % 64 == 0
    assert sum(record.shape[0] for record in records) == rows
    assert [r.offsets[0] for r in records[1:]] == [r.offsets[0] + r.shape[0] for r in records[:-1]]


def collectives():
    grid = Grid.create(tp=1, pp=1)
    rank, before = grid.world.rank, comm.traffic.copy()
    comm.record = []
    results = [comm.all_reduce(torch.tensor([1.0, rank]), grid.dp).tolist()]
    piece = comm.reduce_scatter(torch.arange(4.0) * (rank + 1), grid.dp)
    results.append(piece.tolist())
    whole = torch.zeros(4)
    whole[2 * rank : 2 * rank + 2] = piece
    started = comm.start_all_gather(whole[2 * rank : 2 * rank + 2], grid.dp, whole)
    assert str(started.operation) == "all_gather of 4 float32 in group dp (ranks 0-1)"
    results.append(started.wait().tolist())
    assert comm.waiting_in() is None
    kinds, comm.record = [entry[0] for entry in comm.record], None
    traffic = comm.traffic - before
    text = comm.gather_json({"rank": rank, "text": "µ" * rank}, grid.world, torch.device("cpu"))
    comm.barrier(grid.world, torch.device("cpu"))
    return results, kinds, traffic, text


def test_collectives_of_two_processes(pool):
    """Sums, pieces and started operations, counted in bytes and written down in order."""
    for rank, (results, kinds, traffic, text) in enumerate(pool.run("tests.parallel.test_grid:collectives", 2)):
        assert results == [[2.0, 1.0], [[0.0, 3.0], [6.0, 9.0]][rank], [0.0, 3.0, 6.0, 9.0]]
        assert kinds == ["start", "wait"] * 3
        assert traffic == {("all_reduce", "dp"): 8, ("reduce_scatter", "dp"): 16, ("all_gather", "dp"): 16}
        assert text == [{"rank": 0, "text": ""}, {"rank": 1, "text": "µ"}]


def wait_in_vain():
    grid = Grid.create(tp=1, pp=1, timeout_seconds=3)
    if grid.world.rank:
        time.sleep(8)
        return None
    begin = time.time()
    with pytest.raises(RuntimeError):
        comm.all_reduce(torch.ones(1), grid.dp)
    return time.time() - begin


def test_a_rank_does_not_wait_longer_than_the_timeout(pool):
    """In the groups of the grid as in the group of all."""
    assert pool.run("tests.parallel.test_grid:wait_in_vain", 2)[0] < 30
