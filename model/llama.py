"""The Llama forward pass, the same code on one CPU and on many GPUs: a group of size 1 is the identity.

Activations are `[tokens, features]`: packed documents, no batch axis, no padding. Weights live in one
`ParameterBuffer`.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.documents import Documents
from kernels.rope import rope_forward
from parallel.comm import Group
from parallel.cross_entropy import linear_cross_entropy
from parallel.grid import Grid
from parallel.linear import embedding, linear_add, norm, norm_linear, swiglu_linear_add
from parallel.parameter import ParameterBuffer, Weight, replicated, split_columns, split_rows

from .attention import rope_attention, split_qkv
from .config import LlamaConfig
from .rope import rotary_tables


class KeyValueCache(Protocol):
    """What generation puts in the place of attention: it keeps keys and values and attends to all kept ones."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None) -> Tensor:
        """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`, rotated -> `[tokens, heads,
        head_dim]`.
        """


@dataclass
class MicroBatch:
    """Packed documents on the model's device. `targets`: the next token of the same document, or -100."""

    tokens: Tensor
    targets: Tensor
    documents: Documents


DOCUMENTS = 64
"""`cu_seqlens` is padded to this many documents, or to the next doubling of it that suffices: few different shapes."""


def micro_batch(
    tokens: Tensor,
    targets: Tensor,
    cu_seqlens: Sequence[int] | np.ndarray,
    config: LlamaConfig,
    device: torch.device | str,
    tp: int = 1,
) -> MicroBatch:
    """Move one micro-batch to the device; the work lists of its documents are built here, once.

    Tokens are padded to a multiple of `tp` by one last document without targets; `cu_seqlens` by empty documents.
    """
    bounds = np.asarray(cu_seqlens, dtype=np.int32)
    padding = -len(tokens) % tp
    if padding:
        tokens = torch.cat([tokens, tokens.new_zeros(padding)])
        targets = torch.cat([targets, targets.new_full((padding,), -100)])
        bounds = np.append(bounds, np.int32(len(tokens)))
    length = DOCUMENTS
    while length < len(bounds) - 1:
        length *= 2
    bounds = np.pad(bounds, (0, length + 1 - len(bounds)), mode="edge")
    documents = Documents.build(bounds, device, window=config.sliding_window)
    return MicroBatch(tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True), documents)


