import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import adamw
from kernels.adamw import adamw_step
from kernels.common import accumulation_dtype
from kernels.tiles import Tile
from tests.kernels.conftest import REASON_NOT_TO_INTERPRET

N = 1000
RANGES = [(10, 300, 0.1), (300, 500, 0.2), (900, 1000, 0.1)]
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8


def state(backend, n=N):
    """master, both moments and gradient in the accumulation dtype, weights in the backend's."""
    generator = torch.Generator().manual_seed(0)
    master, gradient = torch.randn(2, n, generator=generator, dtype=torch.float64)
    dtype = accumulation_dtype(backend.dtype)
    tensors = [t.to(backend.device, dtype) for t in (master, torch.zeros(n), torch.zeros(n), gradient)]
    return tensors, tensors[0].to(backend.dtype)


def step(tensors, weights, number, *, keep=1.0, scale=0.5, ranges=RANGES, lr=1e-2, beta2=BETA2):
    scalars = {"lr": lr, "gradient_scale": scale, "step": float(number), "keep": keep}
    adamw_step(
        *tensors,
        weights,
        **{k: torch.tensor([v], dtype=torch.float32, device=weights.device) for k, v in scalars.items()},
        decay_ranges=ranges,
        beta1=BETA1,
        beta2=beta2,
        eps=EPS,
    )


def written_out(tensors, steps, dtype, ranges=RANGES, lr=1e-2):
    """The update as its formula stands, in `dtype`: (master, exp_avg, exp_avg_sq) after these steps."""
    master, exp_avg, exp_avg_sq, gradient = (t.to(dtype) for t in tensors)
    lr = torch.tensor(lr, dtype=torch.float32).item()
    decay = torch.zeros_like(master)
    for begin, end, value in ranges:
        decay[begin:end] = value
    for number in range(1, steps + 1):
        g = gradient * 0.5
        exp_avg = BETA1 * exp_avg + (1 - BETA1) * g
        exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * g * g
        root = (exp_avg_sq / (1 - BETA2**number)).sqrt() + EPS
        master = master * (1 - lr * decay) - lr * (exp_avg / (1 - BETA1**number)) / root
        gradient = gradient * -1.5
    return master, exp_avg, exp_avg_sq


def small_blocks(monkeypatch, size=64):
    monkeypatch.setattr(adamw, "_BLOCK", size)
    monkeypatch.setattr(adamw, "tile", lambda *key: Tile(1, size, 1, 1, 0))


@pytest.mark.parametrize("blocks_of", [64, None])
def test_equals_the_formula(backend, assert_accurate, monkeypatch, blocks_of):
    """Three steps, with ranges that begin and end within blocks."""
    backend.use(adamw)
    if blocks_of:
        small_blocks(monkeypatch, blocks_of)
    tensors, weights = state(backend)
    plain = written_out(tensors, 3, tensors[0].dtype)
    exact = written_out(tensors, 3, torch.float64)
    for number in (1, 2, 3):
        gradient = tensors[3].clone()
        step(tensors, weights, number)
        assert torch.equal(tensors[3], gradient)
        tensors[3].mul_(-1.5)
    for ours, in_same, in_float64 in zip(tensors, plain, exact, strict=False):
        assert_accurate(ours, in_same, in_float64, 2)
    assert torch.equal(weights, tensors[0].to(weights.dtype))


@settings(max_examples=20)
@given(
    n=st.integers(0, 300), cuts=st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0.0, 0.1, 0.3])), max_size=8)
)
def test_any_length_and_ranges(n, cuts):
    """The Triton code in the interpreter beside the twin, for ranges of any length, none included."""
    if REASON_NOT_TO_INTERPRET:
        pytest.skip(REASON_NOT_TO_INTERPRET)
    ends = [min(n, cut) for cut, _ in sorted(cuts)]
    ranges = [
        (begin, end, decay) for begin, end, (_, decay) in zip([0, *ends][: len(ends)], ends, sorted(cuts), strict=True)
    ]
    values = torch.randn(4, n, generator=torch.Generator().manual_seed(0))
    values[2].square_()
    scalars = tuple(torch.tensor([value]) for value in (1e-2, 0.5, 3.0, 1.0))
    results = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_blocks(monkeypatch)
        for run in (adamw._torch_step, adamw._triton_step):
            tensors = [*values.clone(), torch.full((n,), math.nan, dtype=torch.bfloat16)]
            run(tensors, scalars, ranges, BETA1, BETA2, EPS)
            results.append(tensors)
    before = [*values, torch.zeros(n)]  # the copy in bfloat16 is the new weight alone
    for old, twin, ours in zip(before, *results, strict=True):
        relative = 1e-2 if ours.dtype == torch.bfloat16 else 1e-6
        # Of the old value and the new one: where a weight and its step cancel, each has been rounded.
        bound = 1e-7 + relative * (old.abs() + twin.float().abs())
        assert ((ours.float() - twin.float()).abs() <= bound).all()
    assert torch.equal(results[1][4], results[1][0].bfloat16())


