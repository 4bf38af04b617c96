"""Reads a compiled kernel's machine code (SASS): its innermost loops, and what an iteration of each costs.

A loop is a branch back to an earlier label and everything between; it is innermost when no other loop lies inside. So
the query-group loop of dK/dV, which holds two loops, is none. Waiting for a barrier in memory is a branch back too
(SYNCS ... TRYWAIT): such a spin is part of the loop around it.
"""

import collections
import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_LONGEST_SPIN = 16
"""Instructions of a loop that only waits."""


class Instruction(NamedTuple):
    """One instruction: `@P0 FADD.FTZ R1, R2, R3` -> ("@P0", "FADD.FTZ", "R1, R2, R3")."""

    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers, so that HFMA2.MMA (a constant move) is never taken for HMMA."""
        return self.opcode.partition(".")[0]


def disassemble(cubin: bytes) -> tuple[str, dict[str, int]]:
    """(SASS with labels, {"registers", "stack" in bytes}) of a kernel, by the tools that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK"))
    return text, {"registers": registers, "stack": stack}


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """All instructions in order, and for each label the number of the instruction it stands before."""
    instructions, labels = [], {}
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(Instruction((match[2] or "").strip(), match[3], match[4]))
    return instructions, labels


def innermost_loops(instructions: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """Bodies of the innermost loops, in the order of the code. Branches back to one label make one loop."""
    ends: dict[int, int] = {}
    for number, instruction in enumerate(instructions):
        # ptxas writes a far conditional branch as CALL.REL.NOINC
        if instruction.name in ("BRA", "CALL") and (target := _TARGET.search(instruction.operands)):
            begin = labels[target[1]]
            if begin <= number:
                ends[begin] = max(number, ends.get(begin, 0))
    loops = {begin: end for begin, end in ends.items() if not _only_waits(instructions[begin : end + 1])}
    return [
        instructions[begin : end + 1]
        for begin, end in sorted(loops.items())
        if not any(begin <= other < end and (other, last) != (begin, end) for other, last in loops.items())
    ]


def _only_waits(body: list[Instruction]) -> bool:
    """A spin on a barrier in memory, or the endless branch after a kernel's last instruction."""
    spins = any(instruction.name == "SYNCS" for instruction in body)
    return len(body) == 1 or (spins and len(body) <= _LONGEST_SPIN)


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
    """FSEL: one for each score in a masked block of attention."""
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
        if name in ("HMMA", "HGMMA"):
            result.matrix += 1
            result.opcodes[opcode] += 1
            result.operand_bytes += _operand_bytes(instruction)
        result.fp32 += name in _FP32
        result.multiply += name == "IMAD"
        result.integer += name in _INTEGER
        result.mufu += name == "MUFU"
        result.barriers += name == "BAR"
        result.selects += name == "FSEL"
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


def double_precision(instructions: list[Instruction]) -> int:
    """Instructions that compute in or convert to or from fp64."""
    return sum(
        instruction.name in ("DADD", "DMUL", "DFMA", "DSETP", "DMMA", "DMNMX")
        or "F64" in instruction.opcode
        or instruction.opcode.endswith("64H")
        for instruction in instructions
    )


def products(ttir: str) -> list[int]:
    """Multiply-adds of the matrix products in one iteration of each innermost loop that has some, in order: from
    Triton's own intermediate code, so without what a layout makes warps compute twice."""
    done: list[list[int]] = []
    stack: list[list] = []  # [is a loop, multiply-adds, holds another loop]
    for line in ttir.splitlines():
        line = re.sub(r"\s*loc\(.*\)\s*$", "", line).strip()
        if line.startswith("}") and stack:
            is_loop, adds, holds = stack.pop()
            if is_loop:
                if adds and not holds:
                    done.append(adds)
                for entry in stack:
                    entry[2] = True
            elif stack:
                stack[-1][1] += adds
        if match := re.search(r"tt\.dot .*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>", line):
            stack[-1][1] += int(match[1]) * int(match[2]) * int(match[3])
        if line.endswith(("{", "({")):
            stack.append([bool(re.search(r"\bscf\.(for|while)\b", line)), 0, False])
    return done
