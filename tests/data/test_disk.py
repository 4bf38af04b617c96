"""Disk space: the estimate beside what real files took, the check before a start, the line when it runs out."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data import curate, disk
from data.disk import check_space, estimate
from data.disk_full import explain, writing
from data.readers import FORMATS
from data.units import Source, Unit, UnitFile, plan

REPOSITORY = Path(__file__).resolve().parents[2]


def unit(kind, *files, start=0, end=None):
    return Unit(0, kind, kind, tuple(UnitFile(name, Path(name), size) for name, size in files), start, end)


def test_every_kind_of_source_has_its_factors():
    assert set(FORMATS) <= set(disk.PLAIN) == set(disk.COMPRESSED)


def test_compression_and_byte_ranges_count():
    size = 10_000_000
    plain = estimate([unit("jsonl", ("a.jsonl", size))], near_duplicates=True)
    fixed = disk.UNIT_BYTES + disk.REPORT_BYTES
    assert plain - fixed == round(size * (disk.COPIES * 0.4 + 700e-6 * (disk.IDENTITY_BYTES + disk.BAND_BYTES)))
    for name in ("a.jsonl.gz", "A.JSONL.ZST", "b.tar.gz", "b.tgz"):
        assert estimate([unit("jsonl", (name, size))], near_duplicates=True) > 2 * plain, name
    assert estimate([unit("jsonl", ("b.tar", size))], near_duplicates=True) == plain
    assert estimate([unit("jsonl", ("a.jsonl", 9 * size), start=size, end=2 * size)], near_duplicates=True) == plain
    assert estimate([unit("jsonl", ("a.jsonl", size))], near_duplicates=False) < plain
    assert estimate([unit("jsonl", ("a.jsonl", size))] * 3, near_duplicates=True) == 3 * plain - 2 * disk.REPORT_BYTES


def test_the_estimate_is_somewhat_above_what_real_files_take(assets, tmp_path):
    sources = {
        "medline": assets / "medline",
        "guidelines": assets / "guidelines" / "nstg2022" / "processed_json",
        "wikipedia": assets / "general",
    }
    out = tmp_path / "out"
    settings = curate.Settings(source=tuple(f"{kind}={path}" for kind, path in sources.items()), out=str(out))
    assert curate.run(settings) == 0
    taken = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    units = [unit for kind, path in sources.items() for unit in plan(Source(kind, kind, path), 0).units]
    need = estimate(units, near_duplicates=True)
    assert taken < need < 2.5 * taken


def test_a_disk_too_small_is_said_before_the_start(tmp_path, monkeypatch):
    out = tmp_path / "not" / "yet" / "there"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000_000))
    check_space(out, 2_000_000_000)
    with pytest.raises(ValueError, match=r"there: this curation will take about 3\.5 GB more, and 2\.0 GB are free"):
        check_space(out, 3_500_000_000)
    assert not (tmp_path / "not").exists()
    out.mkdir(parents=True)
    with (out / "half").open("wb") as stream:
        os.truncate(stream.fileno(), 1_800_000_000)  # what an earlier run has written is there already
    check_space(out, 3_500_000_000)


def test_a_full_disk_is_one_line_with_file_and_remedy(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, writing(tmp_path / "units" / "a.zst"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker process
    assert explain(error) == (
        f"{tmp_path}/units/a.zst: no space left on the device; make room and run the same command again: it goes on "
        "where it was"
    )
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "other"):
        (tmp_path / "nowhere").read_bytes()
    assert explain(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/nowhere'"


def test_a_real_write_that_fails_names_its_file(tmp_path):
    program = f"""
import resource, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from data.disk_full import explain, writing
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = Path({str(tmp_path / "big")!r})
try:
    with writing(path), path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(900))
except OSError as error:
    print(explain(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/big: larger than the limit of a file's size (ulimit -f); make room")
