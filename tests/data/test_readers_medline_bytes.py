"""Cutting MEDLINE as bytes must give what parsing the whole file gives, whatever the file and wherever a read ends."""

import io
import re
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import xml
from data.files import DamagedFile, open_input
from data.readers import medline, medline_bytes
from data.readers.interface import InputFile


class Pieces(io.RawIOBase):
    """A stream that gives at most `size` bytes a read, but for the first, which must show the declared encoding."""

    def __init__(self, data, size):
        self.data = io.BytesIO(data)
        self.size = size

    def read(self, size=-1):
        most = self.size if self.data.tell() else max(self.size, 60)
        return self.data.read(most if size < 0 else min(size, most))


def plain(stream, name, unknown):
    return xml.iterate(stream, name, medline_bytes.TAGS, unknown)


def outcome(stream, iterate, monkeypatch):
    """Everything the reader gives, notes included, and how it ended (without the column, which cutting may move)."""
    file = InputFile(stream, "a.xml", "medline")
    items = []
    with monkeypatch.context() as patch:
        patch.setattr(medline, "iterate", iterate)
        try:
            items.extend(medline.read(file))
        except DamagedFile as error:
            return items, re.sub(r", column \d+", "", str(error)), file.notes
    return items, "whole", file.notes


def both(data, monkeypatch, size=1 << 20):
    """The outcome of cutting, which must be that of parsing; how far a damaged file is read depends on the reads."""
    items, end, notes = outcome(Pieces(data, size), medline_bytes.iterate, monkeypatch)
    expected_items, expected_end, expected_notes = outcome(io.BytesIO(data), plain, monkeypatch)
    assert end == expected_end
    if end == "whole":
        assert (items, notes) == (expected_items, expected_notes)
    return items, end, notes


def fast(data, size=1 << 20):
    """How many records are cut as bytes."""
    cutter = medline_bytes.RecordCutter(xml.XmlStream(Pieces(data, size), "a.xml"))
    return sum(1 for _ in iter(cutter.cut, None))


AUTHORS = '<AuthorList CompleteYN="Y"><Author><LastName>Gauß &amp; Søn</LastName></Author></AuthorList>'
REFERENCES = "<ReferenceList><Title>R</Title><Reference/><ReferenceList><Reference/></ReferenceList></ReferenceList>"


def record(pmid=1, text="Text &mu;g.", before="", after="", end=""):
    return (
        f'\n<PubmedArticle>\n<MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>T</ArticleTitle>{before}'
        f"<Abstract><AbstractText>{text}</AbstractText></Abstract>{after}</Article></MedlineCitation>"
        f"<PubmedData>{end}<ArticleIdList><ArticleId IdType='doi'>10.1/{pmid}</ArticleId></ArticleIdList></PubmedData></PubmedArticle>"
    )


def article_set(*records, prolog='<?xml version="1.0" encoding="utf-8"?>\n', end="\n</PubmedArticleSet>\n"):
    return f"{prolog}<PubmedArticleSet>{''.join(records)}{end}".encode()


def test_blocks_that_nobody_uses_are_cut():
    cut = medline_bytes.without_unused(record(after=AUTHORS, end=REFERENCES + REFERENCES).encode())
    assert cut == record().encode()


@pytest.mark.parametrize(
    "block",
    [
        "<AuthorList/>", '<AuthorList CompleteYN="N"/>', "<AuthorLists>x</AuthorLists>", "<AuthorList>x", "<ReferenceList><ReferenceList></ReferenceList>",
        '<AuthorList a="x>y">z</AuthorList>',
    ],
)  # fmt: skip
def test_what_is_not_clearly_a_block_stays(block):
    data = f"<PubmedArticle>{block}</PubmedArticle>".encode()
    assert medline_bytes.without_unused(data) == data


@pytest.mark.parametrize(
    "records",
    [
        [record(1), record(2)],
        [record(1, after=AUTHORS, end=REFERENCES), "<DeleteCitation><PMID>1</PMID></DeleteCitation>"],
        [record(1, end="<?pmcsd ?>"), record(2, end="<!-- seen -->"), record(3, text="<![CDATA[5 > &mu;]]> mg")],
        [record(1, text="5 &foo; &mu;g")],
        ["<PubmedBookArticle><BookDocument><PMID>1</PMID></BookDocument></PubmedBookArticle>", record(2)],
    ],
)
def test_ordinary_records_are_cut_and_read_the_same(records, monkeypatch):
    data = article_set(*records)
    assert fast(data) == len(records)
    assert both(data, monkeypatch)[1] == "whole"


@pytest.mark.parametrize(
    "records",
    [
        [record(1), f"<!-- {record(2)} -->", record(3)],
        [record(1), f"<Other>{record(2)}</Other>", record(3)],
        [record(1), "<![CDATA[</PubmedArticle>]]>", record(3)],
        [record(1, text="a <![CDATA[</PubmedArticle><PubmedArticle>]]> b"), record(2)],
        [record(1, text="a <!-- </PubmedArticle> --> b"), record(2)],
        [record(1, before="<!-- <AuthorList> -->", after="<!-- </AuthorList> -->")],
        [
            record(
                1,
                before="<AuthorList><!-- </AuthorList><ArticleTitle>False</ArticleTitle><AuthorList> --></AuthorList>",
            )
        ],
        [record(1, before="<?x <AuthorList> ?>", after="<?x </AuthorList> ?>")],
        [record(1, text="<![CDATA[<AuthorList>]]> kept <![CDATA[</AuthorList>]]>")],
        [record(1, text=f"<i>{record(2)}</i>")],
        [record(1).replace("</PubmedArticle>", "</PubmedArticle >"), record(2)],
        [" " * 5000, record(1)],
    ],
)
def test_nothing_hidden_in_a_record_fools_the_cutting(records, monkeypatch):
    assert both(article_set(*records), monkeypatch)[1] == "whole"


