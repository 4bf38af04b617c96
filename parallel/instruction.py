"""The words a pipeline schedule is written in, and what each of them costs.

A schedule is one list of instructions a rank. Pure data: no tensors, no network.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What one instruction does.

    Transfers are asynchronous: RECEIVE posts the receive and the pass that needs the tensor waits for it; SEND hands
    the tensor to its channel, which can carry it once the other side's RECEIVE is posted too.
    """

    FORWARD = "F"
    """A chunk's forward pass of one micro-batch."""
    BACKWARD = "B"
    """The gradient of the chunk's input; of its weights too, unless the list has WEIGHT for the same pass."""
    WEIGHT = "W"
    """The gradient of the chunk's weights, where it was put off."""
    SEND_FORWARD = "send forward"
    """Activations to the next virtual stage's rank."""
    RECEIVE_FORWARD = "receive forward"
    """Activations from the previous virtual stage's rank."""
    SEND_BACKWARD = "send backward"
    """The gradient of the chunk's input to the previous virtual stage's rank."""
    RECEIVE_BACKWARD = "receive backward"
    """The gradient of the chunk's output from the next virtual stage's rank."""
    WEIGHTS_NEEDED = "weights needed"
    """The next FORWARD of the chunk is the first to read its weights."""
    GRADIENTS_COMPLETE = "gradients complete"
    """Nothing more is added to the gradients of the chunk's weights in this step."""


COMPUTE = (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT)
SENDS = {Kind.SEND_FORWARD: Kind.RECEIVE_FORWARD, Kind.SEND_BACKWARD: Kind.RECEIVE_BACKWARD}
"""Each send and the receive that matches it on the other side."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of one rank: what, for which micro-batch, on which of the rank's chunks.

    `micro_batch` and `chunk` are those of this rank's own pass: the one that made what is sent, or that needs what is
    received. `peer` is the pipeline rank of the other side for the four transfers, else -1.
    """

    kind: Kind
    micro_batch: int = 0
    chunk: int = 0
    peer: int = -1


def virtual_stage(rank: int, chunk: int, stages: int) -> int:
    """Place of a rank's chunk in the model: virtual stage v lives on rank v % stages as its chunk v // stages."""
    return chunk * stages + rank


@dataclass(frozen=True)
class Costs:
    """What one micro-batch costs on each virtual stage: tuples of `stages * chunks` numbers, in the model's order.

    Times are in any one unit, bytes in any one unit. All ranks must be given the same numbers: each computes the whole
    schedule for itself.
    """

    forward: tuple[float, ...]
    """Time of FORWARD."""
    backward: tuple[float, ...]
    """Time of the input's gradient, with what is recomputed for it."""
    weight: tuple[float, ...]
    """Time of the weights' gradient."""
    held_forward: tuple[float, ...]
    """Bytes a micro-batch holds from its FORWARD to its BACKWARD."""
    held_backward: tuple[float, ...]
    """Bytes it holds, in place of `held_forward`, from its BACKWARD to its WEIGHT."""

    def __post_init__(self):
        columns = (self.forward, self.backward, self.weight, self.held_forward, self.held_backward)
        assert len({len(column) for column in columns}) == 1, "one entry a virtual stage in every column"
        if min(map(min, columns)) < 0 or min(map(min, columns[:3])) == 0:
            raise ValueError("pipeline costs: times must be positive and bytes not negative")

    @classmethod
    def uniform(
        cls,
        stages: int,
        chunks: int = 1,
        *,
        forward: float = 1.0,
        backward: float = 1.0,
        weight: float = 1.0,
        held_forward: float = 22.75,
        held_backward: float = 32.1,
    ) -> "Costs":
        """Equal stages. The arguments are for all of a rank's chunks together; each chunk costs its share of them.

        The bytes' default is Llama-2 7B's for each layer, token and channel without recompute: 22.75 while only what
        the fused kernels save is kept, 32.1 once the weight gradients' inputs are (norm outputs, SwiGLU product).
        """
        values = (forward, backward, weight, held_forward, held_backward)
        return cls(*((value / chunks,) * (stages * chunks) for value in values))

    def defers(self, stage: int) -> bool:
        """Whether WEIGHT of a virtual stage may wait; if not, its BACKWARD makes both gradients, layer by layer.

        Where a micro-batch waiting for its WEIGHT holds more than two that wait for their BACKWARD, as with full
        recompute, putting it off would bring back the memory that recompute was to save.
        """
        return self.held_backward[stage] <= 2 * self.held_forward[stage]
