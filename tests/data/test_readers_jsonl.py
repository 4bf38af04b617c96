"""jsonl and plain text."""

import io

import pytest

from data.documents import Document
from data.files import DamagedFile
from data.readers import find_format, jsonl, plain
from data.readers.interface import InputFile


def read_lines(data, offset=0):
    return list(jsonl.read(InputFile(io.BytesIO(data), "d/a.jsonl", "replay", offset)))


def test_fields_are_taken_over_and_places_name_the_rest():
    lines = b'{"text": "one", "id": 7, "title": "T", "pmid": 12, "mesh": ["a"], "version": 2, "meta": {"x": 1}}\n\n{"text": "two"}\n'
    first, second = read_lines(lines)
    assert first == Document(id="7", source="replay", title="T", text="one", pmid="12", mesh=["a"], version=2)
    assert second.id == f"d/a.jsonl@{lines.index(b'{', 5 + lines.index(b'meta') + 10)}"
    assert read_lines(b'{"text": "x"}\n', offset=100)[0].id == "d/a.jsonl@100"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{cut", "not JSON"),
        (b"[1]", "expected an object, found list"),
        (b'{"body": "x"}', "no string under the key text; keys: body"),
        (b'{"text": 3}', "no string under the key text"),
        (b'{"text": "x", "title": ["y"]}', "title must be a string"),
        (b'{"text": "x", "mesh": "y"}', "mesh must be a list"),
        (b'{"text": "x", "version": "2"}', "version must be a whole number"),
    ],
)
def test_bad_records_are_dropped_with_place_and_reason(line, reason):
    drop, good = read_lines(line + b'\n{"text": "good"}\n')
    assert drop.rule == "bad-record"
    assert drop.detail.startswith("d/a.jsonl@0: ")
    assert reason in drop.detail
    assert good.text == "good"


def test_bytes_that_are_not_utf8_damage_the_file_and_name_the_offset():
    with pytest.raises(DamagedFile, match=r"d/a\.jsonl: not UTF-8 text: byte 0xe9 at offset 124"):
        read_lines(b'{"text": "x"}\n{"text": "\xe9"}\n', offset=100)


def test_plain_text_is_one_document():
    (document,) = plain.read(InputFile(io.BytesIO("\ufeff a = 5 µg\n".encode()), "d/a.txt", "replay"))
    assert document == Document(id="d/a.txt", source="replay", title=None, text=" a = 5 µg\n")


@pytest.mark.parametrize(
    ("kind", "message"), [("s2orc", "cannot be read yet"), ("pdf", "unknown source kind 'pdf'; known: medline")]
)
def test_kinds_that_are_not_there(kind, message):
    with pytest.raises(ValueError, match=message):
        find_format(kind)
