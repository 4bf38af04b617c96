"""Tile sizes of the attention kernels by architecture: a checked-in table, so that nothing is tuned at run time.

Autotuning at run time lets ranks choose differently (and so compute different numbers) and costs minutes at step 1.
"""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One launch configuration: rows of the work list's side, columns of the inner loop, warps, pipeline stages."""

    rows: int
    columns: int
    warps: int
    stages: int


class AttentionTiles(NamedTuple):
    """Tiles of the three attention kernels. `key_value`: rows are keys, columns are queries; else the reverse."""

    forward: Tile
    key_value: Tile
    query: Tile


BLOCKS = (16, 32, 64, 128)
"""Every `Tile.rows` of the tables below: `Documents` builds one work list for each."""

# Keys: head_dim rounded up to a power of two (64 stands for all smaller ones).
# Compiled with Triton 3.6.0 and 3.7.1: a stack of spilled registers or too much shared memory rules a size out.
_TABLES: dict[str, dict[int, AttentionTiles]] = {
    # A100: 163 KB of shared memory, mma.sync. 128 accumulator rows >= head_dim keep the warps along rows, so that
    # the probabilities stay in registers between the two products.
    "sm_80": {
        64: AttentionTiles(Tile(128, 32, 4, 3), Tile(128, 32, 8, 2), Tile(128, 32, 4, 2)),
        128: AttentionTiles(Tile(128, 64, 8, 3), Tile(128, 16, 8, 2), Tile(128, 32, 8, 2)),
        256: AttentionTiles(Tile(64, 64, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 2)),
    },
    # H100/H200: 227 KB, wgmma needs >= 64 rows per warpgroup; key tiles of >= 64 rows keep dK/dV on wgmma. At 256 the
    # two accumulators of dK/dV do not fit the registers beside the tiles: 512 bytes of stack, among the least tried.
    "sm_90": {
        64: AttentionTiles(Tile(128, 128, 8, 2), Tile(128, 32, 8, 2), Tile(128, 64, 8, 2)),
        128: AttentionTiles(Tile(128, 128, 8, 2), Tile(128, 32, 8, 2), Tile(128, 64, 8, 2)),
        256: AttentionTiles(Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), Tile(128, 32, 8, 1)),
    },
    # Any other GPU: fits the 99 KB of sm_86, sm_89 and sm_120.
    "safe": {
        64: AttentionTiles(Tile(128, 32, 4, 2), Tile(64, 32, 4, 2), Tile(128, 32, 4, 2)),
        128: AttentionTiles(Tile(128, 32, 8, 2), Tile(64, 32, 8, 1), Tile(128, 32, 8, 1)),
        256: AttentionTiles(Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(64, 32, 8, 1)),
    },
}

# Full-precision products run on the FP32 units (see `input_precision="ieee"` in the kernels): small tiles, no tuning.
_FLOAT32 = {
    64: AttentionTiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    128: AttentionTiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    256: AttentionTiles(Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}


def architecture(device: torch.device) -> str:
    """Name of the table for this device: `sm_80`, `sm_90` or `safe` (all other GPUs, and the CPU interpreter).

    ValueError for a GPU older than Ampere: no bfloat16 products, and too little shared memory for these tiles.
    """
    if device.type != "cuda":
        return "safe"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"{torch.cuda.get_device_name(device)} is older than Ampere (sm_80); its kernels do not fit")
    name = f"sm_{major}{minor}"
    return name if name in _TABLES else "safe"


def attention_tiles(head_dim: int, dtype: torch.dtype, arch: str) -> AttentionTiles:
    """Tiles for one head dimension and dtype on `arch` (a result of `architecture`)."""
    size = 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256
    if dtype in (torch.float32, torch.float64):
        return _FLOAT32[size]
    return _TABLES[arch][size]
