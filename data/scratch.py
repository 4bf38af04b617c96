"""What pass A leaves of a unit in `work/units/`: its documents, and small tables that the later passes read instead.

`KEY.jsonl.zst` holds the documents, one JSON object a line, in zstd frames of whole lines, so that one document can be
read without those before it. `KEY.documents.npy` has a row a document, `KEY.ids.npy` their ids one after another,
`KEY.identities.npy` and `KEY.bands.npy` the keys of the duplicate search, `KEY.json` (written last) the summary.
"""

import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import zstandard

from data.disk_full import writing
from data.documents import Document, temporary_name, whole_file
from data.files import DamagedFile
from data.identities import bounded_version

FRAME_BYTES = 1 << 18
"""Uncompressed bytes of a frame: one document costs decompressing as much, about half a millisecond."""
LEVEL = 1
"""Of zstd: written once and read twice, then only kept to go on from."""

ROW = np.dtype([
    ("frame", "<u8"), ("start", "<u4"), ("bytes", "<u4"), ("id_end", "<u8"), ("characters", "<u4"), ("words", "<u4"),
    ("version", "<u4"), ("year", "<u2"), ("language", "<u2"), ("license", "<u2"), ("split", "u1"),
    ("abstract_only", "u1"),
])  # fmt: skip
"""A document: where its frame begins in the file, where its line begins in the frame and how long it is; where its id
ends; its sizes; publication year (0: unknown); places of language and license in the summary's lists; 0 train, 1
validation; whether it is no full text."""


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an npy file, temporary name first."""
    with whole_file(path) as stream:
        np.save(stream, array, allow_pickle=False)


def load_array(path: Path) -> np.ndarray:
    """An npy file, mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


class ScratchWriter:
    """Writes the documents of one unit; what is known of each beside its text goes into `rows`."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = temporary_name(path)
        self.stream = self.temporary.open("wb")
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.lines: list[bytes] = []
        self.frame = 0
        self.start = 0
        self.rows: list[tuple[int, ...]] = []
        self.ids: list[bytes] = []
        self.id_end = 0

    def add(
        self, document: Document, words: int, year: int, language: int, license: int, split: int, *, abstract_only: bool
    ) -> None:
        """One document. `language` and `license` are places in the summary's lists."""
        line = orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
        identity = document.id.encode()
        self.id_end += len(identity)
        self.ids.append(identity)
        self.rows.append((
            self.frame, self.start, len(line), self.id_end, len(document.text), words, bounded_version(document), year,
            language, license, split, abstract_only,
        ))  # fmt: skip
        self.lines.append(line)
        self.start += len(line)
        if self.start >= FRAME_BYTES:
            self._end_frame()

    def _end_frame(self) -> None:
        if self.lines:
            compressed = self.compressor.compress(b"".join(self.lines))
            with writing(self.path):
                self.stream.write(compressed)
            self.frame += len(compressed)
            self.lines.clear()
            self.start = 0

    def close(self) -> None:
        """Finish the three files under their own names."""
        self._end_frame()
        with writing(self.path):
            self.stream.close()
        stem = self.path.name.partition(".")[0]
        save_array(self.path.with_name(f"{stem}.documents.npy"), np.array(self.rows, dtype=ROW))
        save_array(self.path.with_name(f"{stem}.ids.npy"), np.frombuffer(b"".join(self.ids), np.uint8))
        self.temporary.replace(self.path)

    def abandon(self) -> None:
        """Leave no unfinished file."""
        try:
            with writing(self.path):
                self.stream.close()  # writes what is still held, for which a full disk has no room
        finally:
            self.temporary.unlink(missing_ok=True)


class ScratchReader:
    """The documents of one finished unit."""

    def __init__(self, folder: Path, key: str):
        self.path = folder / f"{key}.jsonl.zst"
        self.rows = load_array(folder / f"{key}.documents.npy")

    def lines(self) -> Iterator[bytes]:
        """Every document's JSON line, in order."""
        with self.path.open("rb") as stream:
            offset = 0
            for frame in self._frames():
                yield from _decompress(stream, offset, frame, self.path).splitlines(keepends=True)
                offset = frame

    def _frames(self) -> Iterable[int]:
        """Where each frame ends."""
        begins = np.unique(self.rows["frame"])
        return [*begins[1:].tolist(), self.path.stat().st_size] if len(begins) else []

    @functools.cached_property
    def frame_ends(self) -> dict[int, int]:
        """Where the frame that begins at a byte ends."""
        begins = np.unique(self.rows["frame"]).tolist()
        return dict(zip(begins, self._frames(), strict=True))

    def texts(self, positions: Sequence[int]) -> Iterator[str]:
        """The texts of some documents, in the order asked for; neighbours in a frame are read once."""
        held, data = -1, b""
        with self.path.open("rb") as stream:
            for position in positions:
                row = self.rows[position]
                frame, start, size = int(row["frame"]), int(row["start"]), int(row["bytes"])
                if frame != held:
                    held, data = frame, _decompress(stream, frame, self.frame_ends[frame], self.path)
                yield orjson.loads(data[start : start + size])["text"]


class Ids(Sequence):
    """The ids of a part's documents, held whole."""

    def __init__(self, folder: Path, key: str):
        self.ends = np.load(folder / f"{key}.documents.npy", allow_pickle=False)["id_end"].copy()
        self.bytes = np.load(folder / f"{key}.ids.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> str:
        begin = int(self.ends[position - 1]) if position else 0
        return bytes(self.bytes[begin : int(self.ends[position])]).decode()


def _decompress(stream: io.BufferedReader, begin: int, end: int, path: Path) -> bytes:
    stream.seek(begin)
    try:
        return zstandard.ZstdDecompressor().decompress(stream.read(end - begin))
    except zstandard.ZstdError as error:
        raise DamagedFile(str(path), f"broken scratch file ({error}); delete it and give the command again") from error
