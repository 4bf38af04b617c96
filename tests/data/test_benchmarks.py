"""The readers, against the real public files where these are, and against small files in the same formats."""

import json
from collections import Counter

import pytest

from data.benchmarks import MMLU_MEDICAL, read_benchmark, read_shots


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def medqa_record(**changes):
    record = {"question": "Which drug?", "options": {"A": "alpha", "B": "beta", "C": "gamma", "D": "delta"},
              "answer": "beta", "answer_idx": "B"}  # fmt: skip
    return {key: value for key, value in (record | changes).items() if value is not None}


def medmcqa_record(cop, **changes):
    return {"question": "?", "opa": "a1", "opb": "b1", "opc": "c1", "opd": "d1", "cop": cop, "exp": None, **changes}


@pytest.mark.parametrize(
    ("name", "folder", "count", "gold"),
    [
        ("medqa4", "medqa", 1273, {"A": 353, "B": 309, "C": 346, "D": 265}),
        ("medmcqa", "medmcqa", 4183, {"A": 1348, "B": 1085, "C": 925, "D": 825}),
        ("pubmedqa", "pubmedqa", 500, {"A": 276, "B": 169, "C": 55}),
        ("mmlu-medical", "mmlu", 1871, None),
        ("truthfulqa-medical", "truthfulqa", 99, None),
    ],
)
def test_real_files_have_the_published_counts(assets, name, folder, count, gold):
    questions = read_benchmark(name, assets / "eval" / folder)
    assert len(questions) == count
    assert gold is None or Counter(question.gold for question in questions) == gold
    assert len({question.id for question in questions}) == count
    assert all(question.benchmark == name and question.gold in question.options for question in questions)


def test_real_mmlu_counts_every_subject(assets):
    counts = Counter(question.subject for question in read_benchmark("mmlu-medical", assets / "eval/mmlu"))
    assert counts == {
        "anatomy": 135, "clinical_knowledge": 265, "college_biology": 144, "college_medicine": 173, "nutrition": 306,
        "high_school_biology": 310, "medical_genetics": 100, "professional_medicine": 272, "virology": 166,
    }  # fmt: skip
    assert len(read_benchmark("mmlu", assets / "eval/mmlu")) == 1871 + 198 + 311 + 100
    shots = read_shots("mmlu-medical", assets / "eval/mmlu")
    assert Counter(shot.subject for shot in shots) == dict.fromkeys(MMLU_MEDICAL, 5)


def test_real_pubmedqa_halves_do_not_overlap(assets):
    tests, shots = (read("pubmedqa", assets / "eval/pubmedqa") for read in (read_benchmark, read_shots))
    pmids = {question.metadata["pmid"] for question in tests}
    assert len(shots) == 500
    assert pmids.isdisjoint(shot.metadata["pmid"] for shot in shots)
    assert tests[0].options == {"A": "yes", "B": "no", "C": "maybe"}
    assert "Programmed cell death (PCD)" in tests[0].context
    assert "\nThe following paper elucidates" in tests[0].context
    assert read_benchmark("pubmedqa", assets / "eval/pubmedqa/ori_pqal.json") == tests


def test_real_truthfulqa_has_fixed_distractors_without_repetition(assets):
    folder = assets / "eval/truthfulqa"
    questions = read_benchmark("truthfulqa-medical", folder)
    subjects = Counter(question.subject for question in questions)
    assert subjects == {"Health": 55, "Psychology": 19, "Nutrition": 16, "Science": 9}
    assert Counter(len(question.options) for question in questions) == {4: 91, 3: 7, 2: 1}
    assert all(len(set(question.options.values())) == len(question.options) for question in questions)
    assert len({question.gold for question in questions}) == 4
    older = read_benchmark("truthfulqa-medical", folder / "TruthfulQA.orig817.csv")
    assert {question.id for question in older} == {question.id for question in questions}


def test_real_instruction_files_serve_as_shots(assets):
    five = read_shots("medqa", assets / "eval/medqa")
    four = read_shots("medqa4", assets / "eval/medqa")
    medmcqa = read_shots("medmcqa", assets / "eval/medmcqa")
    assert (len(five), len(medmcqa)) == (1000, 1000)
    assert all(len(shot.options) == 4 for shot in four)
    assert five[0].options[five[0].gold] == "Nitrofurantoin"
    assert medmcqa[0].question == "Which is not true about thoracic outlet syndrome?"


