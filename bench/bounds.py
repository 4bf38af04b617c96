"""What fits a multiprocessor, and how busy one iteration of a loop keeps each of its pipes.

Cycles of a multiprocessor's quarter for one block, from documented throughputs (CUDA C++ Programming Guide, "Compute
Capabilities" and "Arithmetic Instructions"; matrix units from the products' data sheets):

               HMMA.16816   HGMMA.64xNx16   FP32   IMAD   integer   MUFU   issue   shared memory
    sm_80           8             -           2      2       2        8      1     128 bytes a cycle of the whole SM
    sm_90           8            N/2          1      2       2        8      1     128, HGMMA's operands included
    safe (sm_89)   16             -           1      2       2        8      1     128

Two bounds, both at most 1:
- ceiling: cycles of the matrix products without redundant work / cycles of the busiest pipe, all pipes overlapping;
- lockstep: matrix cycles / (matrix + the slowest of MUFU, FP32 and integer), softmax and products taking turns.
"""

import dataclasses

from bench.sass import Counts, matrix_shape

_QUARTERS = 4
_REGISTERS_A_QUARTER = 16384
_SHARED_BYTES_A_CYCLE = 128
_INTEGER = _MULTIPLY = 2
_MUFU = 8
_HGMMA_PRODUCTS = 512
"""Multiply-adds a cycle of a quarter."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a multiprocessor holds, and its rates in cycles of a quarter for one warp's instruction."""

    capability: int
    multiprocessors: int
    threads: int
    blocks: int
    shared: int
    """Bytes of the multiprocessor; each resident block takes 1 KB beside its own."""
    fp32: int
    hmma: int
    """Of HMMA.16816 with fp32 sums."""
    products: int
    """Multiply-adds in bf16 a cycle of the whole multiprocessor, by its fastest matrix instruction."""


MACHINES = {
    "sm_80": Machine(80, 108, threads=2048, blocks=32, shared=164 * 1024, fp32=2, hmma=8, products=1024),
    "sm_90": Machine(90, 132, threads=2048, blocks=32, shared=228 * 1024, fp32=1, hmma=8, products=2048),
    "safe": Machine(89, 142, threads=1536, blocks=24, shared=100 * 1024, fp32=1, hmma=16, products=512),
}
"""By tile table: A100, H100, and L40S (sm_89) for all that use the safe one."""


def resident_blocks(machine: Machine, registers: int, shared: int, warps: int) -> int:
    """Blocks that one multiprocessor holds at once. Registers come in units of 256 a warp."""
    registers_a_warp = -(-registers * 32 // 256) * 256
    warps_by_registers = _REGISTERS_A_QUARTER // registers_a_warp * _QUARTERS
    by_shared = machine.shared // (shared + 1024)
    return min(machine.blocks, machine.threads // (32 * warps), warps_by_registers // warps, by_shared)


def block_shared_bytes(counts: Counts, warps: int) -> float:
    """Bytes of shared memory that all warps of a block read and write in one iteration."""
    return counts.shared_bytes * warps + counts.operand_bytes * warps / 4


def pipe_cycles(machine: Machine, counts: Counts, warps: int) -> dict[str, float]:
    """Cycles that each pipe is busy for one block and iteration."""
    share = warps / _QUARTERS
    matrix = 0.0
    for opcode, number in counts.opcodes.items():
        m, n, k = matrix_shape(opcode)
        if opcode.startswith("HGMMA"):
            matrix += number * share * m * n * k / _QUARTERS / _HGMMA_PRODUCTS  # four warps share one
        else:
            matrix += number * share * machine.hmma * (m * n * k) / (16 * 8 * 16)
    return {
        "matrix": matrix,
        "shared": block_shared_bytes(counts, warps) / _SHARED_BYTES_A_CYCLE,
        "mufu": counts.mufu * share * _MUFU,
        "fp32": (counts.fp32 * machine.fp32 + counts.multiply * _MULTIPLY) * share,
        "integer": counts.integer * share * _INTEGER,
        "issue": counts.issue * share,
    }


def describe_loop(machine: Machine, counts: Counts, warps: int, stages: int, products: int, bulk_bytes: int) -> dict:
    """All that the report says about one loop. `products`: its multiply-adds for a block and iteration, 0 if unknown;
    `bulk_bytes`: what the tensor memory accelerator copies in an iteration."""
    cycles = pipe_cycles(machine, counts, warps)
    copied = counts.async_bytes * warps + bulk_bytes
    loop = dataclasses.asdict(counts) | {
        "masked": counts.matrix > 0 and 2 * counts.selects >= counts.mufu > 0,
        "stages": stages if copied else 1,
        "bytes_in_flight": copied * (stages - 1) + counts.load_bytes * warps,
        "block_shared_bytes": block_shared_bytes(counts, warps),
        "cycles": {pipe: round(number, 1) for pipe, number in cycles.items()},
        "busiest": max(cycles, key=cycles.get),
    }
    if products:
        softmax = max(cycles["mufu"], cycles["fp32"], cycles["integer"])
        loop["ceiling"] = round(products / machine.products / max(cycles.values()), 3)
        loop["lockstep"] = round(cycles["matrix"] / (cycles["matrix"] + softmax), 3)
    return loop
