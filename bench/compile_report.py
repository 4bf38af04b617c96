"""Compiles what the launchers of `kernels/` really launch, for GPUs that need not be here, and says what came out.

    python bench/compile_report.py --arch sm_80 --arch sm_90 [--arch safe] [--json F] [--cubins DIR]
    ... --kernel attention --head-dim 128                          only these
    ... --tile attention_forward:128=128,64,8,3                    another tile: rows, columns, warps, stages
    ... --triton .venv/triton-3.6.0                                with the Triton in that folder

A line a kernel: registers, stack bytes, shared memory, blocks that fit a multiprocessor at once. A line below it for
each innermost loop that has matrix products, what a warp issues in one iteration and two bounds. Attention kernels have
two such loops; `masked` is the one with a select (FSEL) for at least every second exponential (MUFU).

Model, in cycles of a multiprocessor's quarter for one block and iteration (documented throughputs):

               HMMA.16816   HGMMA.64xNx16   FP32   IMAD   integer   MUFU   issue   shared memory
    sm_80           8             -           2      2       2        8      1     128 bytes a cycle and SM
    sm_90           8            N/2          1      2       2        8      1     128, HGMMA's operands included
    safe (sm_89)   16             -           1      2       2        8      1     128

- ceiling: matrix cycles without redundant work / cycles of the busiest pipe, all pipes overlapping perfectly.
- lockstep: matrix cycles / (matrix + the slower of FP32, integer and MUFU): softmax and products taking turns.

This is for finding defects. It ranks no tiles and predicts no speed: bounds of 1.00 have measured at half.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TABLES = ("sm_80", "sm_90", "safe")


@dataclasses.dataclass(frozen=True)
class Machine:
    """A multiprocessor: what it holds and its rates, in cycles of a quarter for one warp's instruction."""

    threads: int
    blocks: int
    shared: int
    """Bytes; each resident block takes 1 KB beside its own."""
    fp32: int
    hmma: int
    """Of HMMA.16816 with fp32 sums."""


MACHINES = {
    "sm_80": Machine(threads=2048, blocks=32, shared=164 * 1024, fp32=2, hmma=8),
    "sm_90": Machine(threads=2048, blocks=32, shared=228 * 1024, fp32=1, hmma=8),
    "safe": Machine(threads=1536, blocks=24, shared=100 * 1024, fp32=1, hmma=16),
}
"""CUDA C++ Programming Guide, "Compute Capabilities" and "Arithmetic Instructions"; the safe table stands for sm_89."""

_INTEGER, _MULTIPLY, _MUFU = 2, 2, 8
_QUARTERS, _REGISTERS_A_QUARTER, _SHARED_BYTES_A_CYCLE = 4, 16384, 128


