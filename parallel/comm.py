"""The one door to the network: only this file calls torch.distributed collectives.

Every operation names its group, counts its bytes in `traffic`, and is the identity on a group of one.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13, which warns of the old names; the arguments are the same.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

traffic: Counter[tuple[str, str]] = Counter()
"""Bytes of the full (gathered or unreduced) tensor, by (operation, group name), since the process started."""


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


def _count(operation: str, group: Group, tensor: Tensor) -> None:
    traffic[operation, group.name] += tensor.numel() * tensor.element_size()


def all_reduce(tensor: Tensor, group: Group) -> Tensor:
    """In-place sum over the group; returns `tensor`."""
    if group.size > 1:
        _count("all_reduce", group, tensor)
        dist.all_reduce(tensor, group=group.handle)
    return tensor


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """Sum over the group; this rank's `1/size` of the first axis, in rank order. Its length is divisible by the size.

    A group of one gets `tensor` itself, not a copy.
    """
    if group.size == 1:
        return tensor
    assert tensor.shape[0] % group.size == 0
    _count("reduce_scatter", group, tensor)
    piece = tensor.new_empty((tensor.shape[0] // group.size, *tensor.shape[1:]))
    _reduce_scatter(piece, tensor.contiguous(), group=group.handle)
    return piece


def all_gather(piece: Tensor, group: Group, out: Tensor | None = None) -> Tensor:
    """The pieces of all ranks along the first axis, in rank order, in `out` where given.

    `piece` may be this rank's part of `out`. Without `out`, a group of one gets `piece` itself, not a copy.
    """
    if group.size == 1:
        return piece if out is None or out.data_ptr() == piece.data_ptr() else out.copy_(piece)
    if out is None:
        out = piece.new_empty((piece.shape[0] * group.size, *piece.shape[1:]))
    _count("all_gather", group, out)
    _all_gather(out, piece.contiguous(), group=group.handle)
    return out


@dataclass(frozen=True)
class Gathering:
    """An all-gather under way. It keeps both tensors alive until `wait`."""

    piece: Tensor
    out: Tensor
    work: Any
    """torch.distributed's handle; None in a group of one."""

    def wait(self) -> Tensor:
        """The pieces of all ranks along the first axis, in rank order. On a GPU only the current stream waits."""
        if self.work is not None:
            self.work.wait()
        return self.out


def start_all_gather(piece: Tensor, group: Group) -> Gathering:
    """`all_gather` that runs beside what is issued until its `wait`. `piece` must not change before that."""
    if group.size == 1:
        return Gathering(piece, piece, None)
    out = piece.new_empty((piece.shape[0] * group.size, *piece.shape[1:]))
    _count("all_gather", group, out)
    piece = piece.contiguous()
    return Gathering(piece, out, _all_gather(out, piece, group=group.handle, async_op=True))


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


def barrier(group: Group) -> None:
    """Return when every rank of the group has called."""
    if group.size > 1:
        dist.barrier(group=group.handle)
