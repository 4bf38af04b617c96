"""Reads compiled kernels' machine code (SASS): their innermost loops, and what an iteration of each costs.

A loop is a branch back and everything between; it is innermost when no other loop lies inside. So the query-group loop
of dK/dV, which holds two loops, is none. Waiting for a barrier in memory is a branch back too (SYNCS ... TRYWAIT): such
a spin is part of the loop around it.
"""

import bisect
import collections
import dataclasses
import itertools
import math
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
"""cuobjdump and nvdisasm, which Triton brings."""

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_MATRIX = {"HMMA", "HGMMA"}
_LONGEST_SPIN = 16
"""Instructions of a loop that only waits."""


class Instruction(NamedTuple):
    """One instruction: `/*0010*/ @P0 BRA 0x40 ;` -> (16, "@P0", "BRA", "0x40")."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers, so that HFMA2.MMA (a constant move) is never taken for HMMA."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Address that a branch goes to. ptxas writes some conditional branches as CALL.REL.NOINC."""
        if self.name not in ("BRA", "CALL"):
            return None
        match = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(match[1], 16) if match else None


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack a thread of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _run("cuobjdump", "-res-usage", file.name)
    return {name: int(re.search(rf"{field}:(\d+)", text)[1]) for name, field in _USAGE.items()}


_USAGE = {"registers": "REG", "stack": "STACK"}