class Block:
    """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int, buffer: ParameterBuffer, tp: Group) -> None:
        self.config, self.layer, self.tp = config, layer, tp
        self.heads, self.kv_heads = config.num_heads // tp.size, config.num_kv_heads // tp.size
        hidden, inner = config.hidden_size, config.intermediate_size
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        prefix = f"model.layers.{layer}."
        self.attention_norm = buffer.add(replicated(prefix + "input_layernorm.weight", hidden, tp))
        self.qkv = buffer.add(
            split_rows(prefix + "self_attn.q_proj.weight", q_rows, hidden, tp),
            split_rows(prefix + "self_attn.k_proj.weight", kv_rows, hidden, tp),
            split_rows(prefix + "self_attn.v_proj.weight", kv_rows, hidden, tp),
        )
        self.out = buffer.add(split_columns(prefix + "self_attn.o_proj.weight", hidden, q_rows, tp))
        self.mlp_norm = buffer.add(replicated(prefix + "post_attention_layernorm.weight", hidden, tp))
        self.gate_up = buffer.add(
            split_rows(prefix + "mlp.gate_proj.weight", inner, hidden, tp),
            split_rows(prefix + "mlp.up_proj.weight", inner, hidden, tp),
        )
        self.down = buffer.add(split_columns(prefix + "mlp.down_proj.weight", hidden, inner, tp))

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Documents, cache: KeyValueCache | None = None
    ) -> Tensor:
        eps, window, tp = self.config.rms_norm_eps, self.config.sliding_window, self.tp
        qkv = norm_linear(x, self.attention_norm, self.qkv, eps, tp)  # [tokens, (heads + 2 kv_heads) head_dim]
        if cache is None:
            attended = rope_attention(qkv, cos, sin, documents, self.heads, self.kv_heads, window)
        else:
            rope_forward(qkv, cos, sin, documents.positions, self.heads, self.kv_heads)
            q, k, v = split_qkv(qkv, self.heads, self.kv_heads)
            attended = cache.attend(self.layer, q, k, v, documents, window).flatten(1)
        x = linear_add(attended, x, self.out, tp)
        gate_up = norm_linear(x, self.mlp_norm, self.gate_up, eps, tp)  # [tokens, 2 intermediate]
        return swiglu_linear_add(gate_up, x, self.down, tp)


def check_split(config: LlamaConfig, tp: int) -> None:
    """ValueError when the layers cannot be split over `tp` ranks."""
    counts = {"attention heads": config.num_heads, "key/value heads": config.num_kv_heads}
    for name, count in (counts | {"MLP channels": config.intermediate_size}).items():
        if count % tp:
            raise ValueError(f"--tp {tp} does not divide the model's {count} {name}")


class Llama:
    """A model of the Llama family.

    `gradients` also allocates the main gradients. `recompute="full"` keeps only each block's input and runs the block
    again in the backward pass. Weights start as zeros: call `initialise` or load them (`model.huggingface`).
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        grid: Grid | None = None,
        gradients: bool = False,
        recompute: str = "none",
    ) -> None:
        assert recompute in ("none", "full")
        self.config, self.dtype, self.device, self.recompute = config, dtype, torch.device(device), recompute
        self.grid = grid or Grid.single()
        self.buffer = ParameterBuffer()
        tp, shape = self.grid.tp, (config.vocab_size, config.hidden_size)
        check_split(config, tp.size)
        self.embedding = self.buffer.add(split_rows("model.embed_tokens.weight", *shape, tp))
        self.blocks = [Block(config, layer, self.buffer, tp) for layer in range(config.num_layers)]
        self.norm = self.buffer.add(replicated("model.norm.weight", config.hidden_size, tp))
        self.head: Weight = self.embedding
        if not config.tie_word_embeddings:
            self.head = self.buffer.add(split_rows("lm_head.weight", *shape, tp))
        self.buffer.allocate(dtype, device, gradients=gradients, multiple=self.grid.dp.size)
        self.cos, self.sin = rotary_tables(config, dtype, device)

    def hidden(self, tokens: Tensor, documents: Documents, cache: KeyValueCache | None = None) -> Tensor:
        """tokens int64 `[tokens]` -> the last block's output, before the final norm, `[tokens / tp, hidden]`."""
        x = embedding(tokens, self.embedding, self.grid.tp)
        for block in self.blocks:
            if self.recompute == "full" and torch.is_grad_enabled():
                x = checkpoint(block, x, self.cos, self.sin, documents, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, self.cos, self.sin, documents, cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: `[tokens, hidden]` -> `[tokens, vocab]`. A split vocabulary is not gathered."""
        assert self.grid.tp.size == 1
        return norm(hidden, self.norm, self.config.rms_norm_eps) @ self.head.data.t()

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Sum of the cross-entropy over the batch's targets, in nats, a scalar in the accumulation dtype."""
        normed = norm(self.hidden(batch.tokens, batch.documents), self.norm, self.config.rms_norm_eps)
        return linear_cross_entropy(normed, self.head, batch.targets, self.grid.tp)

    def initialise(self, seed: int) -> None:
        """Random weights: normal with standard deviation 0.02, projections back into the residual stream divided by
        sqrt(2 * layers) (GPT-2's rule: the sum of all blocks keeps its variance), norms 1.

        Each tensor has its own generator, so the result does not depend on how tensors are spread over ranks.
        """
        for parameter in self.buffer.parameters:
            name = parameter.record.name
            if len(parameter.record.shape) == 1:
                parameter.data.fill_(1.0)
                continue
            generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
            values = torch.randn(parameter.record.global_shape, generator=generator) * 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                values /= (2 * self.config.num_layers) ** 0.5
            slices = tuple(
                slice(o, o + n) for o, n in zip(parameter.record.offsets, parameter.record.shape, strict=True)
            )
            parameter.data.copy_(values[slices])
