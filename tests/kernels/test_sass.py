"""The reader of machine code behind `bench/compile_report.py`, on code whose counts are known."""

import pytest

pytest.importorskip("triton")

from bench import bounds, sass

KERNEL = """
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;
        /*0020*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/                   MUFU.EX2 R3, R2 ;
        /*0050*/                   LDGSTS.E.BYPASS.128 [R57], [R30.64], !P0 ;
        /*0060*/               @P0 CALL.REL.NOINC 0x80 ;
        /*0070*/                   BRA 0x20;
        /*0080*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR8], R2 ;
        /*0090*/              @!P1 BRA 0x80 ;
        /*00a0*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*00b0*/                   FSEL R3, R3, -INF , P2 ;
        /*00c0*/                   MUFU.EX2 R3, R2 ;
        /*00d0*/                   STL [R1], R27 ;
        /*00e0*/              @!P2 BRA 0x80 ;
        /*00f0*/              @!P3 BRA 0x10 ;
        /*0100*/                   EXIT ;
        /*0110*/                   BRA 0x110;
"""


@pytest.fixture
def loops():
    return sass.innermost_loops(sass.parse(KERNEL))


def test_instructions():
    branch = sass.parse(KERNEL)[9]
    assert branch == sass.Instruction(0x90, "@!P1", "BRA", "0x80")
    assert branch.target == 0x80


def test_only_innermost_loops(loops):
    """Neither the loop around both, nor the spin on a barrier, nor the branch that ends a kernel."""
    assert [(body[0].address, body[-1].address) for body in loops] == [(0x20, 0x70), (0x80, 0xE0)]


def test_constant_moves_are_no_matrix_instructions():
    assert sass.count(sass.parse(KERNEL)).opcodes == {"HMMA.16816.F32.BF16": 2}


def test_counts_of_a_loop(loops):
    first, second = map(sass.count, loops)
    assert (first.matrix, first.mufu, first.issue, first.selects, first.local) == (1, 1, 6, 0, 0)
    assert first.shared_bytes == 512 + 512  # four 8x8 matrices of two bytes, and 16 bytes a lane
    assert first.async_bytes == 512
    assert (second.matrix, second.selects, second.local) == (1, 1, 1)


@pytest.mark.parametrize(
    ("opcode", "size"),
    [
        ("LDG.E.128", 512),
        ("LDG.E.64", 256),
        ("LDG.E", 128),
        ("LDG.E.U16", 64),
        ("STSM.16.MT88.2", 256),
        ("LDS.128", 512),
    ],
)
def test_bytes_of_a_memory_instruction(opcode, size):
    assert sass.warp_bytes(opcode) == size


@pytest.mark.parametrize(
    ("operands", "size"),
    [("R24, gdesc[UR16], R24, gsb0", 32 * (128 + 64)), ("R88, R152, gdesc[UR16].tnspB, R88", 32 * 128)],
)
def test_hgmma_reads_its_operands_from_shared_memory(operands, size):
    counts = sass.count([sass.Instruction(0, "", "HGMMA.64x128x16.F32.BF16", operands)])
    assert counts.operand_bytes == size


def test_double_precision_is_seen():
    opcodes = ["DADD", "F2F.F64.F32", "MUFU.RCP64H", "FADD", "DEPBAR.LE", "LDG.E.64", "IMAD.WIDE"]
    assert sass.double_precision([sass.Instruction(0, "", opcode, "") for opcode in opcodes]) == 3


