"""Runs one rank's list of instructions (schedule.py) on its chunks of the model.

A plain training step on one rank, a pipeline of any schedule and a validation pass are all such lists.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .comm import Group, Transfer, all_reduce, start_receive, start_send
from .grid import Grid
from .instruction import Instruction, Kind
from .parameter import Gradients


class Chunk(Protocol):
    """Consecutive layers of a model on one rank."""

    is_first: bool
    """It reads tokens; others read the activations of the chunk before."""
    is_last: bool
    """It returns a micro-batch's sum of losses, a scalar; others return activations for the next."""
    gradients: Gradients
    device: torch.device

    def __call__(self, x: Tensor | None, micro_batch: object) -> Tensor: ...

    def empty_activations(self, micro_batch: object) -> Tensor:
        """A tensor of the shape, dtype and device of what passes between chunks."""

    def weights_needed(self) -> None:
        """The weights are about to be read: wait for those that are still on their way."""

    def check_complete(self) -> None:
        """Assert that nothing more is to be added to the weight gradients."""


def execute(
    instructions: Iterable[Instruction], chunks: Sequence[Chunk], micro_batches: Sequence[object], grid: Grid
) -> Tensor:
    """Run the list; returns the sum of losses over all micro-batches, float64 `[]` on the model's device: on the last
    stage, 0 on the others.

    Micro-batches whose list holds no BACKWARD run without a graph. Between FORWARD and BACKWARD a micro-batch holds
    what the layers saved and its input; of its output only the graph. What is sent lives until the other side has it
    (with gloo, which does not tell, to the end of the list).
    """
    run = _Run(list(instructions), chunks, micro_batches, grid)
    for instruction in run.instructions:
        if instruction.kind is not Kind.SEND_BACKWARD:  # another stage waits for that
            run.make_left_gradients()
        _ACTIONS[instruction.kind](run, instruction)
    run.make_left_gradients()
    return run.finish()


