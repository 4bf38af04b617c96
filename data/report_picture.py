"""`report.png`: where the records of each source went, and what the documents are, in one figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, PercentFormatter

from data.account import Account, SourceReport, ranked
from data.licences import CLASSES
from data.shared import SPLITS

PICTURE_FILE = "report.png"
MOST_SOURCES = 10
"""Drawn of more: those with the most records; each has a colour of its own."""
MOST_RULES = 12
FIRST_YEAR = 1950
"""Earlier publications are counted under it."""
LICENSE_COLOURS = ("#1a7f37", "#4caf50", "#8bc34a", "#c5d86d", "#ffe082", "#ffb74d", "#ff8a65", "#e57373", "#9e9e9e",
                   "#dcdcdc")  # fmt: skip
"""Of CLASSES: from free (green) to closed (red), grey where the class says little."""
LANGUAGE_COLOURS = ("#33658a", "#86bbd8", "#758e4f", "#f6ae2d", "#f26419", "#7a5195")


def draw(account: Account, path: Path) -> None:
    """Writes the figure as PNG; the same account gives the same bytes (with one version of matplotlib)."""
    largest = sorted(account.sources, key=lambda name: -account.sources[name].records)[:MOST_SOURCES]
    sources = {_label(name): source for name, source in account.sources.items() if name in largest}
    with style.context("default"):  # whatever a user's matplotlibrc says
        figure = Figure(figsize=(13, 9 + 0.25 * len(sources)), layout="constrained")
        axes = figure.subplots(3, 2)
        _draw_kept(axes[0, 0], sources)
        _draw_rules(axes[0, 1], list(sources.values()))
        _draw_lengths(axes[1, 0], list(sources.values()))
        _draw_years(axes[1, 1], list(sources.values()))
        classes = {name: source.license_classes() for name, source in sources.items()}
        _draw_shares(axes[2, 0], "licences", classes, dict(zip(CLASSES, LICENSE_COLOURS, strict=True)))
        languages = {name: source.languages for name, source in sources.items()}
        _draw_shares(axes[2, 1], "languages of the texts", *_most_frequent(languages))
        for axis in axes.flat:
            axis.spines[["top", "right"]].set_visible(False)
        handles = [Patch(color=f"C{number}") for number in range(len(sources))]
        title = "" if len(sources) == len(account.sources) else f"the largest of {len(account.sources)} sources"
        figure.legend(handles, list(sources), loc="outside upper center", ncols=5, frameon=False, title=title)
        figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _draw_kept(axes: Axes, sources: Mapping[str, SourceReport]) -> None:
    records = np.array([max(source.records, 1) for source in sources.values()])
    counts = {split: [source.documents[split] for source in sources.values()] for split in SPLITS}
    counts["dropped"] = [source.dropped.total() for source in sources.values()]
    left = np.zeros(len(sources))
    for (name, values), colour in zip(counts.items(), ("#2a6f97", "#89c2d9", "#e8e8e8"), strict=True):
        axes.barh(list(sources), np.array(values) / records, left=left, color=colour, label=name)
        left += np.array(values) / records
    for place, source in enumerate(sources.values()):
        axes.text(1.01, place, f"{source.documents.total():,} of {source.records:,}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_title("records kept")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=3, frameon=False, fontsize=8)


def _draw_rules(axes: Axes, sources: Sequence[SourceReport]) -> None:
    axes.set_title("dropped, by rule")
    total = sum((source.dropped for source in sources), Counter())
    rules = ranked(total)[:MOST_RULES]
    if not rules:
        _say(axes, "nothing was dropped")
        return
    left = np.zeros(len(rules))
    for number, source in enumerate(sources):
        counts = np.array([source.dropped[rule] for rule, _ in rules])
        axes.barh([rule for rule, _ in rules], counts, left=left, color=f"C{number}")
        left += counts
    for place, (_, count) in enumerate(rules):
        axes.text(count, place, f" {count:,}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * rules[0][1])
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("records")


def _draw_lengths(axes: Axes, sources: Sequence[SourceReport]) -> None:
    axes.set_title("length of documents")
    used = sorted({number for source in sources for number in source.lengths})
    if not used:
        _say(axes, "no document was kept")
        return
    places = np.arange(used[0], used[-1] + 1)
    edges = 2.0 ** np.arange(used[0], used[-1] + 2)
    for number, source in enumerate(sources):
        if source.lengths:
            counts = np.array([source.lengths[place] for place in places]) / source.lengths.total()
            axes.stairs(counts, edges, color=f"C{number}", linewidth=1.6)
    axes.set(xscale="log", xlabel="characters", ylabel="share of a source's documents", ylim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_years(axes: Axes, sources: Sequence[SourceReport]) -> None:
    axes.set_title("year of publication")
    used = [max(year, FIRST_YEAR) for source in sources for year in source.years if year]
    if not used:
        _say(axes, "no years are known")
        return
    years = np.arange(min(used), max(used) + 1)
    for number, source in enumerate(sources):
        counts: Counter[int] = Counter()
        for year, count in source.years.items():
            if year:
                counts[max(year, FIRST_YEAR)] += count
        if counts:
            shares = np.array([counts[year] for year in years.tolist()]) / source.years.total()
            axes.stairs(shares, np.arange(years[0], years[-1] + 2) - 0.5, color=f"C{number}", linewidth=1.6)
    axes.set(ylabel="share of a source's documents", ylim=(0, None))
    axes.locator_params(axis="x", integer=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_shares(axes: Axes, title: str, counts: Mapping[str, Counter[str]], colours: Mapping[str, str]) -> None:
    """A bar a source; `colours` by what is counted, in the order in which the parts of a bar follow."""
    left = np.zeros(len(counts))
    for key, colour in colours.items():
        shares = np.array([counter[key] / max(counter.total(), 1) for counter in counts.values()])
        if shares.any():
            axes.barh(list(counts), shares, left=left, color=colour, label=_label(key))
            left += shares
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if left.any():
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=5, frameon=False, fontsize=8)


def _most_frequent(counts: Mapping[str, Counter[str]]) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """The same counts with all but the most frequent languages as `others`, and a colour for each that is left."""
    total = sum(counts.values(), Counter())
    named = [name for name, _ in ranked(total) if name != "unknown"][: len(LANGUAGE_COLOURS)]
    colours = {**dict(zip(named, LANGUAGE_COLOURS, strict=False)), "others": "#9e9e9e", "unknown": "#dcdcdc"}
    found = {name: Counter({key: counter[key] for key in (*named, "unknown")}) for name, counter in counts.items()}
    for name, counter in counts.items():
        found[name]["others"] = counter.total() - found[name].total()
    return found, colours


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def _label(name: str) -> str:
    """As it stands: a dollar sign would begin a formula, and an underscore at the front hide it from legends."""
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
