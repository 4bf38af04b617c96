"""What a run writes, and what must not change it."""

import json

import numpy as np
import pytest
import torch
import transformers

from tests.train.runs import metrics, train, weights
from train import Trainer


def test_a_run_writes_what_it_promises(straight, shards):
    config = json.loads((straight / "config.json").read_text())
    assert config["settings"]["steps"] == 6
    assert config["versions"]["torch"] == torch.__version__
    lines = metrics(straight)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in steps] == [512 * n for n in range(1, 7)]
    assert steps[0]["lr"] == pytest.approx(5e-4)
    assert steps[1]["lr"] == pytest.approx(1e-3)
    assert steps[-1]["lr"] == pytest.approx(1e-4)
    assert all({"grad_norm", "tokens_per_second", "mfu"} <= set(line) and not line["skipped"] for line in steps)
    validations = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validations] == [0, 3, 6]
    assert all(set(line["validation_loss"]) == {"abstracts", "replay"} for line in validations)
    # Random weights begin at the uniform distribution's loss, and learn.
    vocabulary = json.loads((shards / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    assert validations[0]["validation_loss"]["abstracts"] == pytest.approx(np.log(vocabulary), abs=0.1)
    assert validations[-1]["validation_loss"]["abstracts"] < validations[0]["validation_loss"]["abstracts"] - 0.2
    assert (straight / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoint_is_a_hugging_face_folder(straight, shards):
    folder = straight / "checkpoints" / "step-00000006"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the fever of a patient").input_ids
    assert ids[0] == 1
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert loss < np.log(model.config.vocab_size)
    state = json.loads((folder / "training" / "state.json").read_text())
    assert (state["step"], state["next_sample"], state["optimizer_steps"]) == (6, 48, 6)


def test_micro_batch_size_does_not_change_the_result(straight, shards, tmp_path):
    train(shards, tmp_path / "run", micro_batch_size=8, recompute="full")
    expected = weights(straight, 6)
    for name, tensor in weights(tmp_path / "run", 6).items():
        assert (tensor - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


def test_continued_pretraining_starts_from_a_run(straight, shards, tmp_path):
    train(shards / "abstracts", tmp_path / "run", model=str(straight), steps=1, validation_every=1)
    before = metrics(straight)[-1]["validation_loss"]["abstracts"]
    assert metrics(tmp_path / "run")[0]["validation_loss"]["abstracts"] == pytest.approx(before, rel=1e-6)


def test_bf16_run_learns(shards, tmp_path):
    train(shards, tmp_path / "run", dtype="bfloat16")
    losses = [line["validation_loss"]["abstracts"] for line in metrics(tmp_path / "run") if "validation_loss" in line]
    assert losses[-1] < losses[0] - 0.2
    assert weights(tmp_path / "run", 6)["lm_head.weight"].dtype == torch.bfloat16


def test_reading_numbers_one_step_late_changes_nothing(shards, straight, tmp_path, monkeypatch):
    """As on a GPU, where the host runs a step ahead of the numbers."""

    def late(self, *arguments, original=Trainer.__init__):
        original(self, *arguments)
        self.lag = 1

    monkeypatch.setattr(Trainer, "__init__", late)
    train(shards, tmp_path / "run")
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(straight), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == theirs[key] for key in ours if key not in ("tokens_per_second", "mfu"))
    rates = [line["tokens_per_second"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert max(rates) < 100 * min(rates)  # no interval is counted as nothing


def test_a_preset_takes_the_tokenizers_bos_and_eos(shards, tmp_path):
    train(
        shards,
        tmp_path / "run",
        model="smollm2-135m",
        steps=1,
        validation_every=0,
        global_batch_size=1,
        micro_batch_size=1,
    )
    config = json.loads((tmp_path / "run/checkpoints/step-00000001/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


@pytest.mark.gpu
def test_run_on_a_gpu(shards, tmp_path):
    train(shards, tmp_path / "run", sequence_length=128, steps=20, validation_every=20)
    losses = [line["validation_loss"]["abstracts"] for line in metrics(tmp_path / "run") if "validation_loss" in line]
    assert losses[-1] < losses[0] - 0.3
    train(shards, tmp_path / "again", sequence_length=128, steps=20, validation_every=20)
    first, second = weights(tmp_path / "run", 20), weights(tmp_path / "again", 20)
    assert all(torch.equal(first[name], second[name]) for name in first)
