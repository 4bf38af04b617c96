"""Training state on disk: the optimizer's shards as rectangles of Hugging Face tensors, and checkpoints that exist
whole or not at all.

A checkpoint folder is a Hugging Face directory with a `training/` folder beside the weights. Every rank writes
`training/optimizer-RANK.safetensors`; each tensor in it is one rectangle, keyed `state|Hugging Face name|offsets`, so a
run of any other layout finds its own part.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .comm import barrier
from .grid import Grid
from .optimizer import Optimizer, Shard
from .parameter import Record, rectangles


def checkpoint_folders(run: Path) -> list[Path]:
    """Whole checkpoints of a run folder, oldest first."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))


@contextmanager
def publish(folder: Path, grid: Grid, device: torch.device) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends: every file synced to disk, then renamed by rank 0.

    All ranks enter together; each syncs what it wrote itself (`sync`), rank 0 all the rest. If one fails the folder
    never appears; a leftover of an earlier failure is replaced.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    if grid.world.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "training").mkdir(parents=True)
    barrier(grid.world, device)
    yield temporary
    barrier(grid.world, device)
    if grid.world.rank == 0:
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        temporary.rename(folder)
        sync(folder.parent)
    barrier(grid.world, device)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, from this host's memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """This rank's shard, cut into rectangles, as `optimizer-RANK.safetensors` (accumulation dtype)."""
    tensors = {}
    for record, offsets, shape, shard, local in _local_rectangles(optimizer):
        if record.replicas > 1 and optimizer.grid.tp.rank:
            continue  # the first rank of tp writes for all
        for state, values in shard.state().items():
            tensors[_key(state, record.name, offsets)] = values[local].view(shape)
    file = folder / f"optimizer-{optimizer.grid.world.rank:05d}.safetensors"
    save_file(tensors, file)
    sync(file)  # on a shared file system rank 0 cannot do it for other hosts


def load_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """Fill this rank's shard from the rectangles of whatever layout wrote them; ValueError names what is missing or
    damaged.
    """
    stored = _stored_rectangles(folder)
    handles = {}
    try:
        for record, offsets, shape, shard, local in _local_rectangles(optimizer):
            name = record.name
            for state, values in shard.state().items():
                target = values[local].view(shape)
                covered = 0
                for file, theirs, their_shape in stored.get((state, name), ()):
                    overlap = _overlap(offsets, shape, theirs, their_shape)
                    if overlap is None:
                        continue
                    mine_at, theirs_at = overlap
                    if file not in handles:
                        handles[file] = safe_open(file, framework="pt")
                    part = handles[file].get_slice(_key(state, name, theirs))[theirs_at]
                    target[mine_at].copy_(part)
                    covered += part.numel()
                if covered != target.numel():
                    raise ValueError(
                        f"{folder}: {state} of {name} is incomplete ({covered} of {target.numel()} values)"
                    )
    except SafetensorError as error:
        raise ValueError(f"{folder}: damaged optimizer file ({error}); resume from an earlier checkpoint") from None


def _key(state: str, name: str, offsets: tuple[int, ...]) -> str:
    return f"{state}|{name}|{','.join(map(str, offsets))}"


def _local_rectangles(optimizer: Optimizer) -> Iterator[tuple[Record, tuple[int, ...], tuple[int, ...], Shard, slice]]:
    """(record, offsets, shape, shard, where in the shard) of everything this rank's shards hold."""
    for shard in optimizer.shards:
        for parameter in (parameter for weight in shard.bucket.weights for parameter in weight.parameters):
            start, end = max(parameter.start, shard.start), min(parameter.end, shard.end)
            if start >= end:
                continue
            for first, offsets, shape in rectangles(parameter.record, start - parameter.start, end - parameter.start):
                at = parameter.start + first - shard.start
                yield parameter.record, offsets, shape, shard, slice(at, at + torch.Size(shape).numel())


def _stored_rectangles(folder: Path) -> dict[tuple[str, str], list[tuple[Path, tuple[int, ...], tuple[int, ...]]]]:
    files = sorted(folder.glob("optimizer-*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder}: no optimizer-*.safetensors; this checkpoint cannot be resumed, only loaded with --model"
        )
    stored: dict = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (safe_open is not a dict)
                    state, name, offsets = key.split("|")
                    place = tuple(int(value) for value in offsets.split(","))
                    stored.setdefault((state, name), []).append(
                        (file, place, tuple(tensors.get_slice(key).get_shape()))
                    )
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file}: damaged optimizer file ({error}); resume from an earlier checkpoint") from None
    return stored


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
