"""Training samples: windows of token shards, a pure function of (seed, sample number), without an index.

A source's shards are read as circles: a shard of n tokens has ceil(n / S) windows of S tokens, and the last runs on
into the shard's first documents. So each token is seen at least once in an epoch, fewer than S tokens of a shard are
seen again, and a corpus shorter than a window works. Each epoch visits the windows in another order and starts the
circle at another token, so documents are cut elsewhere.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from data.mixture import Blend, divide
from data.shards import Shard, SplitShards
from data.token_sources import Source, distinct_names, open_sources

IGNORED = -100  # target of a token that has no next token in its document
ROUNDS = 6  # of the Feistel network; four make a pseudo-random permutation (Luby and Rackoff 1988), more if it is small


class Sample(NamedTuple):
    """One window: tokens int64 [S], targets int64 [S] (next token of the same document, else -100), lengths of the
    documents' pieces in it (their sum is S), name of the source."""

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    source: str


class Batch(NamedTuple):
    """Samples one after another: tokens int64 [T], targets int64 [T], cu_seqlens int32 [documents + 1] from 0 to T."""

    tokens: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: np.ndarray


def batch(samples: Sequence[Sample]) -> Batch:
    """Pack samples; documents stay apart through cu_seqlens."""
    lengths = [length for sample in samples for length in sample.lengths]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = torch.cat([sample.tokens for sample in samples])
    return Batch(tokens, torch.cat([sample.targets for sample in samples]), cu_seqlens)


class Sampler:
    """One blend over the sources of all folders.

    Args:
        folders: (folder, share of the tokens); folders with None divide the rest by token count, and so do the
        sources of one folder.
        sequence_length: tokens of a window.
        seed: of the order.

    Attributes:
        names: sources; one whose name is in two folders is called FOLDER/NAME.
        shares: `{name: share}`, sums to 1.
        train_tokens: `{name: tokens of its training split}`.
        tokenizer_sha256, vocab_size, tokenizer_path: of the shards' one tokenizer; None if no folder knows its own.

    Raises:
        ValueError: bad shares, no training tokens, or folders made with different tokenizers.
    """

    def __init__(self, folders: Sequence[tuple[str | Path, float | None]], sequence_length: int, seed: int):
        assert sequence_length > 0, f"sequence_length {sequence_length}"
        opened = [open_sources(path) for path, _ in folders]
        self._sources = [source for sources in opened for source in sources]
        self.sequence_length, self.seed = sequence_length, seed
        self.names = distinct_names(self._sources)
        self.tokenizer_sha256, self.vocab_size, self.tokenizer_path = _one_tokenizer(self._sources)
        totals = [sum(source.train.tokens for source in sources) for sources in opened]
        folder_shares = divide([share for _, share in folders], totals, [str(path) for path, _ in folders])
        shares = [
            share * source.train.tokens / total if total else share * 0
            for share, total, sources in zip(folder_shares, totals, opened, strict=True)
            for source in sources
        ]
        self.shares = {name: float(share) for name, share in zip(self.names, shares, strict=True)}
        self.train_tokens = {name: source.train.tokens for name, source in zip(self.names, self._sources, strict=True)}
        self.blend = Blend(shares)
        self._streams = [
            _Stream(name, source.train, sequence_length, seed)
            for name, source in zip(self.names, self._sources, strict=True)
        ]

    def sample(self, number: int) -> Sample:
        """Training sample of a number from 0 on: a pure function of (seed, number)."""
        source, earlier = self.blend.locate(number)
        shard, start = self._streams[source].locate(earlier)
        return self._sample(source, self._sources[source].train[shard], start)

    def validation_count(self, source: str) -> int:
        """Windows of a source's validation split."""
        windows = _window_counts(self._sources[self.names.index(source)].validation, self.sequence_length)
        return int(windows.sum())

    def validation_sample(self, source: str, number: int) -> Sample:
        """Window of a source's validation split, in the order of the files.

        Over all windows every token that follows another in its document is a target exactly once.
        """
        index = self.names.index(source)
        split = self._sources[index].validation
        shard, window = _locate_window(np.cumsum(_window_counts(split, self.sequence_length)), number)
        start = window * self.sequence_length
        sample = self._sample(index, split[shard], start)
        sample.targets[split.entries[shard].tokens - start :] = IGNORED  # the circle's second round was counted already
        return sample

    def _sample(self, source: int, shard: Shard, start: int) -> Sample:
        tokens, targets, lengths = read_window(shard, start, self.sequence_length)
        if self.vocab_size is not None and (largest := int(tokens.max())) >= self.vocab_size:
            raise ValueError(
                f"{self._sources[source].folder}: token id {largest} in {self.names[source]}, but the vocabulary has "
                f"{self.vocab_size}; these tokens are of another tokenizer or damaged"
            )
        return Sample(torch.from_numpy(tokens), torch.from_numpy(targets), lengths, self.names[source])