@pytest.mark.parametrize(
    "data",
    [
        article_set(record(1), prolog='<?xml version="1.0" encoding="ISO-8859-1"?><!-- a --><?b c?>\n'),
        article_set(record(1), prolog="\ufeff<?xml version='1.0'?>\n<!DOCTYPE PubmedArticleSet SYSTEM 'p.dtd'>\n"),
        article_set(record(1, text="µg")).decode().replace("utf-8", "utf-16").encode("utf-16"),
        article_set(record(1, text="µg")).decode().replace("utf-8", "latin-1").encode("latin-1"),
        record(1).encode(),
        b"<PubmedArticleSet/>",
        b"<PubmedArticleSet a='b'>" + record(1).encode() + b"</PubmedArticleSet>",
        b"<PubmedArticleSet xmlns='urn:other'>" + record(1).encode() + b"</PubmedArticleSet>",
        b"<S xmlns:m='urn:m'>" + record(1, text="<m:math>x</m:math>").encode() + b"</S>",
        b"<html><body>no records</body></html>",
    ],
)
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_other_files_that_are_whole(data, size, monkeypatch):
    assert both(data, monkeypatch, size)[1] == "whole"


@pytest.mark.parametrize(
    "data",
    [
        article_set(record(1), record(2), end=""),
        article_set(record(1), record(2))[:-300],
        article_set(record(1), record(2).replace("</Article>", "</Artcle>"), record(3)),
        article_set(record(1), record(2, text="R&D"), record(3)),
        article_set(record(1), record(2, after="<AuthorList>")),
        article_set(record(1), record(2, after=AUTHORS.replace("</AuthorList>", "")), record(3, after=AUTHORS)),
        article_set(record(1), "text & more", record(2)),
        article_set(record(1), end="</PubmedArticleSet>junk"),
        article_set(record(1), end="</PubmedArticleSe>"),
        article_set(record(1), record(2, text="<m:math>x</m:math>")),
        article_set(record(1), prolog='<!DOCTYPE S [<!ENTITY a "b">]>'),
        article_set(record(1), record(2, after=AUTHORS)).replace("ø".encode(), b"\xf8"),
        article_set(record(1), record(2)) + b"\xc3",
        b"<html><body><p>404<br>Not found</body></html>",
        b"",
    ],
)
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_damaged_files_are_refused_the_same(data, size, monkeypatch):
    assert "a.xml: " in both(data, monkeypatch, size)[1]


def test_the_line_of_a_fault_is_the_files(monkeypatch):
    data = article_set(*(record(number, after=AUTHORS + "\n") for number in range(50)), "\n<b>\n</c>")
    line = data[: data.index(b"</c>")].count(b"\n") + 1
    assert fast(data) == 50
    assert f"line {line}" in both(data, monkeypatch)[1]


parts = st.sampled_from(
    ["", " ", "\n", "&mu;", "&amp;lt;", "&foo;", "µ²", AUTHORS, REFERENCES, "<AuthorList/>", "<?pmcsd ?>", "<!-- a -->", "<![CDATA[&mu;]]>",
     "<![CDATA[</PubmedArticle>]]>", "<!-- <AuthorList> -->", "<AuthorList>", "</AuthorList>", "<sup>2</sup>", "&", "<", "</PubmedArticle>"]
)  # fmt: skip
texts = parts.filter(lambda part: part not in (AUTHORS, REFERENCES))  # blocks do not stand in running text
records = st.one_of(
    st.builds(record, st.integers(1, 9), texts, parts, parts, parts),
    st.sampled_from(["<DeleteCitation><PMID>1</PMID></DeleteCitation>", "<PubmedBookArticle/>", "<!-- x -->", "\n"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(records, max_size=4), st.integers(1, 400), st.integers(0, 40))
def test_any_file_cut_anywhere_reads_the_same(chosen, size, missing):
    data = article_set(*chosen)
    with pytest.MonkeyPatch.context() as monkeypatch:
        both(data[: len(data) - missing if missing > 30 else None], monkeypatch, size)


def test_memory_does_not_grow_with_the_file():
    def peak(count):
        filled = record(1, text="word " * 300, end=f"<ReferenceList>{'<Reference/>' * 900}</ReferenceList>").encode()
        data = io.BytesIO(article_set(end="") + filled * count + b"</PubmedArticleSet>")
        tracemalloc.start()
        found = sum(1 for _ in medline_bytes.iterate(data, "a.xml", Counter()))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == count
        return highest

    assert peak(1000) < 1.1 * peak(100)


def test_a_record_without_end_is_left_to_the_parser(monkeypatch):
    monkeypatch.setattr(medline_bytes, "RECORD_LIMIT", 1 << 16)
    data = article_set(record(1), record(2, after="<a/>" * 50_000), record(3))
    assert fast(data, 1 << 12) == 1
    items, end, _ = both(data, monkeypatch, 1 << 12)
    assert ([item.pmid for item in items], end) == (["1", "2", "3"], "whole")


def test_real_file(assets, monkeypatch):
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    records = []
    cut = medline_bytes.RecordCutter.cut
    monkeypatch.setattr(medline_bytes.RecordCutter, "cut", lambda self: records.append(found := cut(self)) or found)
    with open_input(path, path.name) as first, open_input(path, path.name) as second:
        outcomes = [outcome(first, medline_bytes.iterate, monkeypatch), outcome(second, plain, monkeypatch)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == "whole"
    assert len(records) == 4001 and records[-1] is None
