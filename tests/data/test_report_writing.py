"""How a report is drawn and written: any account has a picture, and no text breaks out of its place in Markdown."""

from collections import Counter

import pytest

from data.account import SourceReport
from data.report_picture import MOST_SOURCES, draw
from data.report_text import code, fenced, inline


def _source(records, **values):
    source = SourceReport("jsonl", records=records, **values)
    source.dropped["too-short"] = records - source.documents.total()
    return source


class _Drawn:
    """What the picture reads of an account."""

    def __init__(self, sources):
        self.sources = sources


@pytest.mark.parametrize(
    "sources",
    [
        {"$x$ _y": _source(3, documents=Counter(train=2), lengths=Counter({7: 2}), years=Counter({0: 2})), "_b": _source(0)},
        {f"s{n}": _source(n + 1, documents=Counter(train=1, validation=1) if n else Counter(), lengths=Counter({n: 2}),
                          years=Counter({1900 + n: 1, 2000: 1}), languages=Counter({f"l{n}": 2}),
                          licenses=Counter({"MIT": 2})) for n in range(MOST_SOURCES + 3)},
    ],
    ids=["names", "many"],
)  # fmt: skip
def test_the_picture_takes_any_account(sources, tmp_path):
    for name in ("a.png", "b.png"):
        draw(_Drawn(sources), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "```text\nplain\n```"),
        ("a ````` b", "``````text\na ````` b\n``````"),
        ("bell\x07 \r\nnext\u2028line", "```text\nbell\ufffd \nnext\ufffdline\n```"),
    ],
)
def test_fenced_text_cannot_end_its_fence(text, expected):
    assert fenced(text) == expected


def test_names_cannot_break_out_of_their_place():
    assert code("a`b\nc") == "``a`b c``"
    assert code("`x`") == "`` `x` ``"
    assert inline("a|b\n<img src=x> [l](u)") == r"a\|b \<img src=x\> \[l\](u)"
