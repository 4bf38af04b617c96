"""The sharded AdamW against torch's, skipping, the learning rate, and moving state between layouts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.grid import Grid
from parallel.optimizer import AdamWSettings, Optimizer, cosine_learning_rate
from tests.parallel.buffers import small_buffer

SHAPES = {"embedding": (11, 8), "gain": (8,), "q": (8, 8), "k": (4, 8), "v": (4, 8)}
SETTINGS = AdamWSettings(beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, clip=0.5)


def buffer_of(dtype, multiple=1):
    buffer = small_buffer(SHAPES, dtype, multiple)
    generator = torch.Generator().manual_seed(3)
    for parameter in buffer.parameters:
        parameter.data.copy_(torch.randn(parameter.record.shape, generator=generator))
    return buffer


def everything(optimizer):
    """Weights and all state."""
    return [optimizer.buffer.data, *(tensor for shard in optimizer.shards for tensor in shard.state().values())]


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_steps_equal_torch_adamw(clip):
    buffer = buffer_of(torch.float64)
    settings = AdamWSettings(0.9, 0.95, 1e-5, 0.1, clip)
    optimizer = Optimizer(buffer, Grid.single(), settings)
    weights = {p.record.name: p.data.clone().requires_grad_() for p in buffer.parameters}
    groups = [
        {"params": [w for w in weights.values() if (w.dim() > 1) == decay], "weight_decay": 0.1 if decay else 0.0}
        for decay in (True, False)
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-5)
    generator = torch.Generator().manual_seed(4)
    for step in range(1, 6):
        learning_rate = 2.0**-step  # exact in float32, which is how the device holds it
        for parameter in buffer.parameters:
            gradient = torch.randn(parameter.record.shape, generator=generator, dtype=torch.float64)
            parameter.main_grad.add_(gradient * 40)  # a sum over 40 tokens
            weights[parameter.record.name].grad = gradient
        for group in reference.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), clip if clip else math.inf)
        reference.step()
        result = optimizer.step(learning_rate, torch.tensor([40.0], dtype=torch.float64))
        torch.testing.assert_close(result.grad_norm[0], norm.detach())
        assert bool(result.kept)
        assert buffer.main_grad.count_nonzero() == 0
        for parameter in buffer.parameters:
            torch.testing.assert_close(parameter.data, weights[parameter.record.name].detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_change_nothing(bad):
    buffer = buffer_of(torch.bfloat16)
    optimizer = Optimizer(buffer, Grid.single(), SETTINGS)
    buffer.main_grad.fill_(0.1)
    optimizer.step(0.1, torch.tensor([1.0]))
    before = [tensor.clone() for tensor in everything(optimizer)]
    buffer.main_grad.fill_(0.1)
    buffer.parameters[2].main_grad[3, 3] = bad
    result = optimizer.step(0.1, torch.tensor([1.0]))
    assert not bool(result.kept)
    assert int(optimizer.steps) == 1
    assert all(torch.equal(now, then) for now, then in zip(everything(optimizer), before, strict=True))
    assert buffer.main_grad.count_nonzero() == 0


def test_bf16_weights_follow_float32_masters():
    """Updates far below a bf16 step add up in the master weights."""
    buffer = buffer_of(torch.bfloat16)
    optimizer = Optimizer(buffer, Grid.single(), AdamWSettings(0.9, 0.95, 1e-8, 0.0, 0.0))
    before = [shard.master.clone() for shard in optimizer.shards]
    for _ in range(50):
        buffer.main_grad.fill_(1.0)
        optimizer.step(1e-4, torch.tensor([1.0]))
    for shard, start in zip(optimizer.shards, before, strict=True):
        filled = start != 0  # the rest is padding
        torch.testing.assert_close(shard.master[filled], start[filled] - 50e-4, rtol=0, atol=2e-5)  # 50 roundings
        assert torch.equal(shard.weights, shard.master.to(torch.bfloat16))


@given(st.integers(1, 1000), st.integers(0, 100), st.data())
def test_learning_rate_shape(total, warmup, data):
    step = data.draw(st.integers(1, total))
    rate = cosine_learning_rate(step, peak=1.0, minimum=0.1, warmup_steps=warmup, total_steps=total)
    assert 0 < rate <= 1
    if step < warmup:
        assert rate == step / warmup
    elif step == warmup:
        assert rate == 1
    if step == total and total > warmup:
        assert rate == pytest.approx(0.1)


def test_learning_rate_half_way():
    """At the middle of the cosine the rate is the mean of peak and minimum."""
    assert cosine_learning_rate(60, peak=3.0, minimum=1.0, warmup_steps=20, total_steps=100) == pytest.approx(2.0)
