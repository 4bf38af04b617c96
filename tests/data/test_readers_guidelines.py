"""Guidelines: HTML, text and JSON come out as Markdown with every dose, row and item."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest

from data.documents import Document
from data.files import DamagedFile
from data.readers import plain
from data.readers.guidelines import read
from data.readers.html import html_text
from data.readers.interface import Drop, InputFile


def read_all(content, name):
    data = content if isinstance(content, bytes) else content.encode()
    return list(read(InputFile(io.BytesIO(data), name, "who")))


def test_html_page():
    page = """<!doctype html><html><head><title>Site | Gout</title><style>p{}</style><script>var x = "menu";</script></head><body>
    <nav><ul><li>Home</li></ul></nav><header>Logo</header><main><h1>Gout</h1><p>Give <b>colchicine</b> 500&nbsp;&micro;g<br>twice daily
    (p &lt; 0.05), 10<sup>9</sup>/L.</p><h2>Doses</h2><ul><li>First<ul><li>inner</li></ul></li><li><p>Second</p></li></ul>
    <ol><li>one</li><li>two</li></ol><table><caption>Table 1</caption><tr><th>Drug</th><th>mg</th></tr><tr><td>A</td><td>5</td></tr></table>
    <blockquote><p>Said</p></blockquote><dl><dt>BP</dt><dd>pressure</dd></dl><a href="#"><div>block in a link</div></a>
    <pre>  code\n   kept</pre></main><footer>Imprint</footer></body></html>"""
    (document,) = read_all(page, "a.html")
    assert document.title == "Gout"
    assert document.types == ["guideline"]
    assert document.text == (
        "# Gout\n\nGive colchicine 500 µg\ntwice daily (p < 0.05), 10⁹/L.\n\n## Doses\n\n- First\n  - inner\n- Second\n\n1. one\n2. two\n\n"
        "Table 1\n\n| Drug | mg |\n| --- | --- |\n| A | 5 |\n\n> Said\n\n- BP\n  pressure\n\nblock in a link\n\n  code\n   kept"
    )


def test_html_lists_keep_their_numbers():
    page = """<ol start=3><li>three<ol start="x"><li>one</li></ol></li></ol><p>Stop.</p>
    <ol start="4"><li>four</li><li value="7">seven</li><li>eight</li></ol>"""
    (document,) = read_all(page, "a.html")
    assert document.text == "3. three\n  1. one\n\nStop.\n\n4. four\n7. seven\n8. eight"


def test_html_without_header_gets_its_title_and_encoding_is_respected():
    page = '<html><head><meta charset="iso-8859-1"><title>Fièvre</title></head><body><p>5 µg</p>text</body></html>'
    (document,) = read_all(page.encode("latin-1"), "a.htm")
    assert (document.title, document.text) == ("Fièvre", "# Fièvre\n\n5 µg\n\ntext")
    with pytest.raises(DamagedFile, match=r"a\.htm: not UTF-8 text: byte 0xe8 at offset"):
        read_all(page.replace("iso-8859-1", "utf-8").encode("latin-1"), "a.htm")


def test_text_and_markdown_stay_as_they_are():
    (document,) = read_all("\n# Sepsis\n\n- 1 g IV\no of choice\n| a | b |\n", "sub/a.md")
    assert (document.id, document.title) == ("sub/a.md", "Sepsis")
    assert document.text == "\n# Sepsis\n\n- 1 g IV\no of choice\n| a | b |\n"


def test_public_collection_lines():
    lines = [
        {
            "id": "7",
            "source": "cdc",
            "title": "Rabies",
            "clean_text": "Wash. 20 IU/kg.",
            "raw_text": "x",
            "url": "u",
            "overview": "Short.",
        },
        {
            "id": "8",
            "source": "cdc",
            "title": None,
            "clean_text": None,
            "raw_text": "raw words",
            "url": None,
            "overview": None,
        },
    ]
    content = "\n".join(json.dumps(line) for line in lines) + "\nnot json\n[1]\n"
    first, second, third, fourth = read_all(content, "open_guidelines.jsonl")
    assert (first.id, first.source, first.journal, first.url) == ("7", "who", "cdc", "u")
    assert first.text == "# Rabies\n\nShort.\n\nWash. 20 IU/kg."
    assert (second.text, second.title, second.url) == ("raw words", None, None)
    assert third.detail.startswith(f"open_guidelines.jsonl@{content.index('not json')}: not JSON")
    assert fourth == Drop("bad-record", f"open_guidelines.jsonl@{content.index('[1]')}: expected an object, found list")


def test_structured_json_keeps_every_item():
    record = {
        "condition_name": "Gout", "condition_slug": "gout", "source": "NSTG", "introduction": "Crystals.",
        "clinical_features": [{"type": "Acute", "features": ["Pain", "Heat"]}, {"type": "Both", "early": ["x"], "late": ["y"]}, "other"],
        "treatment": {"goals": [], "drug": ["500 μg"], "doses_per_day": 2}, "prognosis": None,
    }  # fmt: skip
    (document,) = read_all(json.dumps(record), "gout.json")
    assert document.text == (
        "# Gout\n\n## Introduction\n\nCrystals.\n\n## Clinical features\n\n### Acute\n\n- Pain\n- Heat\n\n### Both\n\n#### Early\n\n- x\n\n"
        "#### Late\n\n- y\n\n- other\n\n## Treatment\n\n### Drug\n\n- 500 μg\n\n### Doses per day\n\n2"
    )


def test_broken_json_file_is_damaged():
    with pytest.raises(DamagedFile, match=r"a\.json: not JSON"):
        read_all('{"title": "cut', "a.json")


def test_nesting_without_end_is_damage_of_a_page_and_a_bad_record_of_json():
    with pytest.raises(DamagedFile, match="nested too deeply"):
        read_all("<div>" * 5000 + "x", "a.html")
    deep = '{"a":' * 900 + '"x"' + "}" * 900
    drop, good = read_all(deep + '\n{"text": "good"}', "a.jsonl")
    assert (drop.rule, drop.detail) == ("bad-record", "a.jsonl@0: objects are nested too deeply")
    assert good.text == "good"


def test_real_guidelines(assets):
    folder = assets / "guidelines" / "nstg2022" / "processed_json"
    paths = sorted(folder.iterdir())
    assert len(paths) == 270
    for path in paths:
        (document,) = read_all(path.read_bytes(), path.name)
        assert isinstance(document, Document)
        missing = [
            text
            for text in strings(json.loads(path.read_text()))
            if " ".join(text.split()) not in " ".join(document.text.split())
        ]
        assert missing == [], path


def strings(value, key=""):
    """Every string that is prose in a guideline's JSON."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from strings(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)
    elif isinstance(value, str) and key not in ("condition_slug", "source"):
        yield value


