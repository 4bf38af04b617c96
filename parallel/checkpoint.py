"""Checkpoints on disk: which there are, which are kept, and the training state in them.

A checkpoint folder is a Hugging Face directory with a `training/` folder beside the weights. Every rank writes
`training/optimizer-RANK.safetensors`; each tensor in it is one rectangle, keyed `state|Hugging Face name|offsets`, so a
run of any other layout finds its own part. `training/optimizer.index.json` says which files hold parts of a tensor, and
how long each file is.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .optimizer import Optimizer
from .snapshot import local_rectangles, rectangle_key

OPTIMIZER_INDEX = "optimizer.index.json"


def checkpoint_folders(run: Path) -> list[Path]:
    """Whole checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))


def delete_older(run: Path, keep_last: int, keep_every: int) -> None:
    """Delete all checkpoints but the last `keep_last` (0: none is deleted) and those of steps that are multiples of
    `keep_every` (0: no such). OSError says that it could not.
    """
    if keep_last == 0:
        return
    for folder in checkpoint_folders(run)[:-keep_last]:
        if keep_every and int(folder.name.removeprefix("step-")) % keep_every == 0:
            continue
        hidden = folder.with_name(f".{folder.name}.deleted")
        try:
            folder.rename(hidden)  # half deleted it must not look like a checkpoint
            shutil.rmtree(hidden)
        except OSError as error:
            raise OSError(f"the older checkpoint {folder} cannot be deleted ({error})") from None


def write_optimizer_index(folder: Path, written: dict[str, dict]) -> None:
    """`written`: `{path: {"bytes", "tensors": Hugging Face names}}` of a checkpoint's files; paths from `folder`'s
    parent on.
    """
    prefix = f"{folder.name}/"
    files = {path.removeprefix(prefix): file for path, file in written.items() if path.startswith(prefix)}
    holding: dict[str, list[str]] = {}
    for path, file in sorted(files.items()):
        for name in file["tensors"]:
            holding.setdefault(name, []).append(path)
    index = {"files": {path: file["bytes"] for path, file in files.items()}, "weight_map": holding}
    (folder / OPTIMIZER_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """Fill this rank's shards from the rectangles of whatever layout wrote them, reading only what they need.

    `folder`: a checkpoint's `training/`. ValueError names what is missing or damaged.
    """
    stored = _StoredState(folder)
    for record, offsets, shape, shard, place in local_rectangles(optimizer):
        for state, values in shard.state().items():
            target = values[place].view(shape)
            covered = 0
            for at_mine, part in stored.parts(state, record.name, offsets, shape):
                target[at_mine].copy_(part)
                covered += part.numel()
            if covered != target.numel():
                raise ValueError(
                    f"{folder}: {state} of {record.name} is incomplete ({covered} of {target.numel()} values at "
                    f"{offsets}); resume from an earlier checkpoint"
                )


@dataclass
class _StoredFile:
    path: Path
    tensors: safe_open = field(repr=False)
    rectangles: dict[tuple[str, str], list[tuple[tuple[int, ...], tuple[int, ...]]]]
    """(offsets, shape) by state and Hugging Face name."""


class _StoredState:
    """The optimizer files of a checkpoint, opened as they are needed: of 1,000 ranks none opens 1,000 files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / OPTIMIZER_INDEX
        if not index.is_file():
            raise ValueError(f"{index} is missing; this checkpoint cannot be resumed, only loaded with --model")
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            self.sizes, self.holding = dict(content["files"]), dict(content["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: cannot be read ({error}); resume from an earlier checkpoint") from None
        self.files: dict[str, _StoredFile] = {}

    def parts(
        self, state: str, name: str, offsets: tuple[int, ...], shape: tuple[int, ...]
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """What is stored of a rectangle: (where in it, values)."""
        for path in self.holding.get(name, ()):
            file = self._open(path)
            for theirs, their_shape in file.rectangles.get((state, name), ()):
                overlap = _overlap(offsets, shape, theirs, their_shape)
                if overlap is not None:
                    at_mine, at_theirs = overlap
                    yield at_mine, file.tensors.get_slice(rectangle_key(state, name, theirs))[at_theirs]

    def _open(self, name: str) -> _StoredFile:
        if name in self.files:
            return self.files[name]
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{path}: named in {OPTIMIZER_INDEX} but missing; resume from an earlier checkpoint")
        if path.stat().st_size != self.sizes.get(name):
            raise ValueError(
                f"{path}: damaged optimizer file ({path.stat().st_size} bytes, {OPTIMIZER_INDEX} says "
                f"{self.sizes.get(name)}); resume from an earlier checkpoint"
            )
        found: dict = {}
        try:
            tensors = safe_open(path, framework="pt")
            for key in tensors.keys():  # noqa: SIM118 (safe_open is not a dict)
                state, tensor, offsets = key.split("|")
                place = tuple(int(value) for value in offsets.split(","))
                found.setdefault((state, tensor), []).append((place, tuple(tensors.get_slice(key).get_shape())))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: damaged optimizer file ({error}); resume from an earlier checkpoint") from None
        self.files[name] = _StoredFile(path, tensors, found)
        return self.files[name]


def _overlap(mine: tuple, my_shape: tuple, theirs: tuple, their_shape: tuple) -> tuple[tuple, tuple] | None:
    """Slices of the common part of two rectangles of one tensor, within mine and within theirs."""
    at_mine, at_theirs = [], []
    for a, n, b, m in zip(mine, my_shape, theirs, their_shape, strict=True):
        low, high = max(a, b), min(a + n, b + m)
        if low >= high:
            return None
        at_mine.append(slice(low - a, high - a))
        at_theirs.append(slice(low - b, high - b))
    return tuple(at_mine), tuple(at_theirs)


STATE = {"schema": int, "step": int, "next_sample": int, "tokens": int, "skipped": list, "optimizer_steps": int}
"""Keys of `state.json` that a resume needs, and their types."""

SCHEMA = 1


def write_state(folder: Path, state: dict) -> None:
    """`state.json`: step, data position, layout; plain JSON. `schema` is added."""
    (folder / "state.json").write_text(json.dumps({"schema": SCHEMA, **state}, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict:
    """`state.json` of a checkpoint's `training/` folder; ValueError names the file if it cannot be used."""
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        wrong = [key for key, kind in STATE.items() if not isinstance(state[key], kind)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); resume from an earlier checkpoint") from None
    if wrong or state["schema"] != SCHEMA:
        raise ValueError(
            f"{file}: schema {state['schema']}, or a wrong {', '.join(wrong) or 'version'}; this is {SCHEMA}"
        )
    return state
