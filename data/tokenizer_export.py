"""A SentencePiece BPE model written as the equivalent `tokenizer.json` of the `tokenizers` library.

transformers can convert a `tokenizer.model` itself, but its merge list breaks ties differently: Llama 2 gives all
runs of spaces one score, and texts with runs of spaces get other ids. Here the order of merges follows from what
SentencePiece does.
"""

import functools
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
MODEL_TYPE, SPACE_AS_SUFFIX = 3, 24  # field numbers of TrainerSpec
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_EXTRA_SPACES, ESCAPE_SPACES = 2, 3, 4, 5  # field numbers of NormalizerSpec
SPACE = "▁"  # U+2581, SentencePiece's visible space


class Piece(NamedTuple):
    """One vocabulary entry: its text, its score (the higher is merged first) and its type."""

    text: str
    score: float
    kind: int


def tokenizer_json_from_sentencepiece(model: bytes, name: str, bos_id: int) -> dict:
    """The content of a `tokenizer.json` that gives the ids of a serialized SentencePiece BPE model, after one BOS.

    Args:
        model: bytes of a `tokenizer.model`.
        name: its path, for messages.
        bos_id: id that begins every text.

    Raises:
        ValueError: a model without an exact equivalent: not BPE, one that normalises text, has unused pieces or
            user-defined ones with spaces, or different pieces of one score.

    One text gets other ids: a user-defined piece and nothing else, before which SentencePiece puts its space.
    """
    pieces, trainer, normalizer = parse_model(model)
    reason = None
    if trainer.get(MODEL_TYPE, 1) != BPE:
        reason = "its type is not BPE"
    elif normalizer.get(CHARACTER_MAP):
        reason = "it normalises text"
    elif normalizer.get(REMOVE_EXTRA_SPACES, 1) or not normalizer.get(ESCAPE_SPACES, 1) or trainer.get(SPACE_AS_SUFFIX):
        reason = "it treats spaces in a way of its own"
    elif any(piece.kind == UNUSED for piece in pieces):
        reason = "it has unused pieces"
    elif any(SPACE in piece.text or " " in piece.text for piece in pieces if piece.kind == USER_DEFINED):
        reason = "it has user-defined pieces with spaces"
    elif tied := _tied_pieces(pieces):
        reason = f"its pieces {tied[0]!r} and {tied[1]!r} have one score"
    if reason:
        raise ValueError(
            f"{name}: cannot be written as an equivalent tokenizer.json, because {reason}; give the Hugging Face "
            "folder of this tokenizer, with its own tokenizer.json, instead"
        )
    prefix = bool(normalizer.get(DUMMY_PREFIX, 1))
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    control = [index for index, piece in enumerate(pieces) if piece.kind in (CONTROL, UNKNOWN)]
    defined = [index for index, piece in enumerate(pieces) if piece.kind == USER_DEFINED]
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    if prefix and defined:
        # Marked as normalised, a token is looked for in the text after the space was put before it: once a text, as in
        # SentencePiece, not after every token. But then the token's own spelling is normalised too: without a space.
        spellings = "|".join(re.escape(pieces[index].text) for index in defined)
        pattern = {"Regex": rf"\A{SPACE}(?=(?:{spellings})\z)"}
        steps.append({"type": "Replace", "pattern": pattern, "content": ""})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(index, pieces[index].text, special=index not in defined) for index in sorted(control + defined)
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _begin_with(pieces[bos_id].text, bos_id),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.kind == BYTE for piece in pieces),
            "ignore_merges": False,
            "vocab": {piece.text: index for index, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges(pieces)],
        },
    }


def merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, in the order in which SentencePiece would join them.

    SentencePiece joins the pair whose result has the highest score, the leftmost of equal ones; `tokenizers` joins
    the pair of the lowest rank, the leftmost of equal ones. So pairs are ranked by falling score of their result.
    Pieces of one score can only be runs of one character here (see `_tied_pieces`): going through a longer run from
    left to right, SentencePiece extends what it has just joined before it starts a new pair, so among pairs of one
    score the longer left part gets the lower rank.
    """
    normal = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    pairs = [
        (text[:cut], text[cut:])
        for text in normal
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return sorted(pairs, key=lambda pair: (-normal[pair[0] + pair[1]], -len(pair[0])))


def _tied_pieces(pieces: list[Piece]) -> tuple[str, str] | None:
    """Two pieces of one score that are not both runs of one character: of such, SentencePiece joins whichever stands
    further left in the text, and no ranking of pairs can say that."""
    first: dict[float, str] = {}
    for piece in pieces:
        if piece.kind == NORMAL and len(piece.text) > 1:
            other = first.setdefault(piece.score, piece.text)
            if other != piece.text and len(set(other + piece.text)) > 1:
                return other, piece.text
    return None


def add_pieces(model: bytes, texts: Iterable[str]) -> bytes:
    """A serialized SentencePiece model with more user-defined pieces: their ids follow those that are there."""
    for text in texts:
        piece = _length_delimited(1, text.encode()) + b"\x15" + struct.pack("<f", 0.0) + bytes([3 << 3, USER_DEFINED])
        model += _length_delimited(1, piece)  # elements of a repeated field may stand anywhere
    return model


def _added_token(index: int, text: str, *, special: bool) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": index, "content": text, **flags}


def _begin_with(token: str, index: int) -> dict:
    """The post-processor that puts one special token before a text (before each of two texts)."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [special, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    named = {token: {"id": token, "ids": [index], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}


@functools.lru_cache(2)
def parse_model(model: bytes) -> tuple[list[Piece], dict[int, int | bytes], dict[int, int | bytes]]:
    """(pieces, trainer_spec, normalizer_spec) of a ModelProto; the specs by their field numbers. Not to be changed."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(model):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append(Piece(piece[1].decode(), score, piece.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    return pieces, trainer, normalizer


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: varints as int, fixed-width and length-delimited values as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _length_delimited(number: int, content: bytes) -> bytes:
    return _to_varint(number << 3 | 2) + _to_varint(len(content)) + content


def _to_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
