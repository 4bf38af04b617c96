"""The medical benchmarks, read from their own public files: `read_benchmark` and `read_shots`.

| name | file in the folder | questions |
|---|---|---|
| medqa | `test.jsonl` (`questions/US/` of MedQA-USMLE) | 1,273 with 5 options |
| medqa4 | `phrases_no_exclude_test.jsonl` (its `4_options/`) | 1,273 with 4 options |
| medmcqa | `dev.json` (the test split has no public answers) | 4,183 |
| pubmedqa | `ori_pqal.json` and `test_ground_truth.json` | the 500 test ids; the other 500 serve as shots |
| mmlu-medical | `test/*_test.csv`, `dev/*_dev.csv` | 1,871 of the 9 subjects of MEDITRON (arXiv 2311.16079) |
| mmlu | the same, every subject there | |
| truthfulqa-medical | `TruthfulQA.csv` | 99 of the categories Health, Nutrition, Psychology, Science |
| mcq | `test.jsonl`: your own, an object a line: `question`, `options` {A: ...}, `answer` (a letter) | |

Hub copies as jsonl are read too (`data.questions.parse_options` lists the spellings). A path may name the file itself.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from data.questions import (
    LETTERS,
    VERDICTS,
    Question,
    Record,
    parse_answers,
    parse_options,
    read_records,
    read_rows,
    read_text,
)  # fmt: skip

MMLU_MEDICAL = (
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "high_school_biology", "medical_genetics",
    "nutrition", "professional_medicine", "virology",
)  # fmt: skip
TRUTHFULQA_MEDICAL = ("Health", "Nutrition", "Psychology", "Science")

TEST_FILES = {
    "medqa": ("test.jsonl", "US/test.jsonl", "questions/US/test.jsonl", "*test*5opt*.jsonl"),
    "medqa4": (
        "phrases_no_exclude_test.jsonl", "4_options/phrases_no_exclude_test.jsonl", "*test*4opt*.jsonl", "test.jsonl",
    ),
    "medmcqa": ("dev.json", "dev.jsonl", "validation.jsonl", "validation.json"),
    "pubmedqa": ("ori_pqal.json", "test_set.json", "test.jsonl", "train.jsonl"),
    "truthfulqa-medical": ("TruthfulQA.csv", "TruthfulQA.current.csv", "TruthfulQA*.csv"),
    "mcq": ("test.jsonl", "*.jsonl"),
}  # fmt: skip
SHOT_FILES = {
    "medqa": ("train.jsonl", "US/train.jsonl", "questions/US/train.jsonl", "*5options_train.json"),
    "medqa4": (
        "phrases_no_exclude_train.jsonl", "4_options/phrases_no_exclude_train.jsonl", "train.jsonl",
        "*med_qa_train.json",
    ),
    "medmcqa": ("train.json", "train.jsonl", "*medmc_qa_train.json"),
    "mcq": ("train.jsonl", "dev.jsonl"),
}  # fmt: skip
OPTION_COUNTS = {"medqa": 5, "medqa4": 4, "medmcqa": 4, "mmlu": 4, "mmlu-medical": 4}


def read_benchmark(name: str, path: Path | str) -> list[Question]:
    """The test questions of benchmark `name` from a file or folder, in the file's order, none left out.

    Raises ValueError naming file, record and remedy for an unknown name, a missing file, an empty file, a missing key,
    a wrong type, an answer that names no option, or an id that occurs twice.
    """
    path = Path(path)
    questions = _reader(name)(name, path, "test")
    repeated = [id for id, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: id {repeated[0]!r} occurs twice. Give every question its own id")
    return questions


def read_shots(name: str, path: Path | str) -> list[Question]:
    """Questions that may serve as demonstrations for `name`; empty where the folder has none.

    A path that names a file has shots only for pubmedqa and truthfulqa-medical, whose one file holds more than the
    test. Raises ValueError as `read_benchmark` does.
    """
    return _reader(name)(name, Path(path), "shots")


def _reader(name: str) -> Callable[[str, Path, str], list[Question]]:
    if name not in READERS:
        raise ValueError(f"unknown benchmark {name!r}. Known: {', '.join(READERS)}")
    return READERS[name]


def _read_multiple_choice(name: str, path: Path, part: str) -> list[Question]:
    """MedQA, MedMCQA and the user's own questions: an object a question."""
    if part == "shots" and path.is_file():
        return []
    file = _find(path, TEST_FILES[name]) if part == "test" else _find_optional(path, SHOT_FILES[name])
    if file is None:
        return []
    records = [_from_instruction(record) for record in read_records(file)]
    options = [parse_options(record) for record in records]
    answers = parse_answers(records, options)
    questions = []
    for place, (record, choices, gold) in enumerate(zip(records, options, answers, strict=True)):
        if len(choices) != OPTION_COUNTS.get(name, len(choices)):
            if part == "shots":  # public training samples mix 4 and 5 options; a demonstration must look like the test
                continue
            wanted = OPTION_COUNTS[name]
            raise record.error(f"{len(choices)} options, {name} has {wanted}. Is this the file of another benchmark?")
        questions.append(
            Question(
                id=f"{name}:{_own_id(record) or place}",
                benchmark=name,
                subject=record.optional_text("subject_name") or record.optional_text("subject"),
                question=record.text("question", "sent1", "input"),
                context=record.optional_text("context") or "",
                options=choices,
                gold=gold,
                explanation=record.optional_text("exp") or record.optional_text("explanation"),
            )
        )
    return questions


