"""Cleaning repairs and loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clean import clean_text

FAITHFUL = [
    "Give 5 µg/kg (0.5–1.0 mL) q6h; p < 0.05 and n > 30 [range 3–7].",
    "| Drug | Dose |\n| --- | --- |\n| Amoxicillin | 25 mg/kg |",
    "10⁹ cells, Ca²⁺, H₂O, 37 °C, ±2, ≤5, ≥ 60 %, α-TNF, x̄, Å",
    "½ tablet, № 5, Ⅳ, ℃, 10 ㎍, ﹤5, ｐ",
    "o of choice\n12.5\n<5> [6] {7}",
    "    indented = code\n\tand tab",
    "2.5 Å±0.3 nm, 1.5 Å°, Ø±2 mm, 5 mg×², 0.1 Å¹",
    "naïve café–bar Ångström “quoted” it’s",
    "1. one\n  - nested\n2. two",
]


@pytest.mark.parametrize("text", FAITHFUL)
def test_text_that_needs_nothing_is_unchanged(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("5 Î¼g of TNF-Î±", "5 μg of TNF-α"),
        ("â‰¤5 Î¼m, 2.5 Å±0.3", "≤5 μm, 2.5 Å±0.3"),
        ("Â±2 Â°C and caf\u00c3\u00a9", "±2 °C and café"),
        ("5\u00a0mg\u2009/\u202fkg", "5 mg / kg"),
        ("hy\u00adphen\u200b\ufeff", "hyphen"),
        ("a pa\u00ad\n  tient, a cut\u00ad\r\nword", "a patient, a cutword"),
        ("ends\u00ad\n\nHere", "ends\n\nHere"),
        ("signi\ufb01cant di\ufb00erence, a\ufb04icted, re\ufb02ux", "significant difference, afflicted, reflux"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a  \n\n\n\n b\t\n", "a\n\n b"),
        ("e\u0301", "é"),
        ("a\x00b\x07", "ab"),
    ],
)
def test_repairs(broken, repaired):
    assert clean_text(broken) == repaired


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text):
    once = clean_text(text)
    assert clean_text(once) == once


def test_ftfy_is_asked_only_where_it_shows(monkeypatch):
    def refuse(text):
        raise AssertionError(f"asked about {text!r}")

    monkeypatch.setattr("data.clean.ftfy.fix_encoding", refuse)
    for text in FAITHFUL:
        assert clean_text(text) == text
    with pytest.raises(AssertionError, match="asked about"):
        clean_text("5 Î¼g")
