"""The XML door: nothing enters but the text, and no text is lost on the way."""

import io
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.files import READ_SIZE, DamagedFile
from data.xml import EntityRewriter, iterate, parse


def text_of(data: bytes) -> str:
    return "".join(parse(io.BytesIO(data), "a.xml", Counter()).itertext())


def rewrite(*chunks: bytes) -> tuple[bytes, Counter]:
    rewriter = EntityRewriter()
    return b"".join([rewriter.feed(chunk) for chunk in chunks]) + rewriter.close(), rewriter.unknown


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("5 &mu;g", "5 μg"),
        ("TGF-&alpha;", "TGF-α"),
        ("5&nbsp;mg", "5\xa0mg"),
        ("p &lt; 0.05 &amp; n &gt; 3", "p < 0.05 & n > 3"),
        ("&plusmn;2 &le; x", "±2 ≤ x"),
        ("&LT;3", "<3"),  # an HTML name of a character that XML must not see bare
        ("&NotEqualTilde;", "≂̸"),  # one name, two characters
        ("<![CDATA[5 &mu;g]]> and &mu;", "5 &mu;g and μ"),
        ("<!-- &foo; -->x", "x"),
        ("<b at='&beta;'>&beta;</b>", "β"),
    ],
)
def test_html_names_without_a_dtd(source, expected):
    assert text_of(f"<a>{source}</a>".encode()) == expected


def test_unknown_entities_stay_visible_and_are_counted():
    unknown = Counter()
    root = parse(io.BytesIO(b"<a>5 &microgram; and &microgram; &mu;g</a>"), "a.xml", unknown)
    assert root.text == "5 &microgram; and &microgram; μg"
    assert unknown == {"microgram": 2}


FRAGMENTS = [
    b"&mu;", b"&alpha;", b"&unknown;", b"&amp;", b"&#956;", b"&", b";", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?pi ", b"?>", b"<a>",
    b"text", b"\xce\xbc", b"<", b"!", b"[", b"-", b"&CounterClockwiseContourIntegral;", b"&" + b"x" * 70 + b";",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.data())
def test_rewriting_does_not_depend_on_the_chunks(pieces, data):
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    borders = [0, *cuts, len(whole)]
    chunks = [whole[start:end] for start, end in itertools.pairwise(borders)]
    assert rewrite(*chunks) == rewrite(whole)


@given(st.binary(max_size=60))
def test_bytes_without_entities_are_left_alone(data):
    if b"&" not in data:
        assert rewrite(*(data[i : i + 1] for i in range(len(data))))[0] == data


def test_stream_of_elements_is_emptied_behind_the_reader():
    record = b"<x>%05d</x>"
    data = b"<r>" + b"".join(record % i for i in range(60_000)) + b"</r>"
    longest = 0
    for number, element in enumerate(iterate(io.BytesIO(data), "a.xml", ("x",), Counter())):
        assert element.text == f"{number:05d}"
        if number % 500 == 0:
            longest = max(longest, len(element.getparent()))
    assert number == 59_999
    assert longest * len(record) < 2 * READ_SIZE < len(data)  # what is held is what was read ahead


def test_external_dtd_reference_is_accepted_and_never_loaded(tmp_path):
    dtd = tmp_path / "a.dtd"
    dtd.write_text('<!ENTITY secret "from the DTD">')
    data = f'<?xml version="1.0"?>\n<!DOCTYPE a PUBLIC "-//X//DTD" "file://{dtd}">\n<a>&secret;&mu;</a>'.encode()
    unknown = Counter()
    assert parse(io.BytesIO(data), "a.xml", unknown).text == "&secret;μ"
    assert unknown == {"secret": 1}


BOMB = b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><a>&y;</a>'
EXTERNAL = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>'
PARAMETER = b'<!DOCTYPE a [<!-- ]> --><!ENTITY % p SYSTEM "http://example.invalid/x">%p;]><a/>'
HIDDEN = b'<!-- <a> --><?pi <a> ?><!DOCTYPE a SYSTEM "x>y" [ <!ENTITY x "y"> ]><a>&x;</a>'


@pytest.mark.parametrize("data", [BOMB, EXTERNAL, PARAMETER, HIDDEN])
def test_documents_that_declare_entities_are_refused(data):
    with pytest.raises(DamagedFile, match=r"bad\.xml: the DOCTYPE declares entities .*refused"):
        parse(io.BytesIO(data), "bad.xml", Counter())


def test_two_doctypes_are_refused():
    with pytest.raises(DamagedFile, match="two DOCTYPEs"):
        parse(io.BytesIO(b"<!DOCTYPE a><!DOCTYPE a><a/>"), "bad.xml", Counter())


def test_internal_subset_without_entities_is_accepted():
    assert text_of(b"<!DOCTYPE a [<!ELEMENT a ANY>]>\n<a>x</a>") == "x"


def test_declared_encoding_is_respected():
    assert text_of('<?xml version="1.0" encoding="ISO-8859-1"?><a>5 µg &mu;</a>'.encode("latin-1")) == "5 µg μ"
    assert text_of('<?xml version="1.0" encoding="UTF-16"?><a>5 µg &mu;</a>'.encode("utf-16")) == "5 µg μ"
    assert text_of('\ufeff<?xml version="1.0" encoding="utf-8"?><a>µ</a>'.encode()) == "µ"


@pytest.mark.parametrize("padding", [0, 300_000])
def test_bad_bytes_are_named_by_their_offset(padding):
    data = b"<a>" + b"x" * padding + b"\xb5g</a>"
    with pytest.raises(DamagedFile, match=rf"bad\.xml: not UTF-8 text: byte 0xb5 at offset {padding + 3}"):
        parse(io.BytesIO(data), "bad.xml", Counter())


NO_TEXTS = ("rot13", "undefined", "punycode", "idna", "unicode_escape")


@pytest.mark.parametrize(
    ("declared", "message"),
    [("no-such-encoding", "unknown encoding"), ("utf-16", "UTF-16"), *((n, "no encoding of texts") for n in NO_TEXTS)],
)
def test_encodings_that_are_none(declared, message):
    with pytest.raises(DamagedFile, match=f"bad.xml: .*{message}"):
        parse(io.BytesIO(f'<?xml version="1.0" encoding="{declared}"?><a/>'.encode()), "bad.xml", Counter())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"<a><b>half", "not well-formed XML"),
        (b"<a>x</b>", "not well-formed XML"),
        (b"<html><body><p>one<br>two</p></body></html>", "not well-formed XML"),
        (b"no mark-up at all", "no root element"),
        (b"<a>R&D</a>", "not well-formed XML"),
    ],
)
def test_what_is_not_xml_is_named(data, message):
    with pytest.raises(DamagedFile, match=rf"bad\.xml: .*{message}"):
        parse(io.BytesIO(data), "bad.xml", Counter())
