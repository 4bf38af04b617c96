"""A step as a list of instructions, and the executor that runs it.

The schedule is a pure function; what runs is only the list. With one stage a training step is F0 B0 F1 B1 ...: each
micro-batch's activations are freed before the next one's are made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor


class Kind(Enum):
    """What one instruction does."""

    FORWARD = "F"
    BACKWARD = "B"


@dataclass(frozen=True)
class Instruction:
    """One unit of work of one rank: what, for which micro-batch, on which of the rank's model chunks."""

    kind: Kind
    micro_batch: int
    chunk: int = 0


class Stage(Protocol):
    """The part of a model that one chunk holds."""

    def __call__(self, micro_batch: object) -> Tensor:
        """Sum of losses of a micro-batch, a scalar."""


def training_schedule(micro_batches: int) -> list[Instruction]:
    """One stage: every forward is followed at once by its backward."""
    return [Instruction(kind, index) for index in range(micro_batches) for kind in (Kind.FORWARD, Kind.BACKWARD)]


def validation_schedule(micro_batches: int) -> list[Instruction]:
    """One stage: forwards only."""
    return [Instruction(Kind.FORWARD, index) for index in range(micro_batches)]


def execute(instructions: Iterable[Instruction], chunks: Sequence[Stage], micro_batches: Sequence[object]) -> Tensor:
    """Run the list; returns the sum of losses over all micro-batches, float64 `[]` on the model's device.

    Micro-batches whose list holds no backward run without a graph.
    """
    instructions = list(instructions)
    trained = {(step.chunk, step.micro_batch) for step in instructions if step.kind is Kind.BACKWARD}
    graphs: dict[tuple[int, int], Tensor] = {}
    total: Tensor | None = None
    for step in instructions:
        key = step.chunk, step.micro_batch
        if step.kind is Kind.FORWARD:
            with torch.set_grad_enabled(key in trained):
                loss = chunks[step.chunk](micro_batches[step.micro_batch])
            if key in trained:
                graphs[key] = loss
            value = loss.detach().double()
            total = value if total is None else total + value
        else:
            graphs.pop(key).backward()
    assert not graphs and total is not None
    return total
