"""Keeps benchmark questions out of the corpus.

A document goes when it is the one a question was made from (PubMedQA names the PMID), or when a question stands in it:

- of n >= 8 words: in some window of n neighbouring words of the document (all of a shorter document), at least 80 % of
  the question's words stand in order (the longest common subsequence of question and window), and at least
  1 + n // 20 of the question's different runs of four words (4-grams);
- of 5 to 7 words: the whole question, word for word;
- of fewer words ("Vitamin D deficiency"): not checked, for these are phrases of honest text. They are listed.

Words are those of `data.words`. The question is the question's own text: neither its options, which copies order and
letter differently, nor PubMedQA's abstract, which its PMID stands for.

The 4-grams of a document are looked up all at once. The questions that have enough of them pass two bounds that can
only lose what cannot match (too few of their words in the text; too few near a 4-gram), and what is left is compared.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.benchmarks import read_benchmark
from data.documents import Document
from data.overlap import LONGEST_RUN, SHORTEST_RUN, Overlap, in_order, letter_masks
from data.words import Words, fold, split_words, weighted_runs, word_hashes

GRAM = 4
"""Words of a run. On 3,368 real abstracts and the public test questions, runs of three stand in an abstract 16 times
instead of 2.5 and find no more; runs of five find 90.1 % instead of 92.2 % of questions with a tenth of their words
changed."""
WORDS_A_GRAM = 20
"""One 4-gram is asked of any question, one more for every so many words: a long one shares single ones with anything,
and with a tenth of its words changed still has two in three."""
SHORTEST_QUESTION = 5
"""Words. Public test questions of three words alone stand in 0.33 % of 3,368 clean abstracts ("Crohn's disease")."""
WHOLE_BELOW = 8
"""Words. Of a shorter question every word must stand there, in one piece."""
TENTHS = 8
"""Of a longer question, tenths of its words that must stand in order."""
RULES = ("benchmark-pmid", "benchmark-question")

_GRAMS_OF_RUN = SHORTEST_RUN - GRAM + 1
"""4-grams, each a word further, in the shortest run in common."""
_NONE = np.zeros(0, np.int64)
_BLOCK = 1 << 11
"""Words of a document that are looked at together (and as many as the longest question has, of the next): in a whole
book the words of every question would be somewhere."""
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD], np.uint64).view(
    np.int64
)
"""Odd numbers with well-mixed bits: a 4-gram's key is the sum of its words' numbers times these, modulo 2^64."""
_TABLE_BITS_A_GRAM = 4
"""The table has 2^4 places and more for each 4-gram of a question, so at most one lookup in 16 is in vain."""


class Match(NamedTuple):
    """Why a document goes: the rule, the benchmark and id of the question, and the share of the question's words found
    in order (1.0 for a PMID). Of several questions, the one with the highest share; of equals, the one read first."""

    rule: str
    benchmark: str
    question: str
    share: float


class Grams(NamedTuple):
    """Where which 4-gram of questions stands in a text: `at` int64 [hits], ascending, and `gram` int64 [hits], into
    Questions.keys."""

    at: np.ndarray
    gram: np.ndarray

    def within(self, begin: int, end: int) -> "Grams":
        """Those that lie in `words[begin:end]`, by their place in there."""
        first, last = self.at.searchsorted([begin, end - GRAM + 1])
        return Grams(self.at[first:last] - begin, self.gram[first:last])


class _Text:
    """A stretch of a document that holds 4-grams of questions."""

    def __init__(self, hashes: np.ndarray, grams: Grams, questions: "Questions"):
        self.hashes = hashes
        self.at, self.gram = grams
        self.questions = questions

    @functools.cached_property
    def words(self) -> np.ndarray:
        """The words as numbers, int64 [words]; 0 for those in no question. Few texts come to be asked for them."""
        return self.questions.numbers_of(self.hashes)


def needed(length: int) -> int:
    """How many of a question's words must stand in order, of `length` words."""
    return length if length < WHOLE_BELOW else -(-length * TENTHS // 10)


def needed_grams(length: int) -> int:
    """How many of its different 4-grams the window must hold, of a question of `length` words."""
    return 1 + length // WORDS_A_GRAM


def read_questions(benchmarks: Iterable[tuple[str, Path]]) -> "Questions":
    """The questions of benchmark files, (name, path) each. Raises ValueError from the benchmark readers."""
    found = []
    for name, path in benchmarks:
        for question in read_benchmark(name, path):
            found.append((name, question.id, question.question, question.metadata.get("pmid")))
    return Questions(found)


class Questions:
    """The questions to keep out, as flat arrays: 16 MB for 8,000 of them when sent to a process, 29 MB in it.

    Questions with the same words are one. `names[q]` lists the (benchmark, id) of those that are question q, and
    `shared_by` maps an id to the names of all benchmarks that have the question, where these are several; `pmids` maps
    a PMID to (benchmark, id); `too_short` lists the ids that cannot be checked; `checked` counts.
    """

    def __init__(self, questions: Iterable[tuple[str, str, str, str | None]]):
        """`questions`: (benchmark, id, text, PMID or None)."""
        self.pmids: dict[str, tuple[str, str]] = {}
        self.checked: Counter[str] = Counter()
        self.too_short: dict[str, list[str]] = {}
        texts: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for benchmark, identifier, text, pmid in questions:
            words = tuple(split_words(fold(text)))
            self.checked[benchmark] += len(words) >= SHORTEST_QUESTION
            if pmid is not None:
                self.pmids.setdefault(pmid, (benchmark, identifier))
            if len(words) < SHORTEST_QUESTION:
                self.too_short.setdefault(benchmark, []).append(identifier)
            else:
                texts.setdefault(words, []).append((benchmark, identifier))
        self.names = list(texts.values())
        self.shared_by: dict[str, tuple[str, ...]] = {}
        for names in self.names:
            benchmarks = tuple(dict.fromkeys(benchmark for benchmark, _ in names))
            if len(benchmarks) > 1:
                self.shared_by |= {identifier: benchmarks for _, identifier in names}
        thresholds = (GRAM, WORDS_A_GRAM, SHORTEST_QUESTION, WHOLE_BELOW, TENTHS)
        content = (thresholds, list(texts.items()), list(self.pmids.items()))
        self.digest = hashlib.sha256(repr(content).encode()).hexdigest()
        self._index(list(texts))

    def _index(self, texts: Sequence[tuple[str, ...]]) -> None:
        """The arrays: words [all words], first [questions + 1], distinct words, and all places of each 4-gram."""
        numbers = {word: n for n, word in enumerate(dict.fromkeys(w for text in texts for w in text), 1)}
        hash_of = np.concatenate([np.zeros(1, np.int64), word_hashes(list(numbers))])
        self.number_order = np.argsort(hash_of[1:]) + 1
        self.sorted_hashes = hash_of[self.number_order]
        lengths = np.array([len(text) for text in texts], np.int64)
        self.longest = int(lengths.max(initial=0))
        self.lengths = lengths
        self.slack = lengths - [needed(length) for length in lengths.tolist()]
        self.first = np.concatenate([[0], np.cumsum(lengths)])
        self.words = np.array([numbers[word] for text in texts for word in text], np.int32)
        self.owner = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
        distinct = np.unique(self.owner.astype(np.int64) << 32 | self.words)
        self.distinct = (distinct & 0xFFFFFFFF).astype(np.int32)
        self.distinct_first = np.searchsorted(distinct >> 32, np.arange(len(texts) + 1))
        self.grams_needed = [needed_grams(length) for length in lengths.tolist()]
        self._order_words(hash_of)
        places = _spans(self.first[:-1], lengths - (GRAM - 1))
        keys = _gram_keys(hash_of[self.words])[places] if texts else _NONE
        order = np.argsort(keys, kind="stable")
        self.places = places[order].astype(np.int32)
        self.owner_of = self.owner[self.places]
        self.keys, self.gram_first = np.unique(keys[order], return_index=True)
        self.gram_first = np.append(self.gram_first, len(places))
        needs = np.array(self.grams_needed, np.int64)
        self.least_needed = np.minimum.reduceat(needs[self.owner_of], self.gram_first[:-1]) if texts else _NONE
        bits = _TABLE_BITS_A_GRAM + len(self.keys).bit_length()
        self.shift = np.int64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[self.keys >> self.shift] = True

    def _order_words(self, hash_of: np.ndarray) -> None:
        """The hashes of each question's different words: all, and so many of the rarest that not all of those may be
        missing; and how many must be there."""
        frequency = np.bincount(self.distinct, minlength=len(self.number_order) + 1)
        question = np.repeat(np.arange(len(self.lengths)), np.diff(self.distinct_first))
        words = hash_of[self.distinct[np.lexsort((self.distinct, frequency[self.distinct], question))]].tolist()
        bounds = self.distinct_first.tolist()
        spans = list(zip(bounds[:-1], bounds[1:], self.slack.tolist(), strict=True))
        self.distinct_of = [tuple(words[first:last]) for first, last, _ in spans]
        self.rarest = [tuple(words[first : min(last, first + slack + 1)]) for first, last, slack in spans]
        self.fewest = [last - first - slack for first, last, slack in spans]

    @property
    def identities(self) -> dict[str, dict[str, str]]:
        """`{"pmid": {pmid: benchmark}}`: the articles that questions were made from."""
        return {"pmid": {pmid: benchmark for pmid, (benchmark, _) in self.pmids.items()}}

    def new_overlap(self) -> Overlap:
        """An empty account of what kept documents have in common with these questions."""
        return Overlap(len(self.names))

    def find(self, words: Words) -> list[Grams]:
        """The 4-grams of questions in each text. Keys stand for 4-grams: of a million, two share a key of 64 bits once
        in 10^7 sets of questions, and then only more is compared than need be."""
        if len(words.hashes) < SHORTEST_QUESTION or not len(self.keys):
            return [Grams(_NONE, _NONE)] * len(words)
        keys = _gram_keys(words.hashes)
        at = self.table.take(keys >> self.shift).nonzero()[0]  # a negative index counts from the end, as when filled
        keys = keys.take(at)
        gram = self.keys.searchsorted(keys)
        real = self.keys.take(gram, mode="clip") == keys
        at, gram = at[real], gram[real]
        text = words.bounds.searchsorted(at, side="right") - 1
        real = at + GRAM <= words.bounds[text + 1]  # no run across two texts
        at, gram, text = at[real], gram[real], text[real]
        at -= words.bounds[text]
        bounds = text.searchsorted(np.arange(len(words) + 1)).tolist()
        return [Grams(at[begin:end], gram[begin:end]) for begin, end in pairwise(bounds)]

    def examine(
        self, document: Document, hashes: np.ndarray, grams: Grams, overlap: Overlap | None = None
    ) -> Match | None:
        """Why the document goes, or None; what a document that stays has in common with questions is added to
        `overlap`. `hashes` are those of its text's words, `grams` what `find` found in them."""
        if document.pmid in self.pmids:
            return Match("benchmark-pmid", *self.pmids[document.pmid], 1.0)
        if not self._may_matter(grams):
            return None
        starts = range(0, max(1, len(hashes) - self.longest), _BLOCK)
        spans = [(start, start + _BLOCK + self.longest) for start in starts]
        blocks = [_Text(hashes[slice(*span)], grams.within(*span), self) for span in spans]
        best = max(map(self._best, blocks))
        if best[0]:
            benchmark, identifier = self.names[-best[1]][0]
            return Match("benchmark-question", benchmark, identifier, best[0])
        if overlap is not None:
            for block in blocks:
                self._add_runs(block, overlap)
        return None

    def _may_matter(self, grams: Grams) -> bool:
        """False for most texts: not enough 4-grams for any of their questions, nor for a run in common."""
        count = len(grams.at)
        return count >= _GRAMS_OF_RUN or (count > 0 and self.least_needed.take(grams.gram).min() <= count)

    def numbers_of(self, hashes: np.ndarray) -> np.ndarray:
        """Words, by their hashes, as numbers: int64; 0 for those in no question."""
        place = self.sorted_hashes.searchsorted(hashes)
        known = self.sorted_hashes.take(place, mode="clip") == hashes
        return np.where(known, self.number_order.take(place, mode="clip"), 0)

    def _text_of(self, question: int) -> np.ndarray:
        """The words of a question as numbers, int64."""
        return self.words[self.first.item(question) : self.first.item(question + 1)].astype(np.int64)

    def _best(self, text: _Text) -> tuple[float, int]:
        """(highest share, -question) among the questions that stand in `text`; (0.0, 0) where none does."""
        best = (0.0, 0)
        for question, starts in self._near(text, self._possible(text)):
            words = self._text_of(question)
            masks, grams = letter_masks(words.tolist()), set(_gram_keys(words).tolist())
            most = needed(len(words)) - 1
            for start in starts:
                window = text.words[start : start + len(words)]
                found = in_order(masks, len(words), window.tolist())
                if found > most and len(grams & set(_gram_keys(window).tolist())) >= needed_grams(len(words)):
                    most = found
                    best = max(best, (found / len(words), -question))
        return best

    def _possible(self, text: _Text) -> list[int]:
        """The questions with enough of their 4-grams and of their words anywhere in the text."""
        useful = self.least_needed.take(text.gram) <= len(text.gram)  # else all that have it need more than there are
        counts: dict[int, int] = {}
        for gram in set(text.gram[useful].tolist()):
            first, last = self.gram_first.item(gram), self.gram_first.item(gram + 1)
            for question in self.owner_of[first:last].tolist():
                counts[question] = counts.get(question, 0) + 1
        counted = [question for question, count in counts.items() if count >= self.grams_needed[question]]
        if not counted:
            return []
        is_present = set(text.hashes.tolist()).__contains__
        possible = [question for question in counted if any(map(is_present, self.rarest[question]))]
        return [
            question
            for question in possible
            if sum(map(is_present, self.distinct_of[question])) >= self.fewest[question]
        ]

    def _near(self, text: _Text, possible: list[int]) -> Iterator[tuple[int, list[int]]]:
        """(question, starts of the windows to compare it with), ascending: the windows hold one of its 4-grams, and
        enough of its words lie in reach of that."""
        if not possible:
            return
        counts = self.gram_first[text.gram + 1] - self.gram_first[text.gram]
        questions = self.owner[self.places[_spans(self.gram_first[text.gram], counts)]]
        chosen = np.isin(questions, possible)
        pairs = np.unique(questions[chosen].astype(np.int64) << 32 | np.repeat(text.at, counts)[chosen])
        questions, at = pairs >> 32, pairs & 0xFFFFFFFF
        lengths = self.lengths[questions]
        low, high = np.maximum(at + GRAM - lengths, 0), at + lengths  # all that windows with the 4-gram can reach
        sorted_words = np.sort(text.words << 32 | np.arange(len(text.words)))
        sorted_words = np.append(sorted_words, np.iinfo(np.int64).max)
        first = self.distinct_first[questions]
        counts = self.distinct_first[questions + 1] - first
        wanted = self.distinct[_spans(first, counts)].astype(np.int64) << 32
        next_one = sorted_words[np.searchsorted(sorted_words, wanted + np.repeat(low, counts))]
        missing = np.add.reduceat(next_one >= wanted + np.repeat(high, counts), np.cumsum(counts) - counts, dtype=int)
        good = missing <= self.slack[questions]
        last = np.maximum(len(text.words) - lengths, 0)
        starts: dict[int, set[int]] = {}
        for question, begin, end in zip(questions[good], low[good], np.minimum(at, last)[good] + 1, strict=True):
            starts.setdefault(int(question), set()).update(range(begin, end))
        for question, found in starts.items():
            yield question, sorted(found)

    def _add_runs(self, text: _Text, overlap: Overlap) -> None:
        """Every run of at least 8 words that the text and a question have in common, each as long as it goes."""
        if not (text.at[_GRAMS_OF_RUN - 1 :] - text.at[: 1 - _GRAMS_OF_RUN] == _GRAMS_OF_RUN - 1).any():
            return
        run_begins = np.flatnonzero(np.diff(text.at, prepend=-2) != 1)
        run_lengths = np.diff(run_begins, append=len(text.at))
        inside = np.repeat(run_lengths >= _GRAMS_OF_RUN, run_lengths)
        at, gram = text.at[inside], text.gram[inside]
        counts = self.gram_first[gram + 1] - self.gram_first[gram]
        at = np.repeat(at, counts)
        places = self.places[_spans(self.gram_first[gram], counts)].astype(np.int64)
        order = np.lexsort((at, places - at))  # by how question and text lie on each other, then along the text
        at, places = at[order], places[order]
        begins = np.flatnonzero((np.diff(places - at, prepend=1 << 40) != 0) | (np.diff(at, prepend=-2) != 1))
        lengths = np.diff(begins, append=len(at))
        for begin, length in zip(
            begins[lengths >= _GRAMS_OF_RUN], lengths[lengths >= _GRAMS_OF_RUN].tolist(), strict=True
        ):
            question = self.owner.item(places[begin])
            overlap.add(question, length + GRAM - 1, text.words, int(at[begin]), self._text_of(question))

    def summary(self) -> dict[str, dict]:
        """Per benchmark: `questions`, how many are `checked`, the ids `not_checked` for having under 5 words, and
        `articles`, the PMIDs whose documents go."""
        articles = Counter(benchmark for benchmark, _ in self.pmids.values())
        return {
            benchmark: {
                "questions": count + len(self.too_short.get(benchmark, [])),
                "checked": count,
                "not_checked": self.too_short.get(benchmark, []),
                "articles": articles[benchmark],
            }
            for benchmark, count in self.checked.items()
        }

    def left(self, overlap: Overlap) -> dict[str, dict]:
        """What kept documents still have in common with the questions checked, per benchmark.

        `in_common_8`: questions of which a run of 8 words stands in a kept document, `in_common_13` of which one of 13
        does, `ids_13` their ids; `highest_share`: of a question's words, most in order where a run of 8 is in common
        (see `Overlap`), and its `highest_id`.
        """
        report = {
            benchmark: {"checked": count, "in_common_8": 0, "in_common_13": 0, "ids_13": [], "highest_share": 0.0,
                        "highest_id": None}
            for benchmark, count in self.checked.items()
        }  # fmt: skip
        for question in np.flatnonzero(overlap.run).tolist():
            share = round(int(overlap.words[question]) / int(self.lengths[question]), 4)
            for benchmark, identifier in self.names[question]:
                row = report[benchmark]
                row["in_common_8"] += 1
                if overlap.run[question] == LONGEST_RUN:
                    row["in_common_13"] += 1
                    row["ids_13"].append(identifier)
                if share > row["highest_share"]:
                    row["highest_share"], row["highest_id"] = share, identifier
        return report


def _gram_keys(words: np.ndarray) -> np.ndarray:
    """The key of every four neighbours among `words` [n] int64, n >= 4: [n - 3] int64."""
    return weighted_runs(words, _FACTORS)


def _spans(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers first[i], first[i] + 1, ... (counts[i] of them), for all i one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(first - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
