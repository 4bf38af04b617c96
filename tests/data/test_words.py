"""Words: one definition, by a fast way and a general one."""

import re

from hypothesis import given
from hypothesis import strategies as st

from data.words import PHRASE, Words, fold, phrase_hashes, split_words, word_hashes
from tests.data.phrases import phrases

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("ab1 .é")).map(fold)


@given(st.text(st.characters(codec="ascii")) | st.text(st.characters(codec="utf-8")))
def test_words_are_what_the_pattern_says(text):
    assert split_words(text) == re.findall(r"\w+", text)


def test_fold():
    assert fold("The ﬁrst 10⁹ ＭＧ of Straße") == "the first 109 mg of strasse"
    assert fold("ABC") == "abc"


def test_short_texts_have_one_phrase():
    assert phrases(["a", "b"]) == ["a b"]
    assert phrases(list("abcdef")) == ["a b c d e", "b c d e f"]


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_equal_hashes_are_equal_phrases(words):
    hashes = phrase_hashes(word_hashes(words)).tolist()
    assert len(set(zip(hashes, phrases(words), strict=True))) == len(set(hashes)) == len(set(phrases(words)))


@given(st.lists(st.text("ab\u00e9\u4e00", min_size=1, max_size=30), max_size=60))
def test_equal_hashes_are_equal_words(words):
    hashes = word_hashes(words).tolist()
    assert len(hashes) == len(words)
    assert len(set(zip(hashes, words, strict=True))) == len(set(hashes)) == len(set(words))


@given(st.lists(TEXTS, max_size=8))
def test_many_texts_at_once_are_as_each_alone(texts):
    words = Words(texts)
    assert len(words) == len(texts)
    for number, text in enumerate(texts):
        hashes = word_hashes(split_words(text))
        assert words.of(number).tolist() == hashes.tolist()
        assert words.phrases(number).tolist() == phrase_hashes(hashes).tolist()
    spans = zip(words.starts.tolist(), words.ends.tolist(), strict=True)
    assert [words.bytes[start:end].decode() for start, end in spans] == [w for text in texts for w in split_words(text)]


def test_a_hash_hangs_on_every_byte_and_on_nothing_else():
    long = "n" * 91
    others = [long[:place] + "m" + long[place + 1 :] for place in range(91)] + [long[:count] for count in range(1, 91)]
    assert len(set(word_hashes([long, *others]).tolist())) == len(others) + 1
    assert len(word_hashes(["n" * 10_000_000])) == 1
    assert word_hashes(["fever", long]).tolist() == word_hashes([long, "fever"]).tolist()[::-1]


def test_a_phrase_hangs_on_the_order_of_its_words():
    words = word_hashes(list("abcde"))
    assert PHRASE == 5
    assert phrase_hashes(words).tolist() != phrase_hashes(words[[1, 0, 2, 3, 4]]).tolist()
    assert phrase_hashes(words[:2]).tolist() != phrase_hashes(words[1::-1]).tolist()
