"""Wrong encodings and markup that is broken or hostile: a clear line with its place, or a counted drop."""

import io
from collections import Counter

import pytest

from data.documents import Document
from data.files import DamagedFile
from data.readers import FORMATS
from data.readers.html import html_text
from data.readers.interface import Drop, InputFile


def read(kind, data, name):
    return list(FORMATS[kind].read(InputFile(io.BytesIO(data), name, kind)))


# Encodings


@pytest.mark.parametrize(
    ("kind", "name", "data", "reason"),
    [
        ("text", "a.txt", "5 µg".encode("latin-1"), "not UTF-8 text: byte 0xb5 at offset 2"),
        ("text", "a.txt", "ab".encode("utf-16-le") * 9, "more than 1 % of its characters are NUL"),
        ("text", "a.txt", bytes(range(1, 128)) + bytes(9), "more than 1 % of its characters are NUL"),
        ("jsonl", "a.jsonl", '{"text": "5 µg"}'.encode("latin-1"), "not UTF-8 text: byte 0xb5 at offset 12"),
        ("jsonl", "a.jsonl", '{"text": "5 µg"}'.encode("utf-16"), "not UTF-8 text: byte 0xff at offset 0"),
        ("jsonl", "a.jsonl", b'{"text": "\xed\xa0\x80"}', "not UTF-8 text: byte 0xed at offset 10"),
        ("s2orc", "a.jsonl", b'{"paper_id": "\xe9"}', "not UTF-8 text: byte 0xe9 at offset 14"),
        ("guidelines", "a.json", '{"text": "5 µg"}'.encode("latin-1"), "not UTF-8 text"),
        ("guidelines", "a.html", b'<meta charset="utf-8"><p>5 \xb5g', "not UTF-8 text: byte 0xb5 at offset 27"),
        ("guidelines", "a.html", b'<meta charset="klingon"><p>5', "unknown encoding 'klingon'"),
        ("guidelines", "a.md", b"\xff\xfe5", "not UTF-16 text"),
        ("jats", "a.xml", '<?xml version="1.0"?><article><p>5 µg</p></article>'.encode("latin-1"), "not UTF-8 text"),
        (
            "medline",
            "a.xml",
            '<?xml version="1.0" encoding="utf-8"?><PubmedArticleSet>µ'.encode("latin-1"),
            "not UTF-8",
        ),
        ("wikipedia", "a.xml", '<mediawiki xml:lang="en"><page>µ'.encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_wrong_encodings_are_named_with_their_place(kind, name, data, reason):
    with pytest.raises(DamagedFile) as caught:
        read(kind, data, name)
    assert str(caught.value).startswith(f"{name}: ")
    assert reason in str(caught.value)


def test_what_is_not_utf8_says_how_to_convert_it():
    with pytest.raises(DamagedFile, match=r"offset 2; convert it to UTF-8 \(iconv -f latin1 -t utf-8\)$"):
        read("text", "5 µg".encode("latin-1"), "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("kind", "name"), [("text", "a.txt"), ("guidelines", "a.md"), ("guidelines", "a.txt")])
def test_byte_order_marks_are_understood(kind, name, encoding):
    (document,) = read(kind, "5 µg".encode(encoding), name)
    assert document.text == "5 µg"


# XML


BOMB = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]>"
OUTSIDE = "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
ROOTS = {"jats": "article", "medline": "PubmedArticleSet", "wikipedia": "mediawiki"}


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE])
def test_declared_entities_are_refused(kind, doctype):
    with pytest.raises(DamagedFile, match="declares entities"):
        read(kind, f"{doctype}<{ROOTS[kind]}>&c;</{ROOTS[kind]}>".encode(), "a.xml")


@pytest.mark.parametrize("kind", ROOTS)
def test_elements_without_end_are_damage(kind):
    root = ROOTS[kind]
    with pytest.raises(DamagedFile, match=r"a\.xml: "):
        read(kind, f"<{root}>{'<a>' * 100_000}".encode(), "a.xml")
    with pytest.raises(DamagedFile, match=r"a\.xml: "):
        read(kind, f"<{root}>{'<a>' * 100_000}{'</a>' * 100_000}</{root}>".encode(), "a.xml")


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize(
    "page",
    ["<!doctype html><html><head><meta charset=utf-8><title>404</title><body><p>Not found<br></html>", "Not found", ""],
)
def test_what_is_no_xml_is_damage(kind, page):
    with pytest.raises(DamagedFile, match=r"a\.xml: "):
        read(kind, page.encode(), "a.xml")


def test_well_formed_pages_are_no_articles():
    page = b"<html><head><title>404</title></head><body><p>Not found</p></body></html>"
    (drop,) = read("jats", page, "a.xml")
    assert drop == Drop("not-an-article", "a.xml: root element <html>")


def test_markup_without_end_ends():
    for mark in ("{{a|", "[[", "{|\n", "<ref>", "<ref ", "<sup>", "[http://a ", "<math>", "<gallery>", "== ", "''"):
        page = f"<mediawiki><page><title>T</title><ns>0</ns><id>1</id><revision><text>{mark.replace('<', '&lt;') * 4000}</text></revision></page></mediawiki>"
        (item,) = read("wikipedia", page.encode(), "a.xml")
        assert isinstance(item, Document)
    closed = f"<mediawiki><page><title>T</title><ns>0</ns><id>1</id><revision><text>{'{{a|' * 2000}{'}}' * 2000}</text></revision></page></mediawiki>"
    (drop,) = read("wikipedia", closed.encode(), "a.xml")
    assert drop == Drop("bad-record", "a.xml: markup nested too deeply (id 1)")


@pytest.mark.parametrize("tag", ["div", "span", "ul", "blockquote", "b"])
def test_pages_nested_without_end_are_damage(tag):
    with pytest.raises(DamagedFile, match="nested too deeply"):
        read("guidelines", f"<p>x</p>{f'<{tag}>' * 200_000}x".encode(), "a.html")


def test_a_page_of_tags_without_text_is_empty():
    assert html_text(b"<table>" * 50_000, "a.html", Counter()) == (None, "")
