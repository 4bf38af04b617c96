"""jsonl and plain text."""

import io

import pytest

from data.documents import Document
from data.files import DamagedFile
from data.readers import find_format, jsonl, plain, records
from data.readers.interface import InputFile, ReadSettings


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


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown source kind 'pdf'; known: medline"):
        find_format("pdf")


def test_field_maps_reach_into_objects_and_count_what_is_missing():
    settings = ReadSettings(fields=(("text", "body"), ("id", "uid"), ("language", "meta.lang"), ("doi", "x.y")))
    lines = b'{"body": "one", "uid": 3, "meta": {"lang": "en"}, "x.y": "10.1/a", "title": "T"}\n{"body": "two"}\n'
    file = InputFile(io.BytesIO(lines), "a.jsonl", "s", settings=settings)
    first, second = jsonl.read(file)
    assert first == Document(id="3", source="s", title="T", text="one", language="en", doi="10.1/a")
    assert second == Document(id=f"a.jsonl@{lines.index(10) + 1}", source="s", title=None, text="two")
    assert file.notes == {
        "records without the key uid that is mapped to id": 1,
        "records without the key meta.lang that is mapped to language": 1,
        "records without the key x.y that is mapped to doi": 1,
    }


def test_a_map_to_a_key_that_is_not_there_names_those_that_are():
    settings = ReadSettings(fields=(("text", "bdy"),))
    (drop,) = jsonl.read(InputFile(io.BytesIO(b'{"body": "x", "uid": 1}'), "a.jsonl", "s", settings=settings))
    assert drop.rule == "bad-record"
    assert drop.detail.endswith("(after the field map text=bdy; the record has: body, uid)")


def test_a_list_under_text_is_its_paragraphs():
    (document,) = read_lines(b'{"text": ["one", "two"], "id": "a"}')
    assert document.text == "one\n\ntwo"


@pytest.mark.parametrize(
    "content",
    ['[\n {"text": "a"},\n {"text": "b"}\n]', '[{"text": "a"}, {"text": "b"}]', '{"text": "a"}\n{"text": "b"}'],
)
def test_json_files_hold_lines_or_a_list(content):
    documents = list(jsonl.read(InputFile(io.BytesIO(content.encode()), "a.json", "s")))
    assert [document.text for document in documents] == ["a", "b"]
    assert len({document.id for document in documents}) == 2


def test_json_file_that_is_one_object_over_several_lines():
    (document,) = jsonl.read(InputFile(io.BytesIO(b'\n{\n "text": "a"\n}\n'), "a.json", "s"))
    assert (document.id, document.text) == ("a.json", "a")


def test_lines_that_are_too_long_are_skipped_in_pieces(monkeypatch):
    monkeypatch.setattr(records, "RECORD_LIMIT", 100)
    monkeypatch.setattr(records, "READ_SIZE", 7)
    good = b'{"text": "%s"}\n' % (b"x" * 87)  # the limit itself, its line break included
    lines = good + b'{"text": "' + b"y" * 95 + b'"}\n' + good + b"z" * 300
    first, drop, second, last = read_lines(lines)
    assert (first.text, second.text) == ("x" * 87, "x" * 87)
    assert (drop.rule, last.rule) == ("line-too-long", "line-too-long")
    assert drop.detail.startswith(f"d/a.jsonl@{len(good)}: more than")
    assert second.id == "d/a.jsonl@208"
