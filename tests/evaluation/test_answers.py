"""The extraction rule on hard cases, and the vote."""

import pytest

from evaluation.answers import extract_answer, majority

DRUGS = {"A": "Aspirin", "B": "Beta blocker", "C": "Beta blocker and aspirin", "D": "5 mg"}
VERDICT = {"A": "yes", "B": "no", "C": "maybe"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: B", "B"),
        ("The answer is B.", "B"),
        ("the answer is (b)", "B"),
        ("Thinking about it... So the correct answer is: **C**", "C"),
        ("Answer: D", "D"),
        ("The answer is option A.", "A"),
        ("The answer is the letter D", "D"),
        ("The answer is A because it is first.", "A"),
        ("The answer is C which fits.", "C"),
        ("The answer is\nB\n", "B"),
        # the text of an option
        ("The answer is: Aspirin", "A"),
        ("The answer is: aspirin.", "A"),
        ("The answer is beta blocker", "B"),
        ("The answer is Beta  blocker and\naspirin, of course", "C"),
        ("The answer is: 5 mg.", "D"),
        ("The answer is: B. Beta blocker", "B"),
        # the last statement that can be read counts
        ("The answer is A. No: the answer is B.", "B"),
        ("The answer is B. The answer is", "B"),
        # the model runs on into a next question of its own
        ("The answer is: B\n\nQuestion: Which?\nThe answer is: D", "B"),
        ("First, consider it.\n\nQuestion: Which?\nThe answer is: D", None),
        ("The answer is: A\n### The answer is: D", "A"),
        # not stated
        ("", None),
        ("Based on the findings", None),
        ("B", None),
        ("A beta blocker is given.", None),
        ("The answer is a combination of both.", None),
        ("The answer is A combination of both.", None),
        ("The answer is not B.", None),
        ("The answer is E.", None),
        ("The answer is Both.", None),
        ("The answer is Aspirins", None),
        ("The answer is 5 mg-equivalents", None),
        ("The answer is clear.", None),
        ("The answer is: B. Aspirin", None),
        ("An answerable question is B", None),
        ("The answer is A and C.", None),
        ("The answer is B or C.", None),
        ("The answer is (B), (C)", None),
        ("The answer is A/B", None),
        ("The answer is B, and C is wrong.", "B"),
    ],
)
def test_extraction_of_letters_and_option_texts(text, answer):
    assert extract_answer(text, DRUGS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: yes", "A"),
        ("The answer is: No.", "B"),
        ("The answer is: maybe", "C"),
        ("The answer is **Maybe**, given the data.", "C"),
        ("The answer is no because the groups did not differ.", "B"),
        ("The answer is no evidence was found", None),
        ("The answer is unknown", None),
        ("The answer is nothing", None),
        ("yes", None),
        ("The answer is: A", None),
    ],
)
def test_extraction_of_verdicts(text, answer):
    assert extract_answer(text, VERDICT) == answer


def test_options_with_the_same_text_name_none():
    assert extract_answer("The answer is: same", {"A": "same", "B": "same"}) is None
    assert extract_answer("The answer is: B", {"A": "same", "B": "same"}) == "B"


@pytest.mark.parametrize(
    ("answers", "winner", "votes"),
    [
        (["A", "B", "B"], "B", {"A": 1, "B": 2}),
        (["C", None, None, None, None], "C", {"C": 1}),
        (["B", "A", "A", "B", None], "B", {"A": 2, "B": 2}),
        (["A", "B", "A", "B"], "A", {"A": 2, "B": 2}),
        ([None, None], None, {}),
    ],
)
def test_majority_ignores_what_was_not_parsed_and_breaks_ties_by_order(answers, winner, votes):
    assert majority(answers) == (winner, votes)
