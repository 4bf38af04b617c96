"""Prompt structure, the choice of demonstrations, and cutting to the context."""

import pytest

from data.questions import Question
from evaluation.prompts import answer_text, build_prompt, choose_demonstrations, fit_prompt


class Words:
    """A tokenizer with one id a word, so that lengths are plain to see."""

    bos_id = 0

    def __init__(self):
        self.words = ["<bos>"]

    def encode(self, text):
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


def mcq(number=0, subject=None, explanation=None):
    options = {"A": "alpha", "B": "beta"}
    return Question(f"medqa4:{number}", "medqa4", subject, f"Which drug {number}?", "", options, "B", explanation)


def pubmedqa():
    options = {"A": "yes", "B": "no", "C": "maybe"}
    return Question("pubmedqa:1", "pubmedqa", None, "Does it help?", "one two three four five six", options, "C")


def test_letter_prompt_has_meditrons_structure():
    text = build_prompt(mcq(1), [mcq(2), mcq(3)], "letter").text()
    system, *rest = text.split("\n\n")
    assert system.endswith("Answer with the letter of the correct option.")
    assert rest == [
        "Question: Which drug 2?", "Options:\nA. alpha\nB. beta\nThe answer is: B",
        "Question: Which drug 3?", "Options:\nA. alpha\nB. beta\nThe answer is: B",
        "Question: Which drug 1?", "Options:\nA. alpha\nB. beta\nThe answer is:",
    ]  # fmt: skip


def test_pubmedqa_prompt_shows_its_context_and_answers_with_the_word():
    text = build_prompt(pubmedqa(), [], "letter").text()
    body = "Context: one two three four five six\n\nQuestion: Does it help?\nThe answer is:"
    assert text.endswith("Answer with yes, no or maybe.\n\n" + body)
    assert answer_text(pubmedqa(), "C") == "maybe"
    assert answer_text(mcq(), "B") == "B"


def test_cot_prompt_reasons_in_its_demonstrations():
    text = build_prompt(mcq(1), [mcq(2, explanation="Beta is better.")], "cot").text()
    assert "B. beta\nLet's think step by step. Beta is better.\nThe answer is: B\n\n" in text
    assert text.endswith("B. beta\nLet's think step by step.")


def test_question_only_form_lists_no_option():
    text = build_prompt(mcq(1), [mcq(2)], "text").text()
    assert text == "Question: Which drug 2?\nAnswer: beta\n\nQuestion: Which drug 1?\nAnswer:"


def test_demonstrations_are_fixed_by_the_seed_and_exclude_the_question():
    shots = [mcq(number) for number in range(20)]
    first = choose_demonstrations(mcq(30), shots, 5, seed=1)
    assert first == choose_demonstrations(mcq(31), list(reversed(shots)), 5, seed=1)
    assert first != choose_demonstrations(mcq(30), shots, 5, seed=2)
    assert mcq(7) not in choose_demonstrations(mcq(7), shots, 19, seed=1)
    with pytest.raises(ValueError, match="--shots 20, but its folder has 19 questions"):
        choose_demonstrations(mcq(7), shots, 20, seed=1)


def test_demonstrations_prefer_the_questions_own_subject():
    shots = [mcq(number, subject="virology" if number % 2 else "anatomy") for number in range(10)]
    chosen = choose_demonstrations(mcq(30, subject="virology"), shots, 5, seed=1)
    assert [shot.subject for shot in chosen] == ["virology"] * 5


def test_long_prompts_lose_shots_then_context_then_the_start_of_the_question():
    prompt = build_prompt(pubmedqa(), [mcq(1), mcq(2)], "letter")
    continuations = [" yes", " no", " maybe not"]
    tokenizer = Words()

    def fitted(limit):
        made = fit_prompt(prompt, continuations, limit, tokenizer)
        assert max(len(ids) for ids in made.with_continuation) <= limit
        assert made.ids[0] == tokenizer.bos_id
        assert all(ids[: len(made.ids)] == made.ids for ids in made.with_continuation)
        return made

    whole = len(tokenizer.encode(prompt.text())) + 3  # BOS and the longest continuation
    shot = len(tokenizer.encode("Question: Which drug 1? Options: A. alpha B. beta The answer is: B"))
    assert fitted(whole).cut is None
    assert fitted(whole).text == prompt.text()

    one_shot = fitted(whole - 1)
    assert one_shot.cut == "shots"
    assert one_shot.text == prompt.text(demonstrations_dropped=1)
    assert fitted(whole - shot).text == one_shot.text

    in_context = fitted(whole - 2 * shot - 2)
    assert in_context.cut == "context"
    assert "Context: three four five six\n" in in_context.text
    assert in_context.text.startswith("Each question below")

    in_question = fitted(8)
    assert in_question.cut == "question"
    assert in_question.text == "it help? The answer is:"


def test_cut_never_drops_more_than_needed():
    prompt = build_prompt(pubmedqa(), [], "letter")
    tokenizer = Words()
    whole = len(tokenizer.encode(prompt.text())) + 2
    for excess in range(1, 6):
        text = fit_prompt(prompt, [" yes"], whole - excess, tokenizer).text
        context = " ".join(["one", "two", "three", "four", "five", "six"][excess:])
        assert f"Context: {context}\n\n" in text