class _Stream:
    """The windows of one source in training order."""

    def __init__(self, name: str, split: SplitShards, length: int, seed: int):
        self.length = length
        self.sizes = [entry.tokens for entry in split.entries]
        self.ends = np.cumsum(_window_counts(split, length))
        self.key = xxhash.xxh3_64_intdigest(name.encode(), seed & 0xFFFFFFFFFFFFFFFF)

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, first token) of the source's window of a number."""
        epoch, position = divmod(number, int(self.ends[-1]))
        shard, window = _locate_window(self.ends, permute(position, int(self.ends[-1]), _mix(self.key, 0, epoch)))
        phase = _mix(self.key, 1 + shard, epoch) % self.sizes[shard]
        return shard, (phase + window * self.length) % self.sizes[shard]


def permute(position: int, size: int, key: int) -> int:
    """Image of a position under a pseudo-random permutation of range(size).

    A balanced Feistel network over the next power of four, applied until it lands inside (cycle walking: Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains"); at most four steps are expected.
    """
    assert 0 <= position < size, f"position {position} of {size}"
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for step in range(ROUNDS):
            left, right = right, left ^ (_mix(key, step, right) & mask)
        position = left << half | right
        if position < size:
            return position


def read_window(shard: Shard, start: int, length: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """`length` tokens of a shard, read as a circle from `start` on: (tokens, targets, lengths of the pieces)."""
    size = len(shard.tokens)
    tokens = np.empty(length + 1, np.int64)  # one more: the last token's target
    begins = []  # where documents begin, in the window
    filled, position = 0, start
    while filled <= length:
        take = min(size - position, length + 1 - filled)
        tokens[filled : filled + take] = shard.tokens[position : position + take]
        first, last = np.searchsorted(shard.documents, [position, position + take])
        begins.append(shard.documents[first:last] - position + filled)
        filled, position = filled + take, 0
    cuts = np.concatenate(begins)
    cuts = cuts[cuts > 0]
    targets = tokens[1:].copy()
    targets[cuts - 1] = IGNORED
    inner = cuts[cuts < length]
    return tokens[:-1], targets, np.diff(inner, prepend=0, append=length).tolist()


def _window_counts(split: SplitShards, length: int) -> np.ndarray:
    return np.array([-(-entry.tokens // length) for entry in split.entries], np.int64)


def _locate_window(ends: np.ndarray, number: int) -> tuple[int, int]:
    """(shard, window in it) of a window's number, from the cumulated counts."""
    shard = int(np.searchsorted(ends, number, side="right"))
    return shard, int(number - (ends[shard - 1] if shard else 0))


def _mix(key: int, tag: int, value: int) -> int:
    """64 pseudo-random bits, the same on every machine."""
    return xxhash.xxh3_64_intdigest(struct.pack("<QQ", tag, value), key)


def _one_tokenizer(sources: Sequence[Source]) -> tuple[str | None, int | None, Path | None]:
    known = [source for source in sources if source.tokenizer_sha256 is not None]
    for source in known:
        if source.tokenizer_sha256 != known[0].tokenizer_sha256:
            raise ValueError(
                f"{known[0].folder} and {source.folder} were made with different tokenizers (sha256 "
                f"{known[0].tokenizer_sha256[:12]}... and {source.tokenizer_sha256[:12]}...); tokenise both with one"
            )
    if not known:
        return None, None, None
    return known[0].tokenizer_sha256, known[0].vocab_size, known[0].tokenizer_path
