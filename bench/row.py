"""What a row of the kernel benchmark is, and what building one needs.

A row is data: sizes (real, and tiny ones for a test without a GPU), the amount of work, inputs, reference, candidates
and goals.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from bench import peers
from bench.measure import Work


@dataclasses.dataclass(frozen=True)
class Goal:
    """`measure` is at least `bound`: "copy" and "cublas" are fractions of that roofline, "TFLOP/s" is what it says,
    any other name is a peer, and the ratio is its time over ours. Only "workspace" (bytes) is at most `bound`."""

    measure: str
    bound: float
    text: str


def of_copy(fraction: float) -> Goal:
    return Goal("copy", fraction, f"{fraction:.0%} of copy")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """Also the name of its file of figures."""
    size: dict[str, Any]
    tiny: dict[str, Any]
    """For the CPU."""
    unit: str
    """Of `amount`: bytes or FLOPs."""
    amount: Callable[[dict, int], float]
    """(size, bytes an element) -> bytes moved or FLOPs of one run."""
    inputs: Callable[[dict, torch.device, torch.dtype, int], SimpleNamespace]
    """(size, device, dtype, seed)."""
    reference: Callable[[SimpleNamespace], Sequence[torch.Tensor]]
    """In float64, or float32 where that is said."""
    candidates: dict[str, Callable[[SimpleNamespace], Work]]
    must: tuple[Goal, ...]
    aim: tuple[Goal, ...]
    products: Callable[[SimpleNamespace], Work] | None = None
    """The same matrix products in cuBLAS: the roofline instead of a copy."""
    workspace: Callable[[SimpleNamespace], int] | None = None
    """Bytes of results beside which the peak of memory is the workspace, if that is to be reported."""


def normal(*shape: int, device: torch.device, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def in_double(function: Callable, arguments: Sequence, douts: Sequence | None = None, leaves: int = 0) -> tuple:
    """function(*arguments) in float64, or its gradients with respect to the first `leaves` arguments."""
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]
    if douts is None:
        return function(*wide)
    wide[:leaves] = [x.requires_grad_() for x in wide[:leaves]]
    return torch.autograd.grad(function(*wide), wide[:leaves], [x.double() for x in douts])


def with_compile(function: Callable, make: Callable[[Callable], Callable]) -> dict[str, Callable]:
    """The two candidates of plain torch; `make` says how a function is run."""

    def compile_it(inputs):
        return make(peers.compiled(function))(inputs)

    return {"eager": make(function), "compile": compile_it}
