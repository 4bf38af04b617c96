"""Cross-entropy of given logits: the two local pieces, the one launch, the public operator."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import cross_entropy as module
from kernels import cross_entropy_parts, cross_entropy_row
from kernels.common import accumulation_dtype
from kernels.cross_entropy import cross_entropy, gradient, losses, merge_stats, stats
from kernels.cross_entropy_row import losses_and_gradient

IGNORED = -100
PADDING = 3e4
"""In the columns beyond the vocabulary, so that reading one of them is seen; float16 holds it."""


def plain(logits, targets, z_loss):
    """(losses, gradient of their sum) by torch, the softmax in the accumulation dtype as models usually write it."""
    leaf = logits.clone().requires_grad_()
    wide = leaf.to(accumulation_dtype(leaf.dtype))
    loss = F.cross_entropy(wide, targets, reduction="none", ignore_index=IGNORED)
    loss = loss + z_loss * wide.logsumexp(-1).square().masked_fill(targets == IGNORED, 0.0)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def random_targets(tokens, vocab_size, device, seed=0):
    """About a third is ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    return targets.masked_fill(torch.rand(tokens, generator=generator) < 0.3, IGNORED).to(device)


def slices_of(logits, count, padding):
    """(slice, its first entry) of a vocabulary split into `count` as a rank holds it, `padding` columns behind it."""
    padded = F.pad(logits, (0, padding), value=PADDING)
    share = -(-padded.shape[1] // count)
    starts = [min(number * share, padded.shape[1]) for number in range(count)]
    return [(padded[:, start : start + share].contiguous(), start) for start in starts]


def by_pieces(logits, targets, z_loss, count, padding):
    """(losses, gradient) by `stats`, `merge_stats`, `losses` and `gradient` of slices; checks what must stay."""
    vocab_size = logits.shape[1]
    parts = slices_of(logits, count, padding)
    given_logits = [part.clone() for part, _ in parts]
    merged = merge_stats(torch.stack([stats(part, targets, start, vocab_size) for part, start in parts]))
    assert all(torch.equal(part, before) for (part, _), before in zip(parts, given_logits, strict=True))
    loss = losses(merged, targets, z_loss=z_loss)
    for part, start in parts:
        assert gradient(part, targets, merged, start, vocab_size, z_loss=z_loss).data_ptr() == part.data_ptr()
    joined = torch.cat([part for part, _ in parts], dim=1)
    assert not joined[:, vocab_size:].any()
    return loss, joined[:, :vocab_size]


def in_one_launch(logits, targets, z_loss, padding):
    padded = F.pad(logits, (0, padding), value=PADDING)
    loss = losses_and_gradient(padded, targets, logits.shape[1], z_loss=z_loss)
    assert not padded[:, logits.shape[1] :].any()
    return loss, padded[:, : logits.shape[1]]


def assert_both_accurate(logits, targets, z_loss, count, padding, assert_accurate):
    in_dtype, exact = plain(logits, targets, z_loss), plain(logits.double(), targets, z_loss)
    for loss, dlogits in (
        by_pieces(logits, targets, z_loss, count, padding),
        in_one_launch(logits, targets, z_loss, padding),
    ):
        assert_accurate(loss, in_dtype[0], exact[0], 2)
        assert_accurate(dlogits, in_dtype[1], exact[1], 3)
        assert not dlogits[targets == IGNORED].any()


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize(
    ("vocab_size", "count", "padding"),
    [(1, 1, 0), (7, 2, 1), (50, 4, 10), (301, 3, 0), (1024, 1, 0), (2500, 1, 60), (3072, 2, 0), (9000, 1, 0)],
    ids=str,
)
def test_pieces_and_one_launch(backend, assert_accurate, vocab_size, count, padding, z_loss):
    """Rows within a block of columns, of blocks exactly, of several and a part; whole and split vocabularies."""
    backend.use(module, cross_entropy_row)
    logits = backend.tensor(6, vocab_size) * 4
    targets = random_targets(6, vocab_size, logits.device)
    targets[:3] = torch.tensor([0, vocab_size - 1, IGNORED])
    assert_both_accurate(logits, targets, z_loss, count, padding, assert_accurate)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 5),
    vocab_size=st.one_of(st.integers(1, 400), st.sampled_from([1025, 2047, 3500])),
    count=st.integers(1, 4),
    padding=st.sampled_from([0, 1, 16]),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    z_loss=st.sampled_from([0.0, 1e-4]),
    all_ignored=st.booleans(),
    block=st.sampled_from([100, 1 << 18]),
)
def test_any_shape(backend, assert_accurate, tokens, vocab_size, count, padding, scale, z_loss, all_ignored, block):
    """`block`: logits the twin works through at a time."""
    backend.use(module, cross_entropy_row)
    backend.monkeypatch.setattr(cross_entropy_parts, "_BLOCK_ELEMENTS", block)
    logits = backend.tensor(tokens, vocab_size) * scale
    targets = random_targets(tokens, vocab_size, logits.device, seed=vocab_size)
    if all_ignored:
        targets.fill_(IGNORED)
    assert_both_accurate(logits, targets, z_loss, count, padding, assert_accurate)


