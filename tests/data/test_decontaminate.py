"""Benchmark questions are kept out, honest text is kept, and what is left in common is counted."""

import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import decontaminate
from data.benchmarks import read_benchmark
from data.decontaminate import GRAM, SHORTEST_QUESTION, Questions, needed, needed_grams, read_questions
from data.documents import Document
from data.overlap import LONGEST_RUN, SHORTEST_RUN, Overlap, in_order, letter_masks
from data.words import Words, fold, split_words

LONG = "Which drug is given first in acute gout (adults), 500 µg?"
SHORT = "Is gout ever really cured?"
QUESTIONS = Questions(
    [
        ("medqa", "medqa:0", LONG, None),
        ("mmlu", "mmlu:7", SHORT, None),
        ("medmcqa", "medmcqa:a", SHORT.upper(), None),
        ("pubmedqa", "pubmedqa:77", "Is it short?", "77"),
        ("mmlu", "mmlu:8", "Vitamin D deficiency", None),
    ]
)


def examine(text, questions=QUESTIONS, overlap=None, **fields):
    document = Document(id="x", source="s", title=None, text=text, **fields)
    # Between others, as in a batch; with them it would go on to be any of the questions here.
    words = Words(
        ["which drug is given first in acute gout adults", fold(text), "given first in acute gout adults 500 µg"]
    )
    return questions.examine(document, words.of(1), questions.find(words)[1], overlap)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (LONG, 1.0),
        (f"# Title\n\nBefore. {LONG} A. colchicine", 1.0),
        (
            "WHICH DRUG is given,\nfirst in *acute* gout [adults] 500 μg",
            1.0,
        ),  # case, signs, breaks, the other micro sign
        ("Which drug is given first in severe acute gout (adults), 500 µg?", 10 / 11),  # the window has 11 words too
        ("Which drug is given first in gout (adults), 500 µg?", 10 / 11),
        ("Which agent is given first in acute gout (adults), 500 mg?", 9 / 11),
    ],
)
def test_a_question_with_most_of_its_words_in_order_is_found(text, share):
    assert examine(text) == ("benchmark-question", "medqa", "medqa:0", share)


@pytest.mark.parametrize(
    "text",
    [
        "Which agent is given first in chronic gout (adults), 500 mg?",  # 8 of 11
        "500 µg, adults: gout, acute, in first given is drug which",  # not in order
        "Which drug, if any, is given first of all and in every acute attack of gout to adults at 500 µg",  # too far apart
        "Which drug is X given first in Y acute gout (adults)",  # 9 in order, but no four next to each other
        "Is gout ever truly cured?",
        "Is gout, as we know it, ever really cured?",
        "Vitamin D deficiency",
        "Is it short?",
        "gout",
        "",
    ],
)
def test_less_is_not_a_question(text):
    assert examine(text) is None


def test_a_question_of_five_to_seven_words_must_be_whole():
    assert examine(f"They ask: {SHORT} Yes.") == ("benchmark-question", "mmlu", "mmlu:7", 1.0)
    assert QUESTIONS.shared_by == {"mmlu:7": ("mmlu", "medmcqa"), "medmcqa:a": ("mmlu", "medmcqa")}


def test_the_most_complete_question_is_named():
    assert examine(f"{LONG[:-8]} {SHORT}").question == "mmlu:7"
    assert examine(f"{LONG} {SHORT}").question == "medqa:0"


def test_articles_of_questions():
    assert examine("anything", pmid="77") == ("benchmark-pmid", "pubmedqa", "pubmedqa:77", 1.0)
    assert examine("anything", pmid="78") is None
    assert QUESTIONS.identities == {"pmid": {"77": "pubmedqa"}}


def test_summary():
    summary = QUESTIONS.summary()
    assert summary["mmlu"] == {"questions": 2, "checked": 1, "not_checked": ["mmlu:8"], "articles": 0}
    assert summary["pubmedqa"] == {"questions": 1, "checked": 0, "not_checked": ["pubmedqa:77"], "articles": 1}


def test_without_questions():
    nothing = Questions([])
    assert examine(LONG, nothing, nothing.new_overlap()) is None
    assert nothing.summary() == nothing.left(nothing.new_overlap()) == {}
    assert nothing.digest != QUESTIONS.digest


def test_the_digest_is_that_of_the_questions():
    rows = [("a", "a:1", LONG, None), ("a", "a:2", SHORT, "5")]
    assert Questions(rows).digest == Questions(rows).digest
    changed = [rows[:1], [*rows[:1], ("a", "a:2", SHORT, "6")], [("b", "b:1", LONG, None), rows[1]]]
    assert len({Questions(rows).digest, *(Questions(other).digest for other in changed)}) == 4


