"""The Llama forward pass, the same code on one CPU and on many GPUs: a group of size 1 is the identity.

Activations are `[tokens, features]`: packed documents, no batch axis, no padding. Weights live in one
`ParameterBuffer`. A pipeline rank holds one or more chunks of consecutive layers (`Chunk`); one process holds one chunk
with all of them.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernels.documents import Documents
from parallel.cross_entropy import linear_cross_entropy
from parallel.grid import Grid
from parallel.instruction import virtual_stage
from parallel.linear import embedding, norm
from parallel.parameter import Gradients, ParameterBuffer, Weight, replicated, split_vocabulary
from parallel.partition import partition
from parallel.sequence import SequenceParallel

from .block import Block, KeyValueCache, check_split
from .config import LlamaConfig
from .rope import rotary_tables


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
    multiple: int = 1,
) -> MicroBatch:
    """Move one micro-batch to the device; the work lists of its documents are built here, once.

    Tokens are padded to a multiple of `multiple` (that of `SequenceParallel`) by one last document without targets;
    `cu_seqlens` by empty documents.
    """
    bounds = np.asarray(cu_seqlens, dtype=np.int32)
    padding = -len(tokens) % multiple
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


def recompute_of(recompute: str, layer_on_rank: int) -> str:
    """What the rank's `layer_on_rank`-th layer recomputes: `full-N` is `full` in a rank's first N layers."""
    if recompute.startswith("full-"):
        return "full" if layer_on_rank < int(recompute.removeprefix("full-")) else "none"
    return recompute


class Chunk:
    """Consecutive layers on one rank; the first of the model also holds the embedding, the last the norm and head."""

    def __init__(self, model: "Llama", blocks: list[Block], is_first: bool, is_last: bool) -> None:
        self.model, self.blocks, self.is_first, self.is_last = model, blocks, is_first, is_last

    @property
    def gradients(self) -> Gradients:
        return self.model.buffer.gradients

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, x: Tensor | None, batch: MicroBatch) -> Tensor:
        """Activations `[tokens / tp, hidden]` of the chunk before, None in the first -> those of this chunk.

        The last returns the sum of the cross-entropy over the batch's targets, in nats, a scalar in the accumulation
        dtype.
        """
        model = self.model
        if self.is_first:
            x = embedding(batch.tokens, model.embedding, model.sequence)
        for block in self.blocks:
            x = block(x, model.cos, model.sin, batch.documents)
        if not self.is_last:
            return x
        normed = norm(x, model.norm, model.config.rms_norm_eps)
        return linear_cross_entropy(normed, model.head, batch.targets, model.sequence)

    def empty_activations(self, batch: MicroBatch) -> Tensor:
        """A tensor for what passes between chunks."""
        model = self.model
        shape = (len(batch.tokens) // model.grid.tp.size, model.config.hidden_size)
        return torch.empty(shape, dtype=model.dtype, device=model.device)

    def weights_needed(self) -> None:
        """Wait for the weights of the last update, but for the blocks': each waits for its own when it is reached."""
        model = self.model
        for weight in ([model.embedding] if self.is_first else []) + ([model.norm, model.head] if self.is_last else []):
            weight.bucket.wait()
        if self.blocks:
            self.blocks[0].attention.norm.bucket.wait()

    def check_complete(self) -> None:
        """Nothing is missing in the gradients of this chunk (the norms' bucket is of all chunks)."""
        buckets = [block.bucket for block in self.blocks]
        if self.is_first:
            buckets.append(self.model.embedding.bucket)
        if self.is_last and self.model.head is not self.model.embedding:
            buckets.append(self.model.head.bucket)
        for bucket in buckets:
            assert bucket.missing == 0, f"{bucket.missing} additions to the gradients of {bucket.name} are missing"


