"""The head over a vocabulary split over two gloo processes, against one process."""

from unittest import mock

import pytest
import torch

from kernels.linear_cross_entropy import linear_cross_entropy_forward
from parallel import comm
from parallel.cross_entropy import linear_cross_entropy
from parallel.grid import Grid
from parallel.parameter import ParameterBuffer, split_vocabulary
from parallel.sequence import SequenceParallel

TOKENS, WIDTH, CHUNK = 12, 6, 4


def inputs(vocabulary):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    weight = torch.randn(vocabulary, WIDTH, dtype=torch.float64, generator=generator)
    targets = torch.randint(vocabulary, (TOKENS,), generator=generator)
    targets[4] = -100
    return hidden, weight, targets


def split_head(vocabulary, pieces):
    """Of one rank: (loss, loss without gradients, gradient of hidden, of the rank's rows), bytes counted."""
    with mock.patch("parallel.cross_entropy.chunk_rows", return_value=CHUNK):
        return _split_head(vocabulary, SequenceParallel(Grid.create(tp=2, pp=1).tp, pieces))


def _split_head(vocabulary, sequence):
    rank, pieces = sequence.tp.rank, sequence.pieces
    hidden, weight, targets = inputs(vocabulary)
    record = split_vocabulary("lm_head.weight", vocabulary, WIDTH, sequence.tp)
    buffer = ParameterBuffer()
    head = buffer.add(record, bucket="head")
    buffer.allocate(torch.float64, "cpu", gradients=True)
    head.parameters[0].data.copy_(weight[record.offsets[0] :][: record.shape[0]])
    local = torch.cat([piece.chunk(2)[rank] for piece in hidden.chunk(pieces)]).requires_grad_()
    before = comm.traffic.copy()
    loss = linear_cross_entropy(local, head, targets, sequence)
    loss.backward()
    traffic = comm.traffic - before
    with torch.no_grad():
        again = linear_cross_entropy(local, head, targets, sequence)
    padding = head.main_grad[record.shape[0] :]
    rows = head.parameters[0].main_grad.tolist()
    return loss.item(), again.item(), local.grad.tolist(), rows, traffic, int(padding.count_nonzero())


@pytest.mark.parametrize("vocabulary", [70, 1])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_vocabulary_split_over_two_processes(pool, vocabulary, pieces):
    """Slices of 64 and 6 rows, and of 1 and none; three chunks, whose exchanges run beside the next chunk."""
    found = pool.run("tests.parallel.test_cross_entropy:split_head", 2, vocabulary=vocabulary, pieces=pieces)
    hidden, weight, targets = inputs(vocabulary)
    hidden.requires_grad_()
    weight.requires_grad_()
    wanted = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    wanted.backward()
    losses, again, dhidden, rows, traffic, padding = zip(*found, strict=True)
    assert len({*losses, *again}) == 1, "the loss differs between ranks"
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-13)
    shares = [torch.tensor(part, dtype=torch.float64).chunk(pieces) for part in dhidden]
    whole = torch.cat([share for piece in zip(*shares, strict=True) for share in piece])
    torch.testing.assert_close(whole, hidden.grad, rtol=1e-12, atol=1e-14)
    joined = torch.tensor([row for part in rows for row in part], dtype=torch.float64)
    torch.testing.assert_close(joined, weight.grad, rtol=1e-12, atol=1e-14)
    assert padding == (0, 0)
    gathered = TOKENS * WIDTH * 8 + 2 * TOKENS * 3 * 8  # hidden, and three numbers a token of two ranks
    for counted in traffic:
        assert counted == {("all_gather", "tp"): gathered, ("reduce_scatter", "tp"): TOKENS * WIDTH * 8}


def test_a_group_of_one_exchanges_nothing(monkeypatch):
    """Its `start_all_gather` is the identity; the loss is that of a vocabulary that is not split."""
    monkeypatch.setattr(comm, "traffic", {})
    piece = torch.randn(1, 3, 3)
    assert comm.start_all_gather(piece, comm.Group("tp")).wait() is piece
    assert comm.traffic == {}
    hidden, weight, targets = torch.randn(9, 4), torch.randn(7, 4), torch.arange(9) % 7
    results = [
        linear_cross_entropy_forward(hidden, weight, targets, need_gradient=True, chunk=4, gather=gather)
        for gather in (None, lambda local: comm.start_all_gather(local, comm.Group("tp")))
    ]
    for alone, exchanged in zip(*results, strict=True):
        torch.testing.assert_close(alone, exchanged)
