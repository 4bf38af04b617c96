"""Bytes that the streaming kernels move, beside Liger-Kernel's, counted in Triton's interpreter; no GPU is needed.

    python bench/traffic.py [--json F]

A line an operator and side, in bytes an element (a value of x for the norms, of q and k for RoPE, of the output for
SwiGLU, a logit for cross-entropy), bfloat16: `distinct` counts each 32-byte sector of each tensor once a launch (what
memory has to move when the cache keeps everything), `requested` what active lanes ask for, `idle` the lanes masked off.
At the end of the line is what is asked for more than once. The work is one multiprocessor's share of a large batch (64
rows of a norm), so that terms which grow with the number of programs weigh as they would on a GPU. Only in the backward
norms ours looks worse than that: the kernel that adds up the programs' weight gradients runs once for all
multiprocessors, here for one of them, most of its lanes idle; Liger-Kernel leaves that sum to torch, uncounted. The
program stops if the two sides' results differ.

Liger-Kernel runs as it is, with two changes while it is interpreted: `libdevice.rsqrt`, which the interpreter does not
have, becomes `tl.math.rsqrt`; Python floats become float32 scalars, as a GPU gets them (the strict interpreter does so
for every kernel). It counts a CPU as one multiprocessor by itself; so does this program for our kernels.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # read by Triton at import
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
import triton.language as tl

from kernels import cross_entropy, cross_entropy_row, rmsnorm, rope, swiglu
from tests.kernels.interpreter import Harness
from tests.kernels.traffic import Traffic, count

EPS = 1e-5
TOKENS, HIDDEN = 64, 4096
ROPE_TOKENS, HEADS, KV_HEADS, HEAD_DIM = 64, 32, 8, 128
SWIGLU_TOKENS, WIDTH = 16, 11008
ROWS, VOCABULARY = 8, 32000


@triton.jit
def _rsqrt(x):
    return tl.math.rsqrt(x)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


# ---- the same work for both sides: each function runs it and returns its results -------------------------------------


def norm_inputs() -> tuple[torch.Tensor, ...]:
    """x, weight, dy, residual or the gradient past the norm; rstd of x."""
    x, dy, other = (normal(TOKENS, HIDDEN, seed=seed) for seed in range(3))
    rstd = x.float().square().mean(1).add(EPS).rsqrt()
    return x, normal(HIDDEN, seed=3), dy, other, rstd


def our_norm_forward():
    x, weight, *_ = norm_inputs()
    return rmsnorm.rmsnorm_forward(x, weight, EPS)


def liger_norm_forward():
    from liger_kernel.ops.rms_norm import rms_norm_forward

    x, weight, *_ = norm_inputs()
    y, _, rstd, *_ = rms_norm_forward(x, weight, EPS, 0.0, "llama", False)
    return y, rstd


def our_norm_backward():
    x, weight, dy, _, rstd = norm_inputs()
    weight_grad = torch.zeros(HIDDEN)
    return rmsnorm.rmsnorm_backward(dy, x, weight, rstd, weight_grad=weight_grad, out=dy), weight_grad


def liger_norm_backward():
    from liger_kernel.ops.rms_norm import calculate_settings, rms_norm_backward

    x, weight, dy, _, rstd = norm_inputs()
    return rms_norm_backward(dy, x, weight, rstd, 0.0, 0, *calculate_settings(HIDDEN), True, False)


def our_add_norm_forward():
    x, weight, _, residual, _ = norm_inputs()
    y, _, summed = rmsnorm.rmsnorm_forward(x, weight, EPS, residual=residual)
    return y, summed


def liger_add_norm_forward():
    from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

    x, weight, _, residual, _ = norm_inputs()
    return fused_add_rms_norm_forward(x, residual, weight, EPS, 0.0, "llama")[:2]


def our_add_norm_backward():
    summed, weight, dy, dsummed, rstd = norm_inputs()
    weight_grad = torch.zeros(HIDDEN)
    dx = rmsnorm.rmsnorm_backward(dy, summed, weight, rstd, weight_grad=weight_grad, dsummed=dsummed, out=dy)
    return dx, weight_grad


def liger_add_norm_backward():
    from liger_kernel.ops.fused_add_rms_norm import calculate_settings, fused_add_rms_norm_backward

    summed, weight, dy, dsummed, rstd = norm_inputs()
    settings = calculate_settings(HIDDEN)
    dx, _, dweight = fused_add_rms_norm_backward(dy, dsummed, summed, weight, rstd, 0.0, 0, *settings, 2, True)
    return dx, dweight


def rope_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv, and cos and sin of half the head dimension."""
    frequencies = 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = torch.outer(torch.arange(ROPE_TOKENS), frequencies)
    return normal(ROPE_TOKENS, (HEADS + 2 * KV_HEADS) * HEAD_DIM), angle.cos(), angle.sin()


