"""CPU time of a step of curation beside a peer's, in one run: the two sides take turns, the best round of each counts.

Peers live in a Python of their own, which the environment variable MATERIA_PEERS names (default: the one that runs the
benchmarks), because their requirements contradict ours and each other's. So a peer is a script: Python source that gets
its arguments in `sys.argv[1:]`, loads everything before it starts its clock, and prints as its last line a JSON object
with `cpu_seconds`, the difference of two `time.process_time()`. Whatever else the object holds (documents, characters)
is handed on, so that a benchmark can show that both sides did the same work.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
"""Where the real files lie unless MATERIA_ASSETS says otherwise."""
NOT_INSTALLED = ("ModuleNotFoundError", "ImportError")


def real_file(*parts: str) -> Path:
    """A file or folder of the real data; skips the benchmark, saying so, where it is absent."""
    path = Path(os.environ.get("MATERIA_ASSETS", ASSETS)).joinpath(*parts).resolve()
    if not path.exists():
        pytest.skip(f"real data not found at {path}; set MATERIA_ASSETS to its folder")
    return path


def measure(ours: Callable[[], object], peer_script: str, arguments: Sequence[str], rounds: int = 3) -> dict:
    """CPU seconds of both sides, the best of `rounds` each, and how many times faster ours is.

    Args:
        ours: does the work once; all threads of this process are counted, child processes are not.
        peer_script: source of the peer's script (see above).
        arguments: its arguments; paths must be absolute, as it runs in an empty folder.
        rounds: how often each side runs, in turns.

    Returns `ours_seconds`, `peer_seconds`, `ratio` (peer / ours), `peer` (the JSON object of its best round) and
    `reason`. Without the peer, `reason` says why, and `peer_seconds`, `ratio` and `peer` are None. Raises RuntimeError
    with the peer's output when it is there and fails.
    """
    ours_seconds: list[float] = []
    peers: list[dict] = []
    reason = None
    for _ in range(rounds):
        start = time.process_time()
        ours()
        ours_seconds.append(time.process_time() - start)
        if reason is None:
            found, reason = _run_peer(peer_script, arguments)
            peers += [found] if found else []
    best = min(peers, key=lambda peer: peer["cpu_seconds"], default=None) if reason is None else None
    return {
        "ours_seconds": min(ours_seconds),
        "peer_seconds": best["cpu_seconds"] if best else None,
        "ratio": best["cpu_seconds"] / min(ours_seconds) if best else None,
        "peer": best,
        "reason": reason,
    }


def _run_peer(script: str, arguments: Sequence[str]) -> tuple[dict | None, str | None]:
    """What one run of the peer printed, or why there is no peer."""
    python = os.environ.get("MATERIA_PEERS", sys.executable)
    with tempfile.TemporaryDirectory() as folder:  # not here, where our packages would hide the peer's of the same name
        command = [python, "-I", "-c", script, *arguments]
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return json.loads(finished.stdout.strip().splitlines()[-1]), None
    last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
    if last.startswith(NOT_INSTALLED):
        return None, last
    raise RuntimeError(f"the peer failed:\n{finished.stdout}{finished.stderr}")


def row(name: str, figures: dict, bar: float) -> str:
    """One line for people: both times, the ratio, the bar and whether it was reached."""
    ours = f"{name}: ours {figures['ours_seconds']:.3f} s of CPU"
    if figures["ratio"] is None:
        return f"{ours}; peer not measured ({figures['reason']})"
    reached = "reached" if figures["ratio"] >= bar else "NOT reached"
    return f"{ours}, peer {figures['peer_seconds']:.3f} s, ratio {figures['ratio']:.2f}x; bar {bar:g}x {reached}"
