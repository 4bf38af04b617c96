"""Compiles what the launchers of `kernels/` really launch, for GPUs that need not be here, and says what came out.

    python bench/compile_report.py --arch sm_80 --arch sm_90 [--arch safe] [--json F] [--cubins DIR]
    ... --kernel attention --head-dim 128                only these
    ... --tile attention_forward:128=128,64,8,3          another tile: rows, columns, warps, stages
    ... --triton .venv/triton-3.6.0                      with the Triton in that folder

A line a kernel: registers, stack, shared memory, and how many blocks a multiprocessor holds at once. Below it a line
for each innermost loop with matrix products or global loads: what a warp issues in one iteration (bytes are a block's),
and for matrix products two bounds with the pipe that sets the first (`bounds.py`). Attention kernels have two such
loops; `masked` is the one with a select (FSEL, SEL) for at least every second exponential (MUFU). At the end: how many
variants there are, how many more other batch sizes need, and the seconds to compile all from an empty cache.

It is for finding defects: spills, a lost matrix instruction, redundant products, narrow loads. It ranks no tiles and
predicts no speed; kernels with a ceiling of 1.00 have measured at half of it.
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
_LAUNCHES: list = []
"""What the forked processes compile; launches hold functions that cannot be pickled."""


# ---- rows ------------------------------------------------------------------------------------------------------------


def compile_launch(number: int) -> dict:
    """One of `_LAUNCHES` compiled: {"cubin", "ttir", "ttgir", "shared" in bytes, "warps", "seconds"}."""
    import triton

    launch = _LAUNCHES[number]
    began = time.perf_counter()
    compiled = triton.compile(launch.source(), target=launch.target, options=launch.options.__dict__)
    seconds = time.perf_counter() - began
    text = {name: compiled.asm[name] for name in ("cubin", "ttir", "ttgir")}
    return text | {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps, "seconds": seconds}


def describe(launch, compiled: dict, instructions: list) -> dict:
    """The report's row about one kernel."""
    import triton

    from bench import sass
    from bench.bounds import MACHINES, describe_loop, resident_blocks

    machine, warps = MACHINES[launch.table], compiled["warps"]
    usage, whole = sass.resources(compiled["cubin"]), sass.count(instructions)
    products, bulk = iter(sass.loop_products(compiled["ttir"])), iter(sass.loop_bulk_bytes(compiled["ttgir"]))
    loops = []
    for counts in map(sass.count, sass.innermost_loops(instructions)):
        adds = next(products, 0) if counts.matrix else 0
        copied = next(bulk, 0) if counts.bulk_copies else 0
        loops.append(describe_loop(machine, counts, warps, launch.stages, adds, copied))
    return {
        "triton": triton.__version__,
        "table": launch.table,
        "capability": machine.capability,
        "kernel": launch.kernel,
        "head_dim": launch.head_dim,
        "window": launch.window,
        "variant": launch.digest(),
        "constants": launch.named_constants(),
        "warps": warps,
        "stages": launch.stages,
        **usage,
        "shared": compiled["shared"],
        "blocks": resident_blocks(machine, usage["registers"], compiled["shared"], warps),
        "matrix": whole.opcodes,
        "local": whole.local,
        "stsm": whole.stsm,
        "fp64": sass.double_precision(instructions),
        "global": sass.global_accesses(instructions),
        "wide_accesses_needed": sass.wide_accesses_needed(compiled["ttgir"], 32 * warps),
        "loops": loops,
        "seconds": round(compiled["seconds"], 2),
    }


