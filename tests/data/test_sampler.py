"""The sampler against naive loops over documents, on any shards; and on real shards through the files."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sampler as sampling
from data.sampler import Sampler, Source, batch, open_sources, permute
from data.shards import Shard, ShardEntry, SplitShards
from data.tokenize import tokenize

# The lengths of the documents of the shards of a source; a document has at least BOS and EOS.
shards_strategy = st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=8), min_size=1, max_size=4)


def split_of(shards):
    """A split whose every token is unique: number of the shard * 1000 + place in it."""
    entries = []
    for number, lengths in enumerate(shards):
        tokens = (1000 * number + np.arange(sum(lengths))).astype(np.uint16)
        shard = Shard(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        entries.append(ShardEntry(len(tokens), len(lengths), lambda shard=shard: shard))
    return SplitShards(entries)


def sampler_of(sources, length, seed=0, *, shares=None, validation=None):
    """A Sampler over in-memory shards: {name: shards}, one folder each."""
    opened = {
        name: Source(name, Path(name), split_of(shards), split_of((validation or {}).get(name, [])), None, None, None)
        for name, shards in sources.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "open_sources", lambda path: [opened[path]])
        return Sampler([(name, (shares or {}).get(name)) for name in sources], length, seed)


def naive_window(lengths, start, length):
    """(places, targets, lengths of pieces) of a window, by walking token by token round the shard."""
    document_of = [document for document, size in enumerate(lengths) for _ in range(size)]
    size = len(document_of)
    places = [(start + step) % size for step in range(length)]
    targets, pieces, piece = [], [], 0
    for place in places:
        piece += 1
        last = place + 1 == size or document_of[place + 1] != document_of[place]
        targets.append(-100 if last else place + 1)
        if last:
            pieces.append(piece)
            piece = 0
    return places, targets, pieces + ([piece] if piece else [])


def assert_equal(one, other):
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.targets, other.targets)
    assert (one.lengths, one.source) == (other.lengths, other.source)


@settings(max_examples=150, deadline=None)
@given(shards=shards_strategy, length=st.integers(1, 40), number=st.integers(0, 10**9), seed=st.integers(0, 2**40))
def test_a_sample_is_a_window_of_one_shard_with_targets_inside_documents(shards, length, number, seed):
    sample = sampler_of({"a": shards}, length, seed).sample(number)
    first = int(sample.tokens[0])
    shard, start = divmod(first, 1000)
    places, targets, pieces = naive_window(shards[shard], start, length)
    assert sample.tokens.tolist() == [1000 * shard + place for place in places]
    assert sample.targets.tolist() == [-100 if target < 0 else 1000 * shard + target for target in targets]
    assert sample.lengths == pieces
    assert sum(sample.lengths) == length
    assert sample.tokens.dtype == sample.targets.dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(shards=shards_strategy, length=st.integers(1, 40), epoch=st.integers(0, 10**6))
def test_an_epoch_sees_every_token_and_repeats_less_than_a_window_a_shard(shards, length, epoch):
    sampler = sampler_of({"a": shards}, length)
    windows = sum(-(-sum(lengths) // length) for lengths in shards)
    seen = Counter()
    for number in range(epoch * windows, (epoch + 1) * windows):
        seen.update(sampler.sample(number).tokens.tolist())
    assert set(seen) == {1000 * shard + place for shard, sizes in enumerate(shards) for place in range(sum(sizes))}
    for shard, sizes in enumerate(shards):
        taken = sum(count for token, count in seen.items() if token // 1000 == shard)
        assert 0 <= taken - sum(sizes) < length


def test_epochs_differ_in_order_and_in_cuts():
    sampler = sampler_of({"a": [[10] * 20]}, 10)
    epochs = [[int(sampler.sample(20 * epoch + k).tokens[0]) for k in range(20)] for epoch in range(8)]
    assert all(len(set(starts)) == 20 for starts in epochs)
    assert len({tuple(starts) for starts in epochs}) == 8
    assert len({starts[0] % 10 for starts in epochs}) > 3  # phases of the grid
    assert epochs[0] != sorted(epochs[0])


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(position, size, key) for position in range(size)) == list(range(size))


def test_permutations_are_spread():
    """Over 2,000 keys each of 7 positions goes to each of 7 places about 286 times (standard deviation 16)."""
    images = Counter((position, permute(position, 7, key)) for key in range(2000) for position in range(7))
    assert len(images) == 49
    assert max(abs(count - 2000 / 7) for count in images.values()) < 5 * 16
    assert permute(10**11, 10**12, 3) < 10**12


def test_a_sample_depends_on_seed_and_number_alone():
    sources = {"a": [[5, 9, 30], [7, 7]], "b": [[40, 3]], "c": [[2, 2, 2]]}
    sampler = sampler_of(sources, 16, seed=5)
    straight = [sampler.sample(number) for number in range(60)]
    backwards = sampler_of(sources, 16, seed=5)
    for number in reversed(range(0, 60, 7)):
        assert_equal(backwards.sample(number), straight[number])
    other = sampler_of(sources, 16, seed=6)
    assert any(not torch.equal(other.sample(n).tokens, straight[n].tokens) for n in range(10))


def test_other_sources_do_not_change_a_source_s_own_order():
    alone = sampler_of({"a": [[9, 30, 8]]}, 8)
    mixed = sampler_of({"a": [[9, 30, 8]], "b": [[20, 20]]}, 8)
    of_a = [sample for sample in map(mixed.sample, range(60)) if sample.source == "a"]
    for number, sample in enumerate(of_a):
        assert_equal(sample, alone.sample(number))


def test_shares_are_followed():
    sampler = sampler_of({"a": [[50]], "b": [[30]], "c": [[10]]}, 4, shares={"a": 0.6})
    assert sampler.shares == {"a": pytest.approx(0.6), "b": pytest.approx(0.3), "c": pytest.approx(0.1)}
    counts = Counter(sampler.sample(number).source for number in range(1000))
    assert counts == {"a": 600, "b": 300, "c": 100}
    assert sampler.train_tokens == {"a": 50, "b": 30, "c": 10}


@settings(max_examples=60, deadline=None)
@given(shards=shards_strategy, length=st.integers(1, 40))
def test_validation_counts_every_transition_once_in_order(shards, length):
    sampler = sampler_of({"a": [[4]]}, length, validation={"a": shards})
    samples = [sampler.validation_sample("a", number) for number in range(sampler.validation_count("a"))]
    pairs = [
        (int(token), int(target))
        for sample in samples
        for token, target in zip(sample.tokens, sample.targets, strict=True)
        if target != -100
    ]
    expected = []
    for shard, lengths in enumerate(shards):
        _, targets, _ = naive_window(lengths, 0, sum(lengths))
        expected += [(1000 * shard + place, 1000 * shard + t) for place, t in enumerate(targets) if t >= 0]
    assert pairs == expected
    assert all(sum(sample.lengths) == length for sample in samples)


def test_batch_packs_samples():
    sampler = sampler_of({"a": [[5, 9, 30]]}, 12)
    samples = [sampler.sample(number) for number in range(3)]
    packed = batch(samples)
    assert packed.tokens.tolist() == [token for sample in samples for token in sample.tokens.tolist()]
    assert packed.targets.tolist() == [target for sample in samples for target in sample.targets.tolist()]
    assert packed.cu_seqlens.dtype == np.int32
    assert np.diff(packed.cu_seqlens).tolist() == [length for sample in samples for length in sample.lengths]
    assert packed.cu_seqlens[0] == 0
    assert packed.cu_seqlens[-1] == 36


@pytest.fixture
def shards(corpus, tiny_tokenizer, tmp_path):
    return tokenize(corpus, tiny_tokenizer, tmp_path / "shards").path


def test_folders_of_shards_and_single_sources(shards):
    whole = Sampler([(shards, None)], 32, 0)
    assert whole.names == ("drugs", "fever")
    total = sum(whole.train_tokens.values())
    assert whole.shares["drugs"] == pytest.approx(whole.train_tokens["drugs"] / total)
    apart = Sampler([(shards / "fever", 0.25), (shards / "drugs", None)], 32, 0)
    assert apart.shares == {"fever": 0.25, "drugs": 0.75}
    assert (apart.vocab_size, apart.tokenizer_path) == (310, shards / "tokenizer")
    assert apart.validation_count("fever") > 0
    assert whole.sample(3).source in whole.names


def test_windows_of_real_shards_hold_whole_documents(shards):
    sampler = Sampler([(shards / "drugs", None)], 200, 0)
    tokens, offsets = open_sources(shards / "drugs")[0].train[0]
    documents = {tuple(tokens[a:b].tolist()) for a, b in pairwise(offsets)}
    for number in range(20):
        sample = sampler.sample(number)
        ends = np.cumsum(sample.lengths)
        for begin, end in pairwise(ends[:-1]):  # all pieces but those at the window's ends
            assert tuple(sample.tokens[begin:end].tolist()) in documents


def test_one_name_in_two_folders_is_told_apart(shards, corpus, tiny_tokenizer, tmp_path):
    other = tokenize(corpus, tiny_tokenizer, tmp_path / "other", seed=1).path
    assert Sampler([(shards, None), (other / "fever", None)], 8, 0).names == ("drugs", "shards/fever", "other/fever")
    with pytest.raises(ValueError, match="shards/drugs, shards/fever: given twice"):
        Sampler([(shards, None), (shards, None)], 8, 0)


def test_different_tokenizers_are_refused(shards, corpus, make_sentencepiece, tmp_path):
    model = make_sentencepiece(tmp_path / "tokenizer.model", vocab_size=305)
    other = tokenize(corpus, model, tmp_path / "other").path
    with pytest.raises(ValueError, match=r"shards and .*other were made with different tokenizers"):
        Sampler([(shards, None), (other, None)], 8, 0)


def test_folders_that_are_no_shards_are_named(shards, corpus, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder of token shards"):
        Sampler([(tmp_path / "nowhere", None)], 8, 0)
    with pytest.raises(ValueError, match=r"corpus: no manifest\.json"):
        Sampler([(corpus, None)], 8, 0)
    with pytest.raises(ValueError, match=r"shards/tokenizer: not a source of .*drugs, fever"):
        Sampler([(shards / "tokenizer", None)], 8, 0)


def test_ids_beyond_the_vocabulary_are_found(shards):
    path = shards / "drugs" / "train" / "tokens-00000.npy"
    tokens = np.load(path)
    tokens[:] = 400
    np.save(path, tokens)  # same size: only the values can tell
    with pytest.raises(ValueError, match="token id 400 in drugs, but the vocabulary has 310"):
        Sampler([(shards / "drugs", None)], 8, 0).sample(0)


def test_megatron_pair_is_a_source(assets):
    prefix = assets / "general" / "megatron_fixture" / "meg-gpt2-openwebtext_text_document"
    sampler = Sampler([(prefix, None)], 1024, 0)
    assert (sampler.tokenizer_sha256, sampler.vocab_size, sampler.tokenizer_path) == (None, None, None)
    assert sampler.train_tokens == {prefix.name: 1_361_845}
    assert Sampler([(f"{prefix}.bin", None)], 1024, 0).train_tokens == sampler.train_tokens
    assert sampler.validation_count(prefix.name) == 0
    tokens = np.fromfile(f"{prefix}.bin", np.uint16)
    sample = sampler.sample(11)
    window = sample.tokens.numpy()
    starts = np.flatnonzero(tokens == window[0])
    assert any(np.array_equal(tokens[start : start + 1024], window) for start in starts)
