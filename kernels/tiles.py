"""Launch configurations of the kernels by architecture: the checked-in table `tiles.json`, so that nothing is tuned at
run time.

Autotuning at run time lets ranks choose differently (and so compute different numbers) and costs minutes at step 1.
`bench/tune.py` measures on a GPU and writes the table. Its entries are table -> kernel -> size -> configuration, with
the reason of each choice; a kernel takes the smallest size that is not below its own (head_dim, columns of a row), else
the largest.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

TABLES = ("sm_80", "sm_90", "safe", "float32")
"""A100; H100 and H200; any other GPU (it fits the 99 KB of shared memory of sm_86, sm_89 and sm_120); matrix products
in full precision, which run on the FP32 units of any GPU."""


class Tile(NamedTuple):
    """One launch configuration."""

    rows: int
    """Rows a program holds: of the work list's side in attention, of the matrix in streaming kernels."""

    columns: int
    """Rows of the other side an inner step reads in attention; columns a program works on in streaming kernels, 0 for a
    whole row."""

    warps: int
    """Warps a program; 0: as many as give 16 values a thread."""

    stages: int
    """Depth of the software pipeline of loads."""

    programs: int
    """Programs a multiprocessor for kernels that loop over their work; 0 where every tile is a program."""


def architecture(device: torch.device) -> str:
    """Name of the table for this device: `sm_80`, `sm_90` or `safe` (all other GPUs, and the CPU interpreter).

    ValueError for a GPU older than Ampere: no bfloat16 products, and too little shared memory for these tiles.
    """
    if device.type != "cuda":
        return "safe"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}) has no bfloat16 matrix products; the kernels "
            "need Ampere (sm_80) or newer, or tensors on the CPU"
        )
    name = f"sm_{major}{minor}"
    return name if name in TABLES else "safe"


@functools.cache
def tile(kernel: str, size: int, table: str) -> Tile:
    """Configuration of `kernel` for `size` from one of `TABLES` (a result of `architecture`, or float32)."""
    entry = min(_tables()[table][kernel].items(), key=lambda item: (item[0] < size, abs(item[0] - size)))[1]
    return Tile(*(entry[field] for field in Tile._fields))


@functools.cache
def work_blocks() -> tuple[int, ...]:
    """Every number of rows for which some attention kernel needs a work list (`Documents` builds one for each)."""
    return tuple(
        sorted(
            {
                entry["rows"]
                for kernels in _tables().values()
                for name, sizes in kernels.items()
                if name.startswith("attention_")
                for entry in sizes.values()
            }
        )
    )


@functools.cache
def _tables() -> dict[str, dict[str, dict[int, dict]]]:
    tables = json.loads(Path(__file__).with_name("tiles.json").read_text(encoding="utf-8"))
    return {
        table: {kernel: {int(size): entry for size, entry in sizes.items()} for kernel, sizes in kernels.items()}
        for table, kernels in tables.items()
    }
