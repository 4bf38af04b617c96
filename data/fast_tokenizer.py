"""gigatoken in SentencePiece's place: the same ids about ten times as fast, for models where that holds.

gigatoken is another implementation of SentencePiece's BPE, not SentencePiece itself: its ids are to be checked on the
very texts (`data.tokenize_passes` does so on a sample of every corpus). What a sample would not show is kept from it.
Its own reading of a model takes a raw `</s>` for that control piece; here texts with the spelling of one go through
SentencePiece. Tokens that were added are cut out of a text first, so that it only sees what stands between them.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.tokenizer import Encoded, SentencePieceTokenizer, Tokenizer, reordered
from data.tokenizer_export import BYTE, NORMAL, USER_DEFINED


class FastModel(NamedTuple):
    """What a `FastTokenizer` is made from; made once and sent to every worker process."""

    tokenizer_json: str
    """For gigatoken: no tokens that are found in raw text, nothing put before a text."""
    prefix: str
    """What is put before every text."""
    reserved: tuple[str, ...]
    """Pieces that text never becomes: control pieces and the unknown one."""
    added: tuple[tuple[str, int], ...]
    """Pieces that text always becomes, and their ids."""


def gigatoken_version() -> str | None:
    """None where it is not installed."""
    return importlib.metadata.version("gigatoken") if importlib.util.find_spec("gigatoken") else None


def fast_model(tokenizer: Tokenizer) -> FastModel:
    """The tokenizer for gigatoken; ValueError says why there is none."""
    if gigatoken_version() is None:
        raise ValueError("gigatoken is not installed (pip install gigatoken)")
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("gigatoken takes the place of SentencePiece models only")
    content = dict(tokenizer.tokenizer_json)
    steps = content["normalizer"]["normalizers"]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps[-1:]}  # spaces to visible ones
    content |= {"added_tokens": [], "post_processor": None, "decoder": None}
    kinds = [(piece.text, piece.kind) for piece in tokenizer.pieces]
    return FastModel(
        json.dumps(content),
        " " if steps[0]["type"] == "Prepend" else "",
        tuple(text for text, kind in kinds if kind not in (NORMAL, BYTE, USER_DEFINED)),
        tuple((text, index) for index, (text, kind) in enumerate(kinds) if kind == USER_DEFINED),
    )


class FastTokenizer:
    """`encode_arrays` of a SentencePiece tokenizer, by gigatoken, on the calling thread alone."""

    def __init__(self, model: FastModel, tokenizer: SentencePieceTokenizer):
        import gigatoken  # an optional dependency, and not quick to import

        self.model = model
        self.tokenizer = tokenizer
        self._gigatoken = gigatoken.Tokenizer.from_json(model.tokenizer_json)
        self._added = dict(model.added)
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split

    def encode_arrays(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, without BOS and EOS."""
        reserved = [any(piece in text for piece in self.model.reserved) for text in texts]
        if not any(reserved):
            return self._encode(texts)
        fast = self._encode([text for text, found in zip(texts, reserved, strict=True) if not found])
        slow = self.tokenizer.encode_arrays([text for text, found in zip(texts, reserved, strict=True) if found])
        both = Encoded(
            np.concatenate([fast.tokens, slow.tokens]),
            np.concatenate([fast.offsets, fast.offsets[-1] + slow.offsets[1:]]),
        )
        place = np.argsort(np.array(reserved), kind="stable")  # of the texts in `both`
        return reordered(both, np.argsort(place))

    def _encode(self, texts: Sequence[str]) -> Encoded:
        texts = [self.model.prefix + text if text else "" for text in texts]  # an empty text has no ids at all
        if not self._added:
            return self._encode_segments(texts)
        split = [self._split(text) for text in texts]  # text, token, text, ..., text
        segments = list(itertools.chain.from_iterable(split))
        ids = [self._added.get(segment) for segment in segments]
        between = [segment if index is None else "" for segment, index in zip(segments, ids, strict=True)]
        tokens, offsets = self._encode_segments(between)
        is_token = np.array([index is not None for index in ids], bool)
        inserted = np.array([index for index in ids if index is not None], np.uint32)
        first = np.cumsum([0, *map(len, split)])  # segment of each text
        return Encoded(
            np.insert(tokens, offsets[:-1][is_token], inserted),
            offsets[first] + np.cumsum([0, *is_token])[first],
        )

    def _encode_segments(self, texts: Sequence[str]) -> Encoded:
        layout = self._gigatoken.encode_batch(texts, parallel=False).layout  # worker processes are the parallelism
        return Encoded(np.asarray(layout.content.data), np.asarray(layout.offsets.data))
