"""gigatoken in SentencePiece's place: the same ids about ten times as fast, for models where that holds.

gigatoken is another implementation of SentencePiece's BPE, not SentencePiece itself: its ids are to be checked on the
very texts (`data.tokenize_passes` does so on a sample of every corpus). What a sample would not show is kept from it.
Its own reading of a model takes a raw `</s>` for that control piece; here texts with the spelling of one go through
SentencePiece. Tokens that were added are cut out of a text first, so that it only sees what stands between them.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import orjson

from data.tokenizer import Encoded, SentencePieceTokenizer, Tokenizer
from data.tokenizer_export import BYTE, NORMAL, USER_DEFINED

CACHED_CHARACTERS = 1 << 25
"""Text after which gigatoken is made anew, in a tenth of a second: it keeps every word it has seen, some 80 bytes each,
and would grow with the corpus."""


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
        orjson.dumps(content).decode(),
        " " if steps[0]["type"] == "Prepend" else "",
        tuple(text for text, kind in kinds if kind not in (NORMAL, BYTE, USER_DEFINED)),
        tuple((text, index) for index, (text, kind) in enumerate(kinds) if kind == USER_DEFINED),
    )


class FastTokenizer:
    """`encode_arrays` of a SentencePiece tokenizer, by gigatoken, on the calling thread alone."""

    def __init__(self, model: FastModel, tokenizer: SentencePieceTokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self._begin()
        self._added = {text: np.array([index], np.uint32) for text, index in model.added}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split if longest_first else None

    def _begin(self) -> None:
        import gigatoken  # an optional dependency

        # One text a call: what its calls for many return takes half a second to import, and they are no faster.
        self._encode = None  # the old one goes before there is a new one
        self._encode = gigatoken.Tokenizer.from_json(self.model.tokenizer_json).encode
        self._characters = 0

    def encode_arrays(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, without BOS and EOS."""
        if self._characters > CACHED_CHARACTERS:
            self._begin()
        self._characters += sum(map(len, texts))
        parts: list[np.ndarray] = []
        offsets = np.zeros(len(texts) + 1, np.int64)
        for number, text in enumerate(texts, start=1):
            of_text = self._parts(text)
            parts += of_text
            offsets[number] = offsets[number - 1] + sum(map(len, of_text))
        return Encoded(np.concatenate(parts) if parts else np.empty(0, np.uint32), offsets)

    def _parts(self, text: str) -> list[np.ndarray]:
        """The ids of one text, uint32, in pieces."""
        if not text:
            return []  # not even the id of the space before a text
        if any(piece in text for piece in self.model.reserved):
            return [np.array(self.tokenizer.encode(text), np.uint32)]
        text = self.model.prefix + text
        if self._split is None:
            return [self._encode(text)]
        segments = filter(None, self._split(text))
        return [self._added[segment] if segment in self._added else self._encode(segment) for segment in segments]