def test_truthfulqa_does_not_depend_on_the_order_of_the_file(tmp_path):
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    rows = ["X,Health,Is it so?,No,No,Yes; Often; On Mondays; At night; Rarely,s\n", "X,Law,Other?,A,A,B; C,s\n",
            "X,Science,And that?,It is,It is,One; Two,s\n"]  # fmt: skip
    forwards, backwards = tmp_path / "a.csv", tmp_path / "b.csv"
    forwards.write_text(header + "".join(rows))
    backwards.write_text(header + "".join(reversed(rows)))
    questions = read_benchmark("truthfulqa-medical", forwards)
    assert len(questions) == 2
    assert questions == list(reversed(read_benchmark("truthfulqa-medical", backwards)))
    assert [shot.question for shot in read_shots("truthfulqa-medical", forwards)] == ["Other?"]
    assert questions[0].options[questions[0].gold] == "No"


TEXTS = ["alpha", "beta", "gamma", "delta"]
KEYS_AND_VALUES = [{"key": letter, "value": text} for letter, text in zip("ABCD", TEXTS, strict=True)]


@pytest.mark.parametrize(
    "record",
    [
        medqa_record(),
        medqa_record(answer_idx=None, answer="B"),
        medqa_record(answer_idx=None, answer=["beta"], options=KEYS_AND_VALUES),
        {"sent1": "Which drug?", "label": "B"} | {f"ending{i}": text for i, text in enumerate(TEXTS)},
        {"input": "Which drug?", "A": "alpha", "B": "beta", "C": "gamma", "D": "delta", "target": "B"},
        {"question": "Which drug?", "choices": TEXTS, "answer": "B"},
    ],
)  # fmt: skip
def test_all_spellings_of_a_question_read_the_same(tmp_path, record):
    (question,) = read_benchmark("medqa4", write_jsonl(tmp_path / "test.jsonl", [record]))
    assert question.question == "Which drug?"
    assert question.options == medqa_record()["options"]
    assert question.gold == "B"


@pytest.mark.parametrize(("cops", "gold"), [((1, 4, 2), "ADB"), ((0, 2, 3), "ACD")])
def test_base_of_answer_numbers_is_read_from_the_whole_file(tmp_path, cops, gold):
    write_jsonl(tmp_path / "dev.json", [medmcqa_record(cop) for cop in cops])
    assert "".join(question.gold for question in read_benchmark("medmcqa", tmp_path)) == gold


def test_medqa_option_text_that_is_a_letter_is_not_taken_for_the_answer(tmp_path):
    options = {"A": "B", "B": "O", "C": "A", "D": "E"}
    record = medqa_record(options=options, answer="B", answer_idx="A")
    assert read_benchmark("medqa4", write_jsonl(tmp_path / "t.jsonl", [record]))[0].gold == "A"


def test_hub_copy_of_pubmedqa(tmp_path):
    record = {"pubid": 7, "question": "Does it?", "context": {"contexts": ["One.", "Two."], "labels": ["X", "Y"]},
              "long_answer": "It seems so.", "final_decision": "maybe"}  # fmt: skip
    (question,) = read_benchmark("pubmedqa", write_jsonl(tmp_path / "labelled.jsonl", [record]))
    assert (question.context, question.gold, question.metadata) == ("One.\nTwo.", "C", {"pmid": "7"})
    assert question.explanation == "It seems so."


