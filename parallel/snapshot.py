"""What one rank writes of a checkpoint, copied into host memory that is there since the start.

Weights: every weight file belongs to one rank of the pipeline stage that holds its tensors, shared out over tp and dp
by bytes. The tp ranks beside the owner send their slices, the owner puts together whole Hugging Face tensors. Optimizer
state: every rank keeps its own rectangles; of ranks that hold the same, the first one.

Bytes a snapshot and rank: all-gathers over tp of the rank's split weights divided by dp.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .comm import all_gather, gather_json
from .grid import Grid
from .host_file import HostFile, host_files
from .optimizer import Optimizer, Shard
from .parameter import Parameter, Record, rectangles

PIECE_BYTES = 64 * 2**20
"""Gathered at once: memory that a snapshot takes on the device, for a moment."""


class Snapshot:
    """This rank's files of a checkpoint. `take` fills them; all ranks make it and take it together."""

    def __init__(self, optimizer: Optimizer, weight_files: Mapping[str, Sequence[str]]) -> None:
        """`weight_files`: `{path: names of the whole model's tensors}`; all tensors of a file are of one stage."""
        self.optimizer, self.buffer, self.grid = optimizer, optimizer.buffer, optimizer.grid
        grid, device, dtype = self.grid, self.buffer.data.device, self.buffer.data.dtype
        self.parameters = {p.record.name: p for p in self.buffer.parameters if _writes_ends(p.record, grid)}
        owners = share_out(
            {
                path: sum(math.prod(self.parameters[name].record.global_shape) for name in names)
                for path, names in weight_files.items()
                if names[0] in self.parameters
            },
            grid.dp.size * grid.tp.size,
        )
        # Slots count dp first: gathers of different dp ranks run beside one another.
        self.owner = {
            path: slot // grid.dp.size for path, slot in owners.items() if slot % grid.dp.size == grid.dp.rank
        }
        self.names = {path: weight_files[path] for path in self.owner}
        own = [[p.record.offsets, p.record.shape, p.record.padding] for p in self.parameters.values()]
        slices = gather_json(own, grid.tp, device)
        self.slices = {name: [rank[n] for rank in slices] for n, name in enumerate(self.parameters)}
        contents: dict = {
            path: {name: (dtype, self.parameters[name].record.global_shape) for name in self.names[path]}
            for path, owner in self.owner.items()
            if owner == grid.tp.rank
        }
        state = {
            rectangle_key(name, record.name, offsets): (values.dtype, shape)
            for record, offsets, shape, shard, _ in local_rectangles(optimizer)
            if writes(record, grid)
            for name, values in shard.state().items()
        }
        if state:
            contents[f"training/optimizer-{grid.world.rank:05d}.safetensors"] = state
        self.files: list[HostFile] = host_files(contents, pinned=device.type == "cuda")
        self._host = {name: tensor for file in self.files for name, tensor in file.tensors.items()}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self) -> None:
        """Copy the present weights and state. On a GPU it returns while the copies are under way: what the device does
        next comes after them, and who reads the files calls `ready`.
        """
        self.buffer.wait()
        for path, owner in self.owner.items():
            for name in self.names[path]:
                self._gather(self.parameters[name], self._host[name] if owner == self.grid.tp.rank else None)
        for record, offsets, shape, shard, place in local_rectangles(self.optimizer):
            if writes(record, self.grid):
                for state, values in shard.state().items():
                    host = self._host[rectangle_key(state, record.name, offsets)]
                    host.copy_(values[place].view(shape), non_blocking=True)
        if self.buffer.data.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def ready(self) -> None:
        """Return when the files' memory holds what `take` copied."""
        if self._copied is not None:
            self._copied.synchronize()

    def _gather(self, parameter: Parameter, whole: Tensor | None) -> None:
        """Put the Hugging Face tensor together in host memory: `whole` on the rank that owns it, None on the others."""
        record, tp = parameter.record, self.grid.tp
        slices = [(tuple(offsets), tuple(shape)) for offsets, shape, _ in self.slices[record.name]]
        if all(shape == record.global_shape for _, shape in slices):
            if whole is not None:
                whole.copy_(parameter.data, non_blocking=True)
            return
        rows, columns = record.shape[0] + record.padding, record.shape[1]
        assert all(shape[0] + padding == rows for _, shape, padding in self.slices[record.name])
        # With the rows of padding behind it all ranks give equally many.
        local = self.buffer.data[parameter.start : parameter.start + rows * columns].view(rows, columns)
        step = max(1, PIECE_BYTES // (tp.size * columns * local.element_size()))
        for start in range(0, rows, step):
            piece = all_gather(local[start : start + step], tp).view(tp.size, -1, columns)
            if whole is None:
                continue
            if columns < whole.shape[1]:
                # Whole rows, put together on the device: a copy to every other part of a row is slow.
                whole[start : start + step].copy_(piece.transpose(0, 1).flatten(1), non_blocking=True)
                continue
            for rank, (offsets, shape) in enumerate(slices):
                count = min(shape[0] - start, piece.shape[1])
                if count > 0 and slices.index((offsets, shape)) == rank:  # of replicas, the first
                    first = offsets[0] + start
                    whole[first : first + count].copy_(piece[rank, :count], non_blocking=True)


def share_out(sizes: Mapping[str, int], parts: int) -> dict[str, int]:
    """The part in 0..parts-1 that each gets: the largest first, to whoever has least."""
    loads = [0] * parts
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return {name: owners[name] for name in sizes}


def writes(record: Record, grid: Grid) -> bool:
    """Whether this rank writes the state of the record: of those that hold the same rectangle, the first."""
    return all(getattr(grid, group).rank == 0 for group in record.sum_groups)


def _writes_ends(record: Record, grid: Grid) -> bool:
    """A tied embedding is written by the first stage, not by the last."""
    return "ends" not in record.sum_groups or grid.ends.rank == 0


def rectangle_key(state: str, name: str, offsets: tuple[int, ...]) -> str:
    """Name in an optimizer file: `state|Hugging Face name|first index along each axis`."""
    return f"{state}|{name}|{','.join(map(str, offsets))}"


def tensor_names(file: HostFile) -> list[str]:
    """Hugging Face names of the tensors of which a file holds something."""
    return list(dict.fromkeys(key.split("|")[1] if "|" in key else key for key in file.tensors))


def local_rectangles(
    optimizer: Optimizer,
) -> Iterator[tuple[Record, tuple[int, ...], tuple[int, ...], Shard, slice]]:
    """(record, offsets, shape, shard, where in the shard) of everything this rank's shards hold."""
    for shard in optimizer.shards:
        for parameter in (parameter for weight in shard.bucket.weights for parameter in weight.parameters):
            start, end = max(parameter.start, shard.start), min(parameter.end, shard.end)
            if start >= end:
                continue
            for first, offsets, shape in rectangles(parameter.record, start - parameter.start, end - parameter.start):
                at = parameter.start + first - shard.start
                yield parameter.record, offsets, shape, shard, slice(at, at + math.prod(shape))
