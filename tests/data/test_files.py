"""Opening raw files: every compression, every kind of damage, byte ranges that cover each line once."""

import bz2
import gzip

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data.documents import Document, read_documents, write_documents
from data.files import DamagedFile, StreamDecoder, decode, is_documentation, open_input, open_range, walk

TEXT = b"".join(b"line %d\n" % i for i in range(20_000))
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("suffix", [*COMPRESS, ".txt"])
def test_compressed_files_read_like_plain_ones(tmp_path, suffix):
    compress = COMPRESS.get(suffix, bytes)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(TEXT[:5000]) + compress(TEXT[5000:]))  # many streams or frames one after another
    with open_input(path, "a") as stream:
        assert stream.read() == TEXT


@pytest.mark.parametrize("suffix", COMPRESS)
def test_cut_files_are_damaged_not_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    whole = COMPRESS[suffix](TEXT)
    for length in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with (
            open_input(path, "some/a") as stream,
            pytest.raises(DamagedFile, match="some/a: the compressed file is cut short"),
        ):
            stream.read()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_broken_compression_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"this is no compressed file at all" * 10)
    with open_input(path, "some/a") as stream, pytest.raises(DamagedFile, match="some/a: broken compression"):
        stream.read()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DamagedFile, match="gone: No such file"):
        open_input(tmp_path / "gone", "gone")


@given(
    lines=st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    width=st.integers(1, 12),
)
def test_ranges_cover_every_line_once(tmp_path_factory, lines, width):
    path = tmp_path_factory.mktemp("range") / "a.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    parts = []
    for start in range(0, len(data), width):
        stream, first = open_range(path, "a", start, min(start + width, len(data)))
        part = stream.read()
        assert data[first : first + len(part)] == part
        parts.append(part)
    assert b"".join(parts) == data


def test_text_that_is_not_utf8_is_named_by_offset():
    assert decode("\ufeff5 µg".encode(), "a") == "5 µg"
    with pytest.raises(DamagedFile, match=r"a\.txt: not UTF-8 text: byte 0xb5 at offset 2"):
        decode("5 µg".encode("latin-1"), "a.txt")


def test_stream_decoder_keeps_split_characters_and_counts_offsets():
    decoder = StreamDecoder("a", "utf-8")
    assert decoder.decode(b"5 \xc2") + decoder.decode(b"\xb5g") == "5 µg"
    with pytest.raises(DamagedFile, match="offset 6"):
        decoder.decode(b"x\xc3") + decoder.decode(b"(")
    with pytest.raises(DamagedFile, match="offset 1"):
        StreamDecoder("a", "utf-8").decode(b"x\xc3", final=True)


def test_walk_is_sorted_and_leaves_out_hidden_files(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/.x/3.txt", ".hidden", "b/10.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    assert [name for name, _ in walk(tmp_path)] == ["a.txt", "b/10.txt", "b/2.txt"]


@pytest.mark.parametrize(
    ("name", "expected"), [("README.md", True), ("LICENSE", True), ("readme", True), ("license_in_medicine.txt", False)]
)
def test_documentation_files(name, expected):
    assert is_documentation(name) is expected


def test_documents_round_trip_and_are_byte_identical(tmp_path):
    documents = [Document(id=str(i), source="s", title=None, text="µ ≤ 5" * i, mesh=["a"]) for i in range(50)]
    assert write_documents(tmp_path / "a.jsonl.zst", documents) == 50
    read = list(read_documents(tmp_path / "a.jsonl.zst"))
    assert read[3]["text"] == documents[3].text
    assert list(read[0]) == (
        [
            "id",
            "source",
            "title",
            "text",
            "url",
            "license",
            "language",
            "journal",
            "types",
            "mesh",
            "date",
            "pmid",
            "pmcid",
            "doi",
            "version",
            "split",
        ]
    )
    write_documents(tmp_path / "b.jsonl.zst", read)
    assert (tmp_path / "a.jsonl.zst").read_bytes() == (tmp_path / "b.jsonl.zst").read_bytes()


def test_an_error_while_writing_leaves_no_file(tmp_path):
    def documents():
        yield Document(id="1", source="s", title=None, text="x")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_documents(tmp_path / "a.jsonl.zst", documents())
    assert list(tmp_path.iterdir()) == []


def test_cut_document_file_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    write_documents(path, [Document(id="1", source="s", title=None, text="x" * 1000)])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst.*cut short"):
        list(read_documents(path))