def our_rope():
    qkv, cos, sin = rope_inputs()
    rope.rope_forward(qkv, cos, sin, torch.arange(ROPE_TOKENS, dtype=torch.int32), HEADS, KV_HEADS)
    return (qkv[:, : (HEADS + KV_HEADS) * HEAD_DIM],)


def liger_rope():
    from liger_kernel.ops.rope import rope_forward

    qkv, cos, sin = rope_inputs()
    heads = qkv.view(1, ROPE_TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM)
    q, k = heads[:, :, :HEADS].contiguous(), heads[:, :, HEADS : HEADS + KV_HEADS].contiguous()
    tables = (torch.cat((table, table), 1)[None] for table in (cos, sin))  # as transformers makes them
    q, k, *_ = rope_forward(q.transpose(1, 2), k.transpose(1, 2), *tables)
    return (torch.cat((q, k), 1)[0].transpose(0, 1).flatten(1),)


def our_swiglu_forward():
    return (swiglu.swiglu_forward(normal(SWIGLU_TOKENS, 2 * WIDTH)),)


def liger_swiglu_forward():
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

    return swiglu_fused_gate_up_forward(normal(SWIGLU_TOKENS, 2 * WIDTH))[1:]


def our_swiglu_backward():
    gate_up = normal(SWIGLU_TOKENS, 2 * WIDTH)
    return (swiglu.swiglu_backward(normal(SWIGLU_TOKENS, WIDTH, seed=1), gate_up, out=gate_up),)


def liger_swiglu_backward():
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

    gate_up, dout = normal(SWIGLU_TOKENS, 2 * WIDTH), normal(SWIGLU_TOKENS, WIDTH, seed=1)
    return (swiglu_fused_gate_up_backward(gate_up, dout, in_place=True),)


def cross_entropy_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))
    return normal(ROWS, VOCABULARY), targets


def our_cross_entropy_split():
    logits, targets = cross_entropy_inputs()
    merged = cross_entropy.stats(logits, targets, 0, VOCABULARY)
    return (cross_entropy.gradient(logits, targets, merged, 0, VOCABULARY),)


def our_cross_entropy():
    logits, targets = cross_entropy_inputs()
    cross_entropy_row.losses_and_gradient(logits, targets, VOCABULARY)
    return (logits,)


def liger_cross_entropy():
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    logits, targets = cross_entropy_inputs()
    cross_entropy_forward(logits.requires_grad_(), targets, None, -100, 0.0, 0.0, "sum", None, False)
    return (logits.detach(),)


NORM, PAIRS = TOKENS * HIDDEN, ROPE_TOKENS * (HEADS + KV_HEADS) * HEAD_DIM
OPERATORS: list[tuple[str, int, int, Callable, Callable]] = [
    # name, elements, bytes an element by the docstring's formula, ours, Liger's
    ("RMSNorm forward", NORM, 4, our_norm_forward, liger_norm_forward),
    ("RMSNorm backward", NORM, 6, our_norm_backward, liger_norm_backward),
    ("add + RMSNorm forward", NORM, 8, our_add_norm_forward, liger_add_norm_forward),
    ("add + RMSNorm backward", NORM, 8, our_add_norm_backward, liger_add_norm_backward),
    ("RoPE", PAIRS, 4, our_rope, liger_rope),
    ("SwiGLU forward", SWIGLU_TOKENS * WIDTH, 6, our_swiglu_forward, liger_swiglu_forward),
    ("SwiGLU backward", SWIGLU_TOKENS * WIDTH, 10, our_swiglu_backward, liger_swiglu_backward),
    ("cross-entropy, stats + gradient", ROWS * VOCABULARY, 6, our_cross_entropy_split, liger_cross_entropy),
    ("cross-entropy, one launch", ROWS * VOCABULARY, 4, our_cross_entropy, liger_cross_entropy),
]


