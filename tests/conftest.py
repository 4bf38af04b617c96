"""What every test may use: the real-data folder, and Triton's interpreter where there is no GPU."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# A busy machine may be slow at any example: time is not what these tests are about.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton at import: without a GPU its kernels run on the CPU


def pytest_addoption(parser):
    parser.addoption(
        "--every-table",
        action="store_true",
        help="compile all kernels for all GPUs with both Triton versions (minutes)",
    )
    parser.addoption(
        "--every-layout", action="store_true", help="all layouts, not only a covering set (an hour or more)"
    )
    parser.addoption("--large", action="store_true", help="runs of 64 processes (minutes, 14 GB)")


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` are skipped, saying so, where there is none, and `large` ones unless they are asked for."""
    missing = {} if torch.cuda.is_available() else {"gpu": "needs a CUDA GPU"}
    if not config.getoption("--large"):
        missing["large"] = "64 processes: run with --large"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real data files: `MATERIA_ASSETS`, else the default place beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "assets"
    path = Path(os.environ.get("MATERIA_ASSETS", default))
    if not path.is_dir():
        pytest.skip(f"real data files not found at {path}; set MATERIA_ASSETS to their folder")
    return path
