"""Wikipedia: articles only, mark-up gone, words, numbers and tables kept."""

import bz2
import io
from collections import Counter

import pytest

from data.documents import Document
from data.files import DamagedFile, open_input
from data.readers.interface import Drop, InputFile
from data.readers.wikipedia import NAMED_TEMPLATES, read
from data.readers.wikitext import plain_text


def page(title, text, ns=0, identity=1, extra=""):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>{identity}</id>{extra}<revision><timestamp>2020-01-02T03:04:05Z</timestamp>"
        f"<text>{text}</text></revision></page>"
    )


def dump(*pages):
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="en"><siteinfo><base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>'
    return (head + "".join(pages) + "</mediawiki>").encode()


def test_pages_and_drops():
    pages = [
        page("Gout (disease)", "'''Gout''' is [[arthritis]].", identity=5),
        page("Old name", "#REDIRECT [[Gout]]", extra='<redirect title="Gout"/>'),
        page("Talk:Gout", "talk", ns=1),
        page("Empty", ""),
    ]
    items = list(read(InputFile(io.BytesIO(dump(*pages)), "w.xml", "wikipedia")))
    assert items[0] == Document(
        id="page:5", source="wikipedia", title="Gout (disease)", text="# Gout (disease)\n\nGout is arthritis.",
        url="https://en.wikipedia.org/wiki/Gout_%28disease%29", license="CC-BY-SA", language="en", date="2020-01-02",
    )  # fmt: skip
    assert [item.rule for item in items[1:]] == ["redirect", "not-an-article", "bad-record"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("'''Bold''' ''it'' [[a|b]] [[c]] [http://x.org site] [http://y.org]", "Bold it b c site"),
        ("a<ref>note {{cite|x}}</ref>b<ref name=x />c", "abc"),
        ("{{Infobox|a=[[b]]|{{nested|{{deep}}}}}}text", "text"),
        ("{{convert|5|km|mi}} and {{convert|3|to|4|mg}} {{frac|1|2}} {{frac|2|1|3}} {{lang|fr|mot}} {{val|3.1|e=9|u=Pa}}",
         "5 km and 3 to 4 mg 1/2 2 1/3 mot 3.1×10⁹ Pa"),
        ("{{small|[[1st Awards|(1st)]]}}", "(1st)"),
        ("[[File:x.jpg|thumb|a [[link]] and [http://z z]]]after", "after"),
        ("[[Category:X]]\n[[fr:Goutte]]words", "words"),
        ("10<sup>9</sup> H<sub>2</sub>O 5&nbsp;mg p &lt; 0.05 and x < 3", "10⁹ H2O 5 mg p < 0.05 and x < 3"),
        ("== A ==\ntext\n=== B ===\n* one\n** two\n# x\n# y\n: indented", "## A\n\ntext\n\n### B\n\n- one\n  - two\n1. x\n2. y\nindented"),
        ("lead\n== See also ==\n* [[x]]\n== References ==\n{{reflist}}", "lead"),
        ("== Empty ==\n== Full ==\nx", "## Full\n\nx"),
        ("<math>E = mc^2</math> <nowiki>[[raw]] &amp;</nowiki>", "$E = mc^2$ [[raw]] &"),
        ("<!-- hidden [[x]] -->seen<br/>line __NOTOC__", "seen\nline"),
        ("unclosed {{template and [[link\nnext", "unclosed {{template and [[link\nnext"),
        ("{| class=x\n|+ Doses\n! Drug !! mg\n|-\n| colspan=2 | both\n|-\n| [[A|B]]\n| 5 || extra\n|}",
         "Doses\n\n| Drug | mg |  |\n| --- | --- | --- |\n| both |  |  |\n| B | 5 | extra |"),
    ],
)  # fmt: skip
def test_wikitext(source, expected):
    assert plain_text(source, Counter()) == expected


def test_deep_nesting_ends():
    assert plain_text("{{a|" * 300 + "x" + "}}" * 300 + "end", Counter()) == "end"


def test_real_dump(assets):
    (path,) = (assets / "general").glob("enwiki*.bz2")
    with open_input(path, path.name) as stream:
        file = InputFile(stream, path.name, "wikipedia")
        items = list(read(file))
    assert file.notes["template cite book left out"] == 488
    documents = [item for item in items if isinstance(item, Document)]
    assert (len(documents), sum(isinstance(item, Drop) for item in items)) == (106, 100)
    text = "\n".join(document.text for document in documents)
    assert len(text) > 2_900_000
    for mark in ("[[", "<ref", "'''", "{|", "&nbsp;", "<br"):
        assert text.count(mark) <= 1, mark
    for mark in ("\ue000", "\ue001", "\n|}", "(;", "(,", ", )", "; )"):
        assert mark not in text, mark
    by_id = {document.id: document.text for document in documents}
    assert "between 60 and 80 kg" in by_id["page:680"]
    assert "| 101 1011 | 133 | 91 | 5B | [ |" in by_id["page:586"]