def test_raw_texts_keep_their_words(assets):
    for path in sorted(Path(assets / "guidelines" / "nstg2022" / "raw data" / "NSTG 2022").iterdir())[:20]:
        (document,) = read_all(path.read_bytes(), path.name)
        assert document.text == path.read_bytes().decode().removeprefix("\ufeff")


def test_html_keeps_panels_forms_and_asides_and_counts_what_it_leaves_out():
    page = """<meta charset="utf-16"><nav>Home Contact</nav><article><p>Teaser</p></article><form><p>5 mg</p><button>10 mg
      </button></form><aside>7 mg</aside><div hidden>8 mg</div><p>k = <math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>,
      log<sub>2</sub>3, 70 kg<sup>0.75</sup></p><table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>"""
    notes = Counter()
    _, text = html_text(page.encode(), "a.html", notes)
    words = "Teaser 5 mg 10 mg 7 mg 8 mg k = 1/2 , log₂3, 70 kg^0.75 | a b |"
    assert " ".join(text.split()) == words
    assert notes.total() == 2  # Home, Contact


def test_json_keys_beside_the_text_are_kept():
    (document,) = read_all(json.dumps({"title": "T", "text": "Body.", "dose": "5 mg", "id": 1}), "a.json")
    assert document.text == "# T\n\nBody.\n\n## Dose\n\n5 mg"


@pytest.mark.parametrize("kind", [read, plain.read])
def test_front_matter_of_markdown_is_its_title_and_no_text(kind):
    def one(text, name="a.md"):
        file = InputFile(io.BytesIO(text.encode()), name, "g")
        (document,) = kind(file)
        return document.title, document.text, file.notes.total()

    body = "# Dose\n\nColchicine 500 µg.\n"
    assert one(f'---\ntitle: "Gout: care"\ntags: [a, b]\n---\n\n{body}') == ("Gout: care", body, 1)
    assert one(f"---\r\nlang: en\r\n---\r\n{body}")[1:] == (body, 1)
    for text in (f"---\nA rule before words.\n---\n{body}", f"---\ntitle: no end\n{body}", body):
        assert one(text)[1:] == (text, 0)
    assert one("---\ntitle: T\n---\nx", "a.txt")[1:] == ("---\ntitle: T\n---\nx", 0)
