"""Does this cluster compute what one process computes?

    torchrun --nproc-per-node 8 -m parallel.check            (over nodes and under mpiexec or srun as for train.py)

Trains a small model for three steps in a number of layouts that fit the processes, in which every two settings occur
together, and compares loss, gradient norm and every weight with one process. float64 on CPUs, float32 on GPUs.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.costs import stage_costs
from model.llama import Llama, MicroBatch, micro_batch
from model.traffic import pass_traffic, update_traffic

from . import comm
from .executor import execute, sum_over_ranks
from .grid import Grid, world_group
from .launch import launched_processes, start_processes, stop_processes
from .layouts import Layout, covering, every
from .optimizer import AdamWSettings, Optimizer
from .schedule import build, validation
from .watch import PROCESS_GROUP_MARGIN, Watcher

STEPS = 3
TOKENS = 23
"""Of a micro-batch: not a multiple of tp, so that padding is checked too."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of each tensor's largest magnitude. In float32 AdamW's division by the root of small second moments leaves about 5e-6
after three steps; a wrong sum leaves 1e-2 and more."""
HEARTBEAT_LIMIT = 15.0
"""Seconds without a sign of life after which a rank counts as dead."""
ADAMW = AdamWSettings(beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.1, clip=0.5)


@dataclass
class Result:
    """What a run ends with."""

    numbers: list[float] = field(default_factory=list)
    """Loss a token and gradient norm of each step, then the validation loss a token."""
    weights: dict[str, list[tuple[tuple[int, ...], Tensor]]] = field(default_factory=dict)
    """Hugging Face name -> (offsets in the whole tensor, values) of what this rank holds."""
    traffic: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Bytes this rank should have communicated, by (operation, group name)."""
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Bytes it has."""


def config_of(layout: Layout) -> LlamaConfig:
    """Eight heads of 8 channels, so that tp 8 can be checked."""
    return LlamaConfig(
        vocab_size=layout.vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_layers=layout.layers,
        num_heads=8,
        num_kv_heads=layout.kv_heads,
        head_dim=8,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=layout.tied,
    )


def one_process(layout: Layout) -> Layout:
    """The layout with the same model and the same micro-batches on one rank, without recompute."""
    return Layout(
        micro_batches=layout.micro_batches * layout.dp,
        kv_heads=layout.kv_heads,
        tied=layout.tied,
        vocabulary=layout.vocabulary,
        layers=layout.layers,
    )


def batches(layout: Layout, step: int, rank: int, multiple: int, device: torch.device) -> list[MicroBatch]:
    """This data-parallel rank's micro-batches; they depend on the number of all micro-batches alone."""
    made = []
    for index in range(layout.micro_batches):
        generator = torch.Generator().manual_seed(1000 * step + index * layout.dp + rank)
        tokens, targets = torch.randint(layout.vocabulary, (2, TOKENS), generator=generator)
        targets[torch.randint(TOKENS, (3,), generator=generator)] = -100
        cut = int(torch.randint(1, TOKENS, (), generator=generator))
        made.append(micro_batch(tokens, targets, [0, cut, TOKENS], config_of(layout), device, multiple))
    return made


def run(layout: Layout, grid: Grid, device: torch.device, dtype: torch.dtype) -> Result:
    """Three steps and a validation pass on one rank of the layout's grid."""
    config = config_of(layout)
    grid = grid.with_kv_replicas(config.num_kv_heads)
    model = Llama(
        config,
        dtype=dtype,
        device=device,
        grid=grid,
        gradients=True,
        recompute=layout.recompute,
        chunks=layout.chunks,
        pieces=layout.pieces,
    )
    model.initialise(seed=1)
    optimizer = Optimizer(model.buffer, grid, ADAMW)
    costs = stage_costs(
        config, layout.pp, layout.chunks, tokens=TOKENS, sequence_length=TOKENS, recompute=layout.recompute
    )
    schedule = build(layout.schedule, layout.pp, layout.micro_batches, layout.chunks, costs)[grid.pp.rank]
    result, before = Result(), Counter(comm.traffic)
    for step in range(STEPS):
        loaded = batches(layout, step, grid.dp.rank, model.sequence.multiple, device)
        model.buffer.begin_step(len(loaded))
        loss, tokens = _totals(execute(schedule, model.chunks, loaded, grid), loaded, grid)
        result.traffic += pass_traffic(model, schedule, len(loaded[0].tokens)) + update_traffic(model)
        # Large enough a rate that a wrong gradient shows, small enough that the losses fall.
        norm = optimizer.step(1e-2, tokens.view(1)).grad_norm
        result.numbers += [float(loss / tokens), float(norm)]
    loaded = batches(layout, STEPS, grid.dp.rank, model.sequence.multiple, device)
    schedule = validation(layout.pp, len(loaded), layout.chunks)[grid.pp.rank]
    loss, tokens = _totals(execute(schedule, model.chunks, loaded, grid), loaded, grid)
    result.numbers.append(float(loss / tokens))
    result.traffic += pass_traffic(model, schedule, len(loaded[0].tokens))
    for group in (grid.dp, grid.pp):
        if group.size > 1:
            result.traffic["all_reduce", group.name] += (STEPS + 1) * 2 * 8  # loss and tokens
    model.buffer.wait()
    result.counted = Counter(comm.traffic) - before
    for parameter in model.buffer.parameters:
        result.weights.setdefault(parameter.record.name, []).append((parameter.record.offsets, parameter.data))
    return result


