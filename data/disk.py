"""Disk space: what a curation will need, said before it starts.

The need is an estimate from the kind and size of the input, with factors measured on real files of each kind:
compressed output as a share of the input, and documents in a megabyte. Everything is on disk twice, in the output and
in `work/`, which keeps the texts for a run that goes on.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.files import COMPRESSIONS
from data.units import ARCHIVES, Unit

COPIES = 2.3
"""The output (zstd level 3), and the scratch copy of faster, weaker compression: 1.2 times as large, rounded up."""
IDENTITY_BYTES = 260
"""Scratch of a document besides its text: its row (43), its id (about 25) and up to five keys by which identical ones
are found (38 each). On real abstracts 173."""
BAND_BYTES = 380
"""Scratch of a document for the near-duplicate search: 25 band keys (12 each) and up to five candidates (16 each)."""

UNIT_BYTES = 20_000
"""Of the summary of a work unit, with its sample texts."""
REPORT_BYTES = 500_000
"""Of the report, its picture and the manifest."""


@dataclass(frozen=True)
class Yield:
    """What a kind of input gives: bytes of compressed output a byte, and documents a megabyte (10^6 bytes)."""

    output: float
    documents: float


PLAIN = {
    "medline": Yield(0.05, 130),
    "jats": Yield(0.15, 15),
    "s2orc": Yield(0.25, 30),
    "guidelines": Yield(0.30, 320),
    "wikipedia": Yield(0.20, 100),
    "jsonl": Yield(0.40, 700),
    "text": Yield(0.35, 10),
}
COMPRESSED = {
    "medline": Yield(0.28, 700),
    "jats": Yield(0.60, 50),
    "s2orc": Yield(0.80, 100),
    "guidelines": Yield(1.00, 1000),
    "wikipedia": Yield(0.70, 400),
    "jsonl": Yield(1.20, 2000),
    "text": Yield(1.00, 30),
}
"""Measured, rounded up: MEDLINE of 2021 gave 0.204 and 336 documents compressed (its records are long; of older years
twice as many fit), 0.037 and 61 plain; JATS 0.57 and 44, 0.13 and 10; guidelines as JSON 0.28 and 309; Wikipedia 0.64
and 63, 0.18 and 17 (long articles; short ones are more); S2ORC 0.16 (mostly metadata); plain text 0.33. The others
follow from these."""


def estimate(units: Iterable[Unit], *, near_duplicates: bool) -> int:
    """Bytes of disk that a curation of these units takes when it is finished, scratch included."""
    scratch = IDENTITY_BYTES + (BAND_BYTES if near_duplicates else 0)
    need = float(REPORT_BYTES)
    for unit in units:
        need += UNIT_BYTES
        for size, compressed in _parts(unit):
            gives = (COMPRESSED if compressed else PLAIN)[unit.kind]
            need += size * (COPIES * gives.output + gives.documents / 1e6 * scratch)
    return round(need)


def _parts(unit: Unit) -> Iterator[tuple[int, bool]]:
    """(bytes, whether compressed) of what a unit reads."""
    if unit.end is not None:  # a byte range: never of a compressed file
        yield unit.size, False
        return
    for file in unit.files:
        name = file.name.lower()
        yield file.size, name.endswith(COMPRESSIONS) or (name.endswith(ARCHIVES) and not name.endswith(".tar"))


def check_space(out: Path, need: int) -> None:
    """ValueError when the file system of `out` has no room for the rest of `need` bytes; what `out` holds counts."""
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.is_dir() else 0
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < need - held:
        raise ValueError(
            f"--out {out}: this curation will take about {gigabytes(need - held)} more, and {gigabytes(free)} are "
            "free there; make room, or name another --out"
        )


def gigabytes(size: float) -> str:
    """`1.2 GB`; small sizes in MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
