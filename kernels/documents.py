"""Packed documents: where each begins, the positions in it, and the work lists of the attention kernels.

A batch is documents laid end to end on one token axis. `cu_seqlens = [0, l0, l0 + l1, ...]` gives their bounds, so
document d owns tokens `cu_seqlens[d]:cu_seqlens[d + 1]`. A document may be empty; repeating the last value therefore
pads `cu_seqlens` to a fixed length without changing anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .tiles import work_blocks


@dataclass(frozen=True)
class Documents:
    """Document bounds of a micro-batch and what the kernels need of them, built once on the host (`build`).

    cu_seqlens   int32 [documents + 1]
    positions    int32 [tokens], 0 at the first token of each document
    query_work   for each block size of `tiles.work_blocks()`, int32 [ceil(tokens / block) + documents, 2]: (document,
                 first token) of every block of queries, the one that reads most keys first; the rest is (-1, 0)
    key_work     the same for blocks of keys, the one that is read by most queries first

    The longest blocks come first because GPUs start programs in order: the short ones then fill the tail.
    Lengths depend only on the numbers of tokens and documents, so shapes stay constant from batch to batch.
    """

    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    query_work: tuple[torch.Tensor, ...]
    key_work: tuple[torch.Tensor, ...]

    @staticmethod
    def build(
        cu_seqlens: Sequence[int] | np.ndarray, device: torch.device | str, *, window: int | None = None
    ) -> "Documents":
        """From the host's `cu_seqlens` (starts at 0, never decreases). `window` (tokens) only sorts the work lists.

        One copy to the device, from pinned memory, without waiting for it.
        """
        bounds = np.asarray(cu_seqlens, dtype=np.int64)
        if bounds.ndim != 1 or bounds.size == 0 or bounds[0] != 0 or (np.diff(bounds) < 0).any():
            raise ValueError(f"cu_seqlens must start at 0 and never decrease, got {cu_seqlens!r}")
        if bounds[-1] >= 2**31:
            raise ValueError(f"{bounds[-1]} tokens in one batch: cu_seqlens is int32, so at most 2^31 - 1")
        lengths = np.diff(bounds)
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        arrays = [bounds, positions]
        for block in work_blocks():
            arrays.extend(_work_lists(bounds, block, window))
        tensors = _to_device(arrays, torch.device(device))
        return Documents.of(tensors)

    def tensors(self) -> list[torch.Tensor]:
        """All fields as one list: the form in which a custom operator takes documents."""
        work = [t for pair in zip(self.query_work, self.key_work, strict=True) for t in pair]
        return [self.cu_seqlens, self.positions, *work]

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> "Documents":
        """The inverse of `tensors`."""
        cu_seqlens, positions, *work = tensors
        return Documents(cu_seqlens, positions, tuple(work[0::2]), tuple(work[1::2]))

    def query_blocks(self, block: int) -> torch.Tensor:
        """Work list of query blocks of this size."""
        return self.query_work[work_blocks().index(block)]

    def key_blocks(self, block: int) -> torch.Tensor:
        """Work list of key blocks of this size."""
        return self.key_work[work_blocks().index(block)]


def _work_lists(bounds: np.ndarray, block: int, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Work lists (queries, keys) [ceil(tokens / block) + documents, 2] of one block size."""
    lengths = np.diff(bounds)
    blocks = -(-lengths // block)
    document = np.repeat(np.arange(lengths.size), blocks)
    start = (np.arange(document.size) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    end = np.minimum(start + block, lengths[document])
    reach = window if window is not None else int(bounds[-1]) + 1
    keys_read = end - np.maximum(0, start + 1 - reach)
    queries_reading = np.minimum(lengths[document], end - 1 + reach) - start
    entries = np.stack((document, bounds[:-1][document] + start), axis=1)
    padded = np.tile(np.array([[-1, 0]]), (-(-int(bounds[-1]) // block) + lengths.size, 1))
    lists = []
    for work in (keys_read, queries_reading):
        ordered = padded.copy()
        ordered[: document.size] = entries[np.argsort(-work, kind="stable")]
        lists.append(ordered)
    return lists[0], lists[1]


def _to_device(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """int32 copies on `device`, carried there as one buffer, each starting at a multiple of 16 bytes: Triton compiles a
    kernel anew for pointers that do not.
    """
    padded = [np.pad(a.ravel(), (0, -a.size % 4)) for a in arrays]
    flat = torch.from_numpy(np.concatenate(padded).astype(np.int32))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([a.size for a in padded])
    return [part[: a.size].view(a.shape) for part, a in zip(parts, arrays, strict=True)]