def disassemble(cubins: Sequence[bytes], capability: int) -> list[list[Instruction]]:
    """Instructions of each kernel. All in one run: nvdisasm takes half a second to start, a kernel 20 ms."""
    codes = [machine_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        instructions = parse(_run("nvdisasm", "--binary", f"SM{capability}", file.name))
    addresses = [instruction.address for instruction in instructions]
    ends = [bisect.bisect_left(addresses, end) for end in itertools.accumulate(map(len, codes))]
    return [instructions[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def machine_code(cubin: bytes) -> bytes:
    """The .text section of a cubin, a 64-bit ELF file (its only one: functions are inlined)."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + index * size) for index in range(number)]
    strings = sections[names][4]
    texts = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", strings + name)
    ]
    assert len(texts) == 1
    return texts[0]


def parse(text: str) -> list[Instruction]:
    """nvdisasm's lines as instructions."""
    matches = (_INSTRUCTION.match(line) for line in text.splitlines())
    return [Instruction(int(m[1], 16), (m[2] or "").strip(), m[3], m[4]) for m in matches if m]


def innermost_loops(instructions: list[Instruction]) -> list[list[Instruction]]:
    """Bodies of the innermost loops, in the order of the code. Branches back to one place make one loop."""
    ends: dict[int, int] = {}
    for instruction in instructions:
        if instruction.target is not None and instruction.target <= instruction.address:
            ends[instruction.target] = max(instruction.address, ends.get(instruction.target, 0))
    bodies = {begin: [i for i in instructions if begin <= i.address <= end] for begin, end in sorted(ends.items())}
    loops = {begin: body for begin, body in bodies.items() if not _only_waits(body)}
    return [body for begin, body in loops.items() if not any(begin < other <= body[-1].address for other in loops)]


def _only_waits(body: list[Instruction]) -> bool:
    """A spin on a barrier in memory, or the endless branch after a kernel's last instruction."""
    names = {instruction.name for instruction in body}
    spins = "SYNCS" in names and not names & _MATRIX and len(body) <= _LONGEST_SPIN
    return len(body) == 1 or spins


@dataclasses.dataclass
class Counts:
    """What one pass over some instructions costs one warp; bytes are those of all its 32 lanes."""

    opcodes: dict[str, int]
    """Whole opcodes of the matrix instructions and how many."""
    matrix: int = 0
    fp32: int = 0
    """FADD, FMUL, FFMA and half2 arithmetic."""
    multiply: int = 0
    """IMAD, which shares the FP32 pipe."""
    integer: int = 0
    """Integer, compare, select, min/max, conversion, move: the ALU pipe."""
    mufu: int = 0
    barriers: int = 0
    issue: int = 0
    selects: int = 0
    """FSEL and SEL: at least one for each pair of scores in a masked block of attention."""
    local: int = 0
    """LDL and STL: spilled registers."""
    stsm: int = 0
    shared_bytes: int = 0
    """Read and written through LDS, LDSM, STS, STSM and LDGSTS."""
    operand_bytes: int = 0
    """Read from shared memory by HGMMA, for each warpgroup."""
    async_bytes: int = 0
    """Copied by LDGSTS."""
    bulk_copies: int = 0
    """UTMALDG and UBLKCP: copies by the tensor memory accelerator, whose size is not in the instruction."""
    load_bytes: int = 0
    """Read through LDG."""
    store_bytes: int = 0


_FP32 = {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"}
# fmt: off
_INTEGER = {
    "BMSK", "BREV", "F2F", "F2FP", "F2I", "FCHK", "FLO", "FMNMX", "FRND", "FSEL", "FSETP", "HMNMX2", "HSETP2", "I2F",
    "I2FP", "IABS", "IADD", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "P2R", "PLOP3", "POPC", "PRMT", "R2P",
    "SEL", "SGXT", "SHF", "VABSDIFF", "VIADD", "VIMNMX",
}
# fmt: on
_SHARED = {"LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS"}
_LANES = 32


def count(instructions: list[Instruction]) -> Counts:
    """Sums over `instructions`, each executed once."""
    result = Counts(collections.Counter())
    for instruction in instructions:
        name, opcode = instruction.name, instruction.opcode
        result.issue += 1
        if name in _MATRIX:
            result.matrix += 1
            result.opcodes[opcode] += 1
            result.operand_bytes += _operand_bytes(instruction)
        result.fp32 += name in _FP32
        result.multiply += name == "IMAD"
        result.integer += name in _INTEGER
        result.mufu += name == "MUFU"
        result.barriers += name == "BAR"
        result.selects += name in ("FSEL", "SEL")
        result.local += name in ("LDL", "STL")
        result.stsm += name == "STSM"
        result.bulk_copies += name in ("UTMALDG", "UBLKCP")
        if name in _SHARED:
            result.shared_bytes += warp_bytes(opcode)
        if name == "LDGSTS":
            result.async_bytes += warp_bytes(opcode)
        if name == "LDG":
            result.load_bytes += warp_bytes(opcode)
        if name == "STG":
            result.store_bytes += warp_bytes(opcode)
    result.opcodes = dict(result.opcodes)
    return result


def lane_bytes(opcode: str) -> int:
    """Bytes a lane moves with this memory instruction: `LDG.E.128` -> 16."""
    for suffix, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if suffix in opcode.split("."):
            return size
    return 4


def warp_bytes(opcode: str) -> int:
    """Bytes a warp moves; LDSM and STSM move 1, 2 or 4 matrices of 8x8 two-byte values."""
    name, *modifiers = opcode.split(".")
    if name in ("LDSM", "STSM"):
        return 128 * next((int(m) for m in modifiers[::-1] if m in ("2", "4")), 1)
    return _LANES * lane_bytes(opcode)


def matrix_shape(opcode: str) -> tuple[int, int, int]:
    """(m, n, k): `HMMA.16816.F32.BF16` -> (16, 8, 16), `HGMMA.64x128x16.F32.BF16` -> (64, 128, 16)."""
    shape = opcode.split(".")[1]
    if "x" in shape:
        m, n, k = (int(size) for size in shape.split("x"))
        return m, n, k
    return {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}[shape]


def _operand_bytes(instruction: Instruction) -> int:
    """Shared memory that one HGMMA of a warpgroup reads: always B, and A unless it comes from registers."""
    if instruction.name != "HGMMA":
        return 0
    m, n, _ = matrix_shape(instruction.opcode)
    a_from_registers = re.match(r"R\w+, R", instruction.operands)
    return 32 * (n + (0 if a_from_registers else m))  # 32 bytes of k a row, for every type


def global_accesses(instructions: list[Instruction]) -> dict[str, int]:
    """How many loads and stores of global memory there are of each width: {"LDG.128": 4, "STG.32": 1, ...}."""
    widths = collections.Counter()
    for instruction in instructions:
        if instruction.name in ("LDG", "STG", "LDGSTS"):
            widths[f"{instruction.name}.{8 * lane_bytes(instruction.opcode)}"] += 1
    return dict(sorted(widths.items()))


def wide_accesses_needed(ttgir: str, threads: int) -> int:
    """How many 128-bit accesses of global memory the block accesses of Triton's intermediate code make at least: each
    with 16 bytes or more for every thread has to be made of them. Fewer in the machine code: some are narrower."""
    block = re.compile(
        r"(?:tt\.load|tt\.store|ttg\.async_copy_global_to_local) .*?: tensor<([\dx]+)x!tt\.ptr<[a-z]+(\d+)"
    )
    needed = 0
    for shape, bits in block.findall(ttgir):
        size = math.prod(int(length) for length in shape.split("x")) * int(bits) // 8
        needed += size // (16 * threads)
    return needed


def double_precision(instructions: list[Instruction]) -> int:
    """Instructions that compute in or convert to or from fp64."""
    return sum(
        instruction.name in ("DADD", "DMUL", "DFMA", "DSETP", "DMMA", "DMNMX")
        or "F64" in instruction.opcode
        or instruction.opcode.endswith("64H")
        for instruction in instructions
    )


def loop_products(ttir: str) -> list[int]:
    """Multiply-adds of the matrix products in one iteration of each innermost loop that has some, in order: from
    Triton's own intermediate code, so without what a layout makes warps compute twice."""
    shapes = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>")
    return _sums_in_innermost_loops(ttir, lambda line: _product(shapes.search(line)))


def loop_bulk_bytes(ttgir: str) -> list[int]:
    """Bytes that the tensor memory accelerator copies in an iteration of each innermost loop that uses it, in order."""
    expected = re.compile(r"ttng\.barrier_expect [^,]+, (\d+)")
    return _sums_in_innermost_loops(ttgir, lambda line: _product(expected.search(line)))


def _product(match: re.Match | None) -> int:
    return math.prod(int(group) for group in match.groups()) if match else 0


def _sums_in_innermost_loops(mlir: str, measure: Callable[[str], int]) -> list[int]:
    """Sums of `measure(line)` over each loop (scf.for, scf.while) without a loop inside, where it is not 0."""
    sums: list[int] = []
    regions: list[list] = []  # open ones: [is a loop, sum, holds a loop]
    for line in mlir.splitlines():
        line = re.sub(r"\s*loc\(.*\)\s*$", "", line).strip()
        if line.startswith("}") and regions:
            is_loop, total, holds_loop = regions.pop()
            if is_loop:
                sums += [total] if total and not holds_loop else []
                for region in regions:
                    region[2] = True
            elif regions:
                regions[-1][1] += total
        if regions:
            regions[-1][1] += measure(line)
        if line.endswith(("{", "({")):
            regions.append([re.search(r"\bscf\.(for|while)\b", line) is not None, 0, False])
    return sums
