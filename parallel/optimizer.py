"""AdamW sharded over data-parallel ranks (ZeRO stage 1, arXiv 1910.02054), and its learning rate.

The flat buffer is cut into buckets (the embedding, all norms, each block, the head), each shared out over dp in equal
pieces. A step: as soon as the backward pass has made a bucket's last gradient, its sum over the ranks starts, beside
the rest of the backward pass -> global norm -> AdamW on this rank's piece of each bucket, whose weights then start back
to all ranks, beside the next forward pass. Learning rate, gradient scale, step number and keep flag are one-element
device tensors, so a step never waits for the host.

Bytes a step and rank, for n elements in the rank's buffer (padding included): a reduce-scatter of 4 n (8 n in float64)
and an all-gather of n weights over dp; sums over tp of the norms' gradients, over kv of replicated heads', over ends of
a tied embedding's; one number over all ranks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.adamw import adamw_step
from kernels.common import accumulation_dtype

from .comm import Transfer, all_reduce, start_all_gather, start_reduce_scatter
from .grid import Grid
from .parameter import ALIGNMENT, Bucket, ParameterBuffer


def cosine_learning_rate(step: int, *, peak: float, minimum: float, warmup_steps: int, total_steps: int) -> float:
    """Rate of step 1..total_steps: linear from 0 to `peak` over the warm-up, then half a cosine to `minimum`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class AdamWSettings:
    """Constants of AdamW (arXiv 1711.05101) and of gradient clipping."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    """Largest global gradient norm; 0 turns clipping off."""


@dataclass(frozen=True)
class StepResult:
    """One-element device tensors; reading them waits for the device."""

    grad_norm: Tensor
    kept: Tensor
    """1 where the step was applied; 0 where the gradients were not finite and nothing was changed."""


@dataclass
class Shard:
    """This rank's piece of one bucket: `[start, end)` of the flat buffer; all tensors are flat, of that length."""

    bucket: Bucket
    start: int
    end: int
    weights: Tensor
    gradient: Tensor
    """In place in the main gradients: after the sum over dp this piece holds the whole sum."""
    master: Tensor
    """The weights' own memory in float32 and float64 runs, else float32."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    decay_ranges: list[tuple[int, int, float]]
    replica_ranges: list[tuple[int, int, int]]
    summing: Transfer | None = None
    """The gradient's sum over dp under way; None before it is started."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name."""
        return {"master": self.master, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}


