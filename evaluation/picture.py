"""`scores.png`: bars of accuracy with their intervals, baseline, floor and published figures beside them."""

from pathlib import Path

from matplotlib.figure import Figure

from evaluation.report import PRINTED_MODELS, Report, Score, published_beside

MARKERS = ("D", "s")


def draw_scores(report: Report, path: Path) -> None:
    """One group of bars a benchmark: the baseline's where there is one, and ours; error bars are 95 % intervals."""
    names, scores = list(report.benchmarks), list(report.benchmarks.values())
    figure = Figure(figsize=(2.5 + 1.6 * len(names), 4.2), layout="constrained")
    axes = figure.add_subplot()
    before = [(place - 0.2, score.baseline) for place, score in enumerate(scores) if score.baseline]
    shift, width = (0.2, 0.38) if before else (0.0, 0.6)
    if before:
        _bars(axes, [place for place, _ in before], [score for _, score in before], width, "#b8b8b8", "base")
    ours = "continued" if before else "this model"
    _bars(axes, [place + shift for place in range(len(scores))], scores, width, "#2a6f97", ours)
    for place, score in enumerate(scores):
        label = "majority floor" if place == 0 else None
        ends = (place - 0.4, place + 0.4)
        axes.hlines(100 * score.floor, *ends, colors="#c1121f", linestyles="dashed", lw=1.2, label=label)
    _published(axes, report, scores)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.set_title(f"{report.run['mode']}, {report.run['shots']} shots, 95 % intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _bars(axes, places: list[float], scores: list, width: float, colour: str, label: str) -> None:
    heights = [100 * score.accuracy for score in scores]
    below = [100 * (score.accuracy - score.interval[0]) for score in scores]
    above = [100 * (score.interval[1] - score.accuracy) for score in scores]
    axes.bar(places, heights, width, yerr=(below, above), capsize=3, color=colour, ecolor="#333333", label=label)


def _published(axes, report: Report, scores: list[Score]) -> None:
    beside = [published_beside(report.run, score) for score in scores]
    for model, marker in zip(PRINTED_MODELS, MARKERS, strict=True):
        points = [(place, found[model][0]) for place, found in enumerate(beside) if model in found]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, s=28, zorder=3, color="#e09f3e", edgecolors="black",
                         linewidths=0.6, label=f"{model} (published)")  # fmt: skip