def _totals(loss: Tensor, loaded: list[MicroBatch], grid: Grid) -> Tensor:
    return sum_over_ranks(loss, sum((batch.targets >= 0).sum() for batch in loaded), grid)


def differences(result: Result, reference: Result) -> Iterator[tuple[str, float]]:
    """(what, largest difference as a share of the reference's largest magnitude), the reference being of one rank."""
    for index, (ours, theirs) in enumerate(zip(result.numbers, reference.numbers, strict=True)):
        step, name = divmod(index, 2)
        text = f"{('loss', 'gradient norm')[name]} of step {step + 1}" if step < STEPS else "validation loss"
        yield text, abs(ours - theirs) / abs(theirs)
    for name, pieces in result.weights.items():
        ((_, whole),) = reference.weights[name]
        for offsets, values in pieces:
            place = tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))
            if values.numel():
                yield name, float((values - whole[place]).abs().max() / whole.abs().max())


def worst(result: Result, reference: Result) -> tuple[float, str]:
    """(largest difference, what it is in). One that is not a number counts as infinite."""
    found = [(error if error == error else float("inf"), name) for name, error in differences(result, reference)]
    return max(found)


def main(arguments: list[str]) -> int:
    """Run the layouts that fit, print a line each; 1 where any differs, 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="parallel.check", description=__doc__.split("\n\n")[0])
    every_help = (
        "all sizes, schedules, recompute settings and numbers of key/value heads, not only a covering set (hours)"
    )
    parser.add_argument("--every", action="store_true", help=every_help)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a rank waits for others (default: 120)")
    options = parser.parse_args(arguments)
    patience = options.timeout + PROCESS_GROUP_MARGIN
    try:
        layouts = (every if options.every else covering)(launched_processes()[2])
        device = start_processes("cuda" if torch.cuda.is_available() else "cpu", patience)
        with Watcher(world_group(), options.timeout, HEARTBEAT_LIMIT):
            differing = _run_all(layouts, device, patience)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop_processes()
    return 1 if differing else 0


def _run_all(layouts: list[Layout], device: torch.device, patience: float) -> int:
    """Compare each layout, print a line on rank 0; how many differ."""
    world, differing = world_group(), 0
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    grids: dict[tuple[int, int], Grid] = {}
    for number, layout in enumerate(layouts, start=1):
        size = layout.tp, layout.pp
        if size not in grids:
            grids[size] = Grid.create(*size, patience)
        begin = time.perf_counter()
        result = run(layout, grids[size], device, dtype)
        own = worst(result, run(one_process(layout), Grid.single(), device, dtype))
        error, name = max(comm.gather_json(own, world, device))
        equal = error <= TOLERANCE[dtype]
        differing += not equal
        if world.rank == 0:
            verdict = f"{'equal' if equal else 'DIFFERS'} {error:.1e} ({name})"
            print(f"{number:3}/{len(layouts)} {verdict} {layout}, {time.perf_counter() - begin:.1f} s", flush=True)
    if world.rank == 0:
        where = f"{world.size} processes on {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, {dtype}"
        equal = f"{len(layouts) - differing} of {len(layouts)} layouts"
        print(f"{equal} equal one process within {TOLERANCE[dtype]:g}; {where}")
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
