"""Words: one definition, by a fast way and a general one."""

import re

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data.words import fold, phrase_hashes, phrases, split_words, word_hashes


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


def test_hashes_do_not_depend_on_what_came_before(monkeypatch):
    before = word_hashes(["fever", "dose"]).tolist()
    monkeypatch.setattr("data.words.WORDS_HELD", 0)
    assert word_hashes(["dose", "fever"]).tolist() == before[::-1]
    assert before[0] == xxhash.xxh3_64_intdigest(b"fever") - (1 << 63)
