"""What a pipeline stage costs, counted from the model's shape: the numbers that schedules are made from."""

from parallel.instruction import Costs, virtual_stage

from .config import LlamaConfig
from .llama import layers_of_stages, recompute_of


def layer_flops(config: LlamaConfig, sequence_length: int, recompute: str) -> tuple[float, float, float]:
    """FLOPs a token of one layer: forward, input gradient (with what it recomputes), weight gradient.

    Two a weight and token in each of the three; causal attention over whole sequences 2 * heads * head_dim *
    sequence_length forward (half of the square), 2.5 times that backward (five products for two).
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv, out, gate_up, down = 2 * hidden * (q + 2 * kv), 2 * hidden * q, 4 * hidden * inner, 2 * hidden * inner
    linear, attention = qkv + out + gate_up + down, 2 * q * sequence_length
    again = {"none": 0, "mlp": gate_up, "attention": qkv + attention, "full": gate_up + qkv + attention}
    return linear + attention, linear + 2.5 * attention + again[recompute], linear


def layer_bytes(config: LlamaConfig, itemsize: int, recompute: str) -> tuple[int, int]:
    """Bytes a token that one layer holds from forward to backward, and from there to a weight gradient that is put off.

    The first is what a block's docstring counts, with 4 bytes for each row statistic (8 in float64).
    """
    hidden, inner, statistic = config.hidden_size, config.intermediate_size, max(4, itemsize)
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = itemsize * (2 * q + 2 * kv) + statistic * (1 + config.num_heads)
    mlp = itemsize * 2 * inner + statistic
    kept = 2 * itemsize * hidden
    kept += attention if recompute in ("none", "mlp") else 0
    kept += mlp if recompute in ("none", "attention") else 0
    put_off = itemsize * (4 * hidden + 2 * q + 2 * kv + 3 * inner)
    return kept, put_off


def stage_costs(
    config: LlamaConfig,
    stages: int,
    chunks: int,
    *,
    tokens: int,
    sequence_length: int,
    recompute: str = "none",
    itemsize: int = 2,
) -> Costs:
    """Costs of one micro-batch of `tokens` on each virtual stage, in FLOPs and bytes, all ranks of tp together.

    The head makes its gradients in the forward pass: three times its FLOPs there, none in the backward pass.
    """
    parts = layers_of_stages(config, stages * chunks)
    rows = []
    for stage, layers in enumerate(parts):
        rank, chunk = stage % stages, stage // stages
        before = sum(len(parts[virtual_stage(rank, earlier, stages)]) for earlier in range(chunk))
        kinds = [recompute_of(recompute, before + index) for index in range(len(layers))]
        flops = [layer_flops(config, sequence_length, kind) for kind in kinds]
        held = [layer_bytes(config, itemsize, kind) for kind in kinds]
        forward, backward, weight = (sum(column) for column in zip(*flops, strict=True))
        kept, put_off = (sum(column) for column in zip(*held, strict=True))
        if stage == 0:
            kept += 9  # the embedding: a row number and whether it is of this rank
        if stage == len(parts) - 1:
            forward += 6 * config.hidden_size * config.vocab_size
            kept += itemsize * 2 * config.hidden_size + max(4, itemsize)  # the final norm's input; the head's gradient
        rows.append([tokens * value for value in (forward, backward, weight, kept, put_off)])
    return Costs(*(tuple(map(float, column)) for column in zip(*rows, strict=True)))
