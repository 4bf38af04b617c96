"""How much of a benchmark question stands in a text: words in order, and the longest run in common."""

from collections.abc import Iterable, Sequence

import numpy as np

SHORTEST_RUN = 8
"""Words. Shorter runs in common are stock phrases; PaLM (arXiv 2204.02311) counts 8-grams."""
LONGEST_RUN = 13
"""Words. Longer runs count as this: GPT-3 (arXiv 2005.14165) and its followers count 13-grams."""


def letter_masks(question: Sequence[int]) -> dict[int, int]:
    """For each word of a question, the bits of the places where it stands."""
    masks: dict[int, int] = {}
    for place, word in enumerate(question):
        masks[word] = masks.get(word, 0) | 1 << place
    return masks


def in_order(masks: dict[int, int], length: int, text: Iterable[int]) -> int:
    """How many words of a question stand in `text` in order: the length of their longest common subsequence.

    `masks` is `letter_masks(question)`, `length` the words of the question. Bit-parallel: one row of the usual table in
    an integer, a word of the text at a time (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004).
    """
    row = (1 << length) - 1
    for mask in filter(None, map(masks.get, text)):
        common = row & mask
        row = (row + common) | (row - common)
    return length - (row & ((1 << length) - 1)).bit_count()


class Overlap:
    """What kept documents have in common with questions, a pair of numbers a question; gathered by unit and merged.

    `run` [questions] uint8: the longest run of words that the question and a document have in common, 0 where under 8,
    at most 13. `words` [questions] uint16: of a question with such a run, the most words that stand in order in a
    window of a document that is as long as the question and holds the run.
    """

    def __init__(self, questions: int):
        self.run = np.zeros(questions, np.uint8)
        self.words = np.zeros(questions, np.uint16)

    def add(self, question: int, run: int, text: np.ndarray, at: int, words: np.ndarray) -> None:
        """One run in common of at least 8 words, at `text[at : at + run]`; `words` are the question's."""
        self.run[question] = max(self.run[question], min(run, LONGEST_RUN))
        length, masks = len(words), letter_masks(words.tolist())
        reach = text[max(at + run - length, 0) : at + length].tolist()
        if in_order(masks, length, reach) > self.words[question]:  # no window of it can have more
            starts = range(max(len(reach) - length, 0) + 1)
            most = max(in_order(masks, length, reach[start : start + length]) for start in starts)
            self.words[question] = max(self.words[question], most)

    def merge(self, other: "Overlap") -> None:
        """Take in what was found in other documents."""
        assert len(self.run) == len(other.run), "overlaps with different sets of questions"
        np.maximum(self.run, other.run, out=self.run)
        np.maximum(self.words, other.words, out=self.words)

    def to_json(self) -> dict:
        """`{"questions": how many there are, "found": [[question, run, words], ...]}`."""
        found = np.flatnonzero(self.run)
        rows = np.stack([found, self.run[found], self.words[found]], axis=1)
        return {"questions": len(self.run), "found": rows.tolist()}

    @classmethod
    def from_json(cls, values: dict) -> "Overlap":
        """What `to_json` gave."""
        overlap = cls(values["questions"])
        for question, run, words in values["found"]:
            overlap.run[question], overlap.words[question] = run, words
        return overlap
