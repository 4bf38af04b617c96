"""Counts of a batch of texts are what plain Python counts in each."""

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data import counts
from data.counts import count
from data.language import ENGLISH_WORDS
from data.words import Words, fold, split_words
from tests.data.phrases import phrases

WORDS = (
    "the", "of", "was", "tbe", "nnd", "cookie", "http", "404", "pat1ent", "a12b", "a123b", "hjkl", "xhjklx", "rhythms",
    "bcdfg", "7", "β", "é", "e", "ahjkl", "hjklé", "acgtacgtacgtacgt1a", "x" * 31, "日本語", "2010", "12345", "2010a2011",
    "a<lmitted", "dose", "fever", "p<0.05", "µg", "\n", "(", "©", "Ab", "É",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(
    st.characters(codec="utf-8", exclude_characters="\x00")
)


def is_broken(word):
    letters = re.sub("[0-9]", "n", re.sub("[a-z]", "a", word))
    consonants = re.sub("[bcdfghjklmnpqrstvwxz]", "c", re.sub("c", "b", word))
    return len(word.encode()) < 16 and bool(
        re.search("an{1,2}a", letters) or re.search("c{5}", consonants) or re.fullmatch("c{4}", consonants)
    )


def plainly(text):
    """The counts of one text, by the book."""
    words = split_words(fold(text))
    occurrences = Counter(words)
    stood_before = len(phrases(words)) - len(set(phrases(words)))
    return {
        "words": len(words),
        "different": len(occurrences),
        "most_frequent": max(occurrences.values(), default=0),
        "characters": sum(map(len, words)),
        "overlong": sum(len(word) for word in words if len(word) > 30),
        "single_letters": sum(len(word) == 1 and word not in "0123456789" for word in words),
        "function_words": sum(word in ENGLISH_WORDS for word in words),
        "misread": sum(word in counts._MISREAD for word in words),
        "web_words": sum(word in counts._WEB_WORDS for word in occurrences),
        "broken": sum(map(is_broken, occurrences)),
        "signs": len(re.findall(r"(?<=[a-z])[|!~^\\{}<>*=#$%&@;+(](?=[a-z])", text)),
        "long_numbers": sum(len(re.findall("[0-9]{4,}", word)) for word in words),
        "phrases": len(phrases(words)),
        "repeated_phrases": stood_before,
        "visible": sum(character not in " \t\n" for character in text),
    }


@given(st.lists(TEXTS, max_size=9))
def test_a_batch_is_counted_as_plain_python_counts_each_text(texts):
    found = count(texts, Words(list(map(fold, texts))))
    assert [counted.text for counted in found] == texts
    for text, counted in zip(texts, found, strict=True):
        expected = plainly(text)
        assert {name: getattr(counted, name) for name in expected} == expected
        assert counted.hashes.tolist() == Words([fold(text)]).hashes.tolist()


def test_letters_and_signs():
    (found,) = count(["Ab é β # 1 ≤ 日"], Words([fold("Ab é β # 1 ≤ 日")]))
    assert (found.visible, found.letters, found.plain) == (8, 5, 7)
