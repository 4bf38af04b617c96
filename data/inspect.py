"""`python -m data inspect`: what is in a folder of documents or in token shards, as a table and a picture."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from data.documents import read_documents
from data.mixture import divide
from data.settings import POSITIONAL
from data.shards import Shards
from data.token_sources import distinct_names, open_sources
from data.tokenize import find_documents, holds_documents

LENGTH_BINS = 2.0 ** np.arange(0, 24.5, 0.5)
"""Edges of the length histogram: two bins an octave, from 1 to 12 million; longer documents fall into the last bin."""


@dataclass(kw_only=True)
class Settings:
    data: tuple[str, ...] = field(default=("shards",), metadata=POSITIONAL)
    """A folder of documents (`python -m data curate`), or what training is given: folders of token shards (`python -m
    data tokenize`), single sources SHARDS/NAME of such, and Megatron pairs (the .bin, the .idx or what both begin
    with)."""
    verify: bool = False
    """Hash every file of the token shards and compare with their manifests."""
    share: tuple[str, ...] = ()
    """NAME=SHARE of the training tokens, as for train.py --data: adds each source's share and epochs to the table;
    sources without one divide the rest by size."""
    budget: int | None = None
    """Tokens of the training run that epochs are counted for (characters for documents); without it, the size of all
    training splits together."""


@dataclass
class Row:
    """One split of one source; sizes are tokens, or characters of documents that are not tokenised."""

    source: str
    split: str
    documents: int
    size: int
    licenses: Counter[str]
    """Documents by licence; empty where the files do not say."""
    lengths: np.ndarray
    """Documents per bin of LENGTH_BINS, int64 [bins - 1]."""


def run(settings: Settings) -> int:
    """Print the table, write inspect.png: into the folder if there is one, of several into the current folder.
    ValueError: nothing to inspect, a damaged file, or bad shares."""
    paths = [Path(path) for path in settings.data]
    if settings.budget is not None and settings.budget < 1:
        raise ValueError(f"--budget {settings.budget}: at least 1")
    if is_corpus := len(paths) == 1 and holds_documents(paths[0]):
        if settings.verify:
            raise ValueError(f"{paths[0]}: --verify is for token shards (a folder with a manifest.json)")
        unit, rows = "characters", document_rows(paths[0])
    else:
        unit, rows = "tokens", token_rows(paths, verify=settings.verify)
    shares = source_shares(rows, settings.share) if settings.share else None
    print(table(rows, unit, shares, settings.budget))
    alone = is_corpus or (len(paths) == 1 and (paths[0] / "manifest.json").is_file())
    picture = paths[0] / "inspect.png" if alone else Path("inspect.png")
    draw(rows, unit, picture)
    print(f"picture: {picture}")
    return 0


def token_rows(paths: Sequence[Path], *, verify: bool = False) -> list[Row]:
    """A row per source and split that has documents; with `verify`, after hashing every file of the shards."""
    sources = [source for path in paths for source in open_sources(path)]
    without_hashes = [source.folder for source in sources if source.tokenizer_path is None]
    if verify and without_hashes:
        raise ValueError(f"{without_hashes[0]}: --verify is for token shards; a Megatron pair has no hashes")
    for folder in dict.fromkeys(source.folder for source in sources if source.tokenizer_path) if verify else ():
        shards = Shards(folder)
        shards.verify()
        print(f"{folder}: {len(shards.manifest['files'])} files have the sha256 of the manifest")
    rows = []
    for name, source in zip(distinct_names(sources), sources, strict=True):
        for split, files in (("train", source.train), ("validation", source.validation)):
            lengths = _histogram(np.diff(files[index].documents) for index in range(len(files)))
            licenses = Counter((source.licenses or {}).get(split))
            rows.append(Row(name, split, files.documents, files.tokens, licenses, lengths))
    return [row for row in rows if row.documents]


def document_rows(folder: Path) -> list[Row]:
    """A row per source and split, from reading all documents; memory does not grow with them."""
    rows = []
    for name, splits in find_documents(folder).items():
        for split, files in splits.items():
            row = Row(name, split, 0, 0, Counter(), np.zeros(len(LENGTH_BINS) - 1, np.int64))
            for file in files:
                lengths = []
                for document in read_documents(file):
                    lengths.append(len(document["text"]))
                    row.licenses[document.get("license") or "unknown"] += 1
                row.documents += len(lengths)
                row.size += sum(lengths)
                row.lengths += _histogram([np.array(lengths)])
            rows.append(row)
    return [row for row in rows if row.documents]


def source_shares(rows: Sequence[Row], assignments: Iterable[str]) -> dict[str, float]:
    """`{source: share of the training tokens}` for NAME=SHARE words."""
    given: dict[str, float] = {}
    sizes = {row.source: row.size for row in rows if row.split == "train"}
    for text in assignments:
        name, _, value = text.rpartition("=")
        if name not in sizes:
            raise ValueError(f"--share {text!r}: expected NAME=SHARE with a NAME of {', '.join(sizes)}")
        try:
            given[name] = float(value)
        except ValueError:
            raise ValueError(f"--share {text!r}: {value!r} is not a number") from None
    shares = divide([given.get(name) for name in sizes], list(sizes.values()), list(sizes))
    return {name: float(share) for name, share in zip(sizes, shares, strict=True)}


def table(rows: Sequence[Row], unit: str, shares: dict[str, float] | None, budget: int | None) -> str:
    """The rows as aligned text, a total below; with shares also what share and how many epochs a training run gives."""
    header = ["source", "split", "documents", unit, "mean length"]
    header += ["share", "epochs"] if shares else []
    header.append("licences")
    train = sum(row.size for row in rows if row.split == "train")
    budget = budget or train
    lines = []
    for row in rows:
        cells = [row.source, row.split, f"{row.documents:,}", f"{row.size:,}", f"{row.size / row.documents:,.0f}"]
        if shares:
            share = shares[row.source] if row.split == "train" else None
            cells += ["", ""] if share is None else [f"{share:.4f}", f"{share * budget / row.size:.2f}"]
        lines.append([*cells, ", ".join(f"{name} {count:,}" for name, count in row.licenses.most_common())])
    documents, size = sum(row.documents for row in rows), sum(row.size for row in rows)
    lines.append(["total", "", f"{documents:,}", f"{size:,}", f"{size / max(documents, 1):,.0f}"])
    lines[-1] += [""] * (len(header) - len(lines[-1]))
    note = [f"epochs are those of {budget:,} training {unit}"] if shares else []
    return "\n".join([*_aligned([header, *lines], left={0, 1, len(header) - 1}), *note])


def draw(rows: Sequence[Row], unit: str, path: Path) -> None:
    """Bars of documents and size per source, and the distribution of training documents' lengths."""
    names = list(dict.fromkeys(row.source for row in rows))
    figure = Figure(figsize=(13, 1.5 + max(2.5, 0.4 * len(names))), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    for axis, title in ((axes[0], "documents"), (axes[1], unit)):
        left = np.zeros(len(names))
        for split, color in (("train", "tab:blue"), ("validation", "tab:orange")):
            chosen = [row for row in rows if row.split == split]
            values = {row.source: row.documents if title == "documents" else row.size for row in chosen}
            widths = np.array([values.get(name, 0) for name in names])
            axis.barh(names, widths, left=left, color=color, label=split)
            left += widths
        axis.invert_yaxis()
        axis.set_xlabel(title)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k instead of 500000
        axis.locator_params(axis="x", nbins=6)
    axes[1].tick_params(labelleft=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    for row in rows:
        if row.split == "train":
            axes[2].stairs(row.lengths / row.documents, LENGTH_BINS, label=row.source)
    axes[2].set(xscale="log", xlabel=f"{unit} of a training document", ylabel="share of the source's documents")
    used = np.flatnonzero(sum(row.lengths for row in rows))
    if len(used):
        axes[2].set_xlim(LENGTH_BINS[used[0]], LENGTH_BINS[used[-1] + 1])
    if axes[2].patches:
        axes[2].legend()
    figure.savefig(path, dpi=120)


def _histogram(lengths: Iterable[np.ndarray]) -> np.ndarray:
    counts = np.zeros(len(LENGTH_BINS) - 1, np.int64)
    for part in lengths:
        counts += np.histogram(np.clip(part, LENGTH_BINS[0], LENGTH_BINS[-1]), LENGTH_BINS)[0]
    return counts


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
