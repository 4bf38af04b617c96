"""The strict interpreter finds what the interpreter as shipped lets pass."""

import pytest
import torch

from kernels.triton_or_stub import tl, triton

N, BLOCK = 24, 8


@pytest.fixture(autouse=True)
def strict(strict_interpreter):
    if strict_interpreter is None:
        pytest.skip("nothing is interpreted here")
    return strict_interpreter


@pytest.fixture
def defect(strict):
    """The class of the errors; its module needs Triton."""
    from tests.kernels.interpreter import Defect

    return Defect


# ---- planted defects: each kernel gives the right result in the interpreter as shipped -------------------------------


@triton.jit
def _copy(x, y, n, EXTRA: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n + EXTRA, other=0.0)
    tl.store(y + at, value, mask=at < n)


def load_one_beyond():
    storage, y = torch.arange(N + 1.0), torch.zeros(N - 1)
    _copy[(3,)](storage[: N - 1], y, N - 1, EXTRA=1, BLOCK=BLOCK)
    return y, storage[: N - 1]


@triton.jit
def _copy_rows(x, y, stride, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + column)
    tl.store(y + row * stride + column, value, mask=column <= columns)


def store_between_the_rows_of_a_view():
    x, y = torch.ones(3, 8), torch.zeros(3, 8)
    _copy_rows[(3,)](x, y[:, :5], 8, 5, BLOCK=8)
    return y[:, :5], x[:, :5]


@triton.jit
def _fill(y, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, 2 * BLOCK)  # the next program's block too
    tl.store(y + at, tl.cast(program, tl.float32) + tl.zeros((2 * BLOCK,), tl.float32), mask=at < n)


def two_programs_store_one_address():
    y = torch.zeros(N)
    _fill[(3,)](y, N, BLOCK=BLOCK)
    return y, torch.arange(3.0).repeat_interleave(BLOCK)


@triton.jit
def _running_sum(x, y):
    program = tl.program_id(0)
    before = tl.load(y + program - 1, mask=program > 0, other=0.0)
    tl.store(y + program, before + tl.load(x + program))


def load_what_another_program_stores():
    x, y = torch.arange(5.0), torch.zeros(5)
    _running_sum[(5,)](x, y)
    return y, x.cumsum(0)


@triton.jit
def _shift_in_place(source, target):
    program = tl.program_id(0)
    tl.store(target + program, tl.load(source + program + 1))


def store_what_another_program_loads():
    x = torch.arange(6.0)
    _shift_in_place[(5,)](x, x)
    return x[:5], torch.arange(1.0, 6.0)


@triton.jit
def _sum_without_other(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + at, mask=at < n), axis=0))


@triton.jit
def _gather_without_other(x, index, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + tl.load(index + at, mask=at < n)), mask=at < n)


def masked_off_index_used():
    x, y = torch.arange(5.0), torch.zeros(5)
    _gather_without_other[(1,)](x, torch.arange(5), y, 5, BLOCK=8)
    return y, x


@triton.jit
def _last_one_in(counter, y):
    arrived = tl.atomic_add(counter, 1)
    if arrived + 1 == tl.num_programs(0):
        tl.store(y, tl.load(counter))


def load_what_other_programs_count():
    counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    _last_one_in[(4,)](counter, y)
    return y, torch.tensor([4], dtype=torch.int32)


