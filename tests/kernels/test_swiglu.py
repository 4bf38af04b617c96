import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 40),
    width=st.one_of(st.integers(0, 200), st.sampled_from([1030, 2049, 2752])),
    gap=st.sampled_from([0, 7, 16]),
    with_product=st.booleans(),
)
def test_any_shape(backend, assert_accurate, tokens, width, gap, with_product):
    """Rows with gaps between them, odd widths (up is then not aligned as gate is), in place."""
    backend.use(swiglu)
    gate_up = backend.tensor(tokens, 2 * width + gap)[:, : 2 * width]
    dout = backend.tensor(tokens, width + gap, seed=1)[:, :width]
    exact = plain(gate_up.double())
    assert_accurate(swiglu_forward(gate_up), plain(gate_up), exact, 2)
    plain_gate_up, exact_gate_up = (
        plain_gradient(g, d) for g, d in ((gate_up, dout), (gate_up.double(), dout.double()))
    )
    product = torch.empty(tokens, width, dtype=backend.dtype, device=backend.device) if with_product else None
    in_place = gate_up.clone()
    swiglu_backward(dout, in_place, out=in_place, product=product)
    assert_accurate(in_place, plain_gate_up, exact_gate_up, 3)
    if with_product:
        assert_accurate(product, plain(gate_up), exact, 2)


def test_same_in_any_order(backend):
    backend.use(swiglu)
    gate_up, dout = backend.tensor(40, 2 * 300), backend.tensor(40, 300, seed=1)

    def run():
        product, in_place = torch.empty_like(dout), gate_up.clone()
        return swiglu_forward(gate_up), swiglu_backward(dout, in_place, out=in_place, product=product), product

    backend.assert_same_in_any_order(run)


@pytest.mark.parametrize("width", [1376, 1536, 1792, 3584, 5504, 8192, 11008, 13824, 14336, 28672, 53248])
def test_widths_of_llamas_and_their_slices_leave_few_lanes_idle(width):
    for kernel in ("swiglu_forward", "swiglu_backward"):
        rows, columns, _ = swiglu._shape(kernel, width, torch.device("cpu"))
        assert -width % columns * 16 <= width
        assert columns >= 64
        assert rows * columns >= 1024
