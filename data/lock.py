"""One run at a time in an output folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, folder: Path, command: str) -> Iterator[None]:
    """Holds the lock file `path` (its folder is made); ValueError when another `command` is writing to `folder`.

    The system frees the lock when the process ends, however it ends: a killed run leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--out {folder} is in use by another {command}; wait for it or choose another --out"
            ) from error
        yield
