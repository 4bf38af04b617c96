"""Two small sources as token shards, and one run over them that several tests look at."""

import random

import pytest
import sentencepiece

from data.documents import write_documents
from data.tokenize import tokenize
from tests.train.runs import train

TEXT = "the fever of a patient with mild asthma was treated by 5 mg daily and no relapse occurred in 12 weeks"


def write_corpus(folder, name, documents, seed):
    source = random.Random(seed)
    (folder / name).mkdir(parents=True)
    for split, count in (("train", documents), ("validation", 12)):
        write_documents(folder / name / f"{split}-00000.jsonl.zst", [
            {"id": f"{name}-{split}-{n}", "source": name, "title": None, "split": split,
             "text": " ".join(source.choices(TEXT.split(), k=source.randint(3, 60)))}
            for n in range(count)
        ])  # fmt: skip


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two sources in shards of a 301-piece tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    source = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(source.choices(TEXT.split(), k=20)) for _ in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=301,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    write_corpus(folder / "corpus", "abstracts", 200, 1)
    write_corpus(folder / "corpus", "replay", 80, 2)
    tokenize(folder / "corpus", folder / "tokenizer.model", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="session")
def straight(shards, tmp_path_factory):
    """Six steps without a break."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(shards, run)
    return run
