"""Training a model on documents with special tokens that it does not know yet."""

import json
import shutil

import pytest
import torch
import transformers

from data.documents import write_documents
from data.special_tokens import SPECIAL_TOKENS
from data.tokenize import tokenize
from data.tokenizer import load_tokenizer
from tests.train.runs import train, weights


@pytest.fixture(scope="module")
def marked(shards, tmp_path_factory):
    """Shards of the same tokenizer with MEDITRON's tokens added."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "corpus" / "papers").mkdir(parents=True)
    for split in ("train", "validation"):
        records = [
            {"id": f"{split} {number}", "text": f"fever of {number} days [bib_ref] mild asthma [/bib_ref] " * 9}
            for number in range(60)
        ]
        write_documents(folder / "corpus" / "papers" / f"{split}-00000.jsonl.zst", records)
    model = shards / "tokenizer" / "tokenizer.model"
    return tokenize(folder / "corpus", model, folder / "shards", special_tokens=SPECIAL_TOKENS).path


def test_a_model_grows_for_the_tokens_of_its_data(marked, straight, tmp_path, capsys):
    base = straight / "checkpoints" / "step-00000006"
    train(marked, tmp_path / "run", model=str(base), checkpoint_every=3)
    said = capsys.readouterr().out
    assert "has 301 token embeddings, the data 313 tokens: the new ones start from the mean" in said
    folder = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 313
    assert load_tokenizer(folder).sha256 == load_tokenizer(marked / "tokenizer").sha256
    rows = weights(tmp_path / "run", 6)["model.embed_tokens.weight"][301:]
    assert rows.shape[0] == 12
    assert torch.pdist(rows).min() > 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
              if "loss" in json.loads(line)]  # fmt: skip
    assert losses[-1] < losses[0]
    # transformers opens the whole of it.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("fever [bib_ref] mild asthma [/bib_ref]", return_tensors="pt")["input_ids"]
    assert int(ids.max()) == 302  # [/bib_ref]
    assert theirs(ids).logits.shape[-1] == 313
    # The grown model is taken up again, in another run, without a word.
    train(marked, tmp_path / "next", model=str(folder))
    assert "start from the mean" not in capsys.readouterr().out


def test_what_may_not_grow(marked, straight, shards, tmp_path):
    base = straight / "checkpoints" / "step-00000006"
    without = tmp_path / "without"
    shutil.copytree(base, without, ignore=shutil.ignore_patterns("tokenizer*", "training"))
    with pytest.raises(ValueError, match="has 301 token embeddings, the data uses 313 tokens; tokenise the documents"):
        train(marked, tmp_path / "run", model=str(without))
    grown = tmp_path / "grown"
    shutil.copytree(base, grown, ignore=shutil.ignore_patterns("training"))
    load_tokenizer(marked / "tokenizer").save(grown)  # a tokenizer with more tokens than its model
    with pytest.raises(ValueError, match="has 301 token embeddings, the data uses 313 tokens"):
        train(marked, tmp_path / "run", model=str(grown))
    with pytest.raises(ValueError, match="not the one the data was tokenised with"):
        train(shards, tmp_path / "run", model=str(grown))  # data without the tokens the model has
    assert not (tmp_path / "run").exists()