def sum_over_ranks(loss: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
    """(sum of losses, predicted tokens) of all ranks' micro-batches, float64 `[2]`, from those of each: the last stage
    alone knows the loss.
    """
    totals = torch.stack([loss, tokens * grid.is_last]).double()
    return all_reduce(all_reduce(totals, grid.dp), grid.pp)


class _Run:
    """The tensors of one execution. Keys are (micro-batch, chunk)."""

    def __init__(
        self,
        instructions: list[Instruction],
        chunks: Sequence[Chunk],
        micro_batches: Sequence[object],
        grid: Grid,
    ) -> None:
        self.instructions, self.chunks, self.micro_batches, self.grid = instructions, chunks, micro_batches, grid
        self.trained = {(i.micro_batch, i.chunk) for i in instructions if i.kind is Kind.BACKWARD}
        self.put_off = {(i.micro_batch, i.chunk) for i in instructions if i.kind is Kind.WEIGHT}
        self.activations: dict[tuple[int, int], Transfer | Tensor] = {}
        """Inputs of chunks: under way, or handed over by another chunk of this rank."""
        self.output_gradients: dict[tuple[int, int], Transfer | Tensor] = {}
        self.graphs: dict[tuple[int, int], tuple[Tensor | None, GradientEdge]] = {}
        self.weight_gradients: dict[tuple[int, int], list] = {}
        self.to_send: dict[tuple[Kind, int, int], Tensor] = {}
        self.sends: deque[Transfer] = deque()
        self.total: Tensor | None = None

    def forward(self, step: Instruction) -> None:
        key, chunk, batch = (
            (step.micro_batch, step.chunk),
            self.chunks[step.chunk],
            self.micro_batches[step.micro_batch],
        )
        x = None if chunk.is_first else _arrived(self.activations.pop(key))
        with torch.set_grad_enabled(key in self.trained):
            if x is not None and key in self.trained:
                x.requires_grad_()
            y = chunk(x, batch)
        if key in self.trained:
            self.graphs[key] = x, get_gradient_edge(y)
        if chunk.is_last:
            loss = y.detach().double()
            self.total = loss if self.total is None else self.total + loss
        elif self.grid.pp.size == 1:
            self.activations[step.micro_batch, step.chunk + 1] = y.detach()
        else:
            self.to_send[Kind.SEND_FORWARD, *key] = y.detach()

    def backward(self, step: Instruction) -> None:
        key, chunk = (step.micro_batch, step.chunk), self.chunks[step.chunk]
        x, edge = self.graphs.pop(key)
        dy = None if chunk.is_last else _arrived(self.output_gradients.pop(key))
        chunk.gradients.hold = key in self.put_off
        try:
            torch.autograd.backward((edge,), (dy,))
        finally:
            chunk.gradients.hold = False
        if key in self.put_off:
            self.weight_gradients[key] = chunk.gradients.take()
        if chunk.is_first:
            return
        dx, x.grad = x.grad, None
        if self.grid.pp.size == 1:
            self.output_gradients[step.micro_batch, step.chunk - 1] = dx
        else:
            self.to_send[Kind.SEND_BACKWARD, *key] = dx

    def make_left_gradients(self) -> None:
        """The weight gradients that the last BACKWARD left to run beside an exchange and found none."""
        with torch.no_grad():
            self.chunks[0].gradients.run_pending()

    def weight(self, step: Instruction) -> None:
        # In the order in which they were put off, each released as soon as it is made.
        gradients = deque(self.weight_gradients.pop((step.micro_batch, step.chunk)))
        with torch.no_grad():
            while gradients:
                gradients.popleft()()

    def send(self, step: Instruction) -> None:
        # A send is done when the other side has it; its tensor must live until then, and nothing waits for it here.
        while self.sends and self.sends[0].done():
            self.sends.popleft().wait()
        tensor = self.to_send.pop((step.kind, step.micro_batch, step.chunk))
        self.sends.append(start_send(tensor, self._link(step)))

    def receive(self, step: Instruction) -> None:
        tensor = self.chunks[step.chunk].empty_activations(self.micro_batches[step.micro_batch])
        arriving = self.activations if step.kind is Kind.RECEIVE_FORWARD else self.output_gradients
        arriving[step.micro_batch, step.chunk] = start_receive(tensor, self._link(step))

    def _link(self, step: Instruction) -> Group:
        links = {
            Kind.SEND_FORWARD: self.grid.to_next,
            Kind.RECEIVE_FORWARD: self.grid.from_previous,
            Kind.SEND_BACKWARD: self.grid.to_previous,
            Kind.RECEIVE_BACKWARD: self.grid.from_next,
        }
        link = links[step.kind]
        assert link.ranks[1 - link.rank] == self.grid.pp.ranks[step.peer]
        return link

    def weights_needed(self, step: Instruction) -> None:
        self.chunks[step.chunk].weights_needed()

    def gradients_complete(self, step: Instruction) -> None:
        self.chunks[step.chunk].check_complete()

    def finish(self) -> Tensor:
        left = (self.activations, self.output_gradients, self.graphs, self.weight_gradients, self.to_send)
        assert not any(left), "the list left something undone"
        for sent in self.sends:
            sent.wait()
        if self.total is None:
            return torch.zeros((), dtype=torch.float64, device=self.chunks[0].device)
        return self.total


_ACTIONS = {
    Kind.FORWARD: _Run.forward,
    Kind.BACKWARD: _Run.backward,
    Kind.WEIGHT: _Run.weight,
    Kind.SEND_FORWARD: _Run.send,
    Kind.SEND_BACKWARD: _Run.send,
    Kind.RECEIVE_FORWARD: _Run.receive,
    Kind.RECEIVE_BACKWARD: _Run.receive,
    Kind.WEIGHTS_NEEDED: _Run.weights_needed,
    Kind.GRADIENTS_COMPLETE: _Run.gradients_complete,
}


def _arrived(value: Transfer | Tensor) -> Tensor:
    return value.wait() if isinstance(value, Transfer) else value
