"""Tokenizers behind one face: SentencePiece `tokenizer.model` files and Hugging Face `tokenizer.json` files.

`encode` never adds BOS or EOS and never makes a special id out of raw text: an abstract that contains the characters
`</s>` stays text (with the defaults of the Hugging Face libraries it would end the document). The exception is asked
for: tokens added by `with_tokens`, such as `[bib_ref]`, mark up the text and are found in it by their spelling.
"""

import functools
import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import orjson
import sentencepiece
import tokenizers

from data.tokenizer_export import SPACE, USER_DEFINED, Piece, add_pieces, parse_model, tokenizer_json_from_sentencepiece

SENTENCEPIECE_FILE, TOKENIZERS_FILE = "tokenizer.model", "tokenizer.json"

HUGGINGFACE_FILES = (
    SENTENCEPIECE_FILE, TOKENIZERS_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""What makes up a tokenizer in a Hugging Face folder; a saved copy takes those that are there."""

KNOWN_BOUNDARY_TOKENS = (
    ("<|begin_of_text|>", "<|end_of_text|>"),  # Llama 3
    ("<s>", "</s>"),  # Llama 1 and 2, Mistral, TinyLlama
    ("<|endoftext|>", "<|endoftext|>"),  # GPT-2, SmolLM2
)
"""(BOS, EOS) of a bare `tokenizer.json`, which does not say them itself: the first pair among its special tokens."""


class Encoded(NamedTuple):
    """Texts as ids, one after another: tokens uint32 [t], offsets int64 [texts + 1] from 0 to t."""

    tokens: np.ndarray
    offsets: np.ndarray


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        path: the tokenizer file.
        folder: the Hugging Face folder that the file was found in (it has a `tokenizer_config.json`), else None.
        content: bytes of the tokenizer file, with the tokens that were added to it.
        vocab_size: 1 + the largest id.
        bos_id, eos_id: ids that begin and end a document.
        sha256: of `content`; two tokenizers with equal sha256 give equal ids.
    """

    path: Path
    folder: Path | None
    content: bytes
    vocab_size: int
    bos_id: int
    eos_id: int

    def __init__(self, path: Path, content: bytes | None = None):
        self.path = path
        self.folder = path.parent if (path.parent / "tokenizer_config.json").is_file() else None
        self.content = path.read_bytes() if content is None else content
        self.sha256 = hashlib.sha256(self.content).hexdigest()

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS."""

    def encode_arrays(self, texts: Sequence[str]) -> Encoded:
        """`encode_batch` as arrays."""
        return concatenated(self.encode_batch(texts))

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ids give nothing, tokens that were added their spelling."""

    @abstractmethod
    def with_tokens(self, spellings: Sequence[str]) -> Self:
        """This tokenizer and more tokens, whose ids follow the vocabulary's; those that it has been given before stay.

        The text between two of them is tokenised as if no text stood around it, but SentencePiece's space, which
        begins a text, is put before the whole text alone. ValueError for a spelling that cannot be a token.
        """

    @abstractmethod
    def extends(self, other: "Tokenizer") -> bool:
        """Whether this is the other tokenizer with tokens added: it gives the other's ids wherever none is spelled."""

    @abstractmethod
    def token(self, index: int) -> str:
        """The vocabulary's string of one id."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS; no id of a special token, whatever the text contains."""
        return self.encode_batch([text])[0]

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder so that `transformers.AutoTokenizer.from_pretrained` gives our ids.

        A tokenizer that came from a Hugging Face folder is copied as it is, unless tokens were added. Else the file is
        accompanied by a `tokenizer_config.json` and, for SentencePiece, by an equivalent `tokenizer.json`, which puts
        one BOS before a text. (A `tokenizer.json` says itself whether transformers adds BOS; only added tokens change
        it.) `load_tokenizer` of the new folder has the same sha256.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        if self.folder:
            present = [name for name in HUGGINGFACE_FILES if (self.folder / name).is_file()]
            files = {name: (self.folder / name).read_bytes() for name in present}
        files[self._standard_name] = self.content
        for name, write in self._companions().items():
            if name not in files:
                files[name] = _json_bytes(write())
        for name, content in files.items():
            (folder / name).write_bytes(content)

    _standard_name: str

    def _companions(self) -> dict[str, Callable[[], dict]]:
        """Files that transformers wants beside the tokenizer file: their names and what makes their content."""
        return {"tokenizer_config.json": self._huggingface_config}

    def _huggingface_config(self) -> dict:
        return {
            # The generic class runs tokenizer.json as it stands; LlamaTokenizer would rebuild the normaliser and lose
            # the space that SentencePiece puts before a text that itself begins with a space.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.token(self.bos_id),
            "eos_token": self.token(self.eos_id),
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        }


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Llama 1 and 2, Mistral, TinyLlama)."""

    _standard_name = SENTENCEPIECE_FILE

    def __init__(self, path: Path, content: bytes | None = None):
        super().__init__(path, content)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(self.content)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a readable SentencePiece model: {error}") from error
        self.vocab_size = self._processor.piece_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError(f"{path}: the tokenizer has no BOS or no EOS; train it with bos_id and eos_id")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)  # processes are the workers, threads would fight them

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(index) for index in ids])

    def token(self, index: int) -> str:
        return self._processor.id_to_piece(index)

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The vocabulary in the order of ids."""
        return parse_model(self.content)[0]

    def with_tokens(self, spellings: Sequence[str]) -> Self:
        kinds = {piece.text: piece.kind for piece in self.pieces} if spellings else {}
        new = [text for text in _checked(spellings) if kinds.get(text) != USER_DEFINED]
        if known := [text for text in new if text in kinds]:
            raise ValueError(f"{self.path}: {known[0]!r} is a piece of the vocabulary already; choose another spelling")
        if not new:
            return self
        extended = type(self)(self.path, add_pieces(self.content, new))
        extended.folder = None  # its tokenizer.json lacks the tokens, and its class would put spaces after them
        return extended

    def extends(self, other: Tokenizer) -> bool:
        # Pieces are added at the end of the file.
        return isinstance(other, SentencePieceTokenizer) and self.content.startswith(other.content)

    @functools.cached_property
    def tokenizer_json(self) -> dict:
        """The content of the equivalent `tokenizer.json`; ValueError if there is none."""
        return tokenizer_json_from_sentencepiece(self.content, str(self.path), self.bos_id)

    def _companions(self) -> dict[str, Callable[[], dict]]:
        return {**super()._companions(), TOKENIZERS_FILE: lambda: self.tokenizer_json}

    def _huggingface_config(self) -> dict:
        return {**super()._huggingface_config(), "unk_token": self.token(self._processor.unk_id())}


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` (Llama 3, SmolLM2, Llama 2 as transformers saves it)."""

    _standard_name = TOKENIZERS_FILE

    def __init__(self, path: Path, content: bytes | None = None):
        super().__init__(path, content)
        self._tokenizer = self._read()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # raw text that looks like a special token stays text
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        bos, eos = self._boundary_tokens()
        self.bos_id, self.eos_id = self._tokenizer.token_to_id(bos), self._tokenizer.token_to_id(eos)
        for token, index in ((bos, self.bos_id), (eos, self.eos_id)):
            if index is None:
                raise ValueError(f"{path}: {token!r}, named by tokenizer_config.json, is not in the vocabulary")
            if index in self.encode(token):
                raise ValueError(f"{path}: {token!r} is BOS or EOS but not marked special in added_tokens")

    def _read(self) -> tokenizers.Tokenizer:
        try:
            return tokenizers.Tokenizer.from_buffer(self.content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{self.path}: not a readable tokenizer.json: {error}") from error

    def _boundary_tokens(self) -> tuple[str, str]:
        """(BOS, EOS): what `tokenizer_config.json` or `special_tokens_map.json` beside it say, else a known pair."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (self.path.parent / name).is_file():
                config = _read_json(self.path.parent / name)
                named = [config.get("bos_token"), config.get("eos_token")]
                bos, eos = (token["content"] if isinstance(token, dict) else token for token in named)
                if bos and eos:
                    return bos, eos
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special}
        for bos, eos in KNOWN_BOUNDARY_TOKENS:
            if bos in special and eos in special:
                return bos, eos
        raise ValueError(
            f"{self.path}: no BOS and EOS known; put a tokenizer_config.json with bos_token and eos_token beside it"
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True)

    def token(self, index: int) -> str:
        return self._tokenizer.id_to_token(index)

    def with_tokens(self, spellings: Sequence[str]) -> Self:
        extended = self._read()
        added = {token.content for token in extended.get_added_tokens_decoder().values() if not token.special}
        new = [text for text in _checked(spellings) if text not in added]
        if known := [text for text in new if extended.token_to_id(text) is not None]:
            raise ValueError(f"{self.path}: {known[0]!r} is a token of the vocabulary already; choose another spelling")
        if not new:
            return self
        # Not special: such the library finds in raw text although `encode_special_tokens` is set.
        extended.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in new])
        return type(self)(self.path, extended.to_str().encode())

    def extends(self, other: Tokenizer) -> bool:
        if not isinstance(other, HuggingFaceTokenizer):
            return False
        ours, theirs = (json.loads(tokenizer._read().to_str()) for tokenizer in (self, other))  # one way of writing it
        added, base = ours.pop("added_tokens"), theirs.pop("added_tokens")
        return ours == theirs and added[: len(base)] == base


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a `*.model` file (SentencePiece), a `*.json` file (tokenizers) or a folder holding one.

    A folder with both is read through `tokenizer.model`: it is the source that the `tokenizer.json` was made from.

    Raises:
        ValueError: nothing there, an unreadable file, or a tokenizer without BOS or EOS.
    """
    path = Path(path)
    if path.is_dir():
        for name in (SENTENCEPIECE_FILE, TOKENIZERS_FILE):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        raise ValueError(f"{path}: no {SENTENCEPIECE_FILE} and no {TOKENIZERS_FILE} in this folder")
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer file or folder")
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def concatenated(texts: Sequence[Sequence[int]]) -> Encoded:
    """Ids of several texts as arrays."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(ids) for ids in texts], out=offsets[1:])
    return Encoded(np.fromiter(itertools.chain.from_iterable(texts), np.uint32, offsets[-1]), offsets)


def reordered(texts: Encoded, order: np.ndarray) -> Encoded:
    """The texts whose numbers are given, in that order."""
    starts, ends = texts.offsets[:-1][order], texts.offsets[1:][order]
    parts = [texts.tokens[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    return Encoded(np.concatenate(parts) if parts else texts.tokens[:0], offsets)


def _checked(spellings: Sequence[str]) -> list[str]:
    """The spellings without repetition. ValueError for one that text could not hold as it stands."""
    for text in spellings:
        if not text or SPACE in text or any(character.isspace() for character in text):
            raise ValueError(f"special token {text!r}: must not be empty or hold spaces")
    return list(dict.fromkeys(spellings))


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return content


def _json_bytes(content: dict) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