def test_multistream_and_cut_dumps(tmp_path):
    data = dump(*(page(f"P{i}", "words " * 50, identity=i) for i in range(20)))
    path = tmp_path / "d.xml.bz2"
    path.write_bytes(bz2.compress(data[:2000]) + bz2.compress(data[2000:]))
    with open_input(path, "d.xml.bz2") as stream:
        assert len(list(read(InputFile(stream, "d.xml.bz2", "w")))) == 20
    path.write_bytes(bz2.compress(data[:2000]) + bz2.compress(data[2000:])[:-20])
    with open_input(path, "d.xml.bz2") as stream, pytest.raises(DamagedFile, match="cut short"):
        list(read(InputFile(stream, "d.xml.bz2", "w")))


@pytest.mark.parametrize(
    ("source", "expected", "left_out"),
    [
        ("{{formatnum:1234567}} {{nts|12}} {{circa|1850}}", "1234567 12 c. 1850", 0),
        ("{{val|1.23|0.05|e=3|u=mm}}, {{val|5|u=g}}", "(1.23±0.05)×10³ mm, 5 g", 0),
        ("{{Quote|text=First, do no harm|author=X}}", "First, do no harm", 0),
        ("{{Infobox drug|dose=5}}Text", "Text", 1),
        ("{{convert|60|and(-)|80|kg}}, {{convert|6|ft|2|in|m}}, {{cvt|2|,|3|or|4|x|5|cm|in|0}}", "60 and 80 kg, 6 ft 2 in, 2, 3 or 4 × 5 cm", 0),
        ("{{convert|23|C|0}}, {{convert|1=12|2=km2}}, {{convert|5+1/2|in}}, {{convert|10|lb|3.5|oz|kg}}", "23 °C, 12 km², 5 1/2 in, 10 lb 3.5 oz", 0),
        ("{{gaps|1|000}} {{gaps|3.141|592|u=m}} {{val|5|-|7|u=kg|e=3}} {{frac|3}}", "1000 3.141592 m (5–7)×10³ kg 1/3", 0),
        ("{{GBP|50}} {{US$|5 million}} {{10^|5}} {{e|-5}} {{CO2}} {{pH|7}} {{SimpleNuclide2|lithium|7}}", "£50 US$5 million 10⁵ ×10⁻⁵ CO2 pH 7 lithium-7", 0),
        ("{{As of|2013|June|8}} {{as of|2015|6|30|lc=y}} ''Eagle''{{'s}}", "As of 8 June 2013 as of 2015-6-30 Eagle’s", 0),
        ("{{nihongo|Aikido|合気道|Aikidō}} {{HMS|Ajax|22|6}} {{ship|HMS|Exeter|68}}", "Aikido HMS Ajax HMS Exeter", 0),
        ('if n<p and q>2 then <span class="a">x</span>', "if n<p and q>2 then x", 0),
    ],
)  # fmt: skip
def test_numbers_of_templates_are_kept_and_the_rest_is_counted(source, expected, left_out):
    notes = Counter()
    assert plain_text(source, notes) == expected
    assert notes.total() == left_out


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Albania ({{IPAc-en|a}}, {{IPAc-en|b}}; Shqipëri, {{x}}) is", "Albania (Shqipëri) is"),
        ("Andorra ({{x}}; {{y}}, {{z}}), a ({{x}}) state", "Andorra, a state"),
        ("main() and (a, b); x (1945–)", "main() and (a, b); x (1945–)"),
    ],
)
def test_no_holes_are_left_where_templates_stood(source, expected):
    assert plain_text(source, Counter()) == expected


def test_held_passages_come_back_from_any_depth():
    inner = "{|\n|-\n| <nowiki>[<math>x</math></nowiki>\n|}"
    for _ in range(4):
        inner = "{|\n|-\n|\n" + inner + "\n|}"
    text = plain_text(inner, Counter())
    assert "[$x$" in text
    assert not {"\ue000", "\ue001"} & set(text)
    assert plain_text("&#xE000;0&#xE001; <nowiki>&#xE000;0&#57345;&lt;</nowiki>", Counter()) == "0 0<"
    assert plain_text("{|\n|{|\n| b\n|}\n|}\nx", Counter()) == "| b |\n\nx"


def test_names_of_templates_left_out_are_bounded():
    text = "".join(f"{{{{rare {number}}}}}" for number in range(500)) + "{{common}}" * 3
    file = InputFile(io.BytesIO(dump(page("P", text + "words"))), "w.xml", "wikipedia")
    list(read(file))
    assert file.notes["template common left out"] == 3
    assert file.notes["rarer templates left out"] == 500 - (NAMED_TEMPLATES - 1)
    assert len(file.notes) == NAMED_TEMPLATES + 1
