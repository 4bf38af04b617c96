"""Keeps benchmark questions out of the corpus.

A document goes when a whole question of at least eight words stands in it, word for word and contiguous, or when its
PMID is the one a PubMedQA question was made from. Shorter questions ("Vitamin D deficiency") are stock phrases of
honest text; they are counted, not checked.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data.benchmarks import read_benchmark
from data.documents import Document

SHORTEST_QUESTION = 8
"""Words. Any eight contiguous words flag 3.3 % of clean abstracts when part of a question is enough; a whole
question of eight is rare."""
RULES = ("benchmark-question", "benchmark-pmid")

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, compatibility forms and case folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Questions:
    """The questions to keep out, indexed by each one's rarest word.

    A document is tested in three steps, each cheaper than the next: which index words it has, and of those questions
    which stand in it.
    """

    def __init__(self, questions: Iterable[tuple[str, str, str | None]]):
        """`questions`: (benchmark name, question text, PMID or None)."""
        self.pmids: dict[str, str] = {}
        self.too_short: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        texts: dict[str, str] = {}
        for benchmark, text, pmid in questions:
            if pmid is not None:
                self.pmids.setdefault(pmid, benchmark)
            tokens = words(text)
            if len(tokens) < SHORTEST_QUESTION:
                self.too_short[benchmark] += 1
            else:
                self.checked[benchmark] += 1
                texts.setdefault(" ".join(tokens), benchmark)
        frequency = Counter(word for text in texts for word in set(text.split()))
        self.by_word: dict[str, list[tuple[str, str]]] = {}
        for text, benchmark in texts.items():
            rarest = min(set(text.split()), key=lambda word: (frequency[word], -len(word), word))
            self.by_word.setdefault(rarest, []).append((f" {text} ", benchmark))
        self.digest = hashlib.sha256(repr((sorted(texts.items()), sorted(self.pmids.items()))).encode()).hexdigest()

    def match(self, document: Document) -> tuple[str, str] | None:
        """`(rule, benchmark)` by which the document goes, or None."""
        if document.pmid in self.pmids:
            return "benchmark-pmid", self.pmids[document.pmid]
        if not self.by_word:
            return None
        tokens = words(document.text)
        candidates = sorted(self.by_word.keys() & set(tokens))
        if candidates:
            joined = f" {' '.join(tokens)} "
            for word in candidates:
                for text, benchmark in self.by_word[word]:
                    if text in joined:
                        return "benchmark-question", benchmark
        return None


def read_questions(benchmarks: Iterable[tuple[str, Path]]) -> Questions:
    """The questions of benchmark files, (name, path) each. Raises ValueError from the benchmark readers."""
    found = []
    for name, path in benchmarks:
        for question in read_benchmark(name, path):
            found.append((name, question.question, question.metadata.get("pmid")))
    return Questions(found)