@pytest.mark.skipif(REASON_NOT_TO_INTERPRET is not None, reason=str(REASON_NOT_TO_INTERPRET))
def test_float64_in_the_interpreter(monkeypatch):
    small_blocks(monkeypatch)
    monkeypatch.setattr(adamw, "_torch_step", adamw._triton_step)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(4)]
    tensors[1].zero_(), tensors[2].zero_()
    exact = written_out(tensors, 1, torch.float64)
    step(tensors, tensors[0], 1)
    for ours, wanted in zip(tensors, exact, strict=False):
        assert (ours - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@pytest.mark.parametrize("number", [1, 2, 10, 500, 501, 100000])
def test_bias_correction_is_right_from_the_first_step_on(backend, number):
    """Steps with one gradient all along: the moments are g (1 - beta1^t) and g^2 (1 - beta2^t), the update is lr. A
    correction computed as 1 - 0.999^t in float32 would be wrong in the fifth digit at t = 1."""
    backend.use(adamw)
    tensors, weights = state(backend, 16)
    g = 0.5 * tensors[3].double()
    exact_moments = g * (1 - BETA1 ** (number - 1)), g * g * -math.expm1((number - 1) * math.log(0.999))
    tensors[0].zero_()
    for tensor, value in zip(tensors[1:3], exact_moments, strict=True):
        tensor.copy_(value)
    step(tensors, weights, number, ranges=[], lr=1.0, beta2=0.999)
    tolerance = 2e-6
    assert (tensors[0].double() + g / (g.abs() + EPS)).abs().max() <= tolerance


def test_keep_zero_changes_nothing_even_on_nan(backend):
    backend.use(adamw)
    tensors, weights = state(backend)
    step(tensors, weights, 1)
    tensors[3].fill_(torch.nan)
    before = [t.clone() for t in (*tensors[:3], weights)]
    for keep in (0.0, False):
        step(tensors, weights, 2, keep=keep, scale=torch.nan)
        assert all(torch.equal(a, b) for a, b in zip(before, (*tensors[:3], weights), strict=True))


def test_keep_may_be_boolean(backend):
    backend.use(adamw)
    (one, weights), (other, _) = state(backend), state(backend)
    step(one, weights, 1)
    ones = [torch.ones(1, device=backend.device) for _ in range(3)]
    options = {"decay_ranges": RANGES, "beta1": BETA1, "beta2": BETA2, "eps": EPS}
    for keep, wanted in ((False, state(backend)[0]), (True, one)):
        adamw_step(
            *other,
            weights.clone(),
            lr=ones[0] * 1e-2,
            gradient_scale=ones[1] * 0.5,
            step=ones[2],
            keep=torch.tensor([keep], device=backend.device),
            **options,
        )
        assert all(torch.equal(a, b) for a, b in zip(other, wanted, strict=True))


def test_weights_may_be_the_master(backend):
    backend.use(adamw)
    (one, _), (other, _) = state(backend), state(backend)
    separate = one[0].clone()
    step(one, separate, 1)
    step(other, other[0], 1)
    assert torch.equal(one[0], other[0])
    assert torch.equal(separate, one[0])


def test_same_in_any_order_of_blocks(backend, monkeypatch):
    backend.use(adamw)
    small_blocks(monkeypatch)

    def run():
        tensors, weights = state(backend)
        step(tensors, weights, 1)
        return (*tensors, weights)

    backend.assert_same_in_any_order(run)


@pytest.mark.skipif(REASON_NOT_TO_INTERPRET is not None, reason=str(REASON_NOT_TO_INTERPRET))
def test_moves_30_bytes_an_element(strict_interpreter, monkeypatch):
    """Distinct sectors of the shards; beside them the table of decays, and scalars that every program reads."""
    from tests.kernels.traffic import count

    monkeypatch.setattr(adamw, "_torch_step", adamw._triton_step)
    n = 8192
    tensors = [torch.rand(n) for _ in range(4)]
    weights = torch.empty(n, dtype=torch.bfloat16)
    with count(strict_interpreter) as traffic:
        step(tensors, weights, 1, ranges=[(0, 3000, 0.1), (3008, n, 0.1)])
    rows = [row for tensor in (*tensors, weights) for row in traffic.of(tensor)]
    assert sum(row.loads.moved + row.stores.moved for row in rows) == 30 * n
    assert sum(row.loads.requested + row.stores.requested for row in rows) == 30 * n
    assert traffic.moved - 30 * n <= 0.02 * n + 32 * 16


def test_overlapping_ranges_are_a_programming_error():
    with pytest.raises(AssertionError, match="overlap"):
        adamw._blocks(10, [(0, 5, 0.1), (4, 8, 0.1)], 4)
