"""Words: one definition, by a fast way and a general one."""

import re

from hypothesis import given
from hypothesis import strategies as st

from data.words import fold, phrases, split_words


@given(st.text(st.characters(codec="ascii")) | st.text(st.characters(codec="utf-8")))
def test_words_are_what_the_pattern_says(text):
    assert split_words(text) == re.findall(r"\w+", text)


def test_fold():
    assert fold("The ﬁrst 10⁹ ＭＧ of Straße") == "the first 109 mg of strasse"
    assert fold("ABC") == "abc"


def test_short_texts_have_one_phrase():
    assert phrases(["a", "b"]) == ["a b"]
    assert phrases(list("abcdef")) == ["a b c d e", "b c d e f"]
