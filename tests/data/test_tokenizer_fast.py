"""gigatoken against SentencePiece itself, on texts that other readings of a model get wrong."""

import gzip
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from data import fast_tokenizer
from data.fast_tokenizer import FastTokenizer, fast_model
from data.special_tokens import SPECIAL_TOKENS
from data.tokenizer import load_tokenizer, reordered
from tests.data.test_tokenizer import LITERAL_SPECIALS, MODELS, byte_level_tokenizer

pytest.importorskip("gigatoken", reason="the optional fast tokenizer is not installed (pip install gigatoken)")

HARD = (
    "", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", "a\0b", "\0", "▁", "▁▁x", " ▁ ", "x ", " x", "  5  mg  ",
    "\u00a0", "5\u00a0mg", "\u2009\u202f\u3000", "\ufeffBOM", "µg ≤ ± ²", "e\u0301", "Ⅷ ﬁ", "\U0001f489\U0001f9ec",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ud7ff\ue000\U0010ffff", "<0x0A>", "<0xZZ>", "<unk", "<", "</", "s>",
)  # fmt: skip


def pair(tokenizer):
    return FastTokenizer(fast_model(tokenizer), tokenizer), tokenizer


def assert_equal(pair, texts):
    tokens, offsets = pair[0].encode_arrays(texts)
    assert (tokens.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert len(offsets) == len(texts) + 1
    for number, (text, expected) in enumerate(zip(texts, pair[1].encode_batch(texts), strict=True)):
        assert tokens[offsets[number] : offsets[number + 1]].tolist() == expected, text[:200]


@pytest.fixture(scope="module", params=["tiny", *MODELS])
def base(request, tiny_tokenizer):
    path = tiny_tokenizer if request.param == "tiny" else request.getfixturevalue("assets") / request.param
    return load_tokenizer(path)


@pytest.fixture(scope="module", params=[(), SPECIAL_TOKENS], ids=["plain", "with tokens"])
def both(request, base):
    return pair(base.with_tokens(request.param))


def test_hard_texts(both):
    assert_equal(both, HARD)
    assert_equal(both, [])
    assert_equal(both, [""])


def test_specials_in_raw_text(both):
    """Among other texts, so that those that go another way come back in their place."""
    texts = [text for pair in zip(LITERAL_SPECIALS, HARD[8:], strict=False) for text in pair]
    texts += [f"[fig]{text}[/fig]" for text in LITERAL_SPECIALS]
    assert_equal(both, texts)
    tokens = both[0].encode_arrays(texts).tokens
    assert not {both[1].bos_id, both[1].eos_id} & set(tokens.tolist())


def test_very_long_lines(both):
    length = 1_000_000
    texts = ["x" * length, "ab " * (length // 3), " " * (length // 4), "ACGT" * (length // 4), "\n" * 10_000]
    assert_equal(both, [*texts, "\0" * 10_000, "▁" * 10_000, "\U0001f489" * 20_000, "[fig] " * 20_000])


def test_random_runs_of_pieces_and_parts_of_tokens(both):
    source = random.Random(0)
    pieces = [both[1].token(index).replace("▁", " ") for index in range(259, both[1].vocab_size)]
    assert_equal(both, ["".join(source.choices(pieces, k=source.randrange(1, 20))) for _ in range(2000)])
    parts = [*SPECIAL_TOKENS, *LITERAL_SPECIALS, *HARD, "[", "]", "[bib_ref", "dose"]
    assert_equal(both, ["".join(source.choices(parts, k=source.randrange(1, 9))) for _ in range(3000)])


parts_of_text = st.sampled_from(["[fig]", "[dose]", "</s>"]) | st.text(max_size=20)


@given(texts=st.lists(st.lists(parts_of_text, max_size=4).map("".join), max_size=5))
def test_any_text(tiny_pair, texts):
    assert_equal(tiny_pair, texts)


@pytest.fixture(scope="module")
def tiny_pair(tiny_tokenizer):
    return pair(load_tokenizer(tiny_tokenizer).with_tokens(["[dose]", "[fig]"]))


def test_the_longest_of_two_tokens_is_taken(tiny_tokenizer):
    assert_equal(pair(load_tokenizer(tiny_tokenizer).with_tokens(["[f", "[fig]", "[fig]s"])), ["a [fig]s [fig] [fi [f"])


def test_models_with_other_spaces(make_sentencepiece, tmp_path):
    path = make_sentencepiece(tmp_path / "own.model", add_dummy_prefix=False, user_defined_symbols=["[fig]"])
    assert_equal(pair(load_tokenizer(path)), [*HARD, "[fig]", "x[fig] y"])


def test_all_abstracts_of_a_real_file(assets):
    texts = []
    with gzip.open(assets / "medline" / "pubmed21n1298.first4000.xml.gz") as file:
        for _, citation in etree.iterparse(file, tag="AbstractText"):
            texts.append("".join(citation.itertext()))
    assert len(texts) > 3000
    assert_equal(pair(load_tokenizer(assets / "model" / "llama2_tokenizer.model")), texts)


def test_what_it_cannot_take_the_place_of_is_said(tiny_tokenizer, make_sentencepiece, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="SentencePiece models only"):
        fast_model(load_tokenizer(byte_level_tokenizer(tmp_path / "tokenizer.json")))
    unigram = make_sentencepiece(tmp_path / "unigram.model", model_type="unigram", byte_fallback=False, vocab_size=60)
    with pytest.raises(ValueError, match="its type is not BPE"):
        fast_model(load_tokenizer(unigram))
    monkeypatch.setattr(fast_tokenizer, "gigatoken_version", lambda: None)
    with pytest.raises(ValueError, match="gigatoken is not installed"):
        fast_model(load_tokenizer(tiny_tokenizer))


def test_its_memory_of_words_does_not_grow_for_ever(tiny_pair, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "CACHED_CHARACTERS", 1000)
    loaded = []
    monkeypatch.setattr(FastTokenizer, "_begin", lambda self, begin=FastTokenizer._begin: loaded.append(begin(self)))
    for number in range(40):
        assert_equal(tiny_pair, [f"fever {number} " * 20])
    assert 5 < len(loaded) < 12  # once in 1,000 characters of some 8,000


def test_arrays_are_the_lists(both):
    texts = [*HARD, *LITERAL_SPECIALS]
    tokens, offsets = both[1].encode_arrays(texts)
    assert (tokens.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert [ids.tolist() for ids in np.split(tokens, offsets[1:-1])] == both[1].encode_batch(texts)


def test_reordered(tiny_tokenizer):
    texts = ["aspirin", "", "5 mg", "fever"]
    tokenizer = load_tokenizer(tiny_tokenizer)
    found = reordered(tokenizer.encode_arrays(texts), np.array([2, 0, 1, 2]))
    expected = tokenizer.encode_arrays(["5 mg", "aspirin", "", "5 mg"])
    assert np.array_equal(found.tokens, expected.tokens) and np.array_equal(found.offsets, expected.offsets)
    nothing = reordered(found, np.empty(0, np.int64))
    assert len(nothing.tokens) == 0 and nothing.offsets.tolist() == [0]
