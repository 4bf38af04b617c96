"""Tokens per second of a training step of SmolLM2-135M's shape on this machine's CPU, beside transformers with the same
optimizer.
"""

import statistics
import time

import pytest
import torch
import transformers

from model.config import preset
from model.llama import Llama, micro_batch
from parallel.executor import execute, training_schedule
from parallel.grid import Grid
from parallel.optimizer import AdamWSettings, Optimizer

SEQUENCE = 512
ROUNDS = 7


def ours(tokens, targets):
    config = preset("smollm2-135m")
    model = Llama(config, gradients=True)
    model.initialise(0)
    optimizer = Optimizer(model.buffer, Grid.single(), AdamWSettings(0.9, 0.95, 1e-5, 0.1, 1.0))
    bounds = list(range(0, len(tokens) + 1, SEQUENCE))
    predicted = (targets >= 0).sum()[None].double()

    def step():
        batch = micro_batch(tokens, targets, bounds, config, "cpu")
        loss = execute(training_schedule(1), [model], [batch])
        optimizer.step(1e-4, predicted)
        return float(loss) / float(predicted)

    return step


def theirs(tokens, targets):
    shape = preset("smollm2-135m")
    config = transformers.LlamaConfig.from_dict(shape.to_huggingface("float32"))
    model = transformers.LlamaForCausalLM(config)
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    inputs, labels = tokens.view(-1, SEQUENCE), targets.view(-1, SEQUENCE)

    def step():
        # shift_labels: the targets are already the next tokens.
        loss = model(inputs, labels=inputs, shift_labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


@pytest.mark.parametrize("sequences", [1, 4])
def test_training_step_beside_transformers(sequences, report):
    torch.manual_seed(0)
    tokens = torch.randint(49152, (sequences * SEQUENCE,))
    targets = tokens.roll(-1).view(-1, SEQUENCE)
    targets[:, -1] = -100
    targets = targets.flatten()
    steps = {"materia": ours(tokens, targets), "transformers": theirs(tokens, targets)}
    seconds = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            loss = step()
            seconds[name].append(time.perf_counter() - start)
            assert 0 < loss < 20
    rates = {name: len(tokens) / statistics.median(times[1:]) for name, times in seconds.items()}
    report(
        {
            "shape": "smollm2-135m",
            "sequences": sequences,
            "sequence_length": SEQUENCE,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "transformers": transformers.__version__,
            "tokens_per_second": rates,
            "ratio": rates["materia"] / rates["transformers"],
            "ratio_of_fastest_steps": min(seconds["transformers"][1:]) / min(seconds["materia"][1:]),
        }
    )
