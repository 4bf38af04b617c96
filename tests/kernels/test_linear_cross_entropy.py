"""Linear + cross-entropy in chunks of rows: accuracy, what exists at a time, in which order things are issued."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import cross_entropy, cross_entropy_parts, cross_entropy_row
from kernels import linear_cross_entropy as module
from kernels.common import accumulation_dtype
from kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy, linear_cross_entropy_forward


def plain(hidden, weight, targets, z_loss):
    """(sum of losses, gradient of hidden, gradient of weight) by torch."""
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (leaves[0] @ leaves[1].t()).to(accumulation_dtype(hidden.dtype))
    loss = F.cross_entropy(logits, targets, reduction="sum")
    loss = loss + z_loss * logits.logsumexp(-1).square().masked_fill(targets == -100, 0.0).sum()
    return loss.detach(), *torch.autograd.grad(loss, leaves)


class Ready:
    """An exchange of a group of one."""

    def __init__(self, local):
        self.local = local

    def wait(self):
        return self.local


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("gather", [None, Ready])
@pytest.mark.parametrize("chunk", [4, None])
def test_loss_and_gradients(backend, assert_accurate, chunk, gather, z_loss):
    backend.use(cross_entropy, cross_entropy_row)
    hidden, weight = backend.tensor(10, 24), backend.tensor(37, 24, seed=1)
    targets = torch.arange(10, device=backend.device) * 4
    targets[3] = -100
    acc = accumulation_dtype(hidden.dtype)
    given = hidden.clone(), weight.clone()
    weight_grad = torch.ones(37, 24, dtype=acc, device=backend.device)
    options = {"z_loss": z_loss, "chunk": chunk, "gather": gather}
    loss, dhidden = linear_cross_entropy_forward(
        hidden, weight, targets, weight_grad=weight_grad, need_gradient=True, **options
    )
    in_dtype = plain(hidden, weight, targets, z_loss)
    exact = plain(hidden.double(), weight.double(), targets, z_loss)
    assert loss.shape == ()
    assert_accurate(loss[None], in_dtype[0][None], exact[0][None], 2)
    assert_accurate(dhidden, in_dtype[1], exact[1], 3)
    assert_accurate(weight_grad - 1, in_dtype[2].to(acc), exact[2], 3)
    assert torch.equal(hidden, given[0])
    assert torch.equal(weight, given[1])
    without, nothing = linear_cross_entropy_forward(hidden, weight, targets, need_gradient=False, **options)
    assert nothing is None
    torch.testing.assert_close(without, loss, rtol=1e-6, atol=0)
    frozen = linear_cross_entropy_forward(hidden, weight, targets, need_gradient=True, **options)
    assert torch.equal(frozen[1], dhidden)


@pytest.mark.parametrize("gather", [None, Ready])
def test_no_tokens_and_an_empty_slice(gather):
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4), torch.arange(5)
    loss, dhidden = linear_cross_entropy_forward(hidden[:0], weight, targets[:0], need_gradient=True, gather=gather)
    assert loss.item() == 0
    assert dhidden.shape == (0, 4)
    if gather is None:
        return
    others = cross_entropy.stats(hidden @ weight.t(), targets, 0, 7)[None]
    loss, dhidden = linear_cross_entropy_forward(
        hidden,
        weight[:0],
        targets,
        weight_grad=torch.zeros(0, 4),
        need_gradient=True,
        vocab_start=7,
        vocab_size=7,
        gather=lambda local: Ready(torch.cat((others, local))),
    )
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))
    assert not dhidden.any()


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that gets memory of its own."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.bytes.append(tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("need_gradient", [True, False])
@pytest.mark.parametrize(("gather", "buffers"), [(None, 1), (Ready, 2)])
def test_the_logits_never_exist_whole(monkeypatch, gather, buffers, need_gradient):
    """The workspace is the buffers of logits; nothing else is as large as a chunk of them, whatever the tokens."""
    monkeypatch.setattr(cross_entropy_parts, "_BLOCK_ELEMENTS", 1000)
    hidden, weight, targets = torch.randn(50, 4), torch.randn(1000, 4), torch.arange(50)
    weight_grad = torch.zeros(1000, 4)
    chunk = 10 * 1000 * 4  # 10 rows in float32
    with Allocations() as allocations:
        linear_cross_entropy_forward(
            hidden, weight, targets, weight_grad=weight_grad, need_gradient=need_gradient, chunk=10, gather=gather
        )
    assert max(allocations.bytes) == chunk
    large = sorted(allocations.bytes)[-buffers - 1 :]
    assert large[1:] == [chunk] * buffers
    assert large[0] <= 2 * 1000 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("vocabulary", [1, 512, 16032, 32000, 64128, 128256, 262144])
@pytest.mark.parametrize("tokens", [0, 1, 2048, 5000, 8192, 100000])
def test_chunks_are_large_and_bounded(tokens, vocabulary, buffers, dtype):
    rows = chunk_rows(tokens, vocabulary, dtype, buffers)
    assert 2048 <= rows <= 8192
    assert rows % 256 == 0
    assert buffers * rows * vocabulary * dtype.itemsize <= max(839e6, buffers * 2048 * vocabulary * dtype.itemsize)


def test_the_workspace_of_a_llama_3_head_is_below_a_gigabyte():
    """8,192 tokens and 128,256 entries in bf16: three chunks, whole or split over ranks."""
    assert chunk_rows(8192, 128256, torch.bfloat16, 1) == 2816
    assert chunk_rows(8192, 128256 // 2, torch.bfloat16, 2) == 2816
    assert 2816 * 128256 * 2 < 0.73e9
    assert chunk_rows(8192, 32000, torch.bfloat16, 1) == 8192


def test_the_next_chunk_is_issued_before_an_exchange_is_waited_for(monkeypatch):
    events = []

    class Exchange(Ready):
        def wait(self):
            events.append("wait")
            return self.local

    def gather(local):
        events.append("gather")
        return Exchange(local)

    def noting(name, function):
        def call(*args, **options):
            events.append(name)
            return function(*args, **options)

        return call

    for name in ("stats", "gradient"):
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    hidden, weight = torch.randn(10, 4), torch.randn(7, 4)
    linear_cross_entropy_forward(hidden, weight, torch.arange(10) % 7, need_gradient=True, chunk=4, gather=gather)
    first, rest = ["stats", "gather"], ["wait", "gradient"]
    assert events == first + first + rest + first + rest + rest


@pytest.mark.parametrize("target", [-1, 7, 9])
def test_a_wrong_target_is_not_a_loss(target):
    """Neither ignored nor in the vocabulary of 7: NaN, which the optimizer's check of the gradients meets."""
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, target, -100]))
    loss.backward()
    assert loss.isnan()
    assert weight.grad.isnan().any()
    assert hidden.grad[0].isfinite().all()


