import pytest
import torch

from kernels import rmsnorm
from kernels.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward

EPS = 1e-5


def plain(x, weight):
    """The norm as models usually write it, in x's dtype but for the statistic."""
    wide = x if x.dtype == torch.float64 else x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def plain_gradients(x, weight, dy):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    return torch.autograd.grad(plain(x, weight), (x, weight), dy)


@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (7, 72), (5, 200)])
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


@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (7, 72), (5, 200)])
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
