"""Recipes: the commands in them are ones that our commands accept, with MEDITRON's figures."""

import re
import shlex
from pathlib import Path

import pytest

from data import curate, inspect, tokenize
from data.settings import parse
from training.settings import Settings as TrainSettings

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
COMMANDS = {
    "python -m data curate": curate.Settings,
    "python -m data tokenize": tokenize.Settings,
    "python -m data inspect": inspect.Settings,
    "train.py": TrainSettings,
}


def commands(name):
    """`{command: its settings}` of a recipe, variables replaced by a number."""
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.split("\n") if not line.startswith(("#", "set", "MODEL", "RAW"))]
    found = {}
    for line in filter(None, lines):
        command = next(command for command in COMMANDS if f"{command} " in line)
        words = shlex.split(re.sub(r"\$[A-Z]+", "1", line.partition(f"{command} ")[2]))
        found[command] = parse(COMMANDS[command], words, program=command, description="")
    return found


def test_gap_replay():
    found = commands("gap-replay.sh")
    assert list(found) == list(COMMANDS)[:3]
    assert found["python -m data curate"].special_tokens
    assert found["python -m data tokenize"].special_tokens == ()  # all of them
    assert found["python -m data inspect"].share == ("replay=0.01",)


@pytest.mark.parametrize(
    ("name", "tokens", "processes"), [("meditron-7b.sh", 46.7e9, 4 * 16), ("meditron-70b.sh", 48.2e9, 2 * 8 * 8)]
)
def test_training(name, tokens, processes):
    settings = commands(name)["train.py"]
    assert settings.steps * settings.global_batch_size * settings.sequence_length == pytest.approx(tokens, rel=0.01)
    replicas = processes // (settings.tp * settings.pp)
    assert settings.global_batch_size % (replicas * settings.micro_batch_size) == 0
    assert "shards/replay=0.01" in settings.data
    sources = {folder.partition("=")[0].removeprefix("shards/") for folder in settings.data}
    curated = commands("gap-replay.sh")["python -m data curate"].source
    assert sources == {source.partition("=")[0].rpartition(":")[2] for source in curated}