class Optimizer:
    """Owns the main gradients, and this rank's shards of master weights and moments.

    `buffer` must be allocated with `multiple` = dp size. The weights of the buffer are the start.
    """

    def __init__(self, buffer: ParameterBuffer, grid: Grid, settings: AdamWSettings) -> None:
        assert buffer.main_grad is not None
        self.buffer, self.grid, self.settings = buffer, grid, settings
        self.shards = [self._shard(bucket) for bucket in buffer.buckets]
        self._shard_of = {shard.bucket.name: shard for shard in self.shards}
        self.steps = torch.zeros(1, dtype=torch.float32, device=buffer.data.device)
        """AdamW's own count (its bias correction): steps that were kept."""
        self._lr = torch.zeros(1, dtype=torch.float32, device=buffer.data.device)
        buffer.gradients.on_complete = self._start_sum

    def _shard(self, bucket: Bucket) -> Shard:
        length = (bucket.end - bucket.start) // self.grid.dp.size
        start = bucket.start + self.grid.dp.rank * length
        end = start + length
        weights = self.buffer.data[start:end]
        dtype = accumulation_dtype(weights.dtype)
        decays = _runs(bucket, start, end, lambda record: record.weight_decay)
        return Shard(
            bucket,
            start,
            end,
            weights,
            self.buffer.main_grad[start:end],
            weights if dtype == weights.dtype else weights.to(dtype),
            torch.zeros(length, dtype=dtype, device=weights.device),
            torch.zeros(length, dtype=dtype, device=weights.device),
            [(first, last, self.settings.weight_decay if decay else 0.0) for first, last, decay in decays],
            _runs(bucket, start, end, lambda record: record.replicas),
        )

    def take_weights(self) -> None:
        """Start from the buffer's present weights: after they were loaded."""
        for shard in self.shards:
            if shard.master is not shard.weights:
                shard.master.copy_(shard.weights)

    def _start_sum(self, bucket: Bucket) -> None:
        """Start summing a complete bucket's gradients over the ranks. What the two ends of the pipeline share completes
        at different moments there, so it waits for the step.
        """
        if not any("ends" in parameter.record.sum_groups for w in bucket.weights for parameter in w.parameters):
            self._sum(bucket)

    def _sum(self, bucket: Bucket) -> None:
        for group, first, last in summed_spans(bucket):
            all_reduce(self.buffer.main_grad[first:last], getattr(self.grid, group))
        shard = self._shard_of[bucket.name]
        whole = self.buffer.main_grad[bucket.start : bucket.end]
        shard.summing = start_reduce_scatter(whole, self.grid.dp, shard.gradient)

    @torch.no_grad()
    def step(self, learning_rate: float, tokens: Tensor) -> StepResult:
        """One update from the accumulated SUM of per-token gradients; `tokens`: predicted tokens of the global batch,
        `[1]`.

        Gradients that are not finite on any rank skip the step on all of them. Returns while the new weights are still
        on their way: `Bucket.wait` or `ParameterBuffer.wait` before they are read.
        """
        for shard in self.shards:
            assert shard.bucket.missing == 0, f"gradients of bucket {shard.bucket.name} are not complete"
            if shard.summing is None:
                self._sum(shard.bucket)
        squares = torch.zeros(1, dtype=self.buffer.main_grad.dtype, device=self.buffer.data.device)
        for shard in self.shards:
            shard.summing.wait()
            shard.summing = None
            for start, end, replicas in shard.replica_ranges:
                squares += torch.linalg.vector_norm(shard.gradient[start:end]).square() / replicas
        all_reduce(squares, self.grid.world)
        scale = 1.0 / tokens.clamp(min=1).to(squares.dtype)
        norm = squares.sqrt() * scale
        keep = torch.isfinite(norm)
        if self.settings.clip > 0:
            scale = scale * torch.clamp(self.settings.clip / (norm + 1e-6), max=1.0)
        self.steps += keep
        self._lr.fill_(learning_rate)
        for shard in self.shards:
            self._update(shard, scale, keep)
        self.buffer.main_grad.zero_()
        return StepResult(norm, keep)

    def _update(self, shard: Shard, scale: Tensor, keep: Tensor) -> None:
        adamw_step(
            shard.master,
            shard.exp_avg,
            shard.exp_avg_sq,
            shard.gradient,
            shard.weights,
            lr=self._lr,
            gradient_scale=scale,
            step=self.steps,
            keep=keep,
            decay_ranges=shard.decay_ranges,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            eps=self.settings.eps,
        )
        whole = self.buffer.data[shard.bucket.start : shard.bucket.end]
        shard.bucket.gathering = start_all_gather(shard.weights, self.grid.dp, whole)


def _runs(bucket: Bucket, start: int, end: int, key) -> list[tuple[int, int, object]]:
    """(first, last, key(record)) within `[start, end)`, counted from start, neighbours of equal key merged; gaps
    between parameters fall to either.
    """
    runs: list[list] = []
    for parameter in (parameter for weight in bucket.weights for parameter in weight.parameters):
        first, last = max(parameter.start, start), min(parameter.end, end)
        if first >= last:
            continue
        value = key(parameter.record)
        if runs and runs[-1][2] == value:
            runs[-1][1] = last - start
        else:
            runs.append([first - start, last - start, value])
    return [tuple(run) for run in runs]


def summed_spans(bucket: Bucket) -> list[tuple[str, int, int]]:
    """(group, first, last element) of parameters whose gradients are summed over more than dp, neighbours merged."""
    spans: list[list] = []
    for parameter in (parameter for weight in bucket.weights for parameter in weight.parameters):
        for group in parameter.record.sum_groups:
            near = spans and spans[-1][0] == group and parameter.start - spans[-1][2] < ALIGNMENT
            if near:
                spans[-1][2] = parameter.end
            else:
                spans.append([group, parameter.start, parameter.end])
    return [tuple(span) for span in spans]