def build_rows(launches: list, jobs: int, cubins: Path | None) -> list[dict]:
    """Compile all launches in `jobs` processes, from an empty cache; their rows."""
    from bench import sass
    from bench.bounds import MACHINES

    _LAUNCHES[:] = launches
    with tempfile.TemporaryDirectory(prefix="triton-cache-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            compiled = list(pool.map(compile_launch, range(len(launches))))
    rows = []
    for table in dict.fromkeys(launch.table for launch in launches):
        group = [(launch, result) for launch, result in zip(launches, compiled, strict=True) if launch.table == table]
        codes = sass.disassemble([result["cubin"] for _, result in group], MACHINES[table].capability)
        for (launch, result), instructions in zip(group, codes, strict=True):
            rows.append(describe(launch, result, instructions))
            if cubins:
                _write_cubin(cubins, rows[-1], result["cubin"], instructions)
    return rows


def _write_cubin(folder: Path, row: dict, cubin: bytes, instructions: list) -> None:
    case = f"-{row['head_dim']}" * bool(row["head_dim"]) + "-window" * row["window"]
    name = f"{row['table']}-{row['kernel']}{case}-{row['variant']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.cubin").write_bytes(cubin)
    lines = (f"{i.address:06x} {i.predicate:5} {i.opcode} {i.operands}" for i in instructions)
    (folder / f"{name}.sass").write_text("\n".join(lines) + "\n")


# ---- text ------------------------------------------------------------------------------------------------------------


def show(row: dict) -> str:
    """A row as text: the kernel, then its loops."""
    name = row["kernel"] + (f" {row['head_dim']}" if row["head_dim"] else "") + " window" * row["window"]
    tile = "x".join(str(row["constants"][key]) for key in ("ROWS", "COLUMNS") if key in row["constants"])
    matrix = "/".join(sorted({opcode.partition(".")[0] for opcode in row["matrix"]})) or "-"
    flags = " ".join(key for key, value in row["constants"].items() if value is True and key != "HAS_WINDOW")
    lines = [
        f"{row['table']:6}{name:48}{tile:>8} w{row['warps']:<2} s{row['stages']}{row['registers']:5} registers"
        f"{row['stack']:5} B stack{row['shared'] / 1024:7.1f} KB{row['blocks']:3}/SM  {matrix:5}"
        f" LDL/STL {row['local']:<3} STSM {row['stsm']:<3}{row['seconds']:5.1f} s  {flags}"
    ]
    for loop in row["loops"]:
        if not loop["matrix"] and not loop["bytes_in_flight"]:
            continue
        kind = ("masked" if loop["masked"] else "unmasked") if loop["matrix"] else "loop"
        bounds = f"ceiling {loop['ceiling']:.2f} lockstep {loop['lockstep']:.2f}" if "ceiling" in loop else ""
        lines.append(
            f"{'':10}{kind:9}{loop['matrix']:4} matrix{loop['barriers']:3} barriers {loop['stages']} stages"
            f"{loop['bytes_in_flight'] / 1024:6.1f} KB in flight{loop['block_shared_bytes'] / 1024:7.1f} KB shared"
            f"{loop['mufu']:4} MUFU{loop['fp32']:5} FP32{loop['integer'] + loop['multiply']:5} integer"
            f"{loop['issue']:5} issued  LDL/STL {loop['local']} STSM {loop['stsm']}  {bounds} ({loop['busiest']})"
        )
    return "\n".join(lines)


def markdown(rows: list[dict]) -> str:
    """The rows as the table of README.md; for each loop with matrix products, unmasked / masked, its two bounds."""
    head = "table kernel head_dim constants warps stages registers stack shared blocks/SM matrix ceiling lockstep"
    lines = ["| " + " | ".join(head.split()) + " |", "|---" * len(head.split()) + "|"]
    for row in rows:
        tile = "x".join(str(row["constants"][key]) for key in ("ROWS", "COLUMNS") if key in row["constants"])
        flags = [key.removeprefix("HAS_") for key, value in row["constants"].items() if value is True]
        matrix = "/".join(sorted({opcode.partition(".")[0] for opcode in row["matrix"]})) or "-"
        bounds = [
            " / ".join(f"{loop[bound]:.2f}" for loop in row["loops"] if bound in loop) or "-"
            for bound in ("ceiling", "lockstep")
        ]
        cells = [
            row["table"],
            row["kernel"],
            row["head_dim"] or "-",
            " ".join(filter(None, [tile, *flags])) or "-",
            row["warps"],
        ]
        cells += [row["stages"], row["registers"], row["stack"], f"{row['shared'] / 1024:.0f} KB", row["blocks"]]
        lines.append("| " + " | ".join(map(str, [*cells, matrix, *bounds])) + " |")
    return "\n".join(lines) + "\n"


