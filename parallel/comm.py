"""The one door to the network: only this file issues torch.distributed operations.

Every operation names its group, counts its bytes in `traffic`, can be written down in order (`record`) and is known
while it holds the rank up (`waiting_in`). On a group of one everything is the identity.

Started operations (`start_...`) run beside whatever is issued until their `wait`. On a GPU each group has its own
stream, and `wait` makes the current stream wait, not the host.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13, which warns of the old names; the arguments are the same.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

traffic: Counter[tuple[str, str]] = Counter()
"""Bytes of the full (gathered, unreduced or sent) tensor, by (operation, group name), since the process started."""

record: list[tuple] | None = None
"""While a list: ("start", number, operation, group name, ranks, shape, dtype) and ("wait", number) in program order."""


@dataclass(frozen=True)
class Group:
    """Some ranks that communicate. `rank` is this process's place in `ranks`."""

    name: str
    ranks: tuple[int, ...] = (0,)
    rank: int = 0
    handle: Any = None
    """torch.distributed process group; None for a group of one."""

    @property
    def size(self) -> int:
        return len(self.ranks)


class CommunicationError(RuntimeError):
    """An operation that failed: most often because another rank is gone."""


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation under way, for the report of a hang. It holds no tensor, as it may outlive its use."""

    name: str
    group: Group
    shape: tuple[int, ...]
    dtype: torch.dtype
    number: int
    started: float
    """When it was issued, or on a CPU when its wait began, in seconds of `time.monotonic`."""
    work: Any = None

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name} of {shape} {dtype} in group {self.group.name} (ranks {spans(self.group.ranks)})"


_holding_up: Operation | None = None
"""What the host waits in: a gloo operation waited for, or one that opens a connection as it is issued."""
_on_device: dict[int, Operation] = {}
"""Issued to a GPU in this order, by number, and not known to be done: a host that runs ahead waits in none."""
_issued = 0


def oldest_operation() -> Operation | None:
    """What holds this rank up: what the host waits in, else the oldest operation that the GPU has not done; None if
    there is none. May be called from another thread.
    """
    if _holding_up is not None:
        return _holding_up
    return next((operation for operation in list(_on_device.values()) if not operation.work.is_completed()), None)


def waiting_in() -> str | None:
    """`oldest_operation` in words."""
    operation = oldest_operation()
    return None if operation is None else str(operation)


@contextmanager
def _held_up(operation: Operation) -> Iterator[None]:
    """The block may stop the host."""
    global _holding_up
    _holding_up = replace(operation, started=time.monotonic())
    try:
        yield
    except RuntimeError as error:
        raise CommunicationError(f"{operation}: {error}") from error
    finally:
        _holding_up = None


@dataclass
class Transfer:
    """A started operation. It keeps the tensors alive until `wait`, which returns the result."""

    result: Tensor
    operation: Operation | None = None
    """None in a group of one."""
    kept: tuple[Tensor, ...] = field(default=(), repr=False)

    def wait(self) -> Tensor:
        """The result, safe to use by what is issued from now on. Only the current stream waits on a GPU."""
        if self.operation is not None:
            if record is not None:
                record.append(("wait", self.operation.number))
            with _held_up(self.operation):
                self.operation.work.wait()
            self.operation, self.kept = None, ()
        return self.result

    def done(self) -> bool:
        """Whether it has ended, without waiting. gloo tells only once it was waited for."""
        return self.operation is None or self.operation.work.is_completed()


def _start(name: str, group: Group, whole: Tensor, result: Tensor, issue, kept: tuple[Tensor, ...]) -> Transfer:
    """Issue one operation; `whole` is the tensor whose bytes count."""
    global _issued
    _issued += 1
    traffic[name, group.name] += whole.numel() * whole.element_size()
    if record is not None:
        record.append(("start", _issued, name, group.name, group.ranks, tuple(whole.shape), whole.dtype))
    operation = Operation(name, group, tuple(whole.shape), whole.dtype, _issued, time.monotonic())
    with _held_up(operation):
        operation = replace(operation, work=issue())
    if whole.is_cuda:
        _on_device[_issued] = operation
        while (oldest := next(iter(_on_device.values()))).work.is_completed() and oldest is not operation:
            del _on_device[oldest.number]
    return Transfer(result, operation, kept)


def start_all_reduce(tensor: Tensor, group: Group) -> Transfer:
    """In-place sum over the group."""
    if group.size == 1:
        return Transfer(tensor)
    return _start(
        "all_reduce", group, tensor, tensor, lambda: dist.all_reduce(tensor, group=group.handle, async_op=True), ()
    )


def all_reduce(tensor: Tensor, group: Group) -> Tensor:
    """In-place sum over the group; returns `tensor`."""
    return start_all_reduce(tensor, group).wait()


def start_reduce_scatter(tensor: Tensor, group: Group, out: Tensor | None = None) -> Transfer:
    """Sum over the group; this rank's `1/size` of the first axis, in rank order, in `out` where given.

    The first axis is divisible by the size. `out` may be this rank's own part of `tensor`. Without `out` a group of one
    gets `tensor` itself, not a copy.
    """
    if group.size == 1:
        return Transfer(tensor if out is None or out.data_ptr() == tensor.data_ptr() else out.copy_(tensor))
    assert tensor.shape[0] % group.size == 0
    tensor = tensor.contiguous()
    if out is None:
        out = tensor.new_empty((tensor.shape[0] // group.size, *tensor.shape[1:]))
    return _start(
        "reduce_scatter",
        group,
        tensor,
        out,
        lambda: _reduce_scatter(out, tensor, group=group.handle, async_op=True),
        (tensor,),
    )


def reduce_scatter(tensor: Tensor, group: Group, out: Tensor | None = None) -> Tensor:
    """`start_reduce_scatter`, waited for."""
    return start_reduce_scatter(tensor, group, out).wait()


def start_all_gather(piece: Tensor, group: Group, out: Tensor | None = None) -> Transfer:
    """The pieces of all ranks along the first axis, in rank order, in `out` where given.

    `piece` may be this rank's part of `out`, and must not change before the `wait`. Without `out`, a group of one gets
    `piece` itself, not a copy.
    """
    if group.size == 1:
        return Transfer(piece if out is None or out.data_ptr() == piece.data_ptr() else out.copy_(piece))
    if out is None:
        out = piece.new_empty((piece.shape[0] * group.size, *piece.shape[1:]))
    piece = piece.contiguous()
    return _start(
        "all_gather", group, out, out, lambda: _all_gather(out, piece, group=group.handle, async_op=True), (piece,)
    )


def all_gather(piece: Tensor, group: Group, out: Tensor | None = None) -> Tensor:
    """`start_all_gather`, waited for."""
    return start_all_gather(piece, group, out).wait()


def start_send(tensor: Tensor, pair: Group) -> Transfer:
    """To the other rank of a group of two. Sends and receives of a pair match in the order they are issued."""
    assert pair.size == 2
    tensor = tensor.contiguous()
    to = pair.ranks[1 - pair.rank]
    return _start("send", pair, tensor, tensor, lambda: dist.isend(tensor, to, group=pair.handle), (tensor,))


def start_receive(out: Tensor, pair: Group) -> Transfer:
    """Into `out`, from the other rank of a group of two."""
    assert pair.size == 2 and out.is_contiguous()
    source = pair.ranks[1 - pair.rank]
    return _start("receive", pair, out, out, lambda: dist.irecv(out, source, group=pair.handle), ())


def gather_json(value: Any, group: Group, device: torch.device) -> list[Any]:
    """A small JSON value of every rank, in rank order (start-up checks and error texts only). Nothing is pickled."""
    if group.size == 1:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = torch.zeros(group.size, dtype=torch.int64, device=device)
    all_gather(torch.tensor([own.numel()], device=device), group, lengths)
    longest = int(lengths.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: own.numel()] = own
    everyone = all_gather(padded, group, torch.empty(longest * group.size, dtype=torch.uint8, device=device))
    rows = zip(everyone.view(group.size, longest), lengths.tolist(), strict=True)
    return [json.loads(bytes(row[:length].tolist())) for row, length in rows]


def barrier(group: Group, device: torch.device) -> None:
    """Return when every rank of the group has called."""
    all_reduce(torch.zeros(1, device=device), group).item()


def spans(ranks: Sequence[int]) -> str:
    """`0-3, 8`: consecutive ranks as one span."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
