"""Kernels move the bytes that their docstrings say: the distinct 32-byte sectors of a launch, counted in the
interpreter, within 5 % for every tensor; and whatever is read more than once is named here.

`pytest tests/kernels/test_traffic.py -s` prints the tables, requested bytes and masked-off lanes beside.
"""

import json
from typing import NamedTuple

import pytest
import torch

from kernels import cross_entropy, cross_entropy_row, rmsnorm, rope, swiglu
from kernels.triton_or_stub import tl, triton
from tests.kernels.conftest import REASON_NOT_TO_INTERPRET

if REASON_NOT_TO_INTERPRET is not None:
    pytest.skip(REASON_NOT_TO_INTERPRET, allow_module_level=True)

from tests.kernels.traffic import SECTOR, Traffic, count

DTYPES = [torch.bfloat16, torch.float16]
TOKENS, HIDDEN = 48, 1024


class Expected(NamedTuple):
    """Bytes of one tensor that a launch has to read and write."""

    loads: int = 0
    stores: int = 0
    reads: float = 1
    """How often what is loaded is asked for: more than 1 is a re-read, which the test's comment explains."""


def close(counted: int, expected: int) -> bool:
    """Within 5 %, or within the two sectors that the ends of a small tensor may share with others."""
    return abs(counted - expected) <= max(0.05 * expected, 2 * SECTOR)


def check(traffic: Traffic, formula: int, large: dict, small: dict) -> None:
    """large, small: name -> (tensor, Expected). The large tensors together are the docstring's `formula`, in bytes; no
    launch touches anything that is not listed."""
    print("\n" + traffic.table())
    assert formula == sum(expected.loads + expected.stores for _, expected in large.values())
    listed = []
    for name, (tensor, expected) in (large | small).items():
        rows = traffic.of(tensor)
        listed += rows
        loads, stores = (sum(getattr(row, kind).moved for row in rows) for kind in ("loads", "stores"))
        assert close(loads, expected.loads), f"{name}: {loads} bytes loaded, {expected.loads} expected"
        assert close(stores, expected.stores), f"{name}: {stores} bytes stored, {expected.stores} expected"
        requested = sum(row.loads.requested for row in rows)
        assert requested == pytest.approx(expected.loads * expected.reads, rel=1e-3), f"{name} is read again"
        assert sum(row.stores.requested for row in rows) == expected.stores, f"{name} is stored twice"
    others = [row.argument.name for row in traffic.rows if row not in listed]
    assert not others, f"tensors that nobody listed: {others}"