def _own_id(record: Record) -> str | None:
    value = record.fields.get("id")
    if value is not None and not isinstance(value, str | int):
        raise record.error(f"key 'id': expected a text or a number, found {value!r}. Correct the record")
    return None if value is None else str(value)


def _from_instruction(record: Record) -> Record:
    """A record of the instruction-tuning copies (`instances: {input, output}`) in the usual keys; others unchanged.

    Their `input` holds the question and lines `Option A: ...`; `output` is an option's text or `Answer: (A)`. Their
    ids repeat, so the place in the file becomes the id; stray quotation marks are taken off.
    """
    if "instances" not in record:
        return record
    instance = Record(record.fields["instances"], record.path, record.number)
    question, *lines = instance.text("input").split("\nOption ")
    options = {line[:1]: line[1:].removeprefix(":").strip('"\n ') for line in lines}
    answer = instance.text("output").strip('"\n ').removeprefix("Answer: ")
    if answer[:1] == "(" and answer[2:3] == ")":
        answer = answer[1]
    head, colon, rest = question.partition(":")
    question = rest.strip() if colon and head.lower() == "question" else question
    return Record({"question": question, "options": options, "answer": answer}, record.path, record.number)


def _read_pubmedqa(name: str, path: Path, part: str) -> list[Question]:
    """PubMedQA's 1,000 labelled questions, divided by the published test ids where these lie beside the file."""
    file = _find(path, TEST_FILES[name])
    records = read_records(file)
    decisions = _pubmedqa_test_decisions(file)
    by_id = {_pmid(record): record for record in records}
    if decisions is None:
        return [_pubmedqa_question(pmid, record) for pmid, record in by_id.items()] if part == "test" else []
    for pmid, decision in decisions.items():
        if pmid not in by_id:
            raise ValueError(f"{file}: the test question {pmid} is missing. Download the file again")
        if by_id[pmid].text("final_decision").lower() != decision:
            raise by_id[pmid].error(f"'final_decision' differs from test_ground_truth.json ({decision})")
    return [_pubmedqa_question(pmid, by_id[pmid]) for pmid in by_id if (pmid in decisions) == (part == "test")]


def _pubmedqa_test_decisions(file: Path) -> dict[str, str] | None:
    """`{pmid: decision}` of the test ids beside `file`; None for a copy that is a test set by itself."""
    ids = file.with_name("test_ground_truth.json")
    if not ids.is_file():
        if file.name == "ori_pqal.json":
            raise ValueError(f"{ids}: missing. It names the 500 test questions; PubMedQA has it in its data folder")
        return None
    record = read_records(ids)[0]
    return {pmid: record.text(pmid).lower() for pmid in record.fields}


def _pmid(record: Record) -> str:
    key = next((key for key in ("pubid", "pmid", "id") if key in record), None)
    return str(record.fields[key] if key else record.number)


def _pubmedqa_question(pmid: str, record: Record) -> Question:
    context = record.fields.get("CONTEXTS", record.fields.get("context"))
    if isinstance(context, dict):
        context = context.get("contexts")
    if not isinstance(context, list) or not all(isinstance(text, str) for text in context):
        raise record.error(f"key 'CONTEXTS': expected a list of texts, found {context!r:.60}. Restore it in the file")
    decision = record.text("final_decision").lower()
    if decision not in VERDICTS:
        raise record.error(f"'final_decision' is {decision!r}, expected yes, no or maybe. Correct the record")
    return Question(
        id=f"pubmedqa:{pmid}",
        benchmark="pubmedqa",
        subject=None,
        question=record.text("QUESTION", "question"),
        context="\n".join(context),
        options=dict(zip(LETTERS, VERDICTS, strict=False)),
        gold=LETTERS[VERDICTS.index(decision)],
        explanation=record.optional_text("LONG_ANSWER") or record.optional_text("long_answer"),
        metadata={"pmid": pmid},
    )


