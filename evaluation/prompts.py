"""Prompts, and how they are cut to a model's context.

The structure is MEDITRON's (arXiv 2311.16079, section 5; the system lines are our own):

    {system line}

    Question: {question of a demonstration}

    Options:
    A. ...
    The answer is: B

    Question: {question}

    Options:
    A. ...
    The answer is:

PubMedQA has its abstract in a line `Context: ...` before the question and no options: its answer is the word itself.
Chain of thought replaces the last line by the cue, and a demonstration's by its explanation and answer. The
question-only form, for scoring the texts of the options, is `Question: {question}` and `Answer:` on the next line.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data.questions import Question, are_verdicts
from data.tokenizer import Tokenizer

Form = Literal["letter", "text", "cot"]

ANSWER_CUE = "The answer is:"
COT_CUE = "Let's think step by step."

_EXAM = "Each question below comes from a medical examination and has exactly one correct option. {task}"
SYSTEM_LINES = {
    "medqa": _EXAM.replace("a medical", "the United States medical licensing"),
    "medqa4": _EXAM.replace("a medical", "the United States medical licensing"),
    "medmcqa": _EXAM.replace("a medical examination", "an Indian medical entrance examination"),
    "pubmedqa": "Each question below is to be answered from the research abstract printed above it. {task}",
    "mmlu-medical": _EXAM,
    "mmlu": "Each question below has exactly one correct option. {task}",
    "truthfulqa-medical": "Each question below is about health or science. Choose the option that is true, even where "
    "a common belief says otherwise. {task}",
    "mcq": "Each question below has exactly one correct option. {task}",
}


@dataclass(frozen=True)
class Prompt:
    """A prompt in parts, so that it can be shortened without touching its question or its options."""

    system: str
    demonstrations: tuple[str, ...]
    context: str
    question: str

    def text(self, demonstrations_dropped: int = 0, context_words_dropped: int = 0) -> str:
        """The prompt without its first demonstrations and without the first words of its context."""
        context = _without_words(self.context, context_words_dropped)
        body = f"Context: {context}\n\n{self.question}" if context else self.question
        parts = [self.system, *self.demonstrations[demonstrations_dropped:], body]
        return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt and its continuations as ids, each with BOS first, none longer than the limit it was made for.

    `with_continuation` holds the ids of prompt and continuation encoded together, because a tokenizer may merge across
    their border. `cut` says what was cut to fit: None, `shots`, `context` or `question`.
    """

    text: str
    ids: list[int]
    with_continuation: list[list[int]]
    cut: str | None


def build_prompt(question: Question, demonstrations: Sequence[Question], form: Form) -> Prompt:
    """The prompt of `question` in one of the three forms. `text` has no system line and lists no options."""
    if form == "text":
        shots = tuple(f"{_question_only(shot)} {shot.options[shot.gold]}" for shot in demonstrations)
        return Prompt("", shots, question.context, _question_only(question))
    return Prompt(
        system=SYSTEM_LINES[question.benchmark].format(task=_task(question, form)),
        demonstrations=tuple(_demonstration(shot, form) for shot in demonstrations),
        context=question.context,
        question=f"{_question_and_options(question)}\n{COT_CUE if form == 'cot' else ANSWER_CUE}",
    )


def answer_text(question: Question, letter: str) -> str:
    """What follows `The answer is:` for an option: its letter, or the word itself where options are yes, no, maybe."""
    return question.options[letter] if are_verdicts(question.options) else letter


def choose_demonstrations(question: Question, shots: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` of `shots`, the same for all questions of a subject, chosen by a hash of seed and id.

    Shots of the question's own subject are taken where there are enough (MMLU's five); a shot that asks the very
    question is left out. ValueError where too few remain.
    """
    if count == 0:
        return []
    usable = [shot for shot in shots if shot.question != question.question]
    same = [shot for shot in usable if shot.subject == question.subject]
    usable = same if len(same) >= count else usable
    if len(usable) < count:
        raise ValueError(
            f"benchmark {question.benchmark}: --shots {count}, but its folder has {len(usable)} questions to show. "
            "Lower --shots, or give the folder that holds its training or dev file"
        )
    return sorted(usable, key=lambda shot: hashlib.sha256(f"{seed}\n{shot.id}".encode()).digest())[:count]


def fit_prompt(prompt: Prompt, continuations: Sequence[str], limit: int, tokenizer: Tokenizer) -> FittedPrompt:
    """The prompt, followed by each of the continuations, as at most `limit` ids, BOS included.

    A prompt that is too long loses whole demonstrations from the first on, then words of its context from the left:
    as few as will do. One that is still too long (its question alone exceeds the context) loses ids from the left, so
    that the options and the answer cue, at its end, stay; lm-evaluation-harness cuts every long prompt in this way.
    """
    demonstrations, words = len(prompt.demonstrations), len(_word_starts(prompt.context))
    encode = tokenizer.encode
    longest = max(continuations, key=lambda continuation: len(encode(continuation)))

    def render(dropped: int) -> str:
        return prompt.text(min(dropped, demonstrations), max(0, dropped - demonstrations))

    def fits(dropped: int) -> bool:
        return len(encode(render(dropped) + longest)) < limit

    dropped = 0
    if not fits(0):
        low, dropped = 0, demonstrations + words  # `low` is too long; everything dropped is the shortest there is
        while dropped - low > 1:
            middle = (low + dropped) // 2
            low, dropped = (low, middle) if fits(middle) else (middle, dropped)
    text = render(dropped)
    sequences = [encode(text + continuation) for continuation in continuations]
    excess = max(0, max(len(ids) for ids in sequences) - (limit - 1))
    cut = "question" if excess else "context" if dropped > demonstrations else "shots" if dropped else None
    ids = encode(text)[excess:]
    text = tokenizer.decode(ids) if excess else text
    bos = tokenizer.bos_id
    return FittedPrompt(text, [bos, *ids], [[bos, *sequence[excess:]] for sequence in sequences], cut)


def _task(question: Question, form: Form) -> str:
    wanted = "yes, no or maybe" if are_verdicts(question.options) else "the letter of the correct option"
    if form == "cot":
        return f"Reason step by step, then end with a line that begins '{ANSWER_CUE}' and gives {wanted}."
    return f"Answer with {wanted}."


def _question_only(question: Question) -> str:
    return f"Question: {question.question}\nAnswer:"


def _question_and_options(question: Question) -> str:
    if are_verdicts(question.options):
        return f"Question: {question.question}"
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return f"Question: {question.question}\n\nOptions:\n{options}"


def _demonstration(shot: Question, form: Form) -> str:
    lines = [_question_and_options(shot)]
    if shot.context:
        lines.insert(0, f"Context: {shot.context}\n")
    if form == "cot":
        lines.append(f"{COT_CUE} {shot.explanation}" if shot.explanation else COT_CUE)
    lines.append(f"{ANSWER_CUE} {answer_text(shot, shot.gold)}")
    return "\n".join(lines)


def _word_starts(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\S+", text)]


def _without_words(text: str, count: int) -> str:
    starts = _word_starts(text) if count else [0]
    return text[starts[count] :] if count < len(starts) else ""
