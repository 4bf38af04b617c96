"""The bytes that schedules count with are the bytes that passes hold; the FLOPs are those of the known formula."""

import pytest
import torch

from model.costs import layer_flops, stage_costs
from model.llama import layers_of_stages, recompute_of
from parallel.executor import _Run
from parallel.grid import Grid
from parallel.instruction import Instruction, Kind
from tests.model.test_activation_memory import TOKENS, NewStorages, make

F, B, W = (Instruction(kind) for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT))


@pytest.mark.parametrize("recompute", ["none", "mlp", "attention", "full", "full-1"])
def test_passes_hold_what_costs_say(recompute):
    """One stage with embedding, two layers and head; storages that are alive after each pass."""
    model, batch = make("70B", layers=2, gradients=True, recompute=recompute)
    model.initialise(0)
    costs = stage_costs(model.config, 1, 1, tokens=TOKENS, sequence_length=TOKENS, recompute=recompute)
    with torch.no_grad():
        model(batch)  # what is made once for a batch, whatever its passes
    run = _Run([F, B, W], model.chunks, [batch], Grid.single())
    loss = 8  # the sum of losses, float64
    with NewStorages(model) as storages:
        run.forward(F)
        assert storages.alive(batch.targets) - loss == costs.held_forward[0]
        run.backward(B)
        assert storages.alive(batch.targets) - loss == costs.held_backward[0]
        run.weight(W)
        assert storages.alive(batch.targets) == loss
    run.finish()


def test_held_bytes_of_stages_add_up():
    """Stages hold what their layers hold: no layer is counted twice or forgotten."""
    config = make("70B", layers=2)[0].config.__class__(
        64, 64, 96, num_layers=11, num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=64
    )
    for recompute in ("none", "full", "full-2"):
        options = {"tokens": 3, "sequence_length": 8, "recompute": recompute}
        whole = stage_costs(config, 1, 1, **options)
        split = stage_costs(config, 2, 2, **options)
        kinds = [recompute_of(recompute, i) for i in range(11)]
        assert sum(split.weight) == whole.weight[0]
        assert sum(split.forward) == whole.forward[0]
        if recompute != "full-2":
            assert sum(split.held_forward) == whole.held_forward[0]
            assert sum(split.backward) == whole.backward[0]
        else:  # two layers of each of the two ranks
            assert kinds.count("full") == 2
            assert sum(split.held_forward) < whole.held_forward[0]


@pytest.mark.parametrize("sequence_length", [128, 4096])
def test_flops_are_those_of_the_model(sequence_length):
    """Forward and both gradients of all layers and the head: the model's own count, but for attention. That takes it
    whole (12 q s), here it is causal, and its gradient 2.5 times the forward pass, as the scores are computed again."""
    config = make("7B")[0].config
    forward, backward, weight = layer_flops(config, sequence_length, "none")
    attention = 2 * config.num_heads * config.head_dim * sequence_length
    head = 6 * config.hidden_size * config.vocab_size
    total = config.num_layers * (forward + backward + weight + 2.5 * attention) + head
    norms = 6 * (2 * config.num_layers + 1) * config.hidden_size  # counted there as weights
    assert total + norms == pytest.approx(config.flops_per_token(sequence_length), rel=1e-12)


def test_layers_are_shared_out_with_the_head_as_layers():
    config = make("70B", layers=2)[0].config
    big_head = config.__class__(128256, 2048, 8192, 16, 32, 8, 64, 64)  # Llama-3.2-1B's: a head of 4.3 layers
    assert [len(part) for part in layers_of_stages(big_head, 4)] == [5, 5, 5, 1]
    assert torch.tensor([len(part) for part in layers_of_stages(config, 2)]).sum() == 2
