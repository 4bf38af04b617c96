"""The rules of the house: who may import whom, and how long a file may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"kernels", "data", "parallel", "model", "evaluation", "training", "train", "eval"}
MAY_IMPORT = {
    "kernels": set(),
    "data": set(),
    "parallel": {"kernels"},
    "model": {"kernels", "parallel"},
    "evaluation": {"kernels", "data", "parallel", "model"},
    "training": {"data", "parallel", "model"},
}
COMMANDS = {"parallel/check.py"}
"""Run by users and imported by nothing of ours, as train.py is; it may import every room."""
FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_follow_the_plan(room):
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == room]
    assert files
    for path in files:
        if str(path.relative_to(ROOT)) in COMMANDS:
            continue
        rooms = {name.split(".")[0] for name in imported(path)} & OURS
        assert rooms <= MAY_IMPORT[room] | ({room} if room != "kernels" else set()), path


def test_nothing_imports_a_command():
    names = {command.removesuffix(".py").replace("/", ".") for command in COMMANDS}
    for path in [*FILES, ROOT / "train.py", ROOT / "eval.py"]:
        assert not names & set(imported(path)), path


def test_only_comm_and_grid_speak_to_the_network():
    """train.py uses torchrun's error file, which is no communication."""
    doors = tuple(ROOT / "parallel" / f"{name}.py" for name in ("comm", "grid", "launch", "watch"))
    for path in {*FILES, ROOT / "train.py", ROOT / "eval.py"} - set(doors):
        text = path.read_text(encoding="utf-8").replace("torch.distributed.elastic.multiprocessing.errors", "")
        assert "torch.distributed" not in text or "not even torch.distributed" in text, path
        assert "import distributed" not in text, path


def test_files_stay_readable():
    for path in [*FILES, ROOT / "train.py", ROOT / "eval.py"]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
