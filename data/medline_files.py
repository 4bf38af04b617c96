"""The files in which NLM publishes MEDLINE: their order, which are missing, and whether they arrived whole.

A year's files are numbered through: the baseline first (`pubmed24n0001.xml.gz` ...), then the daily update files, which
revise and delete what came before. So they must be read in the order of their numbers, whatever folder they lie in.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from data.files import READ_SIZE, DamagedFile, without_compression

_RELEASE = re.compile(r"((?:pubmed|medline)(\d\d)n)(\d{4,})\.(?:.*\.)?xml")
_DIGEST = r"(?P<digest>[0-9a-f]{32})"
_MD5_LINES = (
    re.compile(rf"MD5 ?\((?P<name>[^()]+)\) ?= ?{_DIGEST}", re.IGNORECASE),  # NLM's
    re.compile(rf"{_DIGEST} [ *](?P<name>.+)", re.IGNORECASE),  # md5sum's
)


def _release(name: str) -> tuple[int, str, int] | None:
    """Year, what stands before the number, and number of a file of a release; None for any other file."""
    match = _RELEASE.fullmatch(without_compression(name))
    if match is None:
        return None
    year = int(match.group(2))
    return (2000 if year < 60 else 1900) + year, match.group(1), int(match.group(3))  # MEDLINE began in 1964


def release_order(name: str) -> tuple[int, int, int, str]:
    """What to sort file names by: those of releases by year and number, behind them all others by name."""
    release = _release(name)
    if release is None:
        return 1, 0, 0, name
    year, _, number = release
    return 0, year, number, without_compression(name)


def missing_numbers(names: Iterable[str]) -> list[str]:
    """The gaps from 1 to the highest number of each year: `pubmed21n0007`, `pubmed21n0009 to pubmed21n0011`."""
    numbers: dict[tuple[int, str], set[int]] = {}
    for release in map(_release, names):
        if release is not None:
            year, stem, number = release
            numbers.setdefault((year, stem), set()).add(number)
    gaps = []
    for (_, stem), present in sorted(numbers.items()):
        for before, after in itertools.pairwise([0, *sorted(present)]):
            first, last = f"{stem}{before + 1:04d}", f"{stem}{after - 1:04d}"
            if after > before + 1:
                gaps.append(first if first == last else f"{first} to {last}")
    return gaps


def expected_md5(path: Path) -> str | None:
    """The digest that the file `path`.md5 gives for `path`, in lower case; None when there is no such file.

    NLM writes `MD5(pubmed21n0001.xml.gz)= <hex>`, md5sum `<hex>  pubmed21n0001.xml.gz`. Raises ValueError naming the
    .md5 file when it cannot be read or has no digest of this file.
    """
    beside = path.with_name(f"{path.name}.md5")
    try:
        lines = beside.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{beside.name}: cannot be read ({error}); download it again or remove it") from error
    for line, form in itertools.product(lines, _MD5_LINES):
        entry = form.fullmatch(line.strip())
        if entry is not None and Path(entry["name"]).name == path.name:
            return entry["digest"].lower()
    raise ValueError(f"{beside.name}: holds no MD5 of {path.name}; download it again or remove it")


def check_md5(path: Path, name: str) -> None:
    """Raises DamagedFile, naming `name`, when the .md5 file beside `path` gives another digest or none."""
    try:
        expected = expected_md5(path)
    except ValueError as error:
        raise DamagedFile(name, str(error)) from error
    if expected is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(READ_SIZE):
                digest.update(chunk)
    except OSError as error:
        raise DamagedFile(name, error.strerror or str(error)) from error
    if digest.hexdigest() != expected:
        raise DamagedFile(
            name, f"MD5 is {digest.hexdigest()}, {path.name}.md5 says {expected}; download the file again"
        )
