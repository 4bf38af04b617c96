"""What the tests of tokenising, shards and inspection share: a tiny tokenizer and small corpora."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from data.documents import Document, write_documents
from data.files import open_input
from data.readers import medline
from data.readers.interface import InputFile

SENTENCES = [
    "Aspirin 5 mg was given to 30 patients with fever (p < 0.05).",
    "The dose of insulin is 0.1 U/kg; see table 3.",
    "A randomised trial of warfarin  and heparin in 1,204 adults.",
    "Cough, fever and headache are common in influenza.",
]


def train_sentencepiece(path: Path, **options: object) -> Path:
    """A SentencePiece model of 300 pieces with Llama's settings, unless options say otherwise."""
    llama = {
        "vocab_size": 310, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "split_digits": True, "minloglevel": 2,
    }  # fmt: skip
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3), model_writer=file, **{**llama, **options}
        )
    return path


@pytest.fixture(scope="session")
def make_sentencepiece() -> Callable[..., Path]:
    """`make_sentencepiece(path, **options)`: train a tiny SentencePiece model there."""
    return train_sentencepiece


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Path:
    """A SentencePiece model of 310 pieces."""
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two sources in three training files and two validation files; 112 documents of one to nine sentences."""
    folder = tmp_path / "corpus"
    files = [("drugs", "train-00000", 40), ("drugs", "train-00001", 30), ("drugs", "validation-00000", 7),
             ("fever", "train-00000", 30), ("fever", "validation-00000", 5)]  # fmt: skip
    for name, stem, count in files:
        (folder / name).mkdir(parents=True, exist_ok=True)
        documents = [
            Document(
                id=f"{name}:{stem}:é{number}",
                source=name,
                title=None,
                text=" ".join(SENTENCES[(number + k) % 4] + f" Case {number}." for k in range(1 + number % 9)),
                license="CC-BY-4.0" if number % 3 else None,
            )
            for number in range(count)
        ]
        write_documents(folder / name / f"{stem}.jsonl.zst", documents)
    return folder


@pytest.fixture(scope="session")
def real_abstracts(assets) -> list[str]:
    """The texts of a real MEDLINE file, title first."""
    path = assets / "medline" / "pubmed21n1298.first4000.xml.gz"
    with open_input(path, path.name) as stream:
        return [item.text for item in medline.read(InputFile(stream, path.name, "m")) if isinstance(item, Document)]