def test_a_second_derivative_is_refused():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 3]))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_gradients_only_where_asked_for():
    """A frozen weight or hidden gets none, and the other's is the same to the bit."""
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4), torch.arange(5)
    both = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_cross_entropy(*both, targets).backward()
    alone = hidden.clone().requires_grad_()
    linear_cross_entropy(alone, weight, targets).backward()
    assert torch.equal(alone.grad, both[0].grad)
    alone = weight.clone().requires_grad_()
    linear_cross_entropy(hidden, alone, targets).backward()
    assert torch.equal(alone.grad, both[1].grad)


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="weight has no rows"):
        linear_cross_entropy(torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(2, dtype=torch.int64))


@pytest.mark.gpu
def test_real_sizes_on_a_gpu(assert_accurate):
    """bf16 gradients against float64; workspace as stated; no host synchronisation."""
    hidden = torch.randn(4096, 1024, device="cuda").bfloat16()
    weight = (torch.randn(32000, 1024, device="cuda") / 32).bfloat16()
    targets = torch.randint(32000, (4096,), device="cuda")
    weight_grad = torch.zeros(32000, 1024, device="cuda")

    def run():
        return linear_cross_entropy_forward(hidden, weight, targets, weight_grad=weight_grad, need_gradient=True)

    run()
    weight_grad.zero_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, dhidden = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    used = torch.cuda.max_memory_allocated() - before - dhidden.nbytes
    assert used <= chunk_rows(4096, 32000, torch.bfloat16, 1) * 32000 * 2 + (1 << 20)
    in_dtype = plain(hidden, weight, targets, 0.0)
    exact = plain(hidden.double(), weight.double(), targets, 0.0)
    assert_accurate(loss[None], in_dtype[0][None], exact[0][None], 2)
    assert_accurate(dhidden, in_dtype[1], exact[1], 3)
    assert_accurate(weight_grad, in_dtype[2].float(), exact[2], 3)
