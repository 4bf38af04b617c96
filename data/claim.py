"""The output folder of a curation: which run it holds, and one run at a time in it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.documents import temporary_name
from data.lock import locked


@contextmanager
def claimed(out: Path, identity: dict) -> Iterator[None]:
    """The output folder made ready and locked. ValueError when it holds another run, other files, or is in use.

    `identity` says which run this is; a stopped one with the same identity goes on.
    """
    record, work = out / "run.json", out / "work"
    if out.exists() and not (out.is_dir() and (record.exists() or {path.name for path in out.iterdir()} <= {"work"})):
        raise ValueError(f"--out {out} exists and is no curation folder; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(mode=0o700, exist_ok=True)  # raw text may be confidential, also while it is on its way
    with locked(work / "lock", out, "curation"):
        if record.exists():
            _check_same_run(record, identity, out)
        for folder in ("units", "duplicates"):
            (work / folder).mkdir(exist_ok=True)
        for leftover in out.rglob("*.part-*"):
            leftover.unlink()
        temporary = temporary_name(work / "run.json")
        temporary.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(record)
        (out / "report.json").unlink(missing_ok=True)  # its presence means that the output is whole
        yield


def _check_same_run(record: Path, identity: dict, out: Path) -> None:
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record}: not readable ({error}); delete --out {out} and curate again") from error
    differing = [key for key in identity if held.get(key) != identity[key]]
    if differing:
        key = differing[0]
        change = f"{key} was {json.dumps(held.get(key))}, now {json.dumps(identity[key])}"
        raise ValueError(f"--out {out} holds a different run ({change}); choose another --out or delete it")


def log(out: Path, message: str) -> None:
    """A line in `run.log`, the one file that may hold times and absolute paths."""
    with (out / "run.log").open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
