"""Safetensors files laid out in host memory before there is anything to write, so that a snapshot only copies.

The library's own writer copies every tensor once more and holds Python's lock meanwhile, which stops the training
thread; here the memory goes to the file as it lies there. The format (github.com/huggingface/safetensors): the header's
length as a little-endian uint64, the header in JSON, the tensors without gaps.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16"}
WRITE_BYTES = 64 * 2**20
"""Written at once; between two writes it is seen whether to go on."""


class Cancelled(Exception):
    """The run ends and what is being written is not wanted any more."""


@dataclass
class HostFile:
    """One safetensors file in host memory."""

    path: str
    """Relative to the checkpoint's folder."""
    header: bytes
    memory: Tensor = field(repr=False)
    """uint8 `[bytes of all tensors]`."""
    tensors: dict[str, Tensor] = field(repr=False)
    """Views into `memory` by name."""

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return len(self.header) + self.memory.numel()

    def write(self, folder: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Write the present content to `folder / path` and sync it to the disk. OSError as the system gives it."""
        file = folder / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb", buffering=0) as out:
            for content in (memoryview(self.header), memoryview(self.memory.numpy())):
                while content:
                    if cancelled():
                        raise Cancelled
                    content = content[out.write(content[:WRITE_BYTES]) :]
            os.fsync(out.fileno())


def host_files(
    contents: Mapping[str, Mapping[str, tuple[torch.dtype, tuple[int, ...]]]], *, pinned: bool = False
) -> list[HostFile]:
    """Memory for all tensors of some files: `{path: {name: (dtype, shape)}}`, one dtype a file.

    Every page is touched: the first copy into fresh memory would take ten times as long as a later one. `pinned`: a GPU
    can write to it by itself, beside the host; torch rounds each file's pinned memory up to a power of two.
    """
    files = []
    for path, tensors in contents.items():
        size = sum(map(_nbytes, tensors.values()))
        files.append(_lay_out(path, tensors, torch.empty(size, dtype=torch.uint8, pin_memory=pinned).fill_(0)))
    return files


def _lay_out(path: str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], memory: Tensor) -> HostFile:
    assert len({dtype for dtype, _ in tensors.values()}) <= 1
    header: dict = {"__metadata__": {"format": "pt"}}
    views, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = position + _nbytes((dtype, shape))
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        views[name] = memory[position:end].view(dtype).view(shape)
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return HostFile(path, len(text).to_bytes(8, "little") + text, memory, views)


def _nbytes(tensor: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = tensor
    return math.prod(shape) * dtype.itemsize


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, from this host's memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
