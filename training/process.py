"""What all processes of a run must share, and the signals that ask one to stop."""

import hashlib
import platform
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from parallel.comm import Group, gather_json

from .settings import Settings

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "model", "parallel", "data", "training")
"""Folders whose code decides what a run computes, besides train.py."""
SHARED_FOLDER_SECONDS = 3.0
"""How long a new file may take to show on the other nodes of a network file system."""


@contextmanager
def stop_signals(handler: Callable) -> Iterator[None]:
    """SIGTERM and SIGINT (a queue's time limit, Ctrl-C) call `handler` inside the block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def check_ranks_agree(settings: Settings, world: Group, device: torch.device) -> None:
    """ValueError, the same on all ranks, when one has other settings, code or versions than rank 0."""
    if world.size == 1:
        return
    files = source_sha256()
    own = {
        "host": socket.gethostname(),
        "settings": {f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()},
        "versions": {"torch": torch.__version__, "Python": ".".join(platform.python_version_tuple()[:2])},
        "code": hashlib.sha256("".join(f"{name} {files[name]}\n" for name in sorted(files)).encode()).hexdigest(),
    }
    ranks = gather_json(own, world, device)
    for rank, other in enumerate(ranks):
        for kind in ("settings", "versions"):
            name = first_difference(ranks[0][kind], other[kind])
            if name is not None:
                theirs, first = other[kind].get(name, "unknown"), ranks[0][kind].get(name, "unknown")
                raise ValueError(
                    f"rank {rank} on host {other['host']} has {name} {theirs}, rank 0 on host {ranks[0]['host']} has "
                    f"{first}; start all ranks with the same command and versions"
                )
    if any(other["code"] != own["code"] for other in ranks):
        # Lists of files only now: they are long, and every rank has seen that they are needed.
        lists = gather_json(files, world, device)
        rank, name = next((r, n) for r, other in enumerate(lists) if (n := first_difference(lists[0], other)))
        raise ValueError(
            f"rank {rank} on host {ranks[rank]['host']} runs other code than rank 0 on host {ranks[0]['host']}: "
            f"{name} differs; use the same checkout on all nodes"
        )


def source_sha256() -> dict[str, str]:
    """`{file: sha256}` of the code that a run executes, and of the kernels' tile table."""
    files = [ROOT / "train.py", ROOT / "kernels" / "tiles.json"]
    files += [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    return {str(file.relative_to(ROOT)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def first_difference(ours: dict, theirs: dict) -> str | None:
    """The first key that only one of them has or whose values differ; None where they are equal."""
    return next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)), None)


def check_out_is_shared(out: str, world: Group, device: torch.device) -> None:
    """ValueError, the same on all ranks, when one does not see what rank 0 writes in the place of `--out`.

    The place is the nearest folder above it that exists, so that a run that cannot start leaves none behind.
    """
    if world.size == 1:
        return
    error, levels, name = None, 0, f".materia-{secrets.token_hex(8)}"
    file = None
    if world.rank == 0:
        path = Path(out).absolute()
        while not path.is_dir():
            path, levels = path.parent, levels + 1
        file = path / name
        try:
            file.write_text(name, encoding="utf-8")
        except OSError as problem:
            error = f"--out {out}: rank 0 on host {socket.gethostname()} cannot write to {path} ({problem.strerror})"
    try:
        error, levels, name = gather_json((error, levels, name), world, device)[0]
        seen = error is not None or _appears(Path(out).absolute(), levels, name)
        ranks = gather_json((seen, socket.gethostname(), str(Path(out).absolute())), world, device)
    finally:
        if file is not None:
            file.unlink(missing_ok=True)
    if error is not None:
        raise ValueError(error)
    for rank, (seen, host, path) in enumerate(ranks):
        if not seen:
            raise ValueError(
                f"rank {rank} on host {host} does not see in {path} what rank 0 on host {ranks[0][1]} writes in "
                f"{ranks[0][2]}; --out must be on a file system that all nodes see"
            )


def _appears(path: Path, levels: int, name: str) -> bool:
    """Whether the file `name` holding its own name shows `levels` folders above `path`, after a while at the latest."""
    file = path.parents[levels - 1] / name if levels else path / name
    end = time.monotonic() + SHARED_FOLDER_SECONDS
    while True:
        if file.is_file() and file.read_text(encoding="utf-8") == name:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
