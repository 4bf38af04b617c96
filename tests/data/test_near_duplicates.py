"""Near-duplicates against brute force, and planted ones in real abstracts."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import near_duplicates
from data.deduplicate import Parts, key_slice
from data.documents import Document
from data.minhash import BANDS, ROWS, Bands, band_keys, jaccard
from data.near_duplicates import Order, candidate_pairs, verified
from data.scratch import ScratchReader, ScratchWriter
from data.words import Words, fold, split_words
from tests.data.phrases import phrases


def shared(first, second):
    """Jaccard similarity, from the phrases themselves."""
    return len(first & second) / len(first | second)


def write_units(folder, units, versions=None, full_text=None):
    """Scratch files and band rows of units, each a list of texts."""
    readers, arrays = [], []
    for number, texts in enumerate(units):
        writer, bands = ScratchWriter(folder / f"u{number}.jsonl.zst"), Bands(seed=0)
        for position, text in enumerate(texts):
            version = versions[number][position] if versions else None
            document = Document(f"{number}-{position}", "s", None, text, version=version)
            abstract_only = not (full_text and full_text[number])
            writer.add(document, words=0, year=0, language=0, license=0, split=0, abstract_only=abstract_only)
            bands.add(Words([fold(text)]).phrases(0), position)
        writer.close()
        readers.append(ScratchReader(folder, f"u{number}"))
        arrays.append(bands.array())
    return readers, arrays


def near(folder, units, threshold=0.7, partitions=1, dropped=(), sources=None, full_text=None, versions=None):
    """`{(worse unit, position): (better unit, position)}` of every verified pair, as sets of pairs."""
    readers, arrays = write_units(folder, units, versions, full_text)
    sources = sources or [0] * len(units)
    count = len(units)
    order = Order(readers, Parts(np.array(sources), np.arange(count), np.zeros(count)))
    gone = np.array(sorted(unit << 32 | position for unit, position in dropped), np.uint64)
    pairs = [
        candidate_pairs([key_slice(array, "key", number, partitions) for array in arrays], gone, order)
        for number in range(partitions)
    ]
    found = verified(np.unique(np.concatenate(pairs)), threshold, readers)
    return {(row[:2], row[2:4]) for row in found.tolist()}


def test_keys_are_equal_where_a_whole_band_is():
    minima = np.random.default_rng(0).integers(0, 2**32, (50, BANDS, ROWS), dtype=np.uint64)
    keys = band_keys(minima)
    assert len(np.unique(keys)) == keys.size
    changed = minima.copy()
    changed[:, 3, 4] ^= np.uint64(1)
    same = band_keys(changed) == keys
    assert not same[:, 3].any()
    assert same[:, [band for band in range(BANDS) if band != 3]].all()
    assert len(np.unique(band_keys(np.ones((1, BANDS, ROWS), np.uint64)))) == BANDS  # equal minima in other bands


def test_jaccard():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5


WORDS = [f"w{number}" for number in range(12)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_dropped_exactly_for_a_verified_better_one(tmp_path_factory, data):
    """Whatever partitions and buckets: pairs with a common band, of documents still there, worse after better."""
    base = data.draw(st.lists(st.sampled_from(WORDS), min_size=8, max_size=14))
    variant = st.tuples(st.integers(0, 13), st.sampled_from(WORDS)).map(
        lambda change: " ".join([*base[: change[0]], change[1], *base[change[0] + 1 :]])
    )
    units = data.draw(st.lists(st.lists(variant, max_size=5), min_size=1, max_size=3))
    places = [(unit, position) for unit, texts in enumerate(units) for position in range(len(texts))]
    dropped = data.draw(st.sets(st.sampled_from(places))) if places else set()
    threshold = data.draw(st.sampled_from([0.2, 0.5, 0.9]))
    folder = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        found = near(folder, units, threshold, data.draw(st.integers(1, 4)), dropped)
        patch.setattr(near_duplicates, "BEST_OF_BUCKET", 1)  # then only some pairs, but all true ones
        assert near(tmp_path_factory.mktemp("few"), units, threshold, 1, dropped) <= found

    def grams(place):
        return set(phrases(split_words(fold(units[place[0]][place[1]]))))

    def bands(place):
        gathered = Bands(seed=0)
        gathered.add(Words([fold(units[place[0]][place[1]])]).phrases(0), 0)
        return set(gathered.array()["key"].tolist())

    def rank(place):
        return (-len(units[place[0]][place[1]]), -place[0], -place[1])

    living = [place for place in places if place not in dropped]
    expected = {
        (worse, better)
        for worse in living
        for better in living
        if rank(better) < rank(worse)
        and bands(worse) & bands(better)
        and shared(grams(worse), grams(better)) >= threshold
    }
    assert found == expected


def test_the_order_of_better(tmp_path):
    words = " ".join(f"word{number}" for number in range(60))
    longer = words + " and one more"

    def kept(number, units, **order):
        pairs = near(tmp_path / str(number), units, **order)
        assert len(pairs) == 1
        return next(iter(pairs))[1]

    for number in range(5):
        (tmp_path / str(number)).mkdir()
    assert kept(0, [[longer], [words]], full_text=[False, True], sources=[0, 1]) == (1, 0)
    assert kept(1, [[longer, words]], versions=[[1, 2]]) == (0, 1)
    assert kept(2, [[words], [longer]], sources=[0, 1]) == (1, 0)
    assert kept(3, [[words], [words + "."[:0]]], sources=[0, 1]) == (0, 0)
    assert kept(4, [[words, words]]) == (0, 1)


def test_a_bucket_that_all_share_is_compared_with_its_best(tmp_path, monkeypatch):
    """Every document but the best is dropped, without a comparison of every pair."""
    monkeypatch.setattr(near_duplicates, "BEST_OF_BUCKET", 3)
    template = [f"word{number}" for number in range(40)]
    texts = [" ".join([*template, *["end"] * number]) for number in range(1, 41)]
    pairs = near(tmp_path, [texts], threshold=0.01)
    assert {worse for worse, _ in pairs} == {(0, position) for position in range(39)}
    assert len(pairs) <= 39 * 6


def variants(words, random_source):
    """One text changed as copies of texts are: words, sentences, case, Unicode."""
    kind = random_source.choice(["words", "sentence", "case", "unicode"])
    words = list(words)
    if kind == "words":
        rate = random_source.choice([0.01, 0.02, 0.03, 0.05])
        words = [f"changed{random_source.randrange(99)}" if random_source.random() < rate else word for word in words]
    elif kind == "sentence":
        added = ["This", "sentence", "was", "not", "in", "the", "first", "version", "of", "the", "text."]
        words = words + added if random_source.random() < 0.5 else words[: -max(1, len(words) // 12)]
    elif kind == "case":
        words = [word.upper() for word in words]
    else:
        words = [word.replace("fi", "\ufb01").replace("2", "\uff12") for word in words]
    return " ".join(words)


def test_planted_copies_of_real_abstracts_are_found(tmp_path, real_abstracts):
    """At least 0.97 of the pairs of a Jaccard similarity of 0.7 or more; every drop has a verified pair."""
    random_source = random.Random(1)
    originals = real_abstracts[:1500]
    copies = [variants(text.split(), random_source) for text in originals]
    found = near(tmp_path, [originals, copies], partitions=3)

    def grams(text):
        return set(phrases(split_words(fold(text))))

    planted = [
        number
        for number, (text, copy) in enumerate(zip(originals, copies, strict=True))
        if shared(grams(text), grams(copy)) >= 0.7
    ]
    pairs = {frozenset(pair) for pair in found}
    recall = sum(frozenset([(0, number), (1, number)]) in pairs for number in planted) / len(planted)
    assert len(planted) > 1000
    assert recall >= 0.97
    texts = {**{(0, n): text for n, text in enumerate(originals)}, **{(1, n): text for n, text in enumerate(copies)}}
    assert all(shared(grams(texts[worse]), grams(texts[better])) >= 0.7 for worse, better in found)
