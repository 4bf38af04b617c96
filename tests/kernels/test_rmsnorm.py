import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import rmsnorm, tiles
from kernels.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward

EPS = 1e-5


def plain(x, weight):
    """The norm as models usually write it, in x's dtype but for the statistic."""
    wide = x if x.dtype == torch.float64 else x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def plain_gradients(x, weight, dy):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    return torch.autograd.grad(plain(x, weight), (x, weight), dy)


SHAPES = [(1, 8), (7, 72), (5, 200), (3, 2560), (2, 5120)]
"""The last two are rows of more than one chunk, the fourth with a part of a chunk."""


@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_forward(backend, assert_accurate, rows, hidden, with_residual):
    backend.use(rmsnorm)
    x, weight = backend.tensor(rows, hidden), backend.tensor(hidden, seed=1)
    residual = backend.tensor(rows, hidden, seed=2) if with_residual else None
    given = [t.clone() for t in (x, weight)]
    y, rstd, *rest = rmsnorm_forward(x, weight, EPS, residual=residual)
    summed = x + residual if with_residual else x
    assert_accurate(y, plain(summed, weight), plain(summed.double(), weight.double()), 2)
    assert rstd.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert [torch.equal(t, summed) for t in rest] == [True] * with_residual
    assert all(torch.equal(a, b) for a, b in zip(given, (x, weight), strict=True))


@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
@pytest.mark.parametrize("with_summed", [False, True])
def test_backward(backend, assert_accurate, rows, hidden, with_summed):
    backend.use(rmsnorm)
    x, weight, dy = backend.tensor(rows, hidden), backend.tensor(hidden, seed=1), backend.tensor(rows, hidden, seed=2)
    dsummed = backend.tensor(rows, hidden, seed=3) if with_summed else None
    _, rstd = rmsnorm_forward(x, weight, EPS)
    weight_grad = torch.ones(hidden, dtype=rstd.dtype, device=x.device)
    dx = rmsnorm_backward(dy, x, weight, rstd, weight_grad=weight_grad, dsummed=dsummed)
    plain_dx, plain_dweight = plain_gradients(x, weight, dy)
    exact_dx, exact_dweight = plain_gradients(x.double(), weight.double(), dy.double())
    extra = 0 if dsummed is None else dsummed
    assert_accurate(dx, plain_dx + extra, exact_dx + (extra if dsummed is None else extra.double()), 3)
    assert_accurate(weight_grad - 1, plain_dweight.to(rstd.dtype), exact_dweight, 3)


def test_apply_gives_the_output_again(backend):
    backend.use(rmsnorm)
    x, weight = backend.tensor(7, 72), backend.tensor(72, seed=1)
    y, rstd = rmsnorm_forward(x, weight, EPS)
    assert torch.equal(rmsnorm_apply(x, weight, rstd), y)


def test_strided_rows_and_outputs_given(backend):
    """x may be part of wider rows; `out` may be dy or dsummed."""
    backend.use(rmsnorm)
    wide = backend.tensor(6, 40)
    x, weight, dy, dsummed = wide[:, 8:32], backend.tensor(24, seed=1), *backend.tensor(2, 6, 24, seed=2)
    out = torch.empty_like(wide)[:, 8:32]
    y, rstd = rmsnorm_forward(x, weight, EPS, out=out)
    assert y.data_ptr() == out.data_ptr()
    assert torch.equal(y, rmsnorm_forward(x.contiguous(), weight, EPS)[0])
    expected = rmsnorm_backward(dy, x, weight, rstd, dsummed=dsummed)
    for index in (0, 1):
        buffers = [dy.clone(), dsummed.clone()]
        result = rmsnorm_backward(buffers[0], x, weight, rstd, dsummed=buffers[1], out=buffers[index])
        assert result.data_ptr() == buffers[index].data_ptr()
        assert torch.equal(result, expected)