def test_logits_of_minus_infinity_and_huge_ones(backend):
    """Forbidden entries, also a slice of nothing else, and values whose exponential overflows."""
    backend.use(module, cross_entropy_row)
    logits = backend.tensor(4, 40)
    logits[0, :20] = -torch.inf
    logits[1] = torch.linspace(-6e4, 6e4, 40)
    logits[2, 20:] = -torch.inf
    logits[3, 1:] = -torch.inf
    targets = torch.tensor([30, 3, 4, 0], device=logits.device)
    exact = plain(logits.double(), targets, 0.0)
    for loss, dlogits in (by_pieces(logits, targets, 0.0, 2, 0), in_one_launch(logits, targets, 0.0, 0)):
        torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dlogits.double(), exact[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("target", [-1, 40, 1000])
def test_a_wrong_target_is_not_a_loss(backend, target):
    """Neither ignored nor in the vocabulary: NaN in its loss and its row, and nowhere else."""
    backend.use(module, cross_entropy_row)
    logits = backend.tensor(3, 40)
    targets = torch.tensor([5, target, IGNORED], device=logits.device)
    for loss, dlogits in (by_pieces(logits, targets, 0.0, 2, 3), in_one_launch(logits, targets, 0.0, 3)):
        assert loss.isnan().tolist() == [False, True, False]
        assert dlogits.isnan().all(1).tolist() == [False, True, False]
        assert dlogits[[0, 2]].isfinite().all()


def test_stats(backend):
    """What each column means: also in a slice that is padding alone, and for targets elsewhere and nowhere."""
    backend.use(module)
    logits = backend.tensor(4, 6)
    targets = torch.tensor([9, 2, IGNORED, 12], device=logits.device)
    wide = logits.to(accumulation_dtype(logits.dtype))
    result = stats(logits, targets, 8, 12)  # columns 0 to 3 are entries 8 to 11
    assert result.dtype == wide.dtype
    top = wide[:2, :4].amax(1)
    assert torch.equal(result[:2, 0], top)
    torch.testing.assert_close(result[:2, 1], (wide[:2, :4] - top[:, None]).exp().sum(1), rtol=1e-6, atol=0)
    assert result[:2, 2].tolist() == [wide[0, 1].item(), 0.0]
    assert result[2:, :2].tolist() == [[-torch.inf, 0.0]] * 2
    assert result[2:, 2].isnan().all()
    assert stats(logits, targets, 12, 12)[:2].tolist() == [[-torch.inf, 0.0, 0.0]] * 2
    assert stats(logits[:, :0], targets, 12, 12)[:2].tolist() == [[-torch.inf, 0.0, 0.0]] * 2


def test_strided_rows_scale_and_out(backend):
    """Logits may be part of wider rows; `out` receives the gradient, times `scale`, and the logits stay."""
    backend.use(module, cross_entropy_row)
    wide = backend.tensor(5, 48)
    logits, targets = wide[:, 4:34], random_targets(5, 30, wide.device)
    before = wide.clone()
    merged = stats(logits, targets, 0, 30)
    scale = torch.tensor(-4.0, device=wide.device)
    out = torch.full_like(wide, 7.0)
    result = gradient(logits, targets, merged, 0, 30, z_loss=0.1, scale=scale, out=out[:, 8:38])
    assert torch.equal(wide, before)
    assert result.data_ptr() == out[:, 8:].data_ptr()
    assert (out[:, :8] == 7).all()
    assert (out[:, 38:] == 7).all()
    unscaled = gradient(logits.contiguous(), targets, merged, 0, 30, z_loss=0.1)
    torch.testing.assert_close(result, unscaled * -4, rtol=1e-2 if wide.element_size() == 2 else 1e-6, atol=1e-7)
    loss = losses_and_gradient(logits, targets, 30, z_loss=0.1)
    torch.testing.assert_close(loss, losses(merged, targets, z_loss=0.1), rtol=1e-6, atol=1e-6)
    assert torch.equal(wide[:, :4], before[:, :4])
    assert torch.equal(wide[:, 34:], before[:, 34:])


def test_same_in_any_order_and_for_any_number_of_programs(backend, monkeypatch):
    backend.use(module, cross_entropy_row)
    logits, targets = backend.tensor(7, 1500), random_targets(7, 1500, backend.device).abs()  # 100: never NaN

    def run():
        merged, row = stats(logits, targets, 0, 1500), logits.clone()
        loss = losses_and_gradient(row, targets, 1500)
        return merged, gradient(logits.clone(), targets, merged, 0, 1500), loss, row

    backend.assert_same_in_any_order(run)
    expected = run()
    for programs in (1, 2, 7):
        monkeypatch.setattr(cross_entropy_row, "program_count", lambda tensor, per_multiprocessor, n=programs: n)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_public_operator(backend, assert_accurate, z_loss):
    """The sum, its gradient times what comes in, and the logits unchanged."""
    backend.use(module)
    logits = (backend.tensor(6, 301) * 3).requires_grad_()
    targets = random_targets(6, 301, backend.device)
    before = logits.detach().clone()
    loss = cross_entropy(logits, targets, z_loss=z_loss)
    assert loss.shape == ()
    (dlogits,) = torch.autograd.grad(loss / 8, logits)
    in_dtype, exact = plain(before, targets, z_loss), plain(before.double(), targets, z_loss)
    assert_accurate(loss.detach()[None], in_dtype[0].sum()[None], exact[0].sum()[None], 2)
    assert_accurate(dlogits * 8, in_dtype[1], exact[1], 3)
    assert torch.equal(logits, before)


def test_another_ignored_target_and_targets_with_gaps():
    """An entry of the vocabulary may be the one without loss; targets may be a column of a matrix."""
    logits = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1], [3, 1], [0, 2], [8, 2], [4, 2]])[:, 0]
    loss = cross_entropy(logits, targets, ignore_index=0)
    wanted = F.cross_entropy(logits, targets, ignore_index=0, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
    ours, theirs = (torch.autograd.grad(x, logits)[0] for x in (loss, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    again = logits.detach().clone()
    losses_and_gradient(again, targets.contiguous(), 9, ignore_index=0)
    torch.testing.assert_close(again, theirs, rtol=1e-12, atol=1e-14)


def test_no_gradient_work_without_backward(monkeypatch):
    """The forward pass computes no gradient, whether one may be asked for or not."""
    monkeypatch.setattr(module, "gradient", lambda *args, **options: pytest.fail("gradient computed"))
    cross_entropy(torch.randn(3, 5, requires_grad=True), torch.tensor([1, 2, 3]))


def test_a_second_derivative_is_refused():
    logits = torch.randn(3, 5, requires_grad=True)
    (first,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([1, 2, 3])), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.square().sum().backward()


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64), "logits needs 2 dimensions, got 3"),
        (torch.zeros(4, 3).t(), torch.zeros(3, dtype=torch.int64), "logits must have stride 1"),
        (torch.zeros(2, 3).long(), torch.zeros(2, dtype=torch.int64), "logits has dtype torch.int64"),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64), "logits has no columns"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "one for each row of logits"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), "targets must be int64"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, dtype=torch.int64, device="meta"),
            "targets is on meta but logits is on cpu",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, targets)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "vocab_size"), [(8192, 32000), (512, 128256), (512, 50257)])
