"""Where training finds tokens: folders of token shards, one source of such a folder, or a Megatron pair of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.megatron import find_megatron, open_megatron
from data.shards import Shards, SplitShards


@dataclass(frozen=True)
class Source:
    """One source of one folder of shards; the tokenizer's facts are None where they are not known (Megatron files).

    `licenses` counts documents by split and licence; None where the files do not say.
    """

    name: str
    folder: Path
    train: SplitShards
    validation: SplitShards
    tokenizer_sha256: str | None
    vocab_size: int | None
    tokenizer_path: Path | None
    licenses: dict[str, dict[str, int]] | None = None


def open_sources(path: str | Path) -> list[Source]:
    """Sources of a folder of shards, of one source folder `SHARDS/<name>`, or of a Megatron pair of files."""
    path = Path(path)
    if prefix := find_megatron(path):
        return [Source(prefix.name, prefix, open_megatron(prefix), SplitShards(), None, None, None)]
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder of token shards; make one with `python -m data tokenize`")
    root, names = path, None
    if not (path / "manifest.json").exists() and (path.parent / "manifest.json").exists():
        root, names = path.parent, [path.name]
    shards = Shards(root)
    if names and names[0] not in shards.sources:
        raise ValueError(f"{path}: not a source of {root}, which has {', '.join(shards.sources)}")
    return [
        Source(
            name, root, splits["train"], splits["validation"],
            shards.tokenizer_sha256, shards.vocab_size, shards.tokenizer_path,
            {split: counts["licenses"] for split, counts in shards.manifest["sources"][name].items()},
        )
        for name, splits in shards.sources.items()
        if names is None or name in names
    ]  # fmt: skip


def distinct_names(sources: Sequence[Source]) -> tuple[str, ...]:
    """A name for each source; one whose name is in two folders is called FOLDER/NAME. ValueError for what is given
    twice."""
    short = [source.name for source in sources]
    names = tuple(
        name if short.count(name) == 1 else f"{source.folder.name}/{name}"
        for name, source in zip(short, sources, strict=True)
    )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice; name each source once")
    return names
