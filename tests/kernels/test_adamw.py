import pytest
import torch

from kernels import adamw
from kernels.adamw import adamw_step

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
N = 1000
RANGES = [(10, 300, 0.1), (300, 500, 0.2), (900, 1000, 0.1)]


def state(dtype, device):
    torch.manual_seed(0)
    master, gradient = torch.randn(2, N, dtype=torch.float64)
    tensors = [master, torch.zeros(N), torch.zeros(N), gradient]
    return [t.to(device, dtype) for t in tensors]


def step(tensors, weights, number, device, *, keep=1.0, scale=0.5):
    scalar = {"lr": 1e-2, "gradient_scale": scale, "step": float(number), "keep": keep}
    adamw_step(
        *tensors,
        weights,
        **{name: torch.tensor([value], dtype=torch.float32, device=device) for name, value in scalar.items()},
        decay_ranges=RANGES,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_equals_the_formula(device, dtype, block, monkeypatch):
    """Three steps against the update written out in float64; blocks do not matter."""
    monkeypatch.setitem(adamw._BLOCK, device, block)
    tensors = state(dtype, device)
    weights = tensors[0].to(torch.bfloat16)
    lr = torch.tensor(1e-2, dtype=torch.float32).item()
    p, m, v = (t.to(torch.float64, copy=True) for t in tensors[:3])
    decay = torch.zeros(N, dtype=torch.float64, device=device)
    for begin, end, value in RANGES:
        decay[begin:end] = value
    for number in (1, 2, 3):
        gradient = tensors[3].clone()
        step(tensors, weights, number, device)
        assert torch.equal(tensors[3], gradient)
        g = gradient.double() * 0.5
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p * (1 - lr * decay) - lr * (m / (1 - 0.9**number)) / ((v / (1 - 0.95**number)).sqrt() + 1e-8)
        tensors[3].mul_(-1.5)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    for ours, wanted in zip(tensors, (p, m, v), strict=False):
        assert (ours.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert torch.equal(weights, tensors[0].to(torch.bfloat16))


@pytest.mark.parametrize("device", DEVICES)
def test_keep_zero_changes_nothing_even_on_nan(device):
    tensors = state(torch.float32, device)
    step(tensors, tensors[0].clone(), 1, device)
    tensors[3].fill_(torch.nan)
    weights = tensors[0].to(torch.bfloat16)
    before = [t.clone() for t in (*tensors[:3], weights)]
    step(tensors, weights, 2, device, keep=0.0, scale=torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors[:3], weights), strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_be_the_master(device):
    one, other = state(torch.float32, device), state(torch.float32, device)
    separate = one[0].clone()
    step(one, separate, 1, device)
    step(other, other[0], 1, device)
    assert torch.equal(one[0], other[0])
    assert torch.equal(separate, one[0])


def test_overlapping_ranges_are_a_programming_error():
    with pytest.raises(AssertionError, match="overlap"):
        adamw._blocks(10, [(0, 5, 0.1), (4, 8, 0.1)], 4)
