"""`--json FOLDER`: figures of a benchmark run, with the machine and versions they were measured on."""

import datetime
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", default=None, help="folder to write each benchmark's figures to")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[dict], None]:
    """Print a benchmark's figures, and write them where `--json` says."""

    def write(figures: dict) -> None:
        described = {
            "benchmark": request.node.name,
            "date": datetime.date.today().isoformat(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            **figures,
        }
        print("\n" + json.dumps(described, indent=2))
        folder = request.config.getoption("--json")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{request.node.name}.json").write_text(json.dumps(described, indent=2) + "\n")

    return write
