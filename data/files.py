"""Raw input files: which ones a source holds, and opening them through any compression with one kind of error.

Whatever is wrong inside an input file (a cut gzip, a bad checksum, text that is not UTF-8, XML that is not well formed)
becomes one exception, `DamagedFile`, so that a run can finish everything else and name the file at the end.
"""

import bz2
import codecs
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard
from isal import igzip, isal_zlib

COMPRESSIONS = (".gz", ".bz2", ".zst")
READ_SIZE = 1 << 18
"""Bytes a read: large enough that Python's per-call cost vanishes, small enough to stay in the cache."""


COMPRESSED_PIECE = 1 << 10
"""Bytes of zstd decompressed at once: they can hold 32 MiB of one repeated byte, all handed out together."""


class DamagedFile(ValueError):
    """An input file that cannot be read to its end. `name` is the file, `reason` one clause."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class _ZstdFile(io.RawIOBase):
    """Decompressed zstd frames. Unlike the library's own stream it refuses a file that ends inside a frame."""

    def __init__(self, raw: BinaryIO):
        self.raw = raw
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.pending = memoryview(b"")  # decompressed, not yet handed out
        self.inside_frame = False

    def readable(self) -> bool:
        return True

    def _fill(self) -> bool:
        compressed = self.frame.unused_data if self.frame.eof else b""
        compressed = compressed or self.raw.read(COMPRESSED_PIECE)
        if not compressed:
            if self.inside_frame:
                raise EOFError("the file ends inside a compressed frame")
            return False
        if self.frame.eof:
            self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.pending = memoryview(self.frame.decompress(compressed))
        self.inside_frame = not self.frame.eof
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.pending:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self.pending))
        buffer[:count] = self.pending[:count]
        self.pending = self.pending[count:]
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class InputStream(io.RawIOBase):
    """A byte stream whose every failure to read is a `DamagedFile` naming the file."""

    def __init__(self, name: str, stream: BinaryIO, raw: BinaryIO):
        self.name = name
        self.stream = stream
        self.raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            return self.stream.readinto(buffer)
        except EOFError as error:
            raise DamagedFile(self.name, f"the compressed file is cut short ({error})") from error
        except (isal_zlib.IsalError, igzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DamagedFile(self.name, f"broken compression ({error})") from error
        except OSError as error:
            reason = error.strerror or f"broken compression ({error})"
            raise DamagedFile(self.name, reason) from error

    def seekable(self) -> bool:
        return self.stream is self.raw  # only what is not compressed is cut into ranges

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def close(self) -> None:
        self.stream.close()
        self.raw.close()
        super().close()


def open_input(path: Path, name: str) -> io.BufferedReader:
    """`path` for reading bytes, decompressed by its suffix (.gz, .bz2 with many streams, .zst with many frames).

    Raises DamagedFile, naming `name`, at opening or at any later read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile(name, "no regular file")
        raw: BinaryIO = path.open("rb")
    except OSError as error:
        raise DamagedFile(name, error.strerror or str(error)) from error
    suffix = path.suffix.lower()
    if suffix == ".tgz":
        suffix = ".gz"
    if status.st_size == 0 and suffix in COMPRESSIONS:
        raw.close()
        raise DamagedFile(name, f"the {suffix} file is empty; a download was broken off")
    opened: BinaryIO = raw
    if suffix == ".gz":
        opened = igzip.IGzipFile(fileobj=raw)  # a third of zlib's time
    elif suffix == ".bz2":
        opened = bz2.BZ2File(raw)
    elif suffix == ".zst":
        opened = _ZstdFile(raw)
    return io.BufferedReader(InputStream(name, opened, raw), READ_SIZE)


class _Range(io.RawIOBase):
    """The lines of a file that begin in the bytes [start, end); no more than a piece of a line is held."""

    def __init__(self, stream: BinaryIO, start: int, end: int):
        self.stream = stream
        self.end = end
        stream.seek(max(0, start - 1))
        if start > 0:  # the line that holds byte start - 1 belongs to the range before, unless it ends just there
            while (piece := stream.readline(READ_SIZE)) and not piece.endswith(b"\n"):
                pass
        self.position = stream.tell()
        self.inside_line = self.position < end  # whether what comes next is ours

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self.inside_line:
            return 0
        if self.position < self.end:
            count = self.stream.readinto(memoryview(buffer)[: self.end - self.position])
        else:  # the last line goes on behind the end
            piece = self.stream.readline(len(buffer))
            count = len(piece)
            buffer[:count] = piece
        self.position += count
        self.inside_line = self.position < self.end or (count > 0 and buffer[count - 1] != ord("\n"))
        return count

    def close(self) -> None:
        self.stream.close()
        super().close()


def open_range(path: Path, name: str, start: int, end: int) -> tuple[io.BufferedReader, int]:
    """The lines of an uncompressed file that begin in the bytes [start, end), and the byte at which the first begins.

    Ranges that share their borders cover every line exactly once, wherever the borders fall.
    """
    lines = _Range(open_input(path, name), start, end)
    return io.BufferedReader(lines, READ_SIZE), lines.position


_TEXT_CODEC = re.compile(
    r"utf-8(-sig)?|utf-16|ascii|iso8859-\d+|cp125\d|gb2312|gbk|gb18030|shift_jis|euc_.+|koi8-.|big5"
)
"""Python's names of the encodings in which texts come; its other codecs (punycode, rot13, undefined) are none."""


def _require_text_codec(encoding: str, name: str) -> None:
    try:
        known = _TEXT_CODEC.fullmatch(codecs.lookup(encoding).name)
    except LookupError as error:
        raise DamagedFile(name, f"unknown encoding {encoding!r}") from error
    if known is None:
        raise DamagedFile(name, f"{encoding!r} is no encoding of texts; convert the file to UTF-8")


def decode(data: bytes, name: str, encoding: str = "utf-8", offset: int = 0) -> str:
    """`data`, which begins at byte `offset` of a file, as text; a BOM is dropped.

    DamagedFile names the file and the byte offset where it is not valid `encoding`.
    """
    _require_text_codec(encoding, name)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DamagedFile(name, _not_encoded(encoding, offset + error.start, data[error.start])) from error


def decode_text(data: bytes, name: str) -> str:
    """A text file as text: UTF-8, or UTF-16 with its byte order mark. DamagedFile as in `decode`, and for what is
    no text."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = decode(data, name, "utf-16" if utf16 else "utf-8")
    if text.count("\0") * 100 > len(text):  # a stray one is taken out when texts are cleaned
        raise DamagedFile(name, "more than 1 % of its characters are NUL: no text, or UTF-16 without its mark")
    return text


def read_whole(stream: BinaryIO, name: str, limit: int = 64 << 20) -> bytes:
    """All bytes of a file that is one document. DamagedFile beyond `limit` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise DamagedFile(name, f"more than {limit >> 20} MiB in one document; split the file")
    return data


class StreamDecoder:
    """Chunks of bytes to text, strictly; DamagedFile names the byte offset of the first byte that is not valid."""

    def __init__(self, name: str, encoding: str):
        self.name = name
        self.encoding = encoding
        _require_text_codec(encoding, name)
        self.decoder = codecs.getincrementaldecoder(encoding)("strict")
        self.consumed = 0

    @property
    def held(self) -> int:
        """Bytes of a last character that is not complete yet."""
        return len(self.decoder.getstate()[0])

    def decode(self, chunk: bytes, final: bool = False) -> str:
        """The text of `chunk`, less a last character whose bytes are not all there yet."""
        held = self.held
        try:
            text = self.decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            offset = self.consumed - held + error.start
            raise DamagedFile(self.name, _not_encoded(self.encoding, offset, error.object[error.start])) from error
        except UnicodeError as error:  # UTF-16 without its byte order mark
            raise DamagedFile(self.name, f"not {self.encoding.upper()} text: {error}") from error
        self.consumed += len(chunk)
        return text


def _not_encoded(encoding: str, offset: int, byte: int) -> str:
    remedy = "; convert it to UTF-8 (iconv -f latin1 -t utf-8)" if encoding == "utf-8" else ""
    return f"not {encoding.upper()} text: byte 0x{byte:02x} at offset {offset}{remedy}"


def is_documentation(name: str) -> bool:
    """README and LICENSE files lie beside data but are not data."""
    stem = name.split(".")[0].upper()
    return stem in ("README", "LICENSE", "LICENCE", "COPYING") and not name.lower().endswith((".xml", ".nxml"))


def without_compression(name: str) -> str:
    """A lower-case file name without its compression suffix: `A.XML.gz` is `a.xml`."""
    lower = name.lower()
    for suffix in COMPRESSIONS:
        lower = lower.removesuffix(suffix)
    return lower


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """`(relative name, path)` of every file below `root` in the order of their names; hidden ones are left out.

    Links to folders are followed, each folder once. Bytes of a name that are not UTF-8 are written as `\\xe9`. Raises
    ValueError for a folder that cannot be read.
    """
    found = []
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable_folder):
        entered = []
        for name in sorted(folders):
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and target not in seen:
                seen.add(target)
                entered.append(name)
        folders[:] = entered
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    named = (
        (os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace"), path) for path in found
    )
    yield from sorted(named)


def _unreadable_folder(error: OSError) -> None:
    raise ValueError(
        f"{error.filename}: the folder cannot be read ({error.strerror}); allow it or leave it out"
    ) from error
