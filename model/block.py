"""One transformer layer: its weights, and how they are split over tp."""

from typing import Protocol

import torch
from torch import Tensor

from kernels.documents import Documents
from kernels.rmsnorm import rmsnorm_forward
from kernels.rope import rope_forward
from parallel.grid import Grid
from parallel.linear import Branch, Swiglu, residual_layer
from parallel.parameter import ParameterBuffer, replicated, split_columns, split_heads, split_rows
from parallel.sequence import SequenceParallel

from .attention import RopeAttention, split_qkv
from .config import LlamaConfig

RECOMPUTE = ("none", "mlp", "attention", "full")
"""Branches of a block that keep only their input."""


class KeyValueCache(Protocol):
    """What generation puts in the place of attention: it keeps keys and values and attends to all kept ones."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
        """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`, rotated -> `[tokens, heads,
        head_dim]`.
        """


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Bytes kept for the backward pass, a token and hidden channel of a 7B model in bf16, divided by tp: 22.75; recompute
    of `mlp` (gate and up) saves 10.75 of them, of `attention` (qkv, rotation and attention) 8, `full` both: 4 are left.
    Weights are in a bucket a block, all norms in one, so that their sum over tp is one exchange.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layer: int,
        buffer: ParameterBuffer,
        grid: Grid,
        sequence: SequenceParallel,
        recompute: str = "none",
    ) -> None:
        assert recompute in RECOMPUTE
        self.config, self.layer = config, layer
        tp, kv = grid.tp, grid.kv
        assert kv.size == max(1, tp.size // config.num_kv_heads)
        self.heads, self.kv_heads = config.num_heads // tp.size, config.num_kv_heads * kv.size // tp.size
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        prefix, bucket = f"model.layers.{layer}.", f"block {layer}"
        attention_norm = buffer.add(replicated(prefix + "input_layernorm.weight", hidden, tp), bucket="norms")
        qkv = buffer.add(
            split_rows(prefix + "self_attn.q_proj.weight", config.num_heads * head_dim, hidden, tp),
            split_heads(prefix + "self_attn.k_proj.weight", config.num_kv_heads, head_dim, hidden, tp, kv),
            split_heads(prefix + "self_attn.v_proj.weight", config.num_kv_heads, head_dim, hidden, tp, kv),
            bucket=bucket,
        )
        out = buffer.add(
            split_columns(prefix + "self_attn.o_proj.weight", hidden, config.num_heads * head_dim, tp), bucket=bucket
        )
        mlp_norm = buffer.add(replicated(prefix + "post_attention_layernorm.weight", hidden, tp), bucket="norms")
        gate_up = buffer.add(
            split_rows(prefix + "mlp.gate_proj.weight", inner, hidden, tp),
            split_rows(prefix + "mlp.up_proj.weight", inner, hidden, tp),
            bucket=bucket,
        )
        down = buffer.add(split_columns(prefix + "mlp.down_proj.weight", hidden, inner, tp), bucket=bucket)
        self.bucket, eps = qkv.bucket, config.rms_norm_eps
        self.attention = Branch(attention_norm, qkv, out, eps, sequence, recompute in ("attention", "full"))
        self.mlp = Branch(mlp_norm, gate_up, down, eps, sequence, recompute in ("mlp", "full"))

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Documents, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x `[tokens / tp, hidden]` -> the same."""
        self.bucket.wait()
        if cache is None:
            window = self.config.sliding_window
            attention = RopeAttention(cos, sin, documents, self.heads, self.kv_heads, window)
            x = residual_layer(x, self.attention, attention)
        else:
            x = self._attend(x, cos, sin, documents, cache)
        return residual_layer(x, self.mlp, Swiglu())

    @torch.no_grad()
    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Documents, cache: KeyValueCache) -> Tensor:
        """The attention branch with keys and values from a cache."""
        branch = self.attention
        normed, _ = rmsnorm_forward(x, branch.norm.data, branch.eps)
        qkv = branch.sequence.gather_linear(normed, branch.first.data)  # [tokens, (heads + 2 kv_heads) head_dim]
        rope_forward(qkv, cos, sin, documents.positions, self.heads, self.kv_heads)
        q, k, v = split_qkv(qkv, self.heads, self.kv_heads)
        attended = cache.attend(self.layer, q, k, v, documents, self.config.sliding_window).flatten(1)
        return branch.sequence.linear_scatter_add(attended, branch.second.data, x)


def check_split(config: LlamaConfig, tp: int) -> None:
    """ValueError when the layers cannot be split over `tp` ranks."""
    for name, count in {"attention heads": config.num_heads, "MLP channels": config.intermediate_size}.items():
        if count % tp:
            raise ValueError(f"--tp {tp} does not divide the model's {count} {name}")
    if config.num_kv_heads % tp and tp % config.num_kv_heads:
        raise ValueError(
            f"--tp {tp} neither divides the model's {config.num_kv_heads} key/value heads nor is a multiple of them"
        )
