"""Parameters: local slices of Hugging Face tensors, side by side in one flat buffer.

Loading, saving, gradient sums, the gradient norm, ZeRO and weight decay read only a parameter's `Record`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.common import accumulation_dtype

from .comm import Group

ALIGNMENT = 64
"""Elements: the start of every GEMM operand, and of every shard, in the flat buffer is a multiple of this (128 bytes in
bf16)."""


@dataclass(frozen=True)
class Record:
    """What one parameter is: a rectangle of a Hugging Face tensor, and how its gradient is summed."""

    name: str
    """Hugging Face name."""
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """First index of the local rectangle along each axis of the global tensor."""
    shape: tuple[int, ...]
    """Local rectangle."""
    weight_decay: bool
    """False for norm weights: decaying a gain towards zero has no meaning."""
    sum_groups: tuple[str, ...] = ()
    """Groups its gradient is summed over besides dp."""
    replicas: int = 1
    """Ranks (dp aside) that hold this same rectangle; the gradient norm counts it once."""


def split_rows(name: str, rows: int, columns: int, tp: Group) -> Record:
    """This rank's rows of a matrix. Where tp does not divide them (a vocabulary), the last ranks have fewer or none."""
    share = math.ceil(rows / tp.size)
    start, end = min(tp.rank * share, rows), min((tp.rank + 1) * share, rows)
    return Record(name, (rows, columns), (start, 0), (end - start, columns), weight_decay=True)


def split_columns(name: str, rows: int, columns: int, tp: Group) -> Record:
    """This rank's columns of a matrix; tp divides them."""
    share = columns // tp.size
    return Record(name, (rows, columns), (0, tp.rank * share), (rows, share), weight_decay=True)


def replicated(name: str, length: int, tp: Group) -> Record:
    """A norm's gain, whole on every rank. Each rank's gradient is of its own tokens, so they are summed."""
    sum_groups = (tp.name,) if tp.size > 1 else ()
    return Record(name, (length,), (0,), (length,), weight_decay=False, sum_groups=sum_groups, replicas=tp.size)


@dataclass
class Parameter:
    """A view into the flat buffer. `data` has the model's dtype; `main_grad`, the accumulation dtype, is None for
    inference.
    """

    record: Record
    start: int
    data: Tensor = field(repr=False, default=None)
    main_grad: Tensor | None = field(repr=False, default=None)

    @property
    def end(self) -> int:
        return self.start + math.prod(self.record.shape)


@dataclass
class Weight:
    """What one GEMM reads: a parameter, or adjacent ones (q, k, v; gate, up) as one matrix `[rows, columns]`."""

    parameters: tuple[Parameter, ...]
    data: Tensor = field(repr=False, default=None)
    main_grad: Tensor | None = field(repr=False, default=None)


class ParameterBuffer:
    """Every parameter of this rank in one flat tensor, and their main gradients in another of the same length.

    Declare all weights with `add`, then `allocate` once.
    """

    def __init__(self) -> None:
        self.weights: list[Weight] = []
        self.length = 0
        self.data: Tensor | None = None
        self.main_grad: Tensor | None = None

    @property
    def parameters(self) -> list[Parameter]:
        return [parameter for weight in self.weights for parameter in weight.parameters]

    def add(self, *records: Record) -> Weight:
        """Declare one GEMM operand made of adjacent parameters (equal in all but the first axis)."""
        assert self.data is None and len({record.shape[1:] for record in records}) == 1
        position = math.ceil(self.length / ALIGNMENT) * ALIGNMENT
        parameters = []
        for record in records:
            parameters.append(Parameter(record, position))
            position = parameters[-1].end
        self.length = position
        self.weights.append(Weight(tuple(parameters)))
        return self.weights[-1]

    def allocate(self, dtype: torch.dtype, device: torch.device | str, *, gradients: bool, multiple: int = 1) -> None:
        """Create the buffers (zeros) and point every view into them. They are padded so that each of `multiple` equal
        shards begins at a multiple of `ALIGNMENT`: the optimizer's kernel then moves 16 bytes at a time.
        """
        self.length = math.ceil(self.length / (multiple * ALIGNMENT)) * multiple * ALIGNMENT
        self.data = torch.zeros(self.length, dtype=dtype, device=device)
        if gradients:
            self.main_grad = torch.zeros(self.length, dtype=accumulation_dtype(dtype), device=device)
        for weight in self.weights:
            for parameter in weight.parameters:
                self._point(parameter, parameter.start, parameter.end, parameter.record.shape)
            first, last = weight.parameters[0], weight.parameters[-1]
            rows = sum(parameter.record.shape[0] for parameter in weight.parameters)
            self._point(weight, first.start, last.end, (rows, *first.record.shape[1:]))

    def _point(self, view: Parameter | Weight, start: int, end: int, shape: Sequence[int]) -> None:
        view.data = self.data[start:end].view(*shape)
        if self.main_grad is not None:
            view.main_grad = self.main_grad[start:end].view(*shape)


def rectangles(record: Record, start: int, end: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Cut elements `[start, end)` of a flattened parameter into rectangles of its Hugging Face tensor.

    Returns (first element, offsets in the global tensor, shape); at most three for a matrix: the rest of a row, whole
    rows, the beginning of a row. Vectors give one.
    """
    if len(record.shape) == 1:
        return [(start, (record.offsets[0] + start,), (end - start,))]
    assert len(record.shape) == 2
    columns = record.shape[1]
    pieces = []
    while start < end:
        row, column = divmod(start, columns)
        if column or end - start < columns:
            width = min(columns - column, end - start)
            height = 1
        else:
            width = columns
            height = (end - start) // columns
        pieces.append((start, (record.offsets[0] + row, record.offsets[1] + column), (height, width)))
        start += height * width
    return pieces
