"""The run folder: who owns it, what it was started with, what it already holds."""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from .settings import MAY_CHANGE, Settings


def data_fingerprint(folders: list[tuple[str | Path, float | None]]) -> list[str]:
    """sha256 of what names the content of each `--data`: the manifest of its shards, or a Megatron pair's index."""
    digests = []
    for folder, _ in folders:
        path = Path(folder)
        candidates = (path / "manifest.json", path.parent / "manifest.json", path.with_name(path.name + ".idx"))
        file = next(file for file in candidates if file.is_file())
        digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return digests


def check_run_folder(settings: Settings, data_sha256: list[str]) -> Path:
    """The run folder: absent, empty, or holding this very run. ValueError names what differs when it holds another.

    `data_sha256`: see `data_fingerprint`.
    """
    run = Path(settings.out)
    file = run / "config.json"
    current = _description(settings, data_sha256)
    if file.is_file():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            differing = _differences(stored, current)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not the settings of a run ({error}); choose another --out") from None
        if differing:
            raise ValueError(f"{run} already holds a different run ({'; '.join(differing)}); choose another --out")
    elif run.is_dir() and any(run.iterdir()):
        raise ValueError(f"{run} is not empty and holds no run; choose another --out")
    return run


def begin_run(run: Path, settings: Settings, data_sha256: list[str]) -> None:
    """Create the run folder with its `config.json`; a run that is continued keeps the file it was started with."""
    file = run / "config.json"
    if not file.is_file():
        run.mkdir(parents=True, exist_ok=True)
        described = _description(settings, data_sha256) | {"versions": versions(), "commit": _commit()}
        file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _description(settings: Settings, data_sha256: list[str]) -> dict:
    """As it reads back from `config.json`: tuples are lists there."""
    return json.loads(json.dumps({"settings": asdict(settings), "data_sha256": data_sha256}))


def _differences(stored: dict, current: dict) -> list[str]:
    texts = []
    for name, value in current["settings"].items():
        before = stored["settings"][name]
        if name not in MAY_CHANGE and before != value:
            texts.append(f"--{name.replace('_', '-')} was {before}, is {value}")
    if stored["data_sha256"] != current["data_sha256"]:
        texts.append("the token shards have changed")
    return texts


def versions() -> dict[str, str]:
    """Of Python, torch and, where it is installed, Triton."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton
    except ImportError:
        return found
    return found | {"triton": triton.__version__}


def _commit() -> str | None:
    """The commit of this checkout; None outside of one."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None
