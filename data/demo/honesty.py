"""Proof that the demo's score is knowledge and not memory of the question: the benchmarks against the curated corpus.

Three rules, each checked on the documents that training reads, both splits of all sources:

1. Once the names of the conditions are removed, no benchmark question shares five words in a row with the corpus.
2. No tested condition occurs in a question of the corpus, or in the paragraph around it.
3. No benchmark question stands in the corpus.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.documents import read_documents

NGRAM = 5

_WORD = re.compile(r"[a-z0-9]+")
_LABELLED = re.compile(r"^\W*(?:question|q)\b", re.IGNORECASE)


@dataclasses.dataclass
class Report:
    """What was compared, and every violation as one line of text."""

    documents: int
    corpus_questions: int
    benchmark_questions: int
    ngrams: int
    violations: list[str]

    def __str__(self) -> str:
        return (
            f"honesty check: {self.benchmark_questions:,} benchmark questions ({self.ngrams:,} {NGRAM}-grams) against "
            f"{self.documents:,} documents and the {self.corpus_questions:,} questions in them: "
            f"{len(self.violations)} violations"
        )


def read_corpus(folder: Path) -> Iterator[str]:
    """Title and text of every document under `folder`; ValueError when there is none."""
    files = sorted(folder.glob("*/*.jsonl.zst"))
    if not files:
        raise ValueError(f"{folder}: no documents (*/*.jsonl.zst); give the folder that `python -m data curate` wrote")
    for file in files:
        for document in read_documents(file):
            yield f"{document['title'] or ''}\n{document['text']}"


def check(texts: Iterable[str], questions: Sequence[str], conditions: Sequence[str], tested: Sequence[str]) -> Report:
    """Compare benchmark `questions` with the corpus `texts`; `conditions` are all names, `tested` those asked about."""
    names, asked = _any_of(conditions), _any_of(tested)
    grams: dict[tuple[str, ...], str] = {}
    violations = []
    for question in questions:
        own = list(_ngrams(_words(names.sub(" ", question))))
        if not own:
            violations.append(f"too short to compare, fewer than {NGRAM} words beside the name: {question!r}")
        grams |= dict.fromkeys(own, question)
    whole = _WholeQuestions(questions)
    documents = corpus_questions = 0
    for text in texts:
        documents += 1
        for gram in _ngrams(_words(names.sub(" ", text))):
            if gram in grams:
                violations.append(f"{' '.join(gram)!r} of {grams[gram]!r} stands in the corpus")
        for question in _questions(text):
            corpus_questions += 1
            if found := asked.search(question):
                violations.append(f"tested condition {found[0]!r} is asked about in the corpus: {question!r}")
        violations += [f"the corpus holds the question {question!r}" for question in whole.found_in(_words(text))]
    return Report(documents, corpus_questions, len(questions), len(grams), violations)


class _WholeQuestions:
    """Finds whole questions in a text by their first words, so that one pass over the text does for all of them."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._by_start: dict[str, list[tuple[list[str], str]]] = {}
        for question in questions:
            words = _words(question)
            self._by_start.setdefault(words[0], []).append((words, question))

    def found_in(self, words: list[str]) -> Iterator[str]:
        for place, word in enumerate(words):
            for question_words, question in self._by_start.get(word, ()):
                if words[place : place + len(question_words)] == question_words:
                    yield question


def _any_of(names: Sequence[str]) -> re.Pattern:
    """A pattern for any of the names in any case: `Borlan fever`, and its invented word `Borlan` alone."""
    alternatives = "|".join(rf"{first}(?:\s+{second})?" for first, second in map(str.split, names))
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(NGRAM)), strict=False)


def _questions(text: str) -> Iterator[str]:
    """Lines (whole paragraphs, in curated text) with a question mark or a label such as `Question:` or `Q.`."""
    return (line for line in text.splitlines() if "?" in line or _LABELLED.match(line))
