"""`provenance.json`: from which bytes, by which settings and versions a corpus was made, and the sha256 of its files.

It is not named `manifest.json`, by which a folder of token shards is known.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from data.files import walk
from data.settings import parse_assignment
from data.shared import Shared, library_versions
from data.summary import Summary
from data.units import Plan, Unit

MANIFEST_FILE = "provenance.json"
NO_INFLUENCE = ("out", "workers", "memory")
"""Settings that change nothing in the output."""
BY_CONTENT = ("source", "benchmark", "tokenizer")
"""Settings that are paths: what they name is told by its sha256."""
BENCHMARK_SUFFIXES = (".json", ".jsonl", ".csv")


def manifest(
    settings: Mapping,
    sources: Mapping[str, str],
    plans: Sequence[Plan],
    summaries: Sequence[Summary],
    shared: Shared,
    files: Mapping[str, Mapping],
) -> dict:
    """The content of the file. `settings` are those of `data.curate`, `sources` kinds by name in the order of `plans`,
    `summaries` those of all units, `files` the `file_entry` of each file written."""
    plain = {key: value for key, value in settings.items() if key not in (*NO_INFLUENCE, *BY_CONTENT)}
    rest = iter(summaries)
    return {
        "schema": "materia corpus provenance",
        "version": 1,
        "settings": plain,
        "sources": [
            {"name": name, "kind": kind,
             "files": [entry for unit in planned.units for entry in _unit_files(unit, next(rest))]}
            for (name, kind), planned in zip(sources.items(), plans, strict=True)
        ],
        "benchmarks": [_benchmark(text) for text in settings["benchmark"]],
        "tokenizer": shared.tokenizer_sha256,
        "versions": {
            "python": platform.python_version(),
            "code": shared.code,
            **library_versions(),
            "matplotlib": version("matplotlib"),
        },
        "files": dict(sorted(files.items())),
    }  # fmt: skip


def file_entry(path: Path, content: bytes | None = None) -> dict:
    """`{"bytes", "sha256"}` of a file, or of the `content` that it will have."""
    if content is not None:
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _unit_files(unit: Unit, summary: Summary) -> list[dict]:
    """The files of a unit. Of a byte range the lines are hashed that begin in it; of a file that could not be read
    there is no hash."""
    entries = []
    for file in unit.files:
        digest = summary.files[file.name]
        entry = {"name": file.name, "bytes": unit.size if unit.end is not None else file.size}
        entry["sha256"] = None if digest.startswith("unreadable") else digest
        if unit.end is not None:
            entry["range"] = [unit.start, unit.end]
        entries.append(entry)
    return entries


def _benchmark(assignment: str) -> dict:
    name, path = parse_assignment(assignment, "--benchmark")
    found = walk(path) if path.is_dir() else [(path.name, path)]
    files = [{"name": file, **file_entry(place)} for file, place in found if file.endswith(BENCHMARK_SUFFIXES)]
    return {"name": name, "files": files}
