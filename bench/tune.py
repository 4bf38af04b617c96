"""Offline tuner of `kernels/tiles.json`: times launch configurations on the GPU it runs on and rewrites the entries of
that GPU's table.

For each kernel and size it takes the inputs and the check of a row of the benchmark at that size, and a stated list of
candidates (`candidates`). One is discarded if it does not compile, needs more shared memory than every GPU of the table
has, keeps values on the stack (the present entry alone may: its stack is known to lie outside the loops), or gives
results that disagree with the reference. The rest are timed briefly; the best few and the present entry then take turns
at length, and the present one stays unless another is faster by more than `NOISE`. After each entry the table is
written, so an interruption loses one entry at most. Entries of float32 are not tuned.

    python bench/tune.py --minutes 8 --out tiles.json --kernel attention_forward --size 128
"""

# ruff: noqa: E402 (as a script, it must make the checkout importable first)

import argparse
import contextlib
import dataclasses
import datetime
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import triton
from triton import JITFunction

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.measure import OURS, check, in_turns, input_sets, poisoned_memory, seconds_of
from bench.row import Row
from bench.rows import MEMORY_ROWS
from bench.rows_matrix import MATRIX_ROWS
from kernels import tiles
from kernels.tiles import Tile

TABLE = ROOT / "kernels" / "tiles.json"
ROWS = {row.name: row for row in (*MEMORY_ROWS, *MATRIX_ROWS)}
NOISE = 0.01
"""Share of the time by which another configuration must beat the present one."""
BRIEF, LONG, FINALISTS = 5, 30, 4
"""Rounds of the two stages, and how many candidates reach the second beside the present entry."""
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "safe": 99 << 10}
"""Bytes a block may use on every GPU of the table."""
MEASURED = "; measured: "


@dataclasses.dataclass(frozen=True)
class Workload:
    """How a kernel is timed."""

    row: str
    """Row of the benchmark."""
    function: str
    """The jitted function whose stack and shared memory count."""
    fields: tuple[str, ...]
    """Fields of a Tile that this kernel reads."""
    shape: Callable[[int], dict[str, int]] = lambda size: {}
    """What changes in the row's sizes for a size of the table."""
    candidate: str = OURS


