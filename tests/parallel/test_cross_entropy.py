"""The head over a vocabulary split over two gloo processes, against one process."""

import pytest
import torch

from kernels.linear_cross_entropy import linear_cross_entropy_forward
from parallel import comm
from tests.parallel.test_grid import run_two_processes

PROGRAM = """
import torch
import parallel.cross_entropy
from parallel import comm
from parallel.grid import Grid
from parallel.launch import start_processes, stop_processes
from parallel.parameter import ParameterBuffer, split_rows

start_processes("cpu", 60)
grid = Grid.create(tp=2, pp=1)
rank, tp = grid.world.rank, grid.tp
vocabulary, tokens, chunk = {vocabulary}, 10, 4
parallel.cross_entropy.chunk_rows = lambda *arguments, **options: chunk
torch.manual_seed(0)
hidden = torch.randn(tokens, 6, dtype=torch.float64)
weight = torch.randn(vocabulary, 6, dtype=torch.float64)
targets = torch.randint(vocabulary, (tokens,))
targets[4] = -100

buffer = ParameterBuffer()
head = buffer.add(split_rows("lm_head.weight", vocabulary, 6, tp))
buffer.allocate(torch.float64, "cpu", gradients=True, multiple=1)
share = -(-vocabulary // 2)
head.data.copy_(weight[rank * share : (rank + 1) * share])
local = hidden[rank * 5 : rank * 5 + 5].clone().requires_grad_()
loss = parallel.cross_entropy.linear_cross_entropy(local, head, targets, tp)
loss.backward()
with torch.no_grad():
    assert torch.equal(parallel.cross_entropy.linear_cross_entropy(local, head, targets, tp), loss)
gathered = 2 * (hidden.numel() * 8 + 2 * tokens * 3 * 8)  # hidden, and three numbers a token of two ranks
assert comm.traffic == {{("all_gather", "tp"): gathered, ("reduce_scatter", "tp"): hidden.numel() * 8}}, comm.traffic

everyone = comm.gather_json([loss.item().hex(), local.grad.tolist(), head.main_grad.tolist()], tp, torch.device("cpu"))
assert everyone[0][0] == everyone[1][0], "the loss differs between ranks"
whole = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
wanted = torch.nn.functional.cross_entropy(whole[0] @ whole[1].t(), targets, reduction="sum")
wanted.backward()
torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-13, atol=0)
for column, gradient in ((1, whole[0].grad), (2, whole[1].grad)):
    joined = [row for _, *pieces in everyone for row in pieces[column - 1]]
    torch.testing.assert_close(torch.tensor(joined, dtype=torch.float64), gradient, rtol=1e-12, atol=1e-14)
stop_processes()
print(f"fine {{rank}}\\n", end="", flush=True)
"""


@pytest.mark.parametrize("vocabulary", [7, 1])
def test_a_vocabulary_split_over_two_processes(vocabulary):
    """Slices of 4 and 3 rows, and of 1 and none; three chunks, whose exchanges run beside the next chunk."""
    result = run_two_processes(PROGRAM.format(vocabulary=vocabulary))
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["fine 0", "fine 1"]


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
