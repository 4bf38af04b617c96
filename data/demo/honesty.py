"""Proof that the demo's score is knowledge and not memory of the question: the benchmarks against the curated corpus.

Three rules, each checked on the documents that training reads, both splits of all sources:

1. Once the names of the conditions are removed, no benchmark question shares five words in a row with the corpus.
2. No tested condition, in any inflection, occurs near a question of the corpus: in a paragraph with a question mark, a
   word such as `answer` or a label such as `Q.`, or in the paragraph before or after it.
3. No benchmark question stands in the corpus.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.documents import read_documents

NGRAM = 5

_WORD = re.compile(r"[a-z0-9]+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_ASKS = re.compile(
    r"\? | (?<![^\W_]) (?: (?:questions?|answers?|options?) (?![^\W_]) | [qa] [\s*_]* \d* [\s*_]* [:.)] ) | ^\W* q \b",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)  # a word may stand in the underscores of Markdown


@dataclasses.dataclass
class Report:
    """What was compared, and every violation as one line of text."""

    documents: int
    corpus_questions: int
    """Paragraphs that ask, answer or list options."""
    benchmark_questions: int
    ngrams: int
    violations: list[str]

    def __str__(self) -> str:
        return (
            f"honesty check: {self.benchmark_questions:,} benchmark questions ({self.ngrams:,} {NGRAM}-grams) against "
            f"{self.documents:,} documents and the {self.corpus_questions:,} paragraphs that ask or answer in them: "
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
        asking, near = _near_questions(text)
        corpus_questions += asking
        for paragraph in near:
            if found := asked.search(paragraph):
                violations.append(f"tested condition {found[0]!r} is asked about in the corpus: {paragraph!r}")
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
    """A pattern for any of the names in any case and inflection: `Borlan fever`, `Borlans` or `Borlan's fevers`.

    The rest of the word belongs to the match: what stays of a name taken out would split five words in a row.
    """
    alternatives = "|".join(rf"{first}[\w'\u2019]*(?:[\s-]+{second}\w*)?" for first, second in map(str.split, names))
    return re.compile(rf"(?<![^\W_])(?:{alternatives})", re.IGNORECASE)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(NGRAM)), strict=False)


def _near_questions(text: str) -> tuple[int, list[str]]:
    """How many paragraphs of `text` ask or answer, and these with their neighbours: an answer, or the case that the
    question is about, often has a paragraph of its own."""
    paragraphs = _PARAGRAPH_END.split(text)
    asking = [number for number, paragraph in enumerate(paragraphs) if _ASKS.search(paragraph)]
    near = {neighbour for number in asking for neighbour in (number - 1, number, number + 1)}
    return len(asking), [paragraph for number, paragraph in enumerate(paragraphs) if number in near]