def summarise(rows: list[dict], more: dict[str, int], jobs: int, seconds: float) -> dict:
    """What is true of the whole set."""
    variants = {table: sum(row["table"] == table for row in rows) for table in more}
    return {
        "triton": rows[0]["triton"],
        "variants": variants,
        "more_variants_at_other_batch_sizes": more,
        "compile_seconds_of_one_process": {
            table: round(sum(row["seconds"] for row in rows if row["table"] == table), 1) for table in more
        },
        "seconds": round(seconds, 1),
        "processes": jobs,
        "cpu": _cpu(),
    }


def _cpu() -> str:
    """Name of this machine's CPU and its cores."""
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores"


# ---- command line ----------------------------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", choices=TABLES, help="tile table, may be repeated (default: all)")
    parser.add_argument(
        "--safe-capability", type=int, choices=(86, 89, 120), default=89,
        help="GPU that the safe table is compiled for (default: 89; the bounds keep its rates)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file to write all rows to")
    parser.add_argument("--markdown", type=Path, help="file to write the table of README.md to")
    parser.add_argument("--cubins", type=Path, help="folder to write cubins and their SASS to")
    parser.add_argument("--kernel", action="append", default=[], help="only kernels whose name has this in it")
    parser.add_argument("--head-dim", action="append", type=int, help="only attention with this head_dim")
    parser.add_argument("--quick", action="store_true", help="attention with a window at head_dim 128 only")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tile", action="append", default=[], metavar="KERNEL:SIZE=ROWS,COLUMNS,WARPS,STAGES")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--triton", type=Path, help="folder of another Triton (made by pip install --target)")
    return parser.parse_args()


def _with_other_triton(folder: Path) -> None:
    """Start again with that folder before all others, unless it is there."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if paths[0] == str(folder.resolve()):
        return
    if not (folder / "triton").is_dir():
        sys.exit(f"{folder} holds no Triton; make one: pip install --no-deps --target {folder} triton==VERSION")
    path = os.pathsep.join([str(folder.resolve()), *filter(None, paths)])
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONPATH": path})


def _override_tile(tables: list[str], text: str) -> None:
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
    import torch

    from bench.bounds import MACHINES
    from bench.launches import ATTENTION_SHAPES, OTHER_TOKENS, record

    MACHINES["safe"] = dataclasses.replace(MACHINES["safe"], capability=arguments.safe_capability)
    dtype = getattr(torch, arguments.dtype)
    tables = arguments.arch or list(TABLES)
    for text in arguments.tile:
        _override_tile(tables, text)
    shapes = [
        (head_dim, window)
        for head_dim, window in ATTENTION_SHAPES
        if (not arguments.head_dim or head_dim in arguments.head_dim)
        and not (arguments.quick and window and head_dim != 128)
    ]
    launches, more = [], {}
    for table in tables:
        recorded = record(table, shapes, dtype=dtype)
        others = [launch for tokens in OTHER_TOKENS for launch in record(table, shapes, dtype=dtype, tokens=tokens)]
        more[table] = len({launch.key() for launch in others} - {launch.key() for launch in recorded})
        launches += recorded
    if arguments.kernel:
        launches = [launch for launch in launches if any(name in launch.kernel for name in arguments.kernel)]
    if arguments.head_dim:
        launches = [launch for launch in launches if launch.head_dim in arguments.head_dim]
    if not launches:
        sys.exit("no kernel matches --kernel and --head-dim")
    began = time.perf_counter()
    rows = build_rows(launches, arguments.jobs, arguments.cubins)
    summary = summarise(rows, more, arguments.jobs, time.perf_counter() - began)
    print("\n".join(map(show, rows)))
    print(json.dumps(summary))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
