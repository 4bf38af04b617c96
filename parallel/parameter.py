"""Parameters: local slices of Hugging Face tensors, side by side in one flat buffer.

Loading, saving, gradient sums, the gradient norm, ZeRO and weight decay read only a parameter's `Record`. The buffer is
cut into buckets, whose gradients are summed and whose weights are gathered as wholes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.common import accumulation_dtype, add_product

from .comm import Group, Transfer

ALIGNMENT = 64
"""Elements: the start of every GEMM operand, and of every shard, in the flat buffer is a multiple of this (128 bytes in
bf16). Slices of a vocabulary are padded to a multiple of it too, so that rows of logits start at such places."""


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
    padding: int = 0
    """Rows of zeros that follow it in the buffer: no part of the model, never read from or written to files."""


def split_rows(name: str, rows: int, columns: int, tp: Group) -> Record:
    """This rank's rows of a matrix; tp divides them."""
    share = rows // tp.size
    return Record(name, (rows, columns), (tp.rank * share, 0), (share, columns), weight_decay=True)


def split_heads(name: str, heads: int, head_dim: int, columns: int, tp: Group, kv: Group) -> Record:
    """This rank's key or value heads. Where tp has more ranks than there are heads, each head is held by the `kv` group
    of neighbouring ranks, whose gradients (of their own query heads) are summed.
    """
    share = heads * kv.size // tp.size * head_dim
    return Record(
        name,
        (heads * head_dim, columns),
        (tp.rank // kv.size * share, 0),
        (share, columns),
        weight_decay=True,
        sum_groups=(kv.name,) if kv.size > 1 else (),
        replicas=kv.size,
    )


def split_vocabulary(name: str, rows: int, columns: int, tp: Group) -> Record:
    """This rank's rows of the embedding or the head: equal shares of a vocabulary padded to `tp * ALIGNMENT`, of which
    the last ranks may hold fewer rows that exist, or none.
    """
    share = math.ceil(rows / (tp.size * ALIGNMENT)) * ALIGNMENT
    start, end = min(tp.rank * share, rows), min((tp.rank + 1) * share, rows)
    shape = (end - start, columns)
    return Record(name, (rows, columns), (start, 0), shape, weight_decay=True, padding=share - (end - start))


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
    start: int = 0
    data: Tensor = field(repr=False, default=None)
    main_grad: Tensor | None = field(repr=False, default=None)

    @property
    def end(self) -> int:
        return self.start + math.prod(self.record.shape)


@dataclass
class Bucket:
    """Weights whose gradients are summed over dp together and that are gathered together after the update."""

    name: str
    weights: list["Weight"] = field(default_factory=list)
    start: int = 0
    end: int = 0
    """Elements of the flat buffer; the length is a multiple of dp size x ALIGNMENT."""
    gathering: Transfer | None = None
    """The weights of the last update on their way; None when they are here."""
    missing: int = 0
    """Additions to the gradients that this step still makes."""

    def wait(self) -> None:
        """Before the weights are read: the update that was still on its way is in place."""
        if self.gathering is not None:
            self.gathering.wait()
            self.gathering = None


@dataclass
class Weight:
    """What one GEMM reads: a parameter, or adjacent ones (q, k, v; gate, up) as one matrix `[rows, columns]`."""

    parameters: tuple[Parameter, ...]
    bucket: Bucket = field(repr=False)
    gradients: "Gradients" = field(repr=False)
    uses: int = 1
    """Additions to its gradient that one micro-batch makes: two for an embedding that is also the head."""
    data: Tensor = field(repr=False, default=None)
    main_grad: Tensor | None = field(repr=False, default=None)

    def add_gradient(self, dy: Tensor, x: Tensor) -> None:
        """main_grad += dy.T @ x; dy `[tokens, rows]`, x `[tokens, columns]`."""
        add_product(self.main_grad, dy, x)
        self.added()

    def added(self) -> None:
        """Say that one addition to `main_grad` was made. The last one of a step completes the bucket."""
        if self.gradients.on_complete is None:
            return
        self.bucket.missing -= 1
        assert self.bucket.missing >= 0, f"more gradients than announced in bucket {self.bucket.name}"
        if self.bucket.missing == 0:
            self.gradients.on_complete(self.bucket)


@dataclass
class Gradients:
    """When weight gradients are made, and who is told that they are complete. One for all weights of a buffer."""

    on_complete: Callable[[Bucket], None] | None = None
    """Called once a step for each bucket, in the order in which they complete. Set by the optimizer."""
    hold: bool = False
    """Whether backward passes put all weight gradients off, to be taken by `take`."""
    pending: list[Callable[[], None]] = field(default_factory=list)
    """Weight gradients that are still to be made."""

    def run_pending(self) -> None:
        """Make what was left to run beside an exchange."""
        for gradient in self.take():
            gradient()

    def take(self) -> list[Callable[[], None]]:
        """The gradients put off so far; the caller makes them."""
        pending, self.pending = self.pending, []
        return pending


class ParameterBuffer:
    """Every parameter of this rank in one flat tensor, and their main gradients in another of the same length.

    Declare all weights with `add`, then `allocate` once.
    """

    def __init__(self) -> None:
        self.weights: list[Weight] = []
        self.buckets: list[Bucket] = []
        self.gradients = Gradients()
        self.length = 0
        self.data: Tensor | None = None
        self.main_grad: Tensor | None = None

    @property
    def parameters(self) -> list[Parameter]:
        return [parameter for weight in self.weights for parameter in weight.parameters]

    def add(self, *records: Record, bucket: str) -> Weight:
        """Declare one GEMM operand made of adjacent parameters (equal in all but the first axis).

        Buckets lie in the buffer in the order in which they are first named.
        """
        assert self.data is None and len({record.shape[1:] for record in records}) == 1
        assert not any(record.padding for record in records[:-1])
        found = next((known for known in self.buckets if known.name == bucket), None)
        if found is None:
            found = Bucket(bucket)
            self.buckets.append(found)
        weight = Weight(tuple(Parameter(record) for record in records), found, self.gradients)
        found.weights.append(weight)
        self.weights.append(weight)
        return weight

    def allocate(self, dtype: torch.dtype, device: torch.device | str, *, gradients: bool, multiple: int = 1) -> None:
        """Create the buffers (zeros) and point every view into them. Each bucket is padded so that each of its
        `multiple` equal shards begins at a multiple of `ALIGNMENT`: the optimizer's kernel then moves 16 bytes at once.
        """
        for bucket in self.buckets:
            bucket.start = self.length
            for weight in bucket.weights:
                self.length = _place(weight, math.ceil(self.length / ALIGNMENT) * ALIGNMENT)
            self.length = bucket.start + math.ceil((self.length - bucket.start) / (multiple * ALIGNMENT)) * (
                multiple * ALIGNMENT
            )
            bucket.end = self.length
        self.data = torch.zeros(self.length, dtype=dtype, device=device)
        if gradients:
            self.main_grad = torch.zeros(self.length, dtype=accumulation_dtype(dtype), device=device)
        for weight in self.weights:
            for parameter in weight.parameters:
                self._point(parameter, parameter.start, parameter.record.shape)
            first, rows = weight.parameters[0], sum(p.record.shape[0] + p.record.padding for p in weight.parameters)
            self._point(weight, first.start, (rows, *first.record.shape[1:]))

    def _point(self, view: Parameter | Weight, start: int, shape: Sequence[int]) -> None:
        end = start + math.prod(shape)
        view.data = self.data[start:end].view(*shape)
        if self.main_grad is not None:
            view.main_grad = self.main_grad[start:end].view(*shape)

    def begin_step(self, micro_batches: int) -> None:
        """Announce how many micro-batches add to the gradients before the next update."""
        for bucket in self.buckets:
            bucket.missing = micro_batches * sum(weight.uses for weight in bucket.weights)

    def wait(self) -> None:
        """Before all weights are read at once: every update is in place."""
        for bucket in self.buckets:
            bucket.wait()


def _place(weight: Weight, position: int) -> int:
    """Give the parameters of a weight their places from `position` on; returns the first element after them."""
    for parameter in weight.parameters:
        parameter.start = position
        record = parameter.record
        position += (record.shape[0] + record.padding) * math.prod(record.shape[1:])
    return position


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