def resident_blocks(table: str, registers: int, shared: int, warps: int) -> int:
    """Blocks that one multiprocessor holds at once."""
    machine = MACHINES[table]
    registers_a_warp = -(-registers * 32 // 256) * 256
    warps_by_registers = _REGISTERS_A_QUARTER // registers_a_warp * _QUARTERS
    by_shared = machine.shared // (shared + 1024)
    return min(machine.blocks, machine.threads // (32 * warps), warps_by_registers // warps, by_shared)


def block_shared_bytes(counts, warps: int) -> float:
    """Bytes of shared memory that all warps of a block read and write in one iteration."""
    return counts.shared_bytes * warps + counts.operand_bytes * warps / 4


def pipe_cycles(table: str, counts, warps: int) -> dict[str, float]:
    """Cycles that each pipe is busy for one block and iteration."""
    from bench import sass

    machine, share = MACHINES[table], warps / _QUARTERS
    matrix = 0.0
    for opcode, number in counts.opcodes.items():
        m, n, k = sass.matrix_shape(opcode)
        warp_products = m * n * k / (4 if opcode.startswith("HGMMA") else 1)  # four warps share one HGMMA
        rate = 2 * 16 * 8 * 16 / machine.hmma if not opcode.startswith("HGMMA") else 512 * 2
        matrix += number * share * warp_products * 2 / rate
    return {
        "matrix": matrix,
        "shared": block_shared_bytes(counts, warps) / _SHARED_BYTES_A_CYCLE,
        "mufu": counts.mufu * share * _MUFU,
        "fp32": (counts.fp32 * machine.fp32 + counts.multiply * _MULTIPLY) * share,
        "integer": counts.integer * share * _INTEGER,
        "issue": counts.issue * share,
    }


def describe_loop(table: str, counts, products: int | None, warps: int, stages: int) -> dict:
    """One line of the table about one loop."""
    cycles = pipe_cycles(table, counts, warps)
    products_a_cycle = {"sm_90": 2048}.get(table, _QUARTERS * 16 * 8 * 16 // MACHINES[table].hmma)
    loop = dataclasses.asdict(counts) | {"cycles": cycles, "busiest": max(cycles, key=cycles.get)}
    loop["masked"] = counts.matrix > 0 and 2 * counts.selects >= counts.mufu > 0
    loop["stages"] = stages
    loop["block_shared_bytes"] = block_shared_bytes(counts, warps)
    loop["bytes_in_flight"] = counts.async_bytes * warps * max(1, stages - 1)
    if products:
        ideal = products / products_a_cycle
        softmax = max(cycles["mufu"], cycles["fp32"], cycles["integer"])
        loop["ceiling"] = round(ideal / max(cycles.values()), 3)
        loop["lockstep"] = round(cycles["matrix"] / (cycles["matrix"] + softmax), 3)
    return loop


def build(table: str, launch, cubins: str | None) -> dict:
    """Compile one launch; its row of the report."""
    import triton

    from bench import sass
    from bench.launches import CAPABILITIES

    target = triton.backends.compiler.GPUTarget("cuda", CAPABILITIES[table], 32)
    began = time.perf_counter()
    compiled = triton.compile(launch.source(), target=target, options=launch.options.__dict__)
    seconds = time.perf_counter() - began
    text, usage = sass.disassemble(compiled.asm["cubin"])
    instructions, labels = sass.parse(text)
    loops = [sass.count(body) for body in sass.innermost_loops(instructions, labels)]
    warps, stages = compiled.metadata.num_warps, launch.options.num_stages
    whole = sass.count(instructions)
    products = iter(sass.products(compiled.asm["ttir"]))
    row = {"triton": triton.__version__, "table": table, "kernel": launch.kernel}
    row |= {"head_dim": launch.head_dim, "window": launch.window, "warps": warps, "stages": stages}
    row |= {"constants": {launch.function.arg_names[path[0]]: value for path, value in launch.constants.items()}}
    row["constants"] = {k: v for k, v in row["constants"].items() if isinstance(v, int | float | str)}
    row |= {**usage, "shared": compiled.metadata.shared, "seconds": round(seconds, 2)}
    row["blocks"] = resident_blocks(table, row["registers"], row["shared"], warps)
    row |= {"matrix": whole.opcodes, "stsm": whole.stsm, "local": whole.local}
    row["fp64"] = sass.double_precision(instructions)
    row["global"] = sass.global_accesses(instructions)
    row["loops"] = [
        describe_loop(table, counts, next(products, None) if counts.matrix else None, warps, stages) for counts in loops
    ]
    if cubins:
        name = f"{table}-{launch.kernel}-{launch.head_dim}{'-window' if launch.window else ''}-{launch.digest()}"
        (Path(cubins) / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
        (Path(cubins) / f"{name}.sass").write_text(text)
    return row


def show(row: dict) -> str:
    """A row as text: the kernel, then its loops."""
    case = "" if row["head_dim"] is None else f" {row['head_dim']}"
    case += " window" if row["window"] else ""
    tile = "x".join(str(row["constants"][name]) for name in ("ROWS", "COLUMNS") if name in row["constants"])
    matrix = "/".join(sorted({opcode.partition(".")[0] for opcode in row["matrix"]})) or "-"
    lines = [
        f"{row['table']:6}{row['kernel'] + case:48}{tile:>8} w{row['warps']} s{row['stages']}{row['registers']:5} regs"
        f"{row['stack']:5} B stack{row['shared'] / 1024:7.1f} KB{row['blocks']:3}/SM  {matrix:5} LDL/STL {row['local']}"
        f"  STSM {row['stsm']}  {row['seconds']:.1f} s"
    ]
    for loop in row["loops"]:
        if not loop["matrix"] and not loop["load_bytes"]:
            continue
        kind = ("masked" if loop["masked"] else "unmasked") if loop["matrix"] else "loop"
        bounds = f"ceiling {loop['ceiling']:.2f} lockstep {loop['lockstep']:.2f}" if "ceiling" in loop else ""
        lines.append(
            f"          {kind:9}{loop['matrix']:4} matrix{loop['barriers']:2} bar"
            f"{loop['bytes_in_flight'] / 1024:6.1f} KB in flight{loop['block_shared_bytes'] / 1024:7.1f} KB shared"
            f"{loop['mufu']:4} MUFU{loop['fp32']:5} FP32{loop['integer'] + loop['multiply']:5} int{loop['issue']:5}"
            f" issue  LDL/STL {loop['local']}  STSM {loop['stsm']}  {bounds} ({loop['busiest']})"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", choices=TABLES, help="tile table (default: all); repeatable")
    parser.add_argument("--json", type=Path, help="file to write all rows to")
    parser.add_argument("--cubins", type=Path, help="folder to write cubins and their SASS to")
    parser.add_argument("--kernel", action="append", default=[], help="only kernels whose name has this")
    parser.add_argument("--head-dim", action="append", type=int, default=[], help="only this head_dim")
    parser.add_argument("--tile", action="append", default=[], metavar="KERNEL:SIZE=ROWS,COLUMNS,WARPS,STAGES")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--triton", type=Path, help="folder of another Triton (pip install --target)")
    return parser.parse_args()


def _with_other_triton(folder: Path) -> None:
    """Start again with that folder before all others."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder.resolve()) == paths[0]:
        return
    if not (folder / "triton").is_dir():
        sys.exit(f"{folder} holds no Triton; make one with pip install --no-deps --target {folder} triton==VERSION")
    path = os.pathsep.join([str(folder.resolve()), *filter(None, paths)])
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONPATH": path})


def _override(tables: tuple[str, ...], text: str) -> None:
    from bench.launches import override_tile

    match = re.fullmatch(r"(\w+):(\d+)=(\d+),(\d+),(\d+),(\d+)", text)
    if not match:
        sys.exit(f"--tile {text}: expected KERNEL:SIZE=ROWS,COLUMNS,WARPS,STAGES, as attention_forward:128=128,64,8,2")
    fields = dict(zip(("rows", "columns", "warps", "stages"), map(int, match.groups()[2:]), strict=True))
    for table in tables:
        override_tile(table, match[1], int(match[2]), fields)


def main() -> None:
    arguments = _arguments()
    if arguments.triton:
        _with_other_triton(arguments.triton)
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("TRITON_INTERPRET is set, so Triton interprets and has no compiler; unset it")
    import triton

    from bench import launches

    tables = tuple(arguments.arch or TABLES)
    for text in arguments.tile:
        _override(tables, text)
    head_dims = tuple(arguments.head_dim) or launches.HEAD_DIMS
    work = [
        (table, launch)
        for table in tables
        for launch in launches.record(table, head_dims=head_dims)
        if not arguments.kernel or any(name in launch.kernel for name in arguments.kernel)
        if not arguments.head_dim or launch.head_dim in (*arguments.head_dim, None)
    ]
    if arguments.cubins:
        arguments.cubins.mkdir(parents=True, exist_ok=True)
    _WORK[:] = [(*item, arguments.cubins) for item in work]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="triton-cache-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        # forked, so that the recorded launches need not be pickled
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            rows = []
            for row in pool.map(_build, range(len(work))):
                rows.append(row)
                print(show(row), flush=True)
    seconds = time.perf_counter() - began
    summary = {
        "triton": triton.__version__,
        "cpu": _cpu(),
        "processes": arguments.jobs,
        "variants": {table: sum(row["table"] == table for row in rows) for table in tables},
        "compile_seconds": {t: round(sum(r["seconds"] for r in rows if r["table"] == t), 1) for t in tables},
        "seconds": round(seconds, 1),
    }
    print(json.dumps(summary))
    if arguments.json:
        arguments.json.write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")


_WORK: list[tuple] = []


def _build(number: int) -> dict:
    return build(*_WORK[number])


def _cpu() -> str:
    """Name of this machine's CPU and its cores."""
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