# ---- against a plain comparison of every window with every question --------------------------------------------------


def plain_in_order(a, b):
    """Length of the longest common subsequence, by the table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[j], before[j + 1]))
    return row[-1]


def grams(words):
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def windows(words, length):
    return [words[start : start + length] for start in range(max(len(words) - length, 0) + 1)]


def plain_match(questions, words):
    """(share, place) of the best of `questions` (lists of words), or None."""
    best = None
    for place, question in enumerate(questions):
        n = len(question)
        for window in windows(words, n):
            found = plain_in_order(question, window)
            enough = found >= needed(n) and len(grams(question) & grams(window)) >= needed_grams(n)
            if n >= 5 and enough and (best is None or found / n > best[0]):
                best = (found / n, place)
    return best


def plain_run(question, words):
    """The longest run in common."""
    pairs = ((i, j) for i in range(len(question)) for j in range(len(words)))
    longest = 0
    for i, j in pairs:
        length = 0
        while i + length < len(question) and j + length < len(words) and question[i + length] == words[j + length]:
            length += 1
        longest = max(longest, length)
    return longest


def word_lists(alphabet, shortest, longest):
    return st.lists(st.sampled_from(alphabet), min_size=shortest, max_size=longest)


@st.composite
def questions_and_text(draw, alphabet):
    """A few questions, and a text made of pieces of them with words changed, left out and put in."""
    questions = draw(st.lists(word_lists(alphabet, 1, 26), min_size=1, max_size=4))
    text = draw(word_lists(alphabet, 0, 12))
    for _ in range(draw(st.integers(0, 3))):
        piece = list(draw(st.sampled_from(questions)))
        for _ in range(draw(st.integers(0, 4))):
            place = draw(st.integers(0, len(piece)))
            piece[place : place + draw(st.integers(0, 1))] = draw(word_lists([*alphabet, "other"], 0, 1))
        text += piece + draw(word_lists([*alphabet, "other"], 0, 6))
    return questions, text


def as_questions(lists):
    return Questions([("b", f"b:{place}", " ".join(words), None) for place, words in enumerate(lists)])


@pytest.mark.parametrize("alphabet", ["ab", "abcde", [f"w{n}" for n in range(60)]], ids=["2", "5", "60 words"])
@pytest.mark.parametrize("block", [decontaminate._BLOCK, 3])
def test_it_finds_what_a_plain_comparison_finds(alphabet, block, monkeypatch):
    monkeypatch.setattr(decontaminate, "_BLOCK", block)
    outcomes = set()

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(questions_and_text(alphabet))
    def check(case):
        lists, words = case
        questions = as_questions(lists)
        overlap = questions.new_overlap()
        match = examine(" ".join(words), questions, overlap)
        expected = plain_match(lists, words)
        outcomes.add((expected or (0,))[0])
        if expected is None:
            assert match is None
            check_runs(questions, lists, words, overlap)
        else:
            assert match == ("benchmark-question", "b", f"b:{expected[1]}", expected[0])
            assert not overlap.run.any()

    check()
    assert {0, 1.0} < outcomes, "matches of all kinds were tried"


def check_runs(questions, lists, words, overlap):
    places = {name[1]: place for place, names in enumerate(questions.names) for name in names}
    for number, question in enumerate(lists):
        if len(question) < 5:
            continue
        run = plain_run(question, words)
        found = int(overlap.run[places[f"b:{number}"]])
        assert found == (min(run, LONGEST_RUN) if run >= SHORTEST_RUN else 0)
        if found:
            most = int(overlap.words[places[f"b:{number}"]])
            possible = [w for w in windows(words, len(question)) if plain_run(question, w) >= SHORTEST_RUN]
            assert run <= most <= max(plain_in_order(question, window) for window in possible)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(word_lists("abc", 1, 80), word_lists("abcd", 0, 80))
def test_words_in_order(question, text):
    assert in_order(letter_masks(question), len(question), text) == plain_in_order(question, text)


# ---- what is left in common ------------------------------------------------------------------------------------------

VIGNETTE = [f"w{n}" for n in range(40)]


def test_what_is_left_in_common():
    questions = as_questions([VIGNETTE, [f"v{n}" for n in range(40)], [f"u{n}" for n in range(40)]])
    first, second = questions.new_overlap(), questions.new_overlap()
    run_of_9 = " ".join([*VIGNETTE[3:12], "x", VIGNETTE[14], "y"])
    assert examine(run_of_9, questions, first) is None
    assert examine("before " + " ".join(f"v{n}" for n in range(20)), questions, second) is None
    assert examine(" ".join(f"u{n}" for n in range(7)), questions, second) is None
    assert first.run.tolist() == [9, 0, 0] and first.words.tolist() == [10, 0, 0]
    first.merge(Overlap.from_json(json.loads(json.dumps(second.to_json()))))
    assert questions.left(first) == {
        "b": {
            "checked": 3, "in_common_8": 2, "in_common_13": 1, "ids_13": ["b:1"], "highest_share": 0.5,
            "highest_id": "b:1",
        }
    }  # fmt: skip


def test_a_dropped_document_leaves_nothing_in_common():
    questions = as_questions([VIGNETTE, [*VIGNETTE[:20], *"abcdefghijklmnopqrst"]])
    overlap = questions.new_overlap()
    assert examine(" ".join(VIGNETTE), questions, overlap).question == "b:0"
    assert not overlap.run.any() and overlap.to_json()["found"] == []


def test_texts_of_a_batch_are_looked_through_each_for_itself():
    questions = as_questions([list("abcdefgh")])
    texts = ["x y z a b c d e", "f g h q r s", "", "b", "c d e f g h"]
    words = Words(texts)
    found = questions.find(words)
    assert [grams.at.tolist() for grams in found] == [[3, 4], [], [], [], [0, 1, 2]]
    for number, text in enumerate(texts):
        overlap = questions.new_overlap()
        assert questions.examine(Document("x", "s", None, text), words.of(number), found[number], overlap) is None
        assert not overlap.run.any()


def test_a_short_run_of_a_long_question_is_accounted_for():
    """Too few 4-grams for the question itself, enough for a run in common."""
    questions = as_questions([[f"w{n}" for n in range(120)]])
    overlap = questions.new_overlap()
    assert examine(" ".join(f"w{n}" for n in range(8)), questions, overlap) is None
    assert overlap.run.tolist() == [8]


def test_a_question_across_the_blocks_of_a_long_text_is_found(monkeypatch):
    monkeypatch.setattr(decontaminate, "_BLOCK", 16)
    questions = as_questions([[f"w{n}" for n in range(10)], [f"u{n}" for n in range(20)]])
    for before in range(60):
        text = " ".join(
            [*(f"x{n}" for n in range(before)), *(f"w{n}" for n in range(10)), *(f"y{n}" for n in range(40))]
        )
        found = examine(text, questions)
        assert found is not None and found.question == "b:0", before


# ---- real benchmarks -------------------------------------------------------------------------------------------------


EVERY = 5
"""One question in so many is tried here; all of them in bench/test_curation_decontamination.py."""


@pytest.fixture(scope="module")
def files(assets):
    folder = assets / "eval"
    named = [("medqa4", "medqa"), ("medmcqa", "medmcqa"), ("mmlu", "mmlu"), ("pubmedqa", "pubmedqa")]
    named.append(("truthfulqa-medical", "truthfulqa/TruthfulQA.current.csv"))
    return [(name, folder / place) for name, place in named]


@pytest.fixture(scope="module")
def real(files):
    return read_questions(files)


@pytest.fixture(scope="module")
def texts(files):
    """The words of each question that can be checked, once."""
    found = [split_words(fold(question.question)) for name, path in files for question in read_benchmark(name, path)]
    return list(map(list, dict.fromkeys(tuple(words) for words in found if len(words) >= SHORTEST_QUESTION)))


def changed(words, share, chance):
    return [f"changed{n}" if chance.random() < share else word for n, word in enumerate(words)]


def test_every_real_question_is_found_verbatim(real, texts):
    assert real.checked["medqa4"] == 1273 and real.checked["medmcqa"] == 3930
    assert len(real.pmids) == 500
    for words in texts[::EVERY]:
        found = examine(f"Some words before. {' '.join(words)} Some after.", real)
        assert found is not None and found.share == 1.0, words


def test_real_questions_are_found_with_words_changed(real, texts):
    chance = random.Random(1)
    tried = [words for words in texts if len(words) >= 8][::EVERY]
    found = sum(
        examine(f"Before. {' '.join(changed(words, 0.05, chance))} After.", real) is not None for words in tried
    )
    assert found / len(tried) >= 0.95


def test_it_can_be_sent_to_a_worker(real, texts):
    copy = pickle.loads(pickle.dumps(real))
    text = " ".join(texts[0])
    assert examine(text, copy) == examine(text, real) is not None


def test_own_questions(tmp_path):
    record = {"question": LONG, "options": {"A": "x", "B": "y"}, "answer": "A"}
    (tmp_path / "test.jsonl").write_text(json.dumps(record) + "\n")
    assert read_questions([("mcq", tmp_path)]).checked == {"mcq": 1}
