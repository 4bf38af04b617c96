"""A schedule in time, drawn as text and as a picture: a row a rank."""

import math
from pathlib import Path

from .instruction import Kind
from .simulate import Pass, Timeline

COLORS = {Kind.FORWARD: "#56b4e9", Kind.BACKWARD: "#e69f00", Kind.WEIGHT: "#009e73"}  # Okabe-Ito: told apart by all
NAMES = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.WEIGHT: "weight gradient"}
LEGEND = "F forward, B backward (both gradients where no W follows), W weights' gradient, - goes on, . idle"


def text(timeline: Timeline, columns: int = 150) -> str:
    """The timeline in lines of at most `columns` characters.

    A pass is a letter, and its micro-batch's number where that fits; chunks above the first are in lower case. The
    shortest pass is at least a column wide; what then does not fit is cut out of the middle.
    """
    label = len(f"rank {len(timeline.passes) - 1}")
    width = columns - label - 3
    shortest = min(one.end - one.start for passes in timeline.passes for one in passes)
    per_column = shortest / max(1, shortest * width // timeline.total)
    rows = [_row(passes, timeline.total, per_column) for passes in timeline.passes]
    half = (width - 5) // 2
    if len(rows[0]) > width:
        rows = [f"{row[:half]} ... {row[-half:]}" for row in rows]
    lines = [f"{f'rank {rank}':>{label}} |{row}|" for rank, row in enumerate(rows)]
    several = any(one.instruction.chunk for passes in timeline.passes for one in passes)
    note = " Lower case: chunks above the first." if several else ""
    return "\n".join([*lines, f"A column is {per_column:.4g} of time.{note}", LEGEND])


def _row(passes: list[Pass], total: float, per_column: float) -> str:
    def column(time: float) -> int:
        """The nearest; a thousandth decides between two, whatever the rounding of the sums."""
        return math.floor(time / per_column + 0.501)

    row = ["."] * column(total)
    for one in passes:
        start, end = column(one.start), column(one.end)
        letter = one.instruction.kind.value
        label = letter.lower() if one.instruction.chunk else letter
        numbered = f"{label}{one.instruction.micro_batch}"
        if len(numbered) < end - start:
            label = numbered
        row[start:end] = label.ljust(end - start, "-")
    return "".join(row)


def save_picture(timeline: Timeline, path: Path, title: str) -> None:
    """Write the timeline as a picture (the suffix says which kind: .png, .svg, .pdf).

    Numbers are micro-batches, written where they fit; chunks above the first are paler.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ranks = len(timeline.passes)
    width = 16.0  # inches
    figure = Figure(figsize=(width, 1.6 + 0.4 * ranks), layout="constrained")
    axes = figure.add_subplot()
    points = 0.9 * width * 72 / timeline.total  # of paper for a unit of time
    chunks = 1 + max(one.instruction.chunk for passes in timeline.passes for one in passes)
    for rank, passes in enumerate(timeline.passes):
        for kind, color in COLORS.items():
            for chunk in range(chunks):
                own = [p for p in passes if p.instruction.kind is kind and p.instruction.chunk == chunk]
                bars = [(one.start, one.end - one.start) for one in own]
                shade = 1 - 0.6 * chunk / chunks
                axes.broken_barh(
                    bars, (rank - 0.42, 0.84), facecolors=(color, shade), edgecolors="white", linewidth=0.3
                )
        for one in passes:
            number = str(one.instruction.micro_batch)
            if (one.end - one.start) * points > 4.5 * len(number) + 1:
                middle = (one.start + one.end) / 2
                axes.text(middle, rank, number, ha="center", va="center", fontsize=7)
    axes.set(xlim=(0, timeline.total), ylim=(ranks - 0.5, -0.5), xlabel="time", ylabel="rank", title=title)
    axes.set_yticks(range(ranks))
    handles = [Patch(color=color, label=NAMES[kind]) for kind, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