BAD_RECORDS = [
    ("medqa4", [medqa_record(), medqa_record(question=None)], "record 2: key 'question' or 'sent1' or 'input' is"),
    ("medqa4", [medqa_record(options=None)], "record 1: key 'options' is missing"),
    ("medqa4", [medqa_record(answer=None, answer_idx=None)], "record 1: no answer"),
    ("medqa4", [medqa_record(question=7)], "key 'question': expected a text, found int"),
    ("medqa4", [medqa_record(options={"A": "x", "C": "y"})], "expected letters A, B"),
    ("medqa4", [medqa_record(options=[{"key": ["B"], "value": "x"}])], "expected a letter as key, found ['B']"),
    ("medqa4", [medqa_record(options=medqa_record()["options"] | {"B": 5})], "option B: expected a text, found 5"),
    ("medqa4", [medqa_record(answer_idx="E")], "'E' is neither a letter nor the text of one option"),
    ("medqa4", [medqa_record(answer_idx="A")], "answer_idx is A but 'answer' is another option: 'beta'"),
    ("medqa", [medqa_record()], "4 options, medqa has 5"),
    ("medmcqa", [medmcqa_record(0), medmcqa_record(4)], "both 0 and the count of options occur"),
    ("medmcqa", [medmcqa_record(1), medmcqa_record(3)], "neither 0 nor the count of options occurs"),
    ("medmcqa", [medmcqa_record(2), medmcqa_record(-1)], "record 2: answer -1: this is a split without answers"),
    ("medmcqa", [medmcqa_record(1), medmcqa_record(7)], "record 2: answer 7 names none of the 4 options"),
    ("mcq", [medqa_record(id="q"), medqa_record(id="q")], "id 'mcq:q' occurs twice"),
    ("mcq", [[1, 2]], "record 1: expected an object with keys, found int"),
    ("pubmedqa", [{"pubid": 1, "question": "?", "final_decision": "yes"}], "key 'CONTEXTS'"),
    ("pubmedqa", [{"QUESTION": "?", "CONTEXTS": ["c"], "final_decision": "sure"}], "expected yes, no or maybe"),
    ("nothing", [medqa_record()], "unknown benchmark 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "records", "message"), BAD_RECORDS)
def test_bad_records_are_named(tmp_path, name, records, message):
    path = write_jsonl(tmp_path / "questions.jsonl", records)
    with pytest.raises(ValueError, match=r"questions\.jsonl|nothing") as caught:
        read_benchmark(name, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"question": "x"}\n{"quest', "record 2: not JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.jsonl") as caught:
        read_benchmark("mcq", path)
    assert message in str(caught.value)


def test_missing_and_ambiguous_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_benchmark("medqa", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"none of test\.jsonl"):
        read_benchmark("medqa", tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [medqa_record()])
    with pytest.raises(ValueError, match=r"a.jsonl, b.jsonl all fit \*.jsonl"):
        read_benchmark("mcq", tmp_path)


def test_pubmedqa_without_its_test_ids_is_refused(tmp_path):
    record = {"QUESTION": "?", "CONTEXTS": ["c"], "final_decision": "yes"}
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"1": record, "2": record}))
    with pytest.raises(ValueError, match=r"test_ground_truth.json: missing"):
        read_benchmark("pubmedqa", tmp_path)
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"3": "yes"}))
    with pytest.raises(ValueError, match="test question 3 is missing"):
        read_benchmark("pubmedqa", tmp_path)
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"2": "no"}))
    with pytest.raises(ValueError, match="record 2: 'final_decision' differs"):
        read_benchmark("pubmedqa", tmp_path)


def test_mmlu_rows_and_subjects_are_checked(tmp_path):
    path = tmp_path / "anatomy_test.csv"
    path.write_text('Where?,a,b,c,d,A\n"In, out?",a,b,c,d,C\n')
    assert [question.gold for question in read_benchmark("mmlu", tmp_path)] == ["A", "C"]
    with pytest.raises(ValueError, match=r"clinical_knowledge_test\.csv is missing"):
        read_benchmark("mmlu-medical", tmp_path)
    path.write_text('Where,\u2028b,c,d,e,A\n"Two\nlines?",a,b,c,d,C\n')
    assert len(read_benchmark("mmlu", path)) == 2
    path.write_text("Where?,a,b,c,d,A\nWhere?,a,b,c,A\n")
    with pytest.raises(ValueError, match="record 2: expected 6 filled cells"):
        read_benchmark("mmlu", path)
    path.write_text("Where?,a,b,c,d,F\n")
    with pytest.raises(ValueError, match="record 1: the answer is 'F'"):
        read_benchmark("mmlu", path)
