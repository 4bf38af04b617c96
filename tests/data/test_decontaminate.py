"""Benchmark questions are kept out, honest text is kept."""

import json

import pytest

from data.decontaminate import Questions, read_questions
from data.documents import Document

QUESTION = "Which drug is given first in acute gout (adults), 500 µg?"
QUESTIONS = Questions(
    [("medqa", QUESTION, None), ("pubmedqa", "Is it short?", "77"), ("mmlu", "Vitamin D deficiency", None)]
)


def match(text, **fields):
    return QUESTIONS.match(Document(id="x", source="s", title=None, text=text, **fields))


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        f"# Title\n\nBefore. {QUESTION} A. colchicine",
        "WHICH DRUG is given,\nfirst in *acute* gout [adults] 500 μg",  # case, signs, line breaks and the other micro sign
    ],
)
def test_a_whole_question_is_found(text):
    assert match(text) == ("benchmark-question", "medqa")


@pytest.mark.parametrize(
    "text",
    [
        "Which drug is given first in acute gout? Adults need 500 mg.",
        "xWhich drug is given first in acute gout (adults), 500 µgs",
        "Vitamin D deficiency",
        "",
    ],
)
def test_part_of_a_question_or_a_short_one_is_not(text):
    assert match(text) is None


def test_pmids_of_questions():
    assert match("anything", pmid="77") == ("benchmark-pmid", "pubmedqa")
    assert match("anything", pmid="78") is None


def test_counts_of_what_can_be_checked():
    assert QUESTIONS.checked == {"medqa": 1}
    assert QUESTIONS.too_short == {"pubmedqa": 1, "mmlu": 1}
    assert QUESTIONS.digest != Questions([]).digest


def test_every_question_of_a_real_benchmark_is_found_in_itself(assets):
    questions = read_questions([("medqa4", assets / "eval" / "medqa"), ("pubmedqa", assets / "eval" / "pubmedqa")])
    assert questions.checked["medqa4"] == 1273
    assert len(questions.pmids) == 500
    texts = [text for group in questions.by_word.values() for text, _ in group]
    for text in texts[::10]:
        found = questions.match(Document(id="x", source="s", title=None, text=f"Intro {text} outro"))
        assert found is not None
        assert found[0] == "benchmark-question"


def test_own_questions(tmp_path):
    record = {"question": QUESTION, "options": {"A": "x", "B": "y"}, "answer": "A"}
    (tmp_path / "test.jsonl").write_text(json.dumps(record) + "\n")
    assert read_questions([("mcq", tmp_path)]).checked == {"mcq": 1}
