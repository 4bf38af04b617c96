"""What every pass of a curation knows: sent to each worker once."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lxml import etree

from data.decontaminate import Questions
from data.filters import Filters
from data.readers.interface import ReadSettings
from data.redact import Redactor

SPLITS = ("train", "validation")
LIBRARIES = (
    "ftfy", "isal", "lxml", "numpy", "orjson", "py3langid", "pypdfium2", "rensa", "selectolax", "xxhash", "zstandard",
)  # fmt: skip
"""Libraries whose version shapes what is written."""


@dataclass(frozen=True)
class Shared:
    """`code` is `code_version()` at the start, `validation` the share per source kind, `reading` what readers are told
    per source name, `out` the output folder, `tokenizer` what tokens are counted with (None: not counted)."""

    out: Path
    code: str
    seed: int
    validation: Mapping[str, float]
    reading: Mapping[str, ReadSettings]
    filters: Filters
    redactor: Redactor
    questions: Questions
    near_duplicates: float
    samples: bool
    tokenizer: Path | None
    tokenizer_sha256: str | None

    @property
    def units(self) -> Path:
        """Folder of pass A's results."""
        return self.out / "work" / "units"

    @property
    def duplicates(self) -> Path:
        """Folder of pass B's results."""
        return self.out / "work" / "duplicates"

    @functools.cached_property
    def digest(self) -> str:
        """Everything besides the input that a unit's result depends on."""
        values = (
            self.seed, sorted(self.validation.items()), self.filters.digest, self.redactor.kinds, self.questions.digest,
            self.near_duplicates > 0, self.samples, self.tokenizer_sha256, self.code,
        )  # fmt: skip
        return hashlib.sha256(repr(values).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape the output."""
    return {**{name: version(name) for name in LIBRARIES}, "libxml2": ".".join(map(str, etree.LIBXML_VERSION))}


def code_version() -> str:
    """A hash of the curation code itself and of the libraries whose version shapes its output."""
    folder = Path(__file__).parent
    other = frozenset((
        "__main__", "account", "claim", "clusters", "contamination", "curate", "disk", "disk_full", "fast_tokenizer",
        "inspect", "lock", "manifest", "megatron", "mixture", "mpi", "progress", "report", "report_picture",
        "report_rules", "report_text", "sampler", "settings", "shards", "steps", "tokenize", "tokenize_passes",
        "workers", "write_pass",
    ))  # fmt: skip
    paths = [path for path in folder.glob("*.py") if path.stem not in other] + list((folder / "readers").glob("*.py"))
    digest = hashlib.sha256(repr(sorted(library_versions().items())).encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()
