"""`python -m parallel.pipeline`: draw a pipeline schedule and say what it costs.

    python -m parallel.pipeline --stages 8 --microbatches 32 --schedule zb

prints the timeline, the bubble (idle share of all ranks' time) and each rank's peak bytes, and writes a picture.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .instruction import Costs
from .schedule import SCHEDULES, build
from .simulate import Timeline, simulate
from .timeline import save_picture, text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m parallel.pipeline",
        description="Draw a pipeline schedule; print its bubble and its peak bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--stages", type=int, default=8, help="pipeline ranks")
    parser.add_argument("--microbatches", type=int, default=32, help="micro-batches of a step")
    parser.add_argument("--chunks", type=int, default=1, help="model chunks a rank")
    parser.add_argument("--schedule", choices=SCHEDULES, default="zb", help="the schedule")
    for name, what in (
        ("forward", "a micro-batch's forward pass"),
        ("backward", "its input's gradient"),
        ("weight", "its weights' gradient"),
    ):
        parser.add_argument(f"--{name}", type=float, default=1.0, help=f"time of {what} on one rank, all chunks")
    parser.add_argument("--transfer", type=float, default=0.0, help="time of one transfer between two ranks")
    parser.add_argument(
        "--held-forward",
        type=float,
        default=22.75,
        help="bytes a micro-batch holds from forward to backward, in any unit; the default is Llama-2 7B's a layer, "
        "token and channel without recompute",
    )
    parser.add_argument(
        "--held-backward",
        type=float,
        default=32.1,
        help="bytes it holds from backward to weight gradient, where put off",
    )
    parser.add_argument(
        "--limit",
        type=float,
        help="most bytes a rank may hold, as a multiple of the first stage's under 1f1b; without it zb keeps to 1f1b's "
        "plus what one micro-batch gains by being put off",
    )
    parser.add_argument("--out", type=Path, default=Path("timeline.png"), help="the picture (.png, .svg or .pdf)")
    return parser


def _costs(options: argparse.Namespace, chunks: int) -> Costs:
    return Costs.uniform(
        options.stages,
        chunks,
        forward=options.forward,
        backward=options.backward,
        weight=options.weight,
        held_forward=options.held_forward,
        held_backward=options.held_backward,
    )


def _report(options: argparse.Namespace, timeline: Timeline, plain: Timeline) -> list[str]:
    """The numbers, beside those of 1F1B with the same costs."""
    stages, micro_batches = options.stages, options.microbatches
    unit = plain.peak_bytes[0]
    formula = (stages - 1) / (micro_batches + stages - 1)
    lines = [
        f"time {timeline.total:.6g} (1f1b {plain.total:.6g})",
        f"bubble {timeline.bubble:.2%} of all ranks' time (1f1b {plain.bubble:.2%}, "
        f"its formula (stages - 1) / (micro-batches + stages - 1) {formula:.2%})",
    ]
    if options.schedule == "interleaved":
        ratio = (stages - 1) / (options.chunks * micro_batches)
        lines.append(f"interleaved's formula: idle / working = (stages - 1) / (chunks * micro-batches) = {ratio:.2%}")
        lines[-1] += f", a bubble of {ratio / (1 + ratio):.2%}"
    if unit:
        peaks = " ".join(f"{peak / unit:.3f}" for peak in timeline.peak_bytes)
        lines.append(f"peak bytes by rank, in those of 1f1b's first stage ({unit:.6g}): {peaks}")
        lines.append(
            f"worst rank {max(timeline.peak_bytes):.6g} = {max(timeline.peak_bytes) / unit:.3f} of 1f1b's first stage"
        )
    return lines


def main(argv: Sequence[str]) -> None:
    """Run the command; ValueError for what a user can cause."""
    options = _parser().parse_args(argv)
    if min(options.stages, options.microbatches, options.chunks) < 1:
        raise ValueError("--stages, --microbatches and --chunks must be 1 or more")
    if options.transfer < 0:
        raise ValueError("--transfer must not be negative")
    plain_costs = _costs(options, 1)
    plain = simulate(build("1f1b", options.stages, options.microbatches, 1, plain_costs), plain_costs, options.transfer)
    limit = None if options.limit is None else options.limit * plain.peak_bytes[0]
    costs = _costs(options, options.chunks)
    lists = build(options.schedule, options.stages, options.microbatches, options.chunks, costs, limit)
    timeline = simulate(lists, costs, options.transfer)
    chunks = f"{options.chunks} chunk{'s' if options.chunks > 1 else ''}"
    title = f"{options.schedule}: {options.stages} stages, {options.microbatches} micro-batches, {chunks}"
    print("\n".join([title, text(timeline), *_report(options, timeline, plain)]))
    save_picture(timeline, options.out, f"{title}, bubble {timeline.bubble:.1%}")
    print(f"picture: {options.out}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
