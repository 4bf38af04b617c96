"""Every operator beside its peers and its roofline, on the GPU: `pytest bench/ -s` prints a line a row and the table.

Nothing asserts a time. A candidate is timed only if its results agree with the reference (`measure.check`).
"""

import gc
from importlib import metadata
from statistics import median

import pytest
import torch

from bench.measure import OURS, copy_work, in_turns, input_sets, prepare, seconds_of
from bench.row import Goal, Row
from bench.rows import MEMORY_ROWS
from bench.rows_matrix import MATRIX_ROWS

ROUNDS = 30
ROWS = (*MEMORY_ROWS, *MATRIX_ROWS)
HEADER = ("row", "us", "achieved", "roofline", "fraction", "peer's time / ours", "must", "aim")
WITHOUT_GPU = "needs a CUDA GPU: rows of the operators not measured"


def measure_row(row: Row, size: dict, device: torch.device, dtype: torch.dtype, rounds: int) -> dict:
    """Figures of one row: seconds of every candidate and of its roofline, and what follows from them."""
    inputs = input_sets(lambda seed: row.inputs(size, device, dtype, seed), device)
    candidates, unavailable = prepare(row.candidates, inputs, row.reference(inputs[0]), dtype)
    peak = workspace(row, candidates[OURS][0], inputs[0]) if row.workspace and device.type == "cuda" else None
    amount = row.amount(size, dtype.itemsize)
    if row.unit == "bytes":
        roofline, (copy, factor) = "copy", copy_work(amount, device)
        candidates[roofline] = [copy]
    elif row.products is not None:
        roofline, factor = "cublas", 1.0
        candidates[roofline] = [row.products(one) for one in inputs]
    else:
        roofline, factor = None, 1.0
    times = in_turns(candidates, rounds, lambda run: seconds_of(run, device))
    seconds = {name: median(each) for name, each in times.items()}
    if roofline:
        seconds[roofline] *= factor
    spread = {name: [min(each), max(each)] for name, each in times.items()}
    return {
        "row": row.name, "size": size, "dtype": str(dtype), "unit": row.unit, "amount": amount, "seconds": seconds,
        "spread": spread, "rounds": rounds, "roofline": roofline, "unavailable": unavailable, "workspace": peak,
        **verdict(row, amount, seconds, roofline, peak),
    }  # fmt: skip


def verdict(row: Row, amount: float, seconds: dict[str, float], roofline: str | None, peak: int | None) -> dict:
    """Rate, fraction of the roofline, ratio of each peer's time to ours, and which goals are met (None: unknown)."""
    ours = seconds[OURS]
    ratios = {name: value / ours for name, value in seconds.items() if name not in (OURS, roofline)}
    measured = {**ratios, "workspace": peak}
    if roofline:
        measured[roofline] = seconds[roofline] / ours
    if row.unit == "FLOPs":
        measured["TFLOP/s"] = amount / ours / 1e12

    def met(goal: Goal) -> bool | None:
        value = measured.get(goal.measure)
        if value is None:
            return None
        return value <= goal.bound if goal.measure == "workspace" else value >= goal.bound

    return {
        "rate": amount / ours,
        "fraction": measured.get(roofline),
        "ratios": ratios,
        "must": {goal.text: met(goal) for goal in row.must},
        "aim": {goal.text: met(goal) for goal in row.aim},
    }


def workspace(row: Row, work, inputs) -> int:
    """Bytes allocated at the peak of a run, beside what was there before and the results that `row.workspace` names."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work.run()
    return torch.cuda.max_memory_allocated() - before - row.workspace(inputs)


# ---- the table -------------------------------------------------------------------------------------------------------


def cells(row: Row, figures: dict | None) -> list[str]:
    """A line of the table; without figures what would be asked for."""
    if figures is None:
        goals = ["; ".join(goal.text for goal in goals) for goals in (row.must, row.aim)]
        return [row.name, "", "not measured", "", "", "", *goals]
    scale, unit = (1e9, "GB/s") if row.unit == "bytes" else (1e12, "TFLOP/s")
    roofline = figures["roofline"]
    ratios = [f"{name} {ratio:.2f}" for name, ratio in figures["ratios"].items()]
    ratios += [f"{name}: no" for name in figures["unavailable"]]
    marks = {True: "yes", False: "NO", None: "unknown"}
    goals = ["; ".join(f"{text}: {marks[met]}" for text, met in figures[name].items()) for name in ("must", "aim")]
    return [
        row.name,
        f"{figures['seconds'][OURS] * 1e6:.1f}",
        f"{figures['rate'] / scale:.0f} {unit}",
        f"{figures['amount'] / figures['seconds'][roofline] / scale:.0f} {unit} ({roofline})" if roofline else "",
        f"{figures['fraction']:.1%}" if roofline else "",
        ", ".join(ratios),
        *goals,
    ]


def table(measured: dict[str, dict]) -> str:
    """All rows in Markdown, then why a peer has no figure."""
    lines = [HEADER, ["---"] * len(HEADER), *(cells(row, measured.get(row.name)) for row in ROWS)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    reasons = [
        f"{name} without {peer}: {reason}"
        for name, figures in measured.items()
        for peer, reason in figures["unavailable"].items()
    ]
    return "\n".join([text, *reasons])


def versions() -> dict[str, str | None]:
    """Of what is compared, beside torch; None where it is not installed."""
    found = {}
    for name in ("triton", "liger-kernel", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@pytest.fixture(scope="module")
def measured():
    """Figures by row; the table is printed after the last one, also when the run is interrupted."""
    figures = {}
    yield figures
    print("\n" + table(figures))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_operator(row, measured, report):
    if not torch.cuda.is_available():
        pytest.skip(WITHOUT_GPU)
    figures = measure_row(row, row.size, torch.device("cuda"), torch.bfloat16, ROUNDS)
    measured[row.name] = figures
    print("\n" + " | ".join(cells(row, figures)))
    report({"versions": versions(), **figures})
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
