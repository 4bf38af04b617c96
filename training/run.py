"""The run folder: who owns it, what it was started with, what it already holds."""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from .settings import MAY_CHANGE, Settings


def describe(settings: Settings, folders: list[tuple[str, float | None]], dtype: torch.dtype) -> dict:
    """What makes a run this run: its settings, with the dtype that `auto` stands for, and its data by content.

    As it reads back from `config.json`. `data`: (sha256 of what names the content, share) of each folder.
    """
    data = [(_content_sha256(Path(folder)), share) for folder, share in folders]
    described = {"settings": asdict(settings) | {"dtype": str(dtype).removeprefix("torch.")}, "data": data}
    return json.loads(json.dumps(described))


def _content_sha256(path: Path) -> str:
    """Of the manifest of a folder of shards (and the source's name, for one of them), or of a Megatron pair's index."""
    index = path.with_name(path.name + ".idx")
    file = next(f for f in (path / "manifest.json", path.parent / "manifest.json", index) if f.is_file())
    source = path.name if file.parent != path and file != index else ""
    return hashlib.sha256(file.read_bytes() + source.encode()).hexdigest()


def check_run_folder(out: str, description: dict) -> Path:
    """The run folder: absent, empty, or holding this very run. ValueError names what differs when it holds another."""
    run = Path(out)
    file = run / "config.json"
    if file.is_file():
        try:
            differing = _differences(json.loads(file.read_text(encoding="utf-8")), description)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not the settings of a run ({error}); choose another --out") from None
        if differing:
            raise ValueError(f"{run} already holds a different run ({'; '.join(differing)}); choose another --out")
    elif run.is_dir() and any(run.iterdir()):
        raise ValueError(f"{run} is not empty and holds no run; choose another --out")
    elif run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file; choose another --out")
    return run


def begin_run(run: Path, description: dict) -> None:
    """Create the run folder with its `config.json`; a run that is continued keeps the file it was started with."""
    file = run / "config.json"
    if not file.is_file():
        run.mkdir(parents=True, exist_ok=True)
        described = description | {"versions": versions(), "commit": _commit()}
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)


def _differences(stored: dict, current: dict) -> list[str]:
    texts = []
    for name, value in current["settings"].items():
        before = stored["settings"][name]
        if name not in MAY_CHANGE and before != value:
            texts.append(f"--{name.replace('_', '-')} was {before}, is {value}")
    if stored["data"] != current["data"]:
        texts.append("--data: other token shards or shares")
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