def test_products_of_innermost_loops():
    """The outer loop's own product is none of theirs; regions of a reduction are no loops."""
    ttir = """
    tt.func public @kernel(%a: !tt.ptr<bf16> {tt.divisibility = 16 : i32}) {
      %1 = tt.dot %a, %b, %c : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32> loc(#loc)
      scf.for %g = %0 to %4 step %1  : i32 {
        %2 = tt.dot %a, %b, %c : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32> loc(#loc)
        %s = scf.for %i = %0 to %n step %1 iter_args(%x = %y) -> (tensor<64x16xf32>)  : i32 {
          %5 = tt.dot %a, %b, %c : tensor<64x128xbf16> * tensor<128x16xbf16> -> tensor<64x16xf32> loc(#loc)
          %6 = "tt.reduce"(%5) <{axis = 1 : i32}> ({
          ^bb0(%p: f32 loc(unknown), %q: f32 loc(unknown)):
            tt.reduce.return %p : f32 loc(#loc)
          }) : (tensor<64x16xf32>) -> tensor<64xf32> loc(#loc)
          scf.if %m {
            %7 = tt.dot %a, %b, %c : tensor<64x16xbf16> * tensor<16x32xbf16> -> tensor<64x32xf32> loc(#loc)
          } loc(#loc)
        } loc(#loc)
      } loc(#loc)
      tt.return
    }
    """
    assert sass.loop_products(ttir) == [64 * 128 * 16 + 64 * 16 * 32]


def test_wide_accesses_needed():
    """2,048 two-byte values for 128 threads are two accesses of 16 bytes each; a value for each row is none."""
    ttgir = """
      %1 = tt.load %p, %m, %z evictionPolicy = evict_first : tensor<16x128x!tt.ptr<bf16>, #blocked> loc(#loc)
      %2 = tt.load %q : !tt.ptr<i64> loc(#loc)
      tt.store %r, %v, %m : tensor<16x!tt.ptr<f32>, #ttg.slice<{dim = 1, parent = #blocked}>> loc(#loc)
      %3 = ttg.async_copy_global_to_local %p, %s mask %m : tensor<4096x!tt.ptr<f32>, #blocked> -> <4096xf32> loc(#loc)
    """
    assert sass.wide_accesses_needed(ttgir, 128) == 2 + 8


@pytest.mark.parametrize(
    ("table", "registers", "shared", "warps", "blocks"),
    [
        ("sm_80", 32, 0, 4, 16),  # threads
        ("sm_80", 255, 0, 8, 1),  # registers: 8 warps
        ("sm_80", 168, 0, 4, 3),  # registers: 12 warps
        ("sm_80", 32, 81 * 1024, 4, 2),  # shared memory: exactly 164 KB
        ("sm_90", 32, 114 * 1024, 4, 1),
        ("sm_90", 16, 0, 1, 32),  # blocks
        ("safe", 32, 0, 4, 12),
    ],
)
def test_resident_blocks(table, registers, shared, warps, blocks):
    assert bounds.resident_blocks(bounds.MACHINES[table], registers, shared, warps) == blocks


@pytest.mark.parametrize(
    ("table", "opcode", "cycles"),
    [
        ("sm_80", "HMMA.16816.F32.BF16", 16 * 128),
        ("safe", "HMMA.16816.F32.BF16", 32 * 128),
        ("sm_90", "HGMMA.64x128x16.F32.BF16", 2 * 64 * 128),
    ],
)
def test_matrix_cycles(table, opcode, cycles):
    """128 instructions of each of 8 warps, two a quarter: 8 or 16 cycles each, N / 2 for HGMMA."""
    counts = sass.Counts({opcode: 128}, matrix=128)
    assert bounds.pipe_cycles(bounds.MACHINES[table], counts, 8)["matrix"] == cycles


def test_ceiling_counts_only_useful_products():
    """A loop that computes everything twice can reach one half."""
    machine, counts = bounds.MACHINES["sm_80"], sass.Counts({"HMMA.16816.F32.BF16": 64}, matrix=64, mufu=16)
    loop = bounds.describe_loop(machine, counts, 4, 2, products=4 * 32 * 16 * 8 * 16, bulk_bytes=0)
    assert (loop["ceiling"], loop["busiest"]) == (0.5, "matrix")
    assert loop["lockstep"] == 0.8
