import pytest
import torch
import torch.nn.functional as F

from kernels import swiglu
from kernels.swiglu import swiglu_backward, swiglu_forward


def plain(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def plain_gradient(gate_up, dout):
    gate_up = gate_up.clone().requires_grad_()
    return torch.autograd.grad(plain(gate_up), gate_up, dout)[0]


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5, 40), (2, 1030), (0, 8), (3, 0)])
def test_forward_and_backward(backend, assert_accurate, tokens, width):
    backend.use(swiglu)
    gate_up, dout = backend.tensor(tokens, 2 * width) * 4, backend.tensor(tokens, width, seed=1)
    given = gate_up.clone()
    assert_accurate(swiglu_forward(gate_up), plain(gate_up), plain(gate_up.double()), 2)
    gradient = swiglu_backward(dout, gate_up)
    assert_accurate(gradient, plain_gradient(gate_up, dout), plain_gradient(gate_up.double(), dout.double()), 3)
    assert torch.equal(gate_up, given)


def test_backward_in_place_and_product(backend):
    backend.use(swiglu)
    gate_up, dout = backend.tensor(5, 80), backend.tensor(5, 40, seed=1)
    expected, product = swiglu_backward(dout, gate_up), torch.empty_like(dout)
    forward = swiglu_forward(gate_up)
    result = swiglu_backward(dout, gate_up, out=gate_up, product=product)
    assert result.data_ptr() == gate_up.data_ptr()
    assert torch.equal(result, expected)
    torch.testing.assert_close(product, forward, rtol=2 * torch.finfo(backend.dtype).eps, atol=0)


def test_out_given_and_rows_with_gaps(backend):
    backend.use(swiglu)
    wide = backend.tensor(4, 50)
    out = torch.empty(4, 30, dtype=backend.dtype, device=backend.device)[:, 5:25]
    result = swiglu_forward(wide[:, :40], out=out)
    assert result.data_ptr() == out.data_ptr()
    assert torch.equal(result, swiglu_forward(wide[:, :40].contiguous()))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy, in the interpreter
def test_large_gates_saturate_instead_of_overflowing(backend):
    backend.use(swiglu)
    gate_up = torch.tensor([[-2000.0, 2000.0, 1.0, 1.0]], dtype=backend.dtype, device=backend.device)
    assert swiglu_forward(gate_up).tolist() == [[0.0, 2000.0]]
    dout = torch.ones(1, 2, dtype=backend.dtype, device=backend.device)
    assert swiglu_backward(dout, gate_up).tolist() == [[0.0, 1.0, 0.0, 2000.0]]