def _read_mmlu(name: str, path: Path, part: str) -> list[Question]:
    """MMLU: one csv a subject: question, four options, letter."""
    split = "test" if part == "test" else "dev"
    if path.is_file():
        files = {path.stem.removesuffix("_test"): path} if part == "test" else {}
    else:
        _need_folder(path)
        folder = path / split if (path / split).is_dir() else path
        files = {file.stem.removesuffix(f"_{split}"): file for file in sorted(folder.glob(f"*_{split}.csv"))}
        if name == "mmlu-medical":
            missing = [subject for subject in MMLU_MEDICAL if subject not in files]
            if missing and part == "test":
                needed = ", ".join(MMLU_MEDICAL)
                raise ValueError(f"{folder}: {missing[0]}_test.csv is missing. mmlu-medical needs {needed}")
            files = {subject: files[subject] for subject in MMLU_MEDICAL if subject in files}
        if not files and part == "test":
            raise ValueError(f"{folder}: no file *_test.csv. Give the MMLU folder that holds test/ and dev/")
    questions = []
    for subject, file in files.items():
        for place, (question, *options, gold) in enumerate(read_rows(file, columns=6)):
            if gold.strip() not in ("A", "B", "C", "D"):
                raise ValueError(f"{file}: record {place + 1}: the answer is {gold!r}, not A, B, C or D. Correct it")
            questions.append(
                Question(
                    id=f"{name}:{subject}/{place}",
                    benchmark=name,
                    subject=subject,
                    question=question.strip(),
                    context="",
                    options={letter: text.strip() for letter, text in zip(LETTERS, options, strict=False)},
                    gold=gold.strip(),
                )
            )
    return questions


def _read_truthfulqa(name: str, path: Path, part: str) -> list[Question]:
    """TruthfulQA's medical questions: the best answer and up to three incorrect ones. Other categories serve as shots.

    Which incorrect ones, and under which letters, is fixed by a hash of their text: the same in every run and whatever
    the order of the file. 8 of the 99 questions have fewer than three incorrect answers and thus fewer options.
    """
    file = _find(path, TEST_FILES[name])
    questions = []
    for number, row in enumerate(csv.DictReader(io.StringIO(read_text(file), newline="")), 1):
        record = Record(row, file, number)
        category, question = record.text("Category"), record.text("Question")
        if (category in TRUTHFULQA_MEDICAL) != (part == "test"):
            continue
        best = record.text("Best Answer")
        incorrect = {text.strip() for text in record.text("Incorrect Answers").split(";")} - {"", best}
        if not incorrect:
            raise record.error("'Incorrect Answers' names none. Correct the record")
        distractors = _by_hash(incorrect, f"distractors of {question}")[:3]
        options = dict(zip(LETTERS, _by_hash([best, *distractors], f"letters of {question}"), strict=False))
        questions.append(
            Question(
                id=f"{name}:{hashlib.sha256(question.encode()).hexdigest()[:12]}",
                benchmark=name,
                subject=category,
                question=question,
                context="",
                options=options,
                gold=next(letter for letter, text in options.items() if text == best),
            )
        )
    if not questions and part == "test":
        raise ValueError(f"{file}: no question of the categories {', '.join(TRUTHFULQA_MEDICAL)}")
    return questions


def _by_hash(texts: Sequence[str] | set[str], salt: str) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(f"{salt}\n{text}".encode()).digest())


def _need_folder(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder. Give the benchmark's file or the folder that holds it")


def _find(path: Path, patterns: tuple[str, ...]) -> Path:
    """`path` itself if it is a file, else the one file in the folder that fits the first fitting pattern."""
    _need_folder(path)
    if path.is_file():
        return path
    file = _find_optional(path, patterns)
    if file is None:
        raise ValueError(f"{path}: none of {', '.join(patterns)} is in the folder. Give the benchmark's file itself")
    return file


def _find_optional(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    _need_folder(folder)
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{folder}: {names} all fit {pattern}. Give the file itself")
        if files:
            return files[0]
    return None


READERS: dict[str, Callable[[str, Path, str], list[Question]]] = {
    "medqa": _read_multiple_choice,
    "medqa4": _read_multiple_choice,
    "medmcqa": _read_multiple_choice,
    "pubmedqa": _read_pubmedqa,
    "mmlu-medical": _read_mmlu,
    "mmlu": _read_mmlu,
    "truthfulqa-medical": _read_truthfulqa,
    "mcq": _read_multiple_choice,
}
