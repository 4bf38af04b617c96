"""What the kernels of an operator read and write, counted in the strict interpreter.

For each tensor argument of each launch: the distinct 32-byte sectors loaded and stored (what must come from and go to
memory if the cache keeps everything: the bytes of the docstrings' formulas), the bytes that active lanes ask for (more,
where something is read again) and the lanes masked off.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch

from tests.kernels.interpreter import LOAD, Access, Argument, Harness, Launch, extent

SECTOR = 32
"""Bytes: the unit in which an NVIDIA GPU's L2 cache and memory are read and written."""


@dataclasses.dataclass
class Lanes:
    """One direction, loads or stores, of one argument. An atomic update counts as a store."""

    sectors: np.ndarray  # bool, one for each sector the argument spans
    requested: int = 0  # bytes
    active: int = 0
    masked_off: int = 0

    @property
    def moved(self) -> int:
        """Bytes of the distinct sectors."""
        return SECTOR * int(np.count_nonzero(self.sectors))


@dataclasses.dataclass
class ArgumentTraffic:
    kernel: str
    programs: int
    argument: Argument
    loads: Lanes
    stores: Lanes


class Traffic:
    """Counts of all launches between `with count(harness) as traffic:` and the end of the block."""

    def __init__(self) -> None:
        self.rows: list[ArgumentTraffic] = []
        self._launch: Launch | None = None
        self._row_of: dict[int, ArgumentTraffic] = {}

    def __call__(self, launch: Launch, access: Access) -> None:
        if launch is not self._launch:
            self._launch, self._row_of = launch, {}
        argument = access.argument
        first = argument.tensor.data_ptr() // SECTOR
        row = self._row_of.get(id(argument))
        if row is None:
            span = (argument.tensor.data_ptr() + argument.extent - 1) // SECTOR - first + 1
            lanes = (Lanes(np.zeros(span, dtype=bool)) for _ in range(2))
            row = ArgumentTraffic(launch.kernel, math.prod(launch.grid), argument, *lanes)
            self._row_of[id(argument)] = row
            self.rows.append(row)
        lanes = row.loads if access.kind == LOAD else row.stores
        lanes.sectors[access.addresses // np.uint64(SECTOR) - np.uint64(first)] = True
        lanes.requested += access.size * access.addresses.size
        lanes.active += access.addresses.size
        lanes.masked_off += access.masked_off

    def of(self, tensor: torch.Tensor) -> list[ArgumentTraffic]:
        """Rows of the arguments that are `tensor` or views of it."""
        begin, size = tensor.data_ptr(), extent(tensor)
        return [row for row in self.rows if 0 <= row.argument.tensor.data_ptr() - begin < size]

    @property
    def moved(self) -> int:
        return sum(row.loads.moved + row.stores.moved for row in self.rows)

    @property
    def requested(self) -> int:
        return sum(row.loads.requested + row.stores.requested for row in self.rows)

    def table(self) -> str:
        """One line an argument: distinct and requested bytes, and the share of lanes masked off."""
        lines = [f"{'kernel':28} {'argument':20} {'':5} {'distinct B':>12} {'requested B':>12} {'masked off':>10}"]
        for row in self.rows:
            for kind, lanes in (("load", row.loads), ("store", row.stores)):
                if lanes.active or lanes.masked_off:
                    idle = lanes.masked_off / (lanes.active + lanes.masked_off)
                    lines.append(
                        f"{row.kernel:28} {row.argument.name:20} {kind:5} {lanes.moved:12,} {lanes.requested:12,} {idle:10.1%}"
                    )
        return "\n".join(lines)


@contextlib.contextmanager
def count(harness: Harness) -> Iterator[Traffic]:
    """Count what launches read and write until the end of the block."""
    traffic = Traffic()
    harness.observers.append(traffic)
    try:
        yield traffic
    finally:
        harness.observers.remove(traffic)
