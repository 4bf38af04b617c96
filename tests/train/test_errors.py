"""What a user can cause ends in one line, and what is broken is never saved."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from data.tokenize import tokenize
from tests.train.runs import launch, metrics, train, weights
from train import Trainer


def error_line(result):
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    return lines[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"global_batch_size": 7}, "not a multiple of 2"),
        ({"model": "llama9"}, r"neither a folder with a config.json nor a preset \(tiny"),
        ({"sequence_length": 4096}, "exceeds the model's context of 2048"),
        ({"data": "somewhere=much"}, "is not a share"),
        ({"data": "somewhere=1.5"}, "a share lies between 0 and 1"),
        ({"data": "nowhere"}, "nowhere"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"lr": "inf"}, "--lr inf: must be at most 1"),
        ({"min_lr_ratio": -3}, "--min-lr-ratio -3.0: must be at least 0"),
        ({"seed": 2**32}, "--seed 4294967296: must be at most"),
        ({"steps": "many"}, "--steps: invalid int value: 'many'; see train.py --help"),
        ({"chunks": 2}, "--schedule 1f1b takes one chunk, not 2: use --chunks 1, or --schedule interleaved"),
        ({"schedule": "interleaved"}, "--schedule interleaved needs two or more chunks: add --chunks 2"),
        ({"chunks": 9, "schedule": "zb"}, r"8 layers cannot be split over 9 pipeline parts \(--pp times --chunks\)"),
        ({"recompute": "full-0"}, "--recompute full-0: must be none, mlp, attention, full or full-N"),
        ({"pieces": 5}, "--pieces 5: must be at most 4"),
        ({"tp": 8, "pp": 8}, "needs 64 processes or a multiple of it, not 1; run: torchrun --nproc-per-node 64 "),
    ],
)  # fmt: skip
def test_bad_settings(shards, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(shards, tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_run_folder_of_something_else(shards, straight, tmp_path):
    with pytest.raises(
        ValueError, match=r"already holds a different run \(--lr was 0.001, is 0.5\); choose another --out"
    ):
        train(shards, straight, lr=0.5)
    changed = tmp_path / "shards"
    shutil.copytree(shards, changed)
    manifest = changed / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(ValueError, match="--data: other token shards or shares"):
        train(changed, straight)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; choose another --out"):
        train(shards, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train(shards, tmp_path / "full")


def test_errors_are_one_line_on_the_screen(shards, tmp_path):
    message = error_line(launch(shards, tmp_path / "run", tp=2))
    assert "--tp 2 --pp 1 needs 2 processes" in message
    result = launch(shards, tmp_path / "run", processes=2, global_batch_size=2)
    assert result.returncode != 0
    assert result.stderr.count("error: --global-batch-size 2 is not a multiple of 4") == 2
    summary = result.stderr[result.stderr.rindex("Root Cause") :]
    assert "is not a multiple of 4" in summary


def test_a_split_that_does_not_fit_the_model_is_one_line(shards, tmp_path):
    """Found by every rank alike; a pipeline of more stages than layers, and heads that tp does not divide."""
    for flags, message in (
        ({"tp": 3}, "error: --tp 3 does not divide the model's 8 attention heads"),
        (
            {"pp": 3, "chunks": 3, "schedule": "zb"},
            "error: 8 layers cannot be split over 9 pipeline parts (--pp times --chunks)",
        ),
    ):
        result = launch(shards, tmp_path / "run", processes=3, **flags, global_batch_size=6)
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback (most recent call last)" not in result.stderr.split("ChildFailedError")[0].split(message)[0]
        assert not (tmp_path / "run").exists()


def test_damaged_model_folders_are_named(straight, shards, tmp_path):
    good = straight / "checkpoints" / "step-00000006"
    for case, damage, message in (
        ("nan", {"model.norm.weight": torch.full((128,), float("nan"))}, "tensor model.norm.weight holds NaN"),
        (
            "shape",
            {"model.norm.weight": torch.ones(127)},
            r"tensor model.norm.weight is (127,), config.json asks for (128,)",
        ),
        ("extra", {"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}, "does not belong to the model"),
        ("missing", {"model.norm.weight": None}, "tensor model.norm.weight is missing"),
    ):
        folder = tmp_path / case
        folder.mkdir()
        tensors = {k: v for k, v in (weights(straight, 6) | damage).items() if v is not None}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text((good / "config.json").read_text())
        with pytest.raises(ValueError, match=re.escape(message)):
            train(shards, tmp_path / "run", model=str(folder))
        assert not (tmp_path / "run").exists(), case
    architecture = tmp_path / "architecture"
    architecture.mkdir()
    (architecture / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(
        ValueError, match="'GPT2LMHeadModel', model_type None is not one of LlamaForCausalLM, MistralForCausalLM"
    ):
        train(shards, tmp_path / "run", model=str(architecture))


def test_tokenizer_of_another_model(shards, tmp_path, assets):
    with pytest.raises(ValueError, match="is not the one the data was tokenised with"):
        train(shards, tmp_path / "run", model=str(assets / "model" / "stories260K"))


def test_gradients_that_are_not_finite_skip_the_step(shards, straight, tmp_path):
    """Weights near the float32 limit overflow in the first products: every step is skipped, and the run says so and
    gives up.
    """
    folder = tmp_path / "hot"
    folder.mkdir()
    tensors = {
        name: tensor * (1e30 if "gate_proj" in name or "up_proj" in name else 1)
        for name, tensor in weights(straight, 6).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((straight / "checkpoints" / "step-00000006" / "config.json").read_text())
    with pytest.raises(ValueError, match="20 steps in a row up to step 20 gave gradients that are not finite"):
        train(shards, tmp_path / "run", model=str(folder), steps=30, validation_every=0)
    assert all(line["skipped"] for line in metrics(tmp_path / "run"))


def test_megatron_pairs_need_their_tokenizer_named(shards, straight, tmp_path, assets):
    pair = assets / "general" / "megatron_fixture" / "ag_news_prompt_inputs_document"
    with pytest.raises(ValueError, match="another tokenizer or damaged"):
        train(pair, tmp_path / "wrong", tokenizer=str(shards / "tokenizer"), validation_every=0)
    with pytest.raises(ValueError, match="does not say its tokenizer; add --tokenizer"):
        train(pair, tmp_path / "run")
    data = [str(shards), f"{pair}=0.1"]
    theirs = re.escape(f"--tokenizer {shards}/tokenizer")
    with pytest.raises(ValueError, match=f"is not the one the shards were made with; give theirs: {theirs}$"):
        train(shards, tmp_path / "run", data=data, tokenizer=str(assets / "model" / "llama2_tokenizer.model"))
    with pytest.raises(ValueError, match=f"does not say its tokenizer; add --tokenizer, here {theirs}$"):
        train(shards, tmp_path / "run", data=[str(shards), f"{pair}.idx=0.1"])


def test_the_tokenizer_that_the_shards_extend_is_refused_with_the_remedy(shards, tmp_path, assets):
    pair = assets / "general" / "megatron_fixture" / "ag_news_prompt_inputs_document"
    marked = tmp_path / "marked"
    tokenize(shards.parent / "corpus", shards.parent / "tokenizer.model", marked, special_tokens=["[bib_ref]"])
    with pytest.raises(ValueError, match=re.escape(f"give theirs: --tokenizer {marked}/tokenizer, the same with")):
        train(marked, tmp_path / "run", data=[str(marked), f"{pair}=0.1"], tokenizer=str(shards / "tokenizer"))


def test_damaged_shards_stop_the_run(shards, tmp_path):
    """A flipped bit that no size betrays is found by the hashing in the background."""
    changed = tmp_path / "shards"
    shutil.copytree(shards, changed)
    tokens = changed / "abstracts" / "train" / "tokens-00000.npy"
    content = bytearray(tokens.read_bytes())
    content[-2] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens-00000\.npy: wrong sha256"):
        train(changed, tmp_path / "run", steps=100_000, validation_every=0)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_weights_that_are_not_finite_are_never_saved(shards, tmp_path, monkeypatch):
    def destroy(self, original=Trainer.save):
        self.model.buffer.data[7] = float("inf")
        original(self)

    monkeypatch.setattr(Trainer, "save", destroy)
    with pytest.raises(ValueError, match="step 6: 1 weights are not finite, nothing is saved"):
        train(shards, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    assert (tmp_path / "run" / "loss.png").is_file()


def test_damaged_checkpoints_are_named(straight, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    state = run / "checkpoints/step-00000006/training/state.json"
    state.write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json: cannot be read \('schema'\)"):
        train(shards, run)
    index = run / "checkpoints/step-00000006/model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json: not an index with a weight_map"):
        train(shards, run)