def _hidden(size: int) -> dict[str, int]:
    """A row of `size` bytes in bfloat16."""
    return {"hidden": size // 2, "tokens": (1 << 28) // size}


def _vocabulary(size: int) -> dict[str, int]:
    return {"vocabulary": size, "tokens": min(1 << 16, (1 << 30) // size)}


def _head_dim(size: int) -> dict[str, int]:
    return {"head_dim": size}


_ATTENTION, _NORM = ("rows", "columns", "warps", "stages"), Tile._fields
_FORWARD, _BACKWARD = "attention_forward-32_32", "attention_backward-32_32"
WORKLOADS = {  # the kernels whose choice matters most come first: the time may not suffice for all
    "attention_forward": Workload(_FORWARD, "_forward_kernel", _ATTENTION, _head_dim),
    "attention_key_value": Workload(_BACKWARD, "_key_value_kernel", _ATTENTION, _head_dim),
    "attention_query": Workload(_BACKWARD, "_query_kernel", _ATTENTION, _head_dim),
    "decode_attention": Workload("decode-4k", "_decode_kernel", ("columns", "warps", "stages", "programs"), _head_dim),
    "cross_entropy_row": Workload(
        "cross_entropy-128k", "_losses_and_gradient_kernel", ("columns", "warps", "programs"), _vocabulary
    ),
    "rmsnorm_forward": Workload("add_rmsnorm_forward-4096", "_forward_kernel", _NORM, _hidden),
    "rmsnorm_backward": Workload("add_rmsnorm_backward-4096", "_backward_kernel", _NORM, _hidden),
    "swiglu_forward": Workload("swiglu_forward", "_forward_kernel", ("columns", "warps")),
    "swiglu_backward": Workload("swiglu_backward", "_backward_kernel", ("columns", "warps")),
    "rope": Workload("rope_forward", "_rotate_kernel", ("rows", "warps")),
    "adamw": Workload("adamw", "_step_kernel", ("columns", "warps")),
    "cross_entropy_stats": Workload(
        "cross_entropy-128k", "_stats_kernel", ("columns", "warps"), _vocabulary, f"{OURS}-two-launches"
    ),
    "cross_entropy_gradient": Workload(
        "cross_entropy-128k", "_gradient_kernel", ("columns", "warps"), _vocabulary, f"{OURS}-two-launches"
    ),
    "rmsnorm_weight_grad": Workload("rmsnorm_backward-4096", "_weight_grad_kernel", ("rows", "columns", "warps")),
    "attention_value": Workload(_BACKWARD, "_key_value_kernel", _ATTENTION, _head_dim),
    "attention_key": Workload(_BACKWARD, "_key_value_kernel", _ATTENTION, _head_dim),
    "attention_paged_prefill": Workload("paged_prefill", "_prefill_kernel", _ATTENTION, _head_dim),
    "backward_delta": Workload(_BACKWARD, "_delta_kernel", ("rows", "warps"), _head_dim),
    "decode_merge": Workload("decode-4k", "_merge_kernel", ("rows", "warps"), _head_dim),
}
FIRST_SIZES = {128, 8192, 131072, 16384}
"""Of these sizes before the others: head_dim 128, hidden 4096 in bfloat16, a vocabulary of 128k."""

# ---- candidates ------------------------------------------------------------------------------------------------------


def candidates(kernel: str, size: int, present: Tile) -> list[Tile]:
    """Configurations to try, without the present one.

    Attention: every combination of 64 or 128 rows, 32 to 128 columns, 4 or 8 warps and up to 3 stages. Other kernels:
    the present one with one or two of its fields halved or doubled (programs also, stages only, one less or more).
    """
    fields = WORKLOADS[kernel].fields
    if kernel.startswith("attention_"):
        choices = itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2) if size > 128 else (2, 3))
        found = [Tile(*choice, present.programs) for choice in choices]
    else:
        near = {field: _near(field, getattr(present, field)) for field in fields}
        single = [{field: value} for field in fields for value in near[field]]
        double = [
            {a: x, b: y} for a, b in itertools.combinations(fields, 2) for x in near[a] for y in near[b]
        ]  # fmt: skip
        found = [present._replace(**change) for change in (*single, *double)]
    return [tile for tile in dict.fromkeys(found) if tile != present and valid(kernel, size, tile)]


def _near(field: str, value: int) -> list[int]:
    if field == "stages":
        near = (value - 1, value + 1)
    elif field == "programs":
        near = (value // 2, value - 1, value + 1, value * 2)
    else:
        near = (value // 2, value * 2)
    return [other for other in dict.fromkeys(near) if other >= 1 and other != value]


def valid(kernel: str, size: int, tile: Tile) -> bool:
    """Whether a kernel can be launched so, and no thread is idle: 1 to 32 warps, at most 5 stages and 16 programs, a
    value or more (where a thread reads 16 bytes: as many) a thread, chunks not wider than the row."""
    if not (1 <= tile.warps <= 32 and 1 <= tile.stages <= 5 and tile.programs <= 16):
        return False
    if kernel.startswith("attention_"):
        return True
    if kernel in ("backward_delta", "decode_merge"):  # whole heads: they have no columns to choose
        return tile.rows <= 256
    if kernel == "decode_attention":
        return 16 <= tile.columns <= 64 and tile.warps <= 4
    threads = 32 * tile.warps
    if kernel.startswith("cross_entropy_"):
        return 8 * threads <= tile.columns <= max(1024, size)
    if kernel in ("rmsnorm_forward", "rmsnorm_backward"):
        return tile.columns <= size // 2 and 8 * threads <= tile.rows * tile.columns <= 1 << 15
    return threads <= tile.rows * tile.columns <= 1 << 14


# ---- trying one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def override(table: str, kernel: str, size: int, tile: Tile) -> Iterator[None]:
    """Inside, this entry of the loaded table is `tile`."""
    sizes = tiles._tables()[table][kernel]
    before = sizes[size]
    sizes[size] = {**before, **tile._asdict()}
    tiles.tile.cache_clear()
    tiles.work_blocks.cache_clear()
    try:
        yield
    finally:
        sizes[size] = before
        tiles.tile.cache_clear()
        tiles.work_blocks.cache_clear()


@contextlib.contextmanager
def launched(kernels: list) -> Iterator[None]:
    """Collects (name of the jitted function, compiled kernel) of every launch."""
    run = JITFunction.run

    def recording(self, *arguments, **options):
        kernel = run(self, *arguments, **options)
        kernels.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = recording
    try:
        yield
    finally:
        JITFunction.run = run


def defect(kernels: list, function: str, table: str) -> str | None:
    """Why a compiled kernel is refused, or None."""
    for name, kernel in kernels:
        if name != function:
            continue
        if kernel.n_spills:
            return f"{4 * kernel.n_spills} bytes of stack"
        if kernel.metadata.shared > SHARED_MEMORY[table]:
            return f"{kernel.metadata.shared} bytes of shared memory"
    return None


@dataclasses.dataclass
class Task:
    """One entry of the table, and what it is timed on."""

    kernel: str
    size: int
    table: str
    shape: dict
    device: torch.device
    dtype: torch.dtype
    clock: Callable[[Callable[[], object]], float]
    deadline: float
    """time.monotonic() after which no further candidate is tried."""

    @property
    def workload(self) -> Workload:
        return WORKLOADS[self.kernel]

    @property
    def row(self) -> Row:
        return ROWS[self.workload.row]

    def override(self, tile: Tile) -> contextlib.AbstractContextManager:
        return override(self.table, self.kernel, self.size, tile)


def try_tile(task: Task, tile: Tile, inputs: list, reference: tuple, is_present: bool) -> float | str:
    """Seconds of a few runs, or why it is discarded."""
    kernels = []
    try:
        with task.override(tile):
            work = task.row.candidates[task.workload.candidate](inputs[0])
            with launched(kernels), poisoned_memory():
                wrong = check(work.run(), reference, task.dtype)
            wrong = wrong or (None if is_present else defect(kernels, task.workload.function, task.table))
    except Exception as error:
        if is_present:
            raise
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:120]
    if wrong and is_present:
        raise AssertionError(f"the present entry of {task.kernel} {task.size} is refused: {wrong}")
    return wrong or median(in_turns({tile: [work]}, BRIEF, task.clock, task.override)[tile])


def tune(task: Task, present: Tile, log: Callable[[str], None]) -> dict[Tile, float]:
    """Seconds of the finalists, the present entry among them."""
    build = task.row.inputs
    inputs = input_sets(lambda seed: build(task.shape, task.device, task.dtype, seed), task.device)
    reference = task.row.reference(inputs[0])
    brief = {}
    for tile in (present, *candidates(task.kernel, task.size, present)):
        if time.monotonic() > task.deadline and brief:
            log("  time is up: the other candidates were not tried")
            break
        result = try_tile(task, tile, inputs, reference, tile == present)
        if isinstance(result, str):
            log(f"  {tuple(tile)} discarded: {result}")
        else:
            brief[tile] = result
            log(f"  {tuple(tile)} {result * 1e6:.1f} us")
    finalists = dict.fromkeys([present, *sorted(brief, key=brief.get)[:FINALISTS]])
    works = {}
    for tile in finalists:
        with task.override(tile):
            works[tile] = [task.row.candidates[task.workload.candidate](one) for one in inputs]
    times = in_turns(works, LONG, task.clock, task.override)
    return {tile: median(each) for tile, each in times.items()}


def choose(seconds: dict[Tile, float], present: Tile) -> tuple[Tile, Tile | None]:
    """(what is to be written, the next best): the fastest, or the present one where that is within the noise."""
    order = sorted(seconds, key=seconds.get)
    best = order[0] if seconds[order[0]] < (1 - NOISE) * seconds[present] else present
    return best, next((tile for tile in order if tile != best), None)


def new_entry(entry: dict, present: Tile, seconds: dict[Tile, float], row: Row, amount: float, where: str) -> dict:
    """The entry to write. A configuration that stays keeps its reason, with the figures behind it."""
    best, next_best = choose(seconds, present)
    scale, unit = (1e9, "GB/s") if row.unit == "bytes" else (1e12, "TFLOP/s")

    def rate(tile: Tile) -> str:
        return f"{amount / seconds[tile] / scale:.0f} {unit}"

    figures = f"{rate(best)} in {row.name} on {where}"
    if next_best is not None:
        figures += "; next " + "/".join(str(value) for value in next_best) + f" {rate(next_best)}"
    kept = entry["reason"].split(MEASURED)[0] if best == present else "fastest of its neighbours"
    return {**best._asdict(), "reason": kept + MEASURED + figures}


def dump(tables: dict) -> str:
    """The table as a file: an entry a line."""
    blocks = []
    for table, kernels in tables.items():
        lists = []
        for kernel, sizes in kernels.items():
            lines = [f'      "{size}": {json.dumps(entry, ensure_ascii=False)}' for size, entry in sizes.items()]
            lists.append(f'    "{kernel}": {{\n' + ",\n".join(lines) + "\n    }")
        blocks.append(f'  "{table}": {{\n' + ",\n".join(lists) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


# ---- command line ----------------------------------------------------------------------------------------------------


def entries(table: dict, kernels: list[str] | None, size: int | None) -> list[tuple[str, int]]:
    """(kernel, size) of the entries to tune, in the order of `WORKLOADS`, the sizes that matter first."""
    unknown = [kernel for kernel in kernels or [] if kernel not in WORKLOADS]
    if unknown:
        raise ValueError(f"--kernel {unknown[0]} has no workload; known are {', '.join(WORKLOADS)}")
    found = [
        (kernel, int(each))
        for kernel in WORKLOADS
        for each in table.get(kernel, ())
        if (not kernels or kernel in kernels) and (size is None or int(each) == size)
    ]
    if not found:
        raise ValueError(f"the table has no entry of size {size}")
    return sorted(found, key=lambda entry: entry[1] not in FIRST_SIZES)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kernel", action="append", help="kernel of the table (repeatable; default: all)")
    parser.add_argument("--size", type=int, help="size of the table: head_dim, bytes of a row, columns (default: all)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no candidate is begun later (default: 60)")
    parser.add_argument("--out", type=Path, default=TABLE, help="table to write (default: kernels/tiles.json)")
    parser.add_argument("--dry-run", action="store_true", help="measure and print, write nothing")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("tune.py: no CUDA GPU here; run it on the GPU whose table is to be written")
    device = torch.device("cuda")
    tables = json.loads(TABLE.read_text(encoding="utf-8"))
    try:
        name = tiles.architecture(device)
        todo = entries(tables[name], options.kernel, options.size)
    except ValueError as error:
        sys.exit(f"tune.py: {error}")
    deadline = time.monotonic() + 60 * options.minutes
    today = datetime.date.today().isoformat()
    where = f"{torch.cuda.get_device_name()}, {today}, torch {torch.__version__}, Triton {triton.__version__}"
    for number, (kernel, size) in enumerate(todo):
        if time.monotonic() > deadline:
            print("time is up; not tuned:", ", ".join(f"{kernel} {size}" for kernel, size in todo[number:]))
            break
        row = ROWS[WORKLOADS[kernel].row]
        shape = {**row.size, **WORKLOADS[kernel].shape(size)}
        entry = tables[name][kernel][str(size)]
        present = Tile(*(entry[field] for field in Tile._fields))
        print(f"{kernel} {size} ({name}), present {tuple(present)}", flush=True)
        clock = lambda run: seconds_of(run, device)  # noqa: E731
        task = Task(kernel, size, name, shape, device, torch.bfloat16, clock, deadline)
        seconds = tune(task, present, lambda line: print(line, flush=True))
        written = new_entry(entry, present, seconds, row, row.amount(shape, 2), where)
        print(f"  -> {json.dumps(written)}", flush=True)
        tables[name][kernel][str(size)] = written
        gc.collect()
        torch.cuda.empty_cache()
        if not options.dry_run:
            options.out.write_text(dump(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