def normal(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@triton.jit
def _every_sixteenth_twice(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    first = tl.load(x + 16 * at, mask=at < n, other=0.0)
    tl.store(y + at, first + tl.load(x + 16 * at, mask=at < n, other=0.0), mask=at < n)


def test_what_is_counted(strict_interpreter):
    """4 bytes asked for bring a sector of 32; a second read asks again and brings nothing new; idle lanes count."""
    x, y = torch.ones(16 * 24), torch.zeros(24)
    with count(strict_interpreter) as traffic:
        _every_sixteenth_twice[(1,)](x, y, 24, BLOCK=32)
    (loads,), (stores,) = ([row.loads for row in traffic.of(x)], [row.stores for row in traffic.of(y)])
    assert (loads.moved, loads.requested, loads.active, loads.masked_off) == (24 * SECTOR, 2 * 24 * 4, 48, 16)
    assert (stores.moved, stores.requested, stores.active, stores.masked_off) == (24 * 4, 24 * 4, 24, 8)
    listed = {"y": (y, Expected(stores=96))}
    check(traffic, 96, listed, {"x": (x, Expected(loads=24 * SECTOR, reads=0.25))})
    with pytest.raises(AssertionError, match="x: 768 bytes loaded, 96 expected"):
        check(traffic, 96, listed, {"x": (x, Expected(loads=96, reads=2))})
    with pytest.raises(AssertionError, match="x is read again"):
        check(traffic, 96, listed, {"x": (x, Expected(loads=24 * SECTOR))})
    with pytest.raises(AssertionError, match=r"nobody listed: \['x'\]"):
        check(traffic, 96, listed, {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rmsnorm_forward(strict_interpreter, monkeypatch, dtype, with_residual):
    monkeypatch.setattr(rmsnorm, "_torch_forward", rmsnorm._triton_forward)
    x, weight = normal(TOKENS, HIDDEN, dtype=dtype), normal(HIDDEN, dtype=dtype)
    residual = normal(TOKENS, HIDDEN, dtype=dtype, seed=1) if with_residual else None
    with count(strict_interpreter) as traffic:
        y, rstd, *summed = rmsnorm.rmsnorm_forward(x, weight, 1e-5, residual=residual)
    matrix = 2 * TOKENS * HIDDEN
    large = {"x": (x, Expected(loads=matrix)), "y": (y, Expected(stores=matrix))}
    if with_residual:
        large |= {"residual": (residual, Expected(loads=matrix)), "summed": (summed[0], Expected(stores=matrix))}
    small = {
        "weight": (weight, Expected(loads=2 * HIDDEN, reads=traffic.of(x)[0].programs)),  # once a program
        "rstd": (rstd, Expected(stores=4 * TOKENS)),
    }
    check(traffic, (8 if with_residual else 4) * TOKENS * HIDDEN, large, small)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rmsnorm_backward(strict_interpreter, monkeypatch, dtype, with_residual):
    monkeypatch.setattr(rmsnorm, "_torch_backward", rmsnorm._triton_backward)
    x, weight, dy = (
        normal(TOKENS, HIDDEN, dtype=dtype),
        normal(HIDDEN, dtype=dtype),
        normal(TOKENS, HIDDEN, dtype=dtype, seed=1),
    )
    dsummed = normal(TOKENS, HIDDEN, dtype=dtype, seed=2) if with_residual else None
    rstd, weight_grad = torch.rand(TOKENS), torch.zeros(HIDDEN)
    with count(strict_interpreter) as traffic:
        dx = rmsnorm.rmsnorm_backward(dy, x, weight, rstd, weight_grad=weight_grad, dsummed=dsummed)
    matrix = 2 * TOKENS * HIDDEN
    large = {name: (t, Expected(loads=matrix)) for name, t in (("dy", dy), ("x", x))}
    large["dx"] = dx, Expected(stores=matrix)
    if with_residual:
        large["dsummed"] = dsummed, Expected(loads=matrix)
    programs = traffic.of(x)[0].programs
    partial = next(row.argument.tensor for row in traffic.rows if row.argument.name == "partial_pointer")
    assert partial.shape == (programs, HIDDEN)
    small = {
        "weight": (weight, Expected(loads=2 * HIDDEN, reads=programs)),  # once a program
        "rstd": (rstd, Expected(loads=4 * TOKENS)),
        "partial": (partial, Expected(loads=4 * programs * HIDDEN, stores=4 * programs * HIDDEN)),
        "weight_grad": (weight_grad, Expected(loads=4 * HIDDEN, stores=4 * HIDDEN)),
    }
    check(traffic, (8 if with_residual else 6) * TOKENS * HIDDEN, large, small)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [rope.rope_forward, rope.rope_backward])
def test_rope(strict_interpreter, monkeypatch, dtype, run):
    monkeypatch.setattr(rope, "_torch_rotate", rope._triton_rotate)
    heads, kv_heads, head_dim, length, documents = 16, 4, 64, 12, 4
    tokens = length * documents
    qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    cos, sin = torch.rand(2, 32, head_dim // 2)
    positions = torch.arange(length, dtype=torch.int32).repeat(documents)
    with count(strict_interpreter) as traffic:
        run(qkv, cos, sin, positions, heads, kv_heads)
    rotated = 2 * tokens * (heads + kv_heads) * head_dim
    chunk = 4  # heads of a tile (20 are 5 of them): each of their lanes reads its pair's cos and sin, in the same warp
    table = Expected(loads=4 * length * head_dim // 2, reads=documents * chunk)  # once a token of that position
    positions_read = Expected(loads=4 * tokens, reads=chunk)
    small = {"cos": (cos, table), "sin": (sin, table), "positions": (positions, positions_read)}
    check(traffic, 2 * rotated, {"q and k": (qkv, Expected(loads=rotated, stores=rotated))}, small)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_forward(strict_interpreter, monkeypatch, dtype):
    monkeypatch.setattr(swiglu, "_torch_forward", swiglu._triton_forward)
    gate_up = normal(16, 2 * 2816, dtype=dtype)
    with count(strict_interpreter) as traffic:
        out = swiglu.swiglu_forward(gate_up)
    n = out.numel()
    check(traffic, 6 * n, {"gate_up": (gate_up, Expected(loads=4 * n)), "out": (out, Expected(stores=2 * n))}, {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_product", [False, True])
def test_swiglu_backward_in_place(strict_interpreter, monkeypatch, dtype, with_product):
    monkeypatch.setattr(swiglu, "_torch_backward", swiglu._triton_backward)
    gate_up, dout = normal(16, 2 * 2816, dtype=dtype), normal(16, 2816, dtype=dtype)
    n, product = dout.numel(), torch.empty_like(dout) if with_product else None
    with count(strict_interpreter) as traffic:
        swiglu.swiglu_backward(dout, gate_up, out=gate_up, product=product)
    large = {"dout": (dout, Expected(loads=2 * n)), "gate_up": (gate_up, Expected(loads=4 * n, stores=4 * n))}
    if with_product:
        large["product"] = product, Expected(stores=2 * n)
    check(traffic, (12 if with_product else 10) * n, large, {})


ROWS, VOCABULARY = 12, 8000


def logits_and_targets(dtype):
    targets = torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))
    return normal(ROWS, VOCABULARY, dtype=dtype), targets


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_stats_and_gradient(strict_interpreter, monkeypatch, dtype):
    monkeypatch.setattr(cross_entropy, "_torch_stats", cross_entropy._triton_stats)
    monkeypatch.setattr(cross_entropy, "_torch_gradient", cross_entropy._triton_gradient)
    logits, targets = logits_and_targets(dtype)
    n = logits.numel()
    with count(strict_interpreter) as traffic:
        merged = cross_entropy.stats(logits, targets, 0, VOCABULARY)
    target_again = 1 + 1 / VOCABULARY  # the target's logit once more, by itself
    small = {
        "targets": (targets, Expected(loads=8 * ROWS)),
        "result": (merged, Expected(stores=12 * ROWS)),
    }
    check(traffic, 2 * n, {"logits": (logits, Expected(loads=2 * n, reads=target_again))}, small)
    with count(strict_interpreter) as traffic:
        cross_entropy.gradient(logits, targets, merged, 0, VOCABULARY)
    blocks = traffic.of(logits)[0].programs / ROWS  # programs that share a row, each of which reads its statistics
    used = 8 * ROWS  # maximum and sum of the three
    small = {
        "targets": (targets, Expected(loads=8 * ROWS, reads=blocks)),
        "merged": (merged, Expected(loads=12 * ROWS, reads=blocks * used / (12 * ROWS))),
    }
    check(traffic, 4 * n, {"logits": (logits, Expected(loads=2 * n, stores=2 * n))}, small)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_in_one_launch(strict_interpreter, monkeypatch, dtype):
    """4 bytes a logit to and from memory, if the second read of a row finds it in the cache; 6 asked for."""
    name = "_torch_losses_and_gradient"
    monkeypatch.setattr(cross_entropy_row, name, cross_entropy_row._triton_losses_and_gradient)
    logits, targets = logits_and_targets(dtype)
    n = logits.numel()
    with count(strict_interpreter) as traffic:
        losses = cross_entropy_row.losses_and_gradient(logits, targets, VOCABULARY)
    reads = 2 + 1 / VOCABULARY  # statistics, gradient, and the target's logit by itself
    small = {"targets": (targets, Expected(loads=8 * ROWS)), "losses": (losses, Expected(stores=4 * ROWS))}
    check(traffic, 4 * n, {"logits": (logits, Expected(loads=2 * n, stores=2 * n, reads=reads))}, small)


def test_the_table_beside_liger_says_what_is_missing(strict_interpreter, monkeypatch, capsys, tmp_path):
    """`bench/traffic.py` on a machine without Liger-Kernel: our figures, and in one line how to get the others."""
    from bench import traffic as program

    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(program, "OPERATORS", [row for row in program.OPERATORS if row[0] == "RoPE"])
    monkeypatch.setattr(program.sys, "argv", ["traffic.py", "--json", str(tmp_path / "traffic.json")])
    with strict_interpreter.suspended():
        program.main()
    *_, row, missing = capsys.readouterr().out.splitlines()
    assert row.startswith("RoPE")
    assert "peers" in missing
    (written,) = json.loads((tmp_path / "traffic.json").read_text())["rows"]
    assert written["distinct"] == pytest.approx(4, rel=0.05)