class Llama:
    """A model of the Llama family, or one rank's part of it.

    `gradients` also allocates the main gradients. `recompute`: `none`, `mlp`, `attention`, `full` (`model.block`) or
    `full-N`, what is not kept but computed again in the backward pass. `chunks`: parts of the model a pipeline rank
    holds. `pieces`: those of `SequenceParallel`. Weights start as zeros: call `initialise` or load them
    (`model.huggingface`).
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
        chunks: int = 1,
        pieces: int = 1,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.grid = grid or Grid.single()
        self.sequence = SequenceParallel(self.grid.tp, pieces)
        check_split(config, self.grid.tp.size)
        self.buffer = ParameterBuffer()
        self.embedding: Weight | None = None
        self.norm: Weight | None = None
        self.head: Weight | None = None
        self.blocks: list[Block] = []
        self.chunks = [self._chunk(chunk, chunks, recompute) for chunk in range(chunks)]
        self.buffer.allocate(dtype, device, gradients=gradients, multiple=self.grid.dp.size)
        self.cos, self.sin = rotary_tables(config, dtype, device)

    def _chunk(self, chunk: int, chunks: int, recompute: str) -> Chunk:
        """Declare the weights of one chunk."""
        config, grid, buffer = self.config, self.grid, self.buffer
        stage, stages = virtual_stage(grid.pp.rank, chunk, grid.pp.size), grid.pp.size * chunks
        is_first, is_last = stage == 0, stage == stages - 1
        if is_first:
            self.embedding = buffer.add(self._vocabulary("model.embed_tokens.weight"), bucket="embedding")
        first = len(self.blocks)
        for layer in layers_of_stages(config, stages)[stage]:
            again = recompute_of(recompute, len(self.blocks))
            self.blocks.append(Block(config, layer, buffer, grid, self.sequence, again))
        if is_last:
            self.norm = buffer.add(replicated("model.norm.weight", config.hidden_size, grid.tp), bucket="norms")
            self.head = self._head()
        return Chunk(self, self.blocks[first:], is_first, is_last)

    def _vocabulary(self, name: str):
        """Record of the embedding or the head. A tied one that lies on both ends of a pipeline is summed over them."""
        record = split_vocabulary(name, self.config.vocab_size, self.config.hidden_size, self.grid.tp)
        if self.config.tie_word_embeddings and self.grid.pp.size > 1:
            record = replace(record, sum_groups=("ends",), replicas=2)
        return record

    def _head(self) -> Weight:
        if not self.config.tie_word_embeddings:
            return self.buffer.add(self._vocabulary("lm_head.weight"), bucket="head")
        if self.embedding is None:
            return self.buffer.add(self._vocabulary("model.embed_tokens.weight"), bucket="head")
        self.embedding.uses = 2
        return self.embedding

    def hidden(self, tokens: Tensor, documents: Documents, cache: KeyValueCache | None = None) -> Tensor:
        """tokens int64 `[tokens]` -> the last block's output, before the final norm, `[tokens / tp, hidden]`."""
        assert self.grid.pp.size == 1
        for chunk in self.chunks:
            chunk.weights_needed()
        x = embedding(tokens, self.embedding, self.sequence)
        for block in self.blocks:
            x = block(x, self.cos, self.sin, documents, cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: `[tokens, hidden]` -> `[tokens, vocab]`. A split vocabulary is not gathered."""
        assert self.grid.tp.size == 1
        head = self.head.data[: self.config.vocab_size]  # without its padding
        return norm(hidden, self.norm, self.config.rms_norm_eps) @ head.t()

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Sum of the cross-entropy over the batch's targets: all chunks of a model that is not split by layers."""
        assert self.grid.pp.size == 1
        x = None
        for chunk in self.chunks:
            chunk.weights_needed()
            x = chunk(x, batch)
        return x

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


def layers_of_stages(config: LlamaConfig, stages: int) -> list[range]:
    """Layers of each virtual stage, so that the most loaded one has as little work as possible: the embedding is none,
    the head as many layers as it has weights for theirs.

    A function of the model's shape alone. ValueError for fewer layers than stages.
    """
    vocabulary = config.vocab_size * config.hidden_size
    copies = 1 if config.tie_word_embeddings else 2
    layer = (config.parameters - copies * vocabulary - config.hidden_size) / config.num_layers
    return partition(config.num_layers, stages, 0.0, vocabulary / layer)
