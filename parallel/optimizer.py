"""AdamW on one flat buffer, sharded over data-parallel ranks (ZeRO stage 1, arXiv 1910.02054), and its learning rate.

A step: reduce-scatter the main gradients -> global norm -> AdamW on this rank's shard of master weights -> all-gather
weights. One bucket: the whole buffer. Learning rate, gradient scale, step number and keep flag are one-element device
tensors, so a step never waits for the host.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.adamw import adamw_step
from kernels.common import accumulation_dtype

from .comm import all_gather, all_reduce, reduce_scatter
from .grid import Grid
from .parameter import ParameterBuffer


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


class Optimizer:
    """Owns the main gradients, and this rank's shard of master weights and moments.

    `buffer` must be allocated with `multiple` = dp size. The weights of the buffer are the start (`master` is copied
    from them); in float32 and float64 runs the master shard is that memory itself.
    """

    def __init__(self, buffer: ParameterBuffer, grid: Grid, settings: AdamWSettings) -> None:
        assert buffer.main_grad is not None and buffer.length % grid.dp.size == 0
        self.buffer, self.grid, self.settings = buffer, grid, settings
        shard_length = buffer.length // grid.dp.size
        self.start = grid.dp.rank * shard_length
        self.end = self.start + shard_length
        self.weights = buffer.data[self.start : self.end]
        dtype = accumulation_dtype(buffer.data.dtype)
        self.master = self.weights if dtype == buffer.data.dtype else self.weights.to(dtype)
        self.exp_avg = torch.zeros_like(self.master)
        self.exp_avg_sq = torch.zeros_like(self.master)
        self.steps = torch.zeros(1, dtype=torch.float32, device=buffer.data.device)
        """AdamW's own count (its bias correction): steps that were kept."""
        self._lr = torch.zeros(1, dtype=torch.float32, device=buffer.data.device)
        self._decay_ranges = [
            (start, end, settings.weight_decay if decay else 0.0)
            for decay, start, end in self._runs(lambda record: record.weight_decay)
        ]
        self._replica_ranges = self._runs(lambda record: record.replicas)

    def state(self) -> dict[str, Tensor]:
        """The shard's tensors by name; all flat, of the same length."""
        return {"master": self.master, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def _runs(self, key) -> list[tuple[object, int, int]]:
        """(key(record), start, end) within the shard, neighbours of equal key merged; gaps between parameters fall to
        either.
        """
        runs: list[list] = []
        for parameter in self.buffer.parameters:
            start, end = max(parameter.start, self.start), min(parameter.end, self.end)
            if start >= end:
                continue
            value = key(parameter.record)
            if runs and runs[-1][0] == value:
                runs[-1][2] = end - self.start
            else:
                runs.append([value, start - self.start, end - self.start])
        return [tuple(run) for run in runs]

    @torch.no_grad()
    def step(self, learning_rate: float, tokens: Tensor) -> StepResult:
        """One update from the accumulated SUM of per-token gradients; `tokens`: predicted tokens of the global batch,
        `[1]`.

        Gradients that are not finite on any rank skip the step on all of them.
        """
        for parameter in self.buffer.parameters:
            for group in parameter.record.sum_groups:
                all_reduce(parameter.main_grad, getattr(self.grid, group))
        gradient = reduce_scatter(self.buffer.main_grad, self.grid.dp)
        squares = torch.zeros(1, dtype=gradient.dtype, device=gradient.device)
        for replicas, start, end in self._replica_ranges:
            squares += torch.linalg.vector_norm(gradient[start:end]).square() / replicas
        for group in (self.grid.dp, self.grid.tp, self.grid.pp):
            all_reduce(squares, group)
        scale = 1.0 / tokens.clamp(min=1).to(gradient.dtype)
        norm = squares.sqrt() * scale
        keep = torch.isfinite(norm)
        if self.settings.clip > 0:
            scale = scale * torch.clamp(self.settings.clip / (norm + 1e-6), max=1.0)
        self.steps += keep
        self._lr.fill_(learning_rate)
        adamw_step(
            self.master,
            self.exp_avg,
            self.exp_avg_sq,
            gradient,
            self.weights,
            lr=self._lr,
            gradient_scale=scale,
            step=self.steps,
            keep=keep,
            decay_ranges=self._decay_ranges,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            eps=self.settings.eps,
        )
        all_gather(self.weights, self.grid.dp, out=self.buffer.data)
        self.buffer.main_grad.zero_()
        return StepResult(norm, keep)
