"""Writing a checkpoint beside the training, and making it appear whole or not at all.

One thread a rank writes and issues no collective. Ranks tell of their files in the store where the processes met; when
all have, rank 0 checks the files, adds its own, syncs and renames the folder. Every thread ends with the same outcome.
"""

import itertools
import json
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .comm import Group
from .host_file import Cancelled, HostFile, sync
from .snapshot import tensor_names

SLOWEST = 3600.0
"""Seconds that rank 0 waits for the others' files after its own are written."""
APPEARS = 30.0
"""Seconds a file of another node may take to show with its full size on a network file system."""


class Store(Protocol):
    """What of a c10d store is used."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def add(self, key: str, amount: int) -> int: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...
    def delete_key(self, key: str) -> bool: ...


@dataclass(frozen=True)
class Save:
    """One checkpoint to be written."""

    folder: Path
    files: Sequence[HostFile]
    """Those of this rank."""
    ready: Callable[[], None]
    """Waits until the files' memory is filled."""
    complete: Callable[[Path, dict[str, dict]], None]
    """Called on rank 0 with the temporary folder and `{path: {"bytes", "tensors": Hugging Face names}}` of all ranks'
    files, to write what else belongs to the checkpoint.
    """
    published: Callable[[], None]
    """Called on rank 0 once the checkpoint is whole under its name."""

    @property
    def temporary(self) -> Path:
        """Where it is written: never taken for a checkpoint."""
        return self.folder.with_name(f".{self.folder.name}.tmp")


class Writer:
    """Writes one checkpoint at a time in a thread. All ranks make their writers in the same order."""

    made = itertools.count()

    def __init__(self, world: Group, store: Store | None) -> None:
        """`store`: a connection that only this writer uses; None in a group of one."""
        assert (store is None) == (world.size == 1)
        self.number = next(Writer.made)
        self.world, self.store = world, store
        self.error: str | None = None
        """Why the last checkpoint is not there; the same line on all ranks once all have ended."""
        self.saves = 0
        self.save: Save | None = None
        self.thread: threading.Thread | None = None
        self.cancelled = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self.thread is not None and self.thread.is_alive()

    def begin(self, save: Save) -> None:
        """Start writing; the one before must have ended (`wait`). All ranks begin the same saves in the same order."""
        assert not self.busy
        self.saves += 1
        self.save = save
        self.thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint is whole; ValueError if it could not be written."""
        if self.thread is not None:
            self.thread.join()
        if self.error is not None:
            raise ValueError(self.error)

    def cancel(self) -> None:
        """Stop writing: the run ends with an error, and nothing may appear any more."""
        self.cancelled.set()

    # --- the thread ---

    def _run(self) -> None:
        try:
            self.save.ready()
            for file in self.save.files:
                file.write(self.save.temporary, self.cancelled.is_set)
            written = {f.path: {"bytes": f.nbytes, "tensors": tensor_names(f)} for f in self.save.files}
            if self.world.rank == 0:
                self._publish(written)
            else:
                self._announce(written)
                self._pause_until(self._has_outcome)
            outcome = self._has_outcome() and self.store.get(self._key("outcome")).decode()
            self.error = outcome or None
        except Cancelled:
            return
        except Exception as error:
            self.error = self._failed(error)

    def _key(self, name: str) -> str:
        return f"writer-{self.number}/save-{self.saves}/{name}"

    def _has_outcome(self) -> bool:
        return self.store is not None and self.store.check([self._key("outcome")])

    def _failed(self, error: Exception) -> str:
        """Tell all ranks; the first failure is everybody's."""
        place = f"rank {self.world.rank} on host {socket.gethostname()}: " if self.store is not None else ""
        text = f"checkpoint {self.save.folder}: {place}{error}; make room on the disk or repair it, then start again"
        if self.store is not None:
            try:
                text = self.store.compare_set(self._key("outcome"), "", text).decode()
            except RuntimeError:  # the store is gone, and with it the run: others report that
                return text
        if not isinstance(error, (OSError, ValueError)):
            traceback.print_exception(error)
        return text

    def _announce(self, written: dict[str, dict]) -> None:
        self.store.set(self._key(f"files/{self.world.rank}"), json.dumps(written))
        self.store.add(self._key("written"), 1)

    def _publish(self, written: dict[str, dict]) -> None:
        """Rank 0: wait for the others' files and make the checkpoint appear."""
        if self.store is not None:
            others = self.world.size - 1
            self._pause_until(lambda: self._has_outcome() or self.store.add(self._key("written"), 0) == others, SLOWEST)
            if self._has_outcome():
                return
            keys = [self._key(f"files/{rank}") for rank in range(1, self.world.size)]
            for text in self.store.multi_get(keys):
                written |= json.loads(text)
            for key in keys:
                self.store.delete_key(key)
        save, temporary = self.save, self.save.temporary
        for path, file in written.items():
            self._check_size(temporary / path, file["bytes"])
        save.complete(temporary, written)
        for path in [*(p for p in temporary.rglob("*") if str(p.relative_to(temporary)) not in written), temporary]:
            sync(path)
        if self.cancelled.is_set():
            raise Cancelled
        temporary.rename(save.folder)
        sync(save.folder.parent)
        save.published()
        if self.store is not None:
            self.store.set(self._key("outcome"), "")

    def _check_size(self, file: Path, nbytes: int) -> None:
        if not self._pause_until(lambda: file.is_file() and file.stat().st_size == nbytes, APPEARS, must=False):
            found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            raise OSError(f"{file}: {nbytes} bytes were written, rank 0 sees {found}")

    def _pause_until(self, condition: Callable[[], bool], seconds: float = float("inf"), *, must: bool = True) -> bool:
        """Ask again and again, ever less often. `must`: OSError when it does not come true in time."""
        end, pause = time.monotonic() + seconds, 0.01
        while not (met := condition()) and time.monotonic() < end:
            if self.cancelled.wait(pause):
                raise Cancelled
            pause = min(1.0, 1.5 * pause)
        if must and not met:
            raise OSError(f"not all ranks have written their files within {seconds:g} s")
        return met


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left half written or half deleted in a folder of checkpoints."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