def test_real_sizes_on_a_gpu(assert_accurate, tokens, vocab_size):
    logits = (torch.randn(tokens, vocab_size, device="cuda") * 3).bfloat16()
    targets = random_targets(tokens, vocab_size, "cuda")
    in_dtype, exact = plain(logits, targets, 1e-4), plain(logits.double(), targets, 1e-4)
    merged = stats(logits, targets, 0, vocab_size)
    assert_accurate(losses(merged, targets, z_loss=1e-4), in_dtype[0], exact[0], 2)
    apart = gradient(logits.clone(), targets, merged, 0, vocab_size, z_loss=1e-4)
    assert_accurate(apart, in_dtype[1], exact[1], 3)
    assert_accurate(losses_and_gradient(logits, targets, vocab_size, z_loss=1e-4), in_dtype[0], exact[0], 2)
    assert_accurate(logits, in_dtype[1], exact[1], 3)


@pytest.mark.gpu
def test_a_hundred_runs_are_equal_on_a_gpu():
    logits = torch.randn(2048, 32000, device="cuda").bfloat16()
    targets = random_targets(2048, 32000, "cuda")
    results = []
    for _ in range(100):
        row = logits.clone()
        loss = losses_and_gradient(row, targets, 32000)
        results.append((stats(logits, targets, 0, 32000), loss, row))
        assert all(
            torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(results[0], results[-1], strict=True)
        )
        del results[1:]
