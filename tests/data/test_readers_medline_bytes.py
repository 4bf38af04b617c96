"""Cutting MEDLINE as bytes must give what parsing the whole file gives, whatever the file and wherever a read ends; but
a malformed record costs only itself."""

import io
import itertools
import re
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import xml
from data.files import DamagedFile, open_input
from data.readers import medline, medline_bytes
from data.readers.interface import Drop, InputFile


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


def malformed(items):
    """What the drops of malformed records say."""
    return [item.detail for item in items if isinstance(item, Drop) and "not well-formed" in (item.detail or "")]


def both(data, monkeypatch, size=1 << 20):
    """The outcome of cutting, which must be that of parsing; how far a damaged file is read depends on the reads. Only
    in a file that parsing refuses, records may be passed over."""
    items, end, notes = outcome(Pieces(data, size), medline_bytes.iterate, monkeypatch)
    expected_items, expected_end, expected_notes = outcome(io.BytesIO(data), plain, monkeypatch)
    if malformed(items):
        assert expected_end != "whole"
    else:
        assert end == expected_end
    if expected_end == "whole":
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
        [record(1), '<PubmedArticle a="b"/>', record(3), record(4)],
        [record(1, text="&foo;<i><PubmedArticle>&foo;</PubmedArticle></i>"), record(2)],
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
        article_set(record(1), record(2, text="R&D"), record(3))[:-9],
        article_set(record(1), record(2, text="a</PubmedArticle>b"), record(3)),
        article_set(record(1), record(2, text="R&D"), "<Other/>", record(3)),
        article_set(record(1), record(2, text="R&D"), "text", record(3)),
        article_set(record(1), record(2, text="R&D <!-- <b> -->"), record(3)),
        article_set(record(1), "<!-- <b> -->", record(2, text="R&D"), record(3)),
        article_set(record(1), record(2).removesuffix("</PubmedArticle>"), "<PubmedArticle/>", record(3)),
        article_set(record(1), record(2, text="<!-- ").removesuffix("</PubmedArticle>"), record(3)),
        article_set(record(1), "text & more", record(2)),
        article_set(record(1), end="</PubmedArticleSet>junk"),
        article_set(record(1), end="</PubmedArticleSe>"),
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


MISMATCH = "Opening and ending tag mismatch: "
NO_END = "its end tag is missing"


def without_end(*arguments, **more):
    return record(*arguments, **more).removesuffix("</PubmedArticle>")


@pytest.mark.parametrize(
    ("records", "pmids", "found"),
    [
        ([record(1), record(2).replace("</Article>", "</Artcle>"), record(3)], "13", {"PMID 2": MISMATCH + "Article and Artcle"}),
        ([record(1), record(2, text="R&D"), record(3, after=AUTHORS)], "13", {"PMID 2": "EntityRef: expecting ';'"}),
        ([record(1, text="5 \x01 g"), record(2)], "2", {"PMID 1": "PCDATA invalid Char value 1"}),
        ([record(1), record(2, after="<AuthorList>")], "1", {"PMID 2": MISMATCH + "AuthorList and Article"}),
        ([record(1), record(2, text="<m:math>x</m:math>"), record(3)], "13", {"PMID 2": "Namespace prefix m on math is not defined"}),
        ([record(1), record(2).replace("<PMID", "<PMI"), record(3)], "13", {"line 5": MISMATCH + "PMI and PMID"}),
        ([record(1), record(2).replace("<PMID", "<PMI"), record(3, text="&foo;")], "13", {"line 5": MISMATCH + "PMI and PMID"}),
        ([record(1), without_end(2), record(3)], "13", {"PMID 2": NO_END}),
        ([record(1), without_end(2), without_end(3), record(4)], "14", {"PMID 2": NO_END, "PMID 3": NO_END}),
        ([record(1), without_end(2), "<DeleteCitation><PMID>1</PMID></DeleteCitation>"], "11", {"PMID 2": NO_END}),
        ([record(1), without_end(2)], "1", {"PMID 2": NO_END}),
        ([record(1), without_end(2), record(3, text="R&D")], "1", {"PMID 2": NO_END, "PMID 3": "EntityRef: expecting ';'"}),
        (["<DeleteCitation><PMID>1</PMID><PMID></DeleteCitation>", record(2)], "2", {"line 2": MISMATCH + "PMID and DeleteCitation"}),
        ([record(1), record(2, text="R&D"), record(3, text="x <!-- <b> -->")], "13", {"PMID 2": "EntityRef: expecting ';'"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_malformed_record_costs_only_itself(records, pmids, found, size, monkeypatch):
    items, end, _ = both(article_set(*records), monkeypatch, size)
    assert end == "whole"
    assert "".join(item.pmid for item in items if not isinstance(item, Drop)) == pmids
    assert malformed(items) == [f"a.xml: {place}: not well-formed XML ({reason})" for place, reason in found.items()]
    drops = [(item.rule, item.about) for item in items if isinstance(item, Drop)]
    assert drops == [("bad-record", None)] * len(found)  # what it says of others with its PMID is unknown


def test_unknown_entities_of_a_malformed_record_are_not_counted(monkeypatch):
    notes = both(article_set(record(1, text="&foo; R&D"), record(2, text="&bar;")), monkeypatch)[2]
    assert notes == {"unknown entity &bar; kept as text": 1}


def test_too_many_malformed_records_are_a_damaged_file(monkeypatch):
    def end(*counts):
        texts = itertools.chain.from_iterable(
            [text] * count for text, count in zip(itertools.cycle(("R&D", "x")), counts)
        )
        return outcome(
            io.BytesIO(article_set(*(record(1, text) for text in texts))), medline_bytes.iterate, monkeypatch
        )[1]

    few, share = medline_bytes.MALFORMED_LIMIT, medline_bytes.MALFORMED_SHARE
    assert end(few, 2) == "whole"
    assert end(few, 200, 1) == "a.xml: 101 of its first 301 records are not well-formed XML"
    assert end(few, int(few / share), 1) == "whole"


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
made = (st.integers(1, 9), texts, parts, parts, parts)
records = st.one_of(
    st.builds(record, *made),
    st.builds(without_end, *made),
    st.sampled_from(["<DeleteCitation><PMID>1</PMID></DeleteCitation>", "<PubmedBookArticle/>", "<!-- x -->", "\n"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(records, max_size=4), st.integers(1, 400), st.integers(0, 40))
def test_any_file_cut_anywhere_reads_the_same(chosen, size, missing):
    data = article_set(*chosen)
    with pytest.MonkeyPatch.context() as monkeypatch:
        items, end, _ = both(data[: len(data) - missing if missing > 30 else None], monkeypatch, size)
        if end == "whole":
            alone = [outcome(io.BytesIO(article_set(item)), plain, monkeypatch)[:2] for item in chosen]
            expected = [item for found, end in alone if end == "whole" for item in found]
            assert [item for item in items if not malformed([item])] == expected
            assert len(malformed(items)) == sum(end != "whole" for _, end in alone)


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


def test_what_hides_mark_up_is_seen_in_every_chunk(monkeypatch):
    """Behind the first bytes read, in a record whose blocks would be cut out of a CDATA section."""
    hidden = "<![CDATA[see <AuthorList>]]> 5 mg <![CDATA[and </AuthorList>]]> daily"
    data = article_set(*(record(number) for number in range(1, 200)), record(200, hidden))
    for size in (500, 4096):
        items, end, _ = both(data, monkeypatch, size)
        assert (end, len(items)) == ("whole", 200)
        assert "see <AuthorList> 5 mg and </AuthorList> daily" in items[-1].text
        assert 150 < fast(data, size) < 200
