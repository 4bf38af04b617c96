"""Timing of candidates in turns, their check against a reference before a figure counts, and the two rooflines.

A candidate is prepared on each of several sets of inputs, which together are at least four times the L2 cache, so that
no run finds its inputs there; before each run other memory is read through that cache too, so that none pays for lines
that were written before it. One round runs every candidate once; the median over the rounds counts. On a GPU a run is
timed by events behind a short pause of the device, during which the host enqueues it: launch overhead then shows only
where it would in a model, when the host waits for the device in between.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch

OURS = "materia"
WARM_UP = 3
PAUSE_CYCLES = 1_000_000
"""About half a millisecond: longer than the host needs to enqueue any operator here."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest |result - reference| / |reference|, both as Euclidean norms."""
CHUNK = 1 << 24
"""Elements compared at a time."""


class Work(NamedTuple):
    """A candidate that is ready to run."""

    run: Callable[[], Sequence[torch.Tensor]]
    """Returns the results in the reference's order."""
    reset: Callable[[], object] | None = None
    """Brings back inputs that `run` overwrites; not timed."""


def input_sets(build: Callable[[int], SimpleNamespace], device: torch.device) -> list[SimpleNamespace]:
    """Inputs of seeds 0, 1, ...: as many sets as make four times the L2 cache; two on a CPU."""
    first = build(0)
    if device.type != "cuda":
        return [first, build(1)]
    held = sum(x.nbytes for x in vars(first).values() if isinstance(x, torch.Tensor))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return [first, *(build(seed) for seed in range(1, math.ceil(4 * cache / held)))]


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Time of one run."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    _other_memory(device).sum()
    torch.cuda._sleep(PAUSE_CYCLES)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@functools.cache
def _other_memory(device: torch.device) -> torch.Tensor:
    """Twice as much as the L2 cache holds."""
    return torch.ones(torch.cuda.get_device_properties(device).L2_cache_size // 2, dtype=torch.int32, device=device)


def in_turns(
    candidates: dict[str, list[Work]],
    rounds: int,
    clock: Callable[[Callable[[], object]], float],
    around: Callable[[str], contextlib.AbstractContextManager] = lambda name: contextlib.nullcontext(),
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, every other round in reverse order; `around(name)` is entered for each
    run."""
    times = {name: [] for name in candidates}
    for number in range(WARM_UP + rounds):
        order = list(candidates)
        for name in order if number % 2 == 0 else order[::-1]:
            work = candidates[name][number % len(candidates[name])]
            if work.reset is not None:
                work.reset()
            with around(name):
                seconds = clock(work.run)
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """|result - reference| / |reference|; infinite where a value is NaN or the shapes differ."""
    if result.shape != reference.shape:
        return math.inf
    difference = total = 0.0
    rows = max(1, CHUNK // max(1, reference[:1].numel())) if reference.dim() else 1
    pairs = zip(result.split(rows), reference.split(rows), strict=True) if reference.dim() else [(result, reference)]
    for ours, exact in pairs:
        exact = exact.double()
        difference += (ours.double() - exact).square().sum().item()
        total += exact.square().sum().item()
    error = math.sqrt(difference / total) if total else math.sqrt(difference)
    return math.inf if math.isnan(error) else error


def check(results: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], dtype: torch.dtype) -> str | None:
    """What is wrong with the results, or None."""
    if len(results) != len(reference):
        return f"{len(results)} results instead of {len(reference)}"
    errors = [relative_error(a, b) for a, b in zip(results, reference, strict=True)]
    if max(errors) > TOLERANCE[dtype]:
        return "wrong: relative errors " + ", ".join(f"{error:.1e}" for error in errors)
    return None


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that an element that nobody writes is seen."""
    with deterministic(fill=True):
        yield


@contextlib.contextmanager
def deterministic(fill: bool = False) -> Iterator[None]:
    """torch's deterministic algorithms; new memory is filled, which takes time, only if asked for."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def prepare(
    prepares: dict[str, Callable[[SimpleNamespace], Work]],
    inputs: list[SimpleNamespace],
    reference: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> tuple[dict[str, list[Work]], dict[str, str]]:
    """(candidates that ran once and agree with the reference, name -> why for the others).

    A peer may fail for reasons of its own, and is then named with the reason; ours may not.
    """
    ready, failed = {}, {}
    for name, function in prepares.items():
        try:
            works = [function(one) for one in inputs]
            with poisoned_memory() if name.startswith(OURS) else contextlib.nullcontext():
                wrong = check(works[0].run(), reference, dtype)
        except Exception as error:
            if name.startswith(OURS):
                raise
            failed[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
            continue
        if wrong and name.startswith(OURS):
            raise AssertionError(f"{name}: {wrong}")
        if wrong:
            failed[name] = wrong
        else:
            ready[name] = works
    return ready, failed


def copy_work(moved: float, device: torch.device) -> tuple[Work, float]:
    """(a copy that moves so many bytes in all, what its time must be multiplied by): a device copy of half as many
    bytes, at most 2 GiB, at least two times the L2 cache to read and two to write."""
    least = 2 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1 << 12
    size = int(min(max(moved / 2, least), 2 << 30)) // 16 * 16
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Work(lambda: (target.copy_(source),)), moved / (2 * size)
