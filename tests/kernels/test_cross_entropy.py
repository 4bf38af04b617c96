import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy
from kernels import linear_cross_entropy as linear
from kernels.cross_entropy import gradient, losses, merge_stats, stats
from kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_forward

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def plain_losses(logits, targets, z_loss=0.0):
    loss = F.cross_entropy(logits, targets, reduction="none") + z_loss * logits.logsumexp(-1).square()
    return loss.masked_fill(targets == -100, 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("columns", [[50], [13, 13, 13, 13], [20, 20, 20]])
def test_split_vocabulary_equals_the_whole(device, columns, z_loss, monkeypatch):
    """Slices with padding columns, filled with huge logits: 50, 52 and 60 columns hold 50 entries."""
    monkeypatch.setattr(cross_entropy, "_BLOCK_ELEMENTS", 30)  # several blocks of rows
    torch.manual_seed(0)
    vocab_size = 50
    logits = torch.randn(9, vocab_size, dtype=torch.float64, device=device) * 5
    targets = torch.tensor([0, 49, -100, 12, 13, 26, 25, 39, 40], device=device)
    padded = F.pad(logits, (0, sum(columns) - vocab_size), value=1e4)
    parts = [part.clone() for part in padded.split(columns, 1)]
    starts = [sum(columns[:i]) for i in range(len(columns))]
    gathered = torch.stack([stats(p, targets, s, vocab_size) for p, s in zip(parts, starts, strict=True)])
    merged = merge_stats(gathered)
    leaf = logits.clone().requires_grad_()
    wanted = plain_losses(leaf, targets, z_loss)
    torch.testing.assert_close(losses(merged, targets, z_loss=z_loss), wanted.detach(), rtol=1e-13, atol=1e-13)
    wanted.sum().backward()
    result = [gradient(p, targets, merged, s, vocab_size, z_loss=z_loss) for p, s in zip(parts, starts, strict=True)]
    assert all(r.data_ptr() == p.data_ptr() for r, p in zip(result, parts, strict=True))
    joined = torch.cat(result, 1)
    torch.testing.assert_close(joined[:, :vocab_size], leaf.grad, rtol=1e-12, atol=1e-13)
    assert not joined[:, vocab_size:].any()
    assert not joined[2].any()


def test_a_slice_of_padding_alone():
    logits, targets = torch.full((2, 4), 7.0), torch.tensor([0, 1])
    assert stats(logits, targets, 8, 8).tolist() == [[-torch.inf, 0, 0]] * 2
    merged = merge_stats(torch.stack((stats(logits, targets, 0, 8), stats(logits, targets, 8, 8))))
    assert not gradient(logits, targets, merged, 8, 8).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [4, 2048])
def test_linear_cross_entropy(device, dtype, chunk, assert_accurate):
    torch.manual_seed(0)
    hidden = torch.randn(10, 24, dtype=torch.float64).to(device, dtype)
    weight = torch.randn(37, 24, dtype=torch.float64).to(device, dtype)
    targets = torch.randint(0, 37, (10,), device=device)
    targets[3] = -100
    acc = torch.float64 if dtype == torch.float64 else torch.float32

    def plain(hidden, weight):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = F.cross_entropy((leaves[0] @ leaves[1].t()).to(acc), targets, reduction="sum")
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    given = hidden.clone(), weight.clone()
    weight_grad = torch.ones(37, 24, dtype=acc, device=device)
    loss, dhidden = linear_cross_entropy_forward(
        hidden, weight, targets, weight_grad=weight_grad, need_gradient=True, chunk=chunk
    )
    exact = plain(hidden.double(), weight.double())
    in_dtype = plain(hidden, weight)
    assert loss.shape == ()
    assert_accurate(loss[None], in_dtype[0][None], exact[0][None], 2)
    assert_accurate(dhidden, in_dtype[1], exact[1], 3)
    assert_accurate(weight_grad - 1, in_dtype[2].to(acc), exact[2], 3)
    assert torch.equal(hidden, given[0])
    assert torch.equal(weight, given[1])
    without, nothing = linear_cross_entropy_forward(hidden, weight, targets, need_gradient=False, chunk=chunk)
    assert nothing is None
    assert torch.equal(without, loss)


def test_the_logits_never_exist_whole(monkeypatch):
    """No more than `chunk` rows of logits at a time."""
    rows = []

    def counting(logits, *rest):
        rows.append(len(logits))
        return stats(logits, *rest)

    monkeypatch.setattr(linear, "stats", counting)
    hidden, weight = torch.randn(10, 4), torch.randn(7, 4)
    linear_cross_entropy_forward(hidden, weight, torch.zeros(10, dtype=torch.int64), need_gradient=False, chunk=4)
    assert rows == [4, 4, 2]


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