def test_no_rows(backend):
    backend.use(rmsnorm)
    x, weight = backend.tensor(0, 16), backend.tensor(16)
    y, rstd = rmsnorm_forward(x, weight, EPS)
    weight_grad = torch.zeros(16, dtype=rstd.dtype, device=x.device)
    assert rmsnorm_backward(y, x, weight, rstd, weight_grad=weight_grad).shape == (0, 16)
    assert not weight_grad.any()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 9),
    hidden=st.one_of(st.integers(8, 300), st.sampled_from([768, 1000, 2056])),
    gap=st.sampled_from([0, 8, 13]),
    dsummed_given=st.booleans(),
)
def test_any_shape(backend, assert_accurate, rows, hidden, gap, dsummed_given):
    """Rows with gaps between them, of any number and width."""
    backend.use(rmsnorm)
    x, dy, dsummed = (backend.tensor(rows, hidden + gap, seed=seed)[:, :hidden] for seed in range(3))
    weight, dsummed = backend.tensor(hidden, seed=3), dsummed if dsummed_given else None
    y, rstd, *_ = rmsnorm_forward(x, weight, EPS)
    assert_accurate(y, plain(x, weight), plain(x.double(), weight.double()), 2)
    weight_grad = torch.zeros(hidden, dtype=rstd.dtype, device=x.device)
    dx = rmsnorm_backward(dy, x, weight, rstd, weight_grad=weight_grad, dsummed=dsummed)
    plain_dx, plain_dweight = plain_gradients(x, weight, dy)
    exact_dx, exact_dweight = plain_gradients(x.double(), weight.double(), dy.double())
    extra, exact_extra = (0, 0) if dsummed is None else (dsummed, dsummed.double())
    assert_accurate(dx, plain_dx + extra, exact_dx + exact_extra, 3)
    assert_accurate(weight_grad, plain_dweight.to(rstd.dtype), exact_dweight, 3)


def test_same_in_any_order_and_for_any_number_of_programs(backend, monkeypatch):
    """All but the weight gradient, whose partial sums are the programs' own."""
    backend.use(rmsnorm)
    x, residual, dy, dsummed = backend.tensor(4, 11, 200)
    weight = backend.tensor(200, seed=1)

    def run():
        y, rstd, summed = rmsnorm_forward(x, weight, EPS, residual=residual)
        weight_grad = torch.zeros(200, dtype=rstd.dtype, device=x.device)
        dx = rmsnorm_backward(dy, summed, weight, rstd, weight_grad=weight_grad, dsummed=dsummed)
        return y, rstd, summed, dx, weight_grad

    backend.assert_same_in_any_order(run)
    expected = run()
    for programs in (1, 2, 11):
        monkeypatch.setattr(rmsnorm, "program_count", lambda tensor, per_multiprocessor, n=programs: n)
        *others, weight_grad = run()
        assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=False))
        torch.testing.assert_close(weight_grad, expected[-1], rtol=1e-5, atol=1e-4)


def test_gradients_are_added_and_outputs_written_whole(backend):
    """Two backward passes add up to the bit as one after the other; without weight_grad dx is the same."""
    backend.use(rmsnorm)
    x, dy = backend.tensor(2, 6, 72)
    weight = backend.tensor(72, seed=1)
    _, rstd = rmsnorm_forward(x, weight, EPS)
    once = torch.zeros(72, dtype=rstd.dtype, device=x.device)
    dx = rmsnorm_backward(dy, x, weight, rstd, weight_grad=once)
    twice = once.clone()
    rmsnorm_backward(dy, x, weight, rstd, weight_grad=twice)
    assert torch.equal(twice, once + once)
    assert torch.equal(rmsnorm_backward(dy, x, weight, rstd), dx)


@pytest.mark.parametrize("kernel", ["rmsnorm_forward", "rmsnorm_backward"])
@pytest.mark.parametrize("table", ["sm_80", "sm_90", "safe"])
def test_rows_ahead_fit_the_shared_memory(kernel, table):
    """All tensors that a launch reads, with the rows copied ahead; and 32 KB in flight on a data-centre GPU."""
    shared = {"sm_80": 163, "sm_90": 227, "safe": 99}[table] * 1024
    tensors = {"rmsnorm_forward": 2, "rmsnorm_backward": 3}[kernel]  # with the residual
    for size in tiles._tables()[table][kernel]:
        entry = tiles.tile(kernel, size, table)
        ahead = (entry.stages - 1) * entry.rows * size
        assert tensors * ahead + 1024 + 256 <= shared, (kernel, table, size)
        if size <= 1 << 15 and table != "safe":
            assert (tensors - 1) * ahead * entry.programs >= 32 * 1024, (kernel, table, size)