@triton.jit
def _last_lane_wins(y, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(y + lane * 0, lane)


def one_store_two_values():
    y = torch.zeros(1, dtype=torch.int32)
    _last_lane_wins[(1,)](y, BLOCK=8)
    return y, torch.tensor([7], dtype=torch.int32)


@triton.jit
def _copy_by_descriptor(source, target, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK
    target.store([row, 0], source.load([row, 0]))


def by_descriptor(step):
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, y = torch.arange(48.0).view(12, 4), torch.zeros(12, 4)
    source, target = (TensorDescriptor.from_tensor(t, [4, 4]) for t in (x, y))
    _copy_by_descriptor[(triton.cdiv(12, step),)](source, target, BLOCK=step)
    return y, x


def descriptors_that_overlap():
    return by_descriptor(2)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (load_one_beyond, r"^_copy: program \(2, 0, 0\) loads outside argument 'x' .* at element 23, 1 lanes in all"),
        (
            store_between_the_rows_of_a_view,
            r"stores outside argument 'y' \(\[3, 5\], strides \[8, 1\], torch.float32\)",
        ),
        (two_programs_store_one_address, r"stores argument 'y' .*, which program \(\d, 0, 0\) stored \[.*seed \d+\]$"),
        (load_what_another_program_stores, r"argument 'y' .*, which program \(\d, 0, 0\) (stored|loaded)"),
        (
            store_what_another_program_loads,
            r"argument '(source|target)' .*, which program \(\d, 0, 0\) (stored|loaded)",
        ),
        (masked_off_index_used, r"loads outside argument 'x'"),
        (load_what_other_programs_count, r"loads argument 'counter' .*, which other programs updated"),
        (one_store_two_values, "gives one address two values in one store"),
        (descriptors_that_overlap, r"stores argument 'target' .*, which program \(\d, 0, 0\) stored"),
    ],
)
def test_defects_that_pass_as_shipped_are_found(strict, defect, run, message):
    with strict.suspended():
        result, expected = run()
        assert torch.equal(result, expected)
    with pytest.raises(defect, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_masked_off_lanes_without_other_are_nan(strict):
    x, y = torch.ones(5), torch.zeros(1)
    with strict.suspended():
        _sum_without_other[(1,)](x, y, 5, BLOCK=8)
    assert y.item() == 5
    _sum_without_other[(1,)](x, y, 5, BLOCK=8)
    assert y.isnan().all()


@triton.jit
def _atomic_sum(x, y):
    tl.atomic_add(y, tl.load(x + tl.program_id(0)))


def test_the_order_of_atomic_updates_shows(strict):
    """Floating-point atomics: equal run by run as shipped, and with one seed; different in another order."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(64).remainder(7)

    def run(seed):
        y = torch.zeros(1)
        strict.seed = seed
        _atomic_sum[(64,)](x, y)
        return y.item()

    with strict.suspended():
        assert run(0) == run(1)
    assert run(0) == run(0)
    assert len({run(seed) for seed in range(4)}) > 1


# ---- what is right stays right ---------------------------------------------------------------------------------------


@triton.jit
def _where_am_i(y, order, counter):
    x, z = tl.program_id(0), tl.program_id(2)
    at = (x * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + z
    tl.store(y + at, at)
    tl.store(order + at, tl.atomic_add(counter, 1))


def test_every_program_runs_once_in_the_order_of_the_seed(strict):
    def run(seed, reverse):
        strict.seed, strict.reverse = seed, reverse
        y, order, counter = (torch.zeros(n, dtype=torch.int32) for n in (24, 24, 1))
        _where_am_i[(2, 3, 4)](y, order, counter)
        assert y.tolist() == list(range(24))
        assert sorted(order.tolist()) == list(range(24))
        return order

    first, again, reverse, other = run(5, False), run(5, False), run(5, True), run(6, False)
    assert torch.equal(first, again)
    assert torch.equal(first, 23 - reverse)
    assert not torch.equal(first, other)
    assert first.tolist() != list(range(24))


@triton.jit
def _add_one_in_place(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) + 1.0, mask=at < n)


def test_work_in_place_and_descriptors_pass():
    """A program may load and store what no other one touches; the tail of a descriptor is masked off."""
    x = torch.zeros(20)
    _add_one_in_place[(3,)](x, x, 20, BLOCK=BLOCK)
    assert torch.equal(x, torch.ones(20))
    result, expected = by_descriptor(4)
    assert torch.equal(result, expected)


@triton.jit
def _store_scalar(y, value):
    tl.store(y, tl.cast(value, tl.float64))


def test_python_floats_are_float32_as_on_a_gpu(strict):
    y = torch.zeros(1, dtype=torch.float64)
    _store_scalar[(1,)](y, 0.1)
    assert y.item() == torch.tensor(0.1).double().item() != 0.1


def test_views_that_interleave_are_told_apart(defect):
    """q, k and v of one packed tensor: each argument is held against its own columns."""
    packed, y = torch.ones(3, 16), torch.zeros(3, 16)
    left, right = y[:, :8], y[:, 8:]
    _copy_rows[(3,)](packed[:, :8], left, 16, 7, BLOCK=8)
    _copy_rows[(3,)](packed[:, 8:], right, 16, 7, BLOCK=8)
    assert torch.equal(y, packed)
    with pytest.raises(defect, match="loads outside argument 'x'"):
        _copy_rows[(3,)](packed[:, 8:], right, 16, 7, BLOCK=16)


def test_tensors_beyond_two_to_the_31_elements_cost_no_memory(defect):
    """Maps of who touched what are sparse."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        x = torch.empty(2, 2**31, dtype=torch.int8)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    y = x[:, -8:]
    _copy_rows[(2,)](y.copy_(torch.arange(8)), y, 2**31, 8, BLOCK=8)
    with pytest.raises(defect, match=r"at element \d+, 8 lanes in all"):
        _copy_rows[(2,)](y, y, 2**31, 8, BLOCK=16)


@triton.jit
def _multiply(y, a, b):
    tl.store(y, tl.cast(a * b, tl.int64))


def test_int32_overflow_is_found():
    """As Triton's own check, which the harness replaces by a faster one, finds it."""
    y = torch.zeros(1, dtype=torch.int64)
    _multiply[(1,)](y, 2**20, -(2**11))
    assert y.item() == -(2**31)
    with pytest.raises(Exception, match="int32 overflow detected for operation mul"):
        _multiply[(1,)](y, 2**20, 2**11)
