"""A disk that runs full: which file it was, and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than the limit of a file's size (ulimit -f)",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an error of a full disk: a failing write, other than a failing open, does not say it."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def explain(error: OSError) -> str:
    """The line for a user: of a full disk with the remedy, of anything else what the system says."""
    if error.errno not in FULL:
        return str(error)
    name = error.filename or "the output"
    return f"{name}: {FULL[error.errno]}; make room and run the same command again: it goes on where it was"
