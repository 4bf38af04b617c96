"""One benchmark question, and the spellings in which public files write its options and its answer.

Nothing is dropped: a record that cannot be read as a question is a ValueError that names file, record and remedy.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LETTERS = "ABCDEFGHIJ"
ANSWER_KEYS = ("answer_idx", "answer", "cop", "label", "target", "final_decision")
VERDICTS = ("yes", "no", "maybe")


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. `gold` is a key of `options`; `context` is empty where a benchmark has none."""

    id: str
    """`benchmark:` and the file's own id, else the place in the file: unique, and the same in every run."""
    benchmark: str
    subject: str | None
    question: str
    context: str
    options: dict[str, str]
    """Letter to text, letters in order from A. PubMedQA's are yes, no and maybe."""
    gold: str
    explanation: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def are_verdicts(options: dict[str, str]) -> bool:
    """Whether the options are yes, no, maybe: the answer is then the word itself, not a letter."""
    return all(text in VERDICTS for text in options.values())


class Record:
    """One object of a benchmark file, with the place where it stands for the error messages."""

    def __init__(self, fields: object, path: Path, number: int | str):
        self.path, self.number = path, number
        if not isinstance(fields, dict):
            raise self.error(f"expected an object with keys, found {type(fields).__name__}")
        self.fields = fields

    def error(self, problem: str) -> ValueError:
        """The ValueError for this record, to be raised."""
        return ValueError(f"{self.path}: record {self.number}: {problem}")

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def text(self, *keys: str) -> str:
        """The non-empty text under the first of `keys` that is there."""
        key = next((key for key in keys if key in self.fields), None)
        if key is None:
            names = " or ".join(repr(key) for key in keys)
            raise self.error(f"key {names} is missing; keys there: {', '.join(self.fields)}. Restore it in the file")
        value = self.fields[key]
        if not isinstance(value, str) or not value.strip():
            found = "an empty text" if isinstance(value, str) else type(value).__name__
            raise self.error(f"key {key!r}: expected a text, found {found}. Correct the record")
        return value.strip()

    def optional_text(self, key: str) -> str | None:
        """The text under `key`; None where it is absent, null or empty."""
        return self.text(key) if self.fields.get(key) not in (None, "") else None


def read_text(path: Path) -> str:
    """The whole file as UTF-8 text (a byte order mark is dropped); ValueError where empty or not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}. Convert the file to UTF-8") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty. Download it again")
    return text


def read_records(path: Path) -> list[Record]:
    """Records of a json or jsonl file: an object a line, a list of objects, an object of objects (keys as numbers)."""
    text = read_text(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_object(lines[0][1]):
        return [Record(_parse(line, path, number), path, number) for number, line in lines]
    whole = _parse(text, path, 1)
    if isinstance(whole, list):
        records = [Record(fields, path, number) for number, fields in enumerate(whole, 1)]
    elif isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        records = [Record(fields, path, key) for key, fields in whole.items()]
    else:
        records = [Record(whole, path, 1)]
    if not records:
        raise ValueError(f"{path}: the file holds no record. Download it again")
    return records


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Rows of a csv file without header, `columns` cells each."""
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    for number, row in enumerate(rows, 1):
        if len(row) != columns or not all(cell.strip() for cell in row):
            raise ValueError(f"{path}: record {number}: expected {columns} filled cells, found {row}. Correct the row")
    return rows


def parse_options(record: Record) -> dict[str, str]:
    """The options of a record, letters in order from A.

    Read are: `options` as {letter: text}, as [{key, value}] or as a list of texts; `choices` as a list of texts;
    `opa`..`ope`; `ending0`..`ending4`; columns `A`..`E`.
    """
    fields = record.fields
    found = fields.get("options", fields.get("choices"))
    if found is None:
        for names in (["op" + c for c in "abcde"], [f"ending{i}" for i in range(5)], list("ABCDE")):
            found = found or [fields[name] for name in names if name in fields]
    if isinstance(found, list):
        if all(isinstance(option, dict) and {"key", "value"} <= option.keys() for option in found):
            wrong = [option["key"] for option in found if not isinstance(option["key"], str)]
            if wrong:
                raise record.error(f"key 'options': expected a letter as key, found {wrong[0]!r}. Correct the record")
            found = {option["key"]: option["value"] for option in found}
        else:
            found = dict(zip(LETTERS, found, strict=False))
    if not found:
        raise record.error("key 'options' is missing (an object of letter and text). Restore it in the file")
    if not isinstance(found, dict) or sorted(found) != list(LETTERS[: len(found)]) or len(found) < 2:
        raise record.error(f"key 'options': expected letters A, B, ... each with a text, found {found!r}")
    for letter, text in found.items():
        if not isinstance(text, str) or not text.strip():
            raise record.error(f"option {letter}: expected a text, found {text!r}. Correct the record")
    return {letter: found[letter].strip() for letter in sorted(found)}


def parse_answers(records: Sequence[Record], options: Sequence[dict[str, str]]) -> list[str]:
    """The gold letter of every record: written as a letter, as the option's text, or as a number.

    Public copies of one data set differ in whether numbers start at 0 or at 1, so that is decided from the values of
    the whole file: a 0 means 0-based, a number equal to the count of options means 1-based; both, or neither, is an
    error, as is -1 (a test split whose answers are not published).
    """
    values = [_answer(record, choices) for record, choices in zip(records, options, strict=True)]
    numbered = [(r, c, v) for r, c, v in zip(records, options, values, strict=True) if isinstance(v, int)]
    base = _number_base(numbered) if numbered else 0
    return [LETTERS[value - base] if isinstance(value, int) else value for value in values]


def _number_base(numbered: list[tuple[Record, dict[str, str], int]]) -> int:
    zero_based = one_based = False
    for record, options, value in numbered:
        if value == -1:
            raise record.error("answer -1: this is a split without answers. Use the split with published answers")
        if not 0 <= value <= len(options):
            raise record.error(f"answer {value} names none of the {len(options)} options. Correct the record")
        zero_based |= value == 0
        one_based |= value == len(options)
    if zero_based != one_based:
        return int(one_based)
    problem = "both 0 and the count of options occur" if zero_based else "neither 0 nor the count of options occurs"
    raise ValueError(
        f"{numbered[0][0].path}: answers are numbers and {problem}, so whether they start at 0 or 1 cannot be told. "
        "Write them as letters (A, B, ...)"
    )


def _answer(record: Record, options: dict[str, str]) -> str | int:
    key = next((key for key in ANSWER_KEYS if key in record), None)
    if key is None:
        raise record.error(f"no answer: one of the keys {', '.join(ANSWER_KEYS)} is needed. Restore it in the file")
    value = record.fields[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise record.error(f"key {key!r}: expected a letter, an option's text or a number, found {value!r}")
    letter = _letter(value.strip(), options)
    if letter is None:
        raise record.error(f"key {key!r}: {value!r} is neither a letter nor the text of one option. Correct the record")
    written = record.fields.get("answer")
    others = set(options.values()) - {options[letter], letter}
    if key == "answer_idx" and isinstance(written, str) and written in others:
        raise record.error(f"answer_idx is {letter} but 'answer' is another option: {written!r}. Correct the record")
    return letter


def _letter(value: str, options: dict[str, str]) -> str | None:
    if value.upper() in options:
        return value.upper()
    named = [letter for letter, text in options.items() if text == value]
    return named[0] if len(named) == 1 else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parse(text: str, path: Path, number: int) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: record {number}: not JSON ({error}). Download the file again") from error