# ---- counting and printing -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interpreted(liger: bool) -> Iterator[Harness]:
    """CPU tensors go to the Triton launchers, on one multiprocessor; Liger-Kernel has a square root."""
    with contextlib.ExitStack() as stack:
        for module in (rmsnorm, rope, swiglu, cross_entropy, cross_entropy_row):
            for name in [name for name in vars(module) if name.startswith("_triton_")]:
                twin = name.replace("_triton_", "_torch_")
                stack.enter_context(mock.patch.object(module, twin, getattr(module, name)))
            if hasattr(module, "program_count"):
                stack.enter_context(mock.patch.object(module, "program_count", lambda tensor, count: count))
        for module in ("rms_norm", "fused_add_rms_norm") if liger else ():
            stack.enter_context(mock.patch(f"liger_kernel.ops.{module}.rsqrt", _rsqrt))
        yield stack.enter_context(Harness())


def figures(traffic: Traffic, elements: int) -> dict:
    """Bytes an element, the share of idle lanes, and what is asked for more than once."""
    lanes = [lanes for row in traffic.rows for lanes in (row.loads, row.stores)]
    idle, active = sum(x.masked_off for x in lanes), sum(x.active for x in lanes)
    again = {
        row.argument.name.removesuffix("_pointer"): round(row.loads.requested / row.loads.moved, 1)
        for row in traffic.rows
        if row.loads.requested > 1.05 * row.loads.moved
    }
    return {
        "distinct": round(traffic.moved / elements, 3),
        "requested": round(traffic.requested / elements, 3),
        "idle": round(idle / (idle + active), 3),
        "read_again": again,
    }


def compare(name: str, ours: tuple[torch.Tensor, ...], liger: tuple[torch.Tensor, ...]) -> None:
    """Stop unless both gave the same, up to bfloat16's rounding."""
    for first, second in zip(ours, liger, strict=True):
        error = (first.double() - second.double()).abs().max() / second.double().abs().max()
        if not error < 0.01:
            sys.exit(f"{name}: ours and Liger-Kernel's results differ by {error:.1e} of the largest value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    path, rows = parser.parse_args().json, []
    liger = importlib.util.find_spec("liger_kernel") is not None
    print(f"{'bytes an element':32} {'formula':>7}   {'':6} {'distinct':>8} {'requested':>9} {'idle':>6}   read again")
    for name, elements, formula, our_work, liger_work in OPERATORS:
        results = []
        for side, work in [("ours", our_work), *([("Liger", liger_work)] if liger else [])]:
            with interpreted(liger) as harness, count(harness) as traffic:
                results.append(work())
            row = figures(traffic, elements)
            again = ", ".join(f"{argument} x{times:g}" for argument, times in row["read_again"].items())
            numbers = f"{row['distinct']:8.2f} {row['requested']:9.2f} {row['idle']:6.1%}"
            print(f"{name:32} {formula:7}   {side:6} {numbers}   {again}")
            rows.append({"operator": name, "formula": formula, "side": side} | row)
        if liger:
            compare(name, *results)
    if path:
        versions = {"triton": triton.__version__, "liger-kernel": metadata.version("liger-kernel") if liger else None}
        path.write_text(json.dumps(versions | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    if not liger:
        print("Liger-Kernel is not installed, so there is nothing beside ours: pip install -e '.[peers]'")


if __name__ == "__main__":
    main()
