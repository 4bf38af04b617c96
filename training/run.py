"""The run folder: who owns it, what it was started with, what it already holds."""

import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from .settings import MAY_CHANGE, Settings


def claim(settings: Settings, data_fingerprint: list[str]) -> Path:
    """Create the run folder with its `config.json`, or check that it holds this very run; returns its path.

    `data_fingerprint`: sha256 of each manifest. ValueError names what differs when the folder holds another run.
    """
    run = Path(settings.out)
    file = run / "config.json"
    current = {"settings": asdict(settings), "data_sha256": data_fingerprint}
    current = json.loads(json.dumps(current))  # tuples become lists, as in the file
    if file.is_file():
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            differing = _differences(stored, current)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not the settings of a run ({error}); choose another --out") from None
        if differing:
            raise ValueError(f"{run} already holds a different run ({'; '.join(differing)}); choose another --out")
        return run
    if run.is_dir() and any(run.iterdir()):
        raise ValueError(f"{run} is not empty and holds no run; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    described = current | {"versions": versions(), "commit": _commit()}
    file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return run


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
