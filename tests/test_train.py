"""The trainer from the outside: what a run writes, that stopping changes nothing, data parallel equals one process, bad
input.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from data.documents import write_documents
from data.tokenize import tokenize
from train import Trainer
from train import main as train_main

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "the",
    "fever",
    "of",
    "a",
    "patient",
    "with",
    "mild",
    "asthma",
    "was",
    "treated",
    "by",
    "5",
    "mg",
    "daily",
    "and",
    "no",
    "relapse",
    "occurred",
    "in",
    "12",
    "weeks",
]


def write_corpus(folder, name, documents, seed):
    source = random.Random(seed)
    (folder / name).mkdir(parents=True)
    for split, count in (("train", documents), ("validation", 12)):
        write_documents(folder / name / f"{split}-00000.jsonl.zst", [
            {"id": f"{name}-{split}-{n}", "source": name, "title": None, "split": split,
             "text": " ".join(source.choices(WORDS, k=source.randint(3, 60)))}
            for n in range(count)
        ])  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two sources in shards of a 301-piece tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    source = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(source.choices(WORDS, k=20)) for _ in range(200)))
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


def command(shards, out, **flags):
    options = {
        "data": str(shards), "out": str(out), "steps": 6, "global_batch_size": 8, "micro_batch_size": 2,
        "sequence_length": 64,
        "lr": 1e-3, "warmup_steps": 2, "validation_every": 3, "validation_sequences": 3, "checkpoint_every": 0,
    } | flags  # fmt: skip
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    return ["train.py", *words]


def train(shards, out, **flags):
    """A run in this process: starting Python and torch would take longer than the run."""
    train_main(command(shards, out, **flags)[1:])


def launch(shards, out, processes=1, **flags):
    """A run in processes of its own, as a user starts it."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, *command(shards, out, **flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As many threads here as in the launched processes, so that results are the same to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for name in set(index["weight_map"].values()):
        tensors |= load_file(folder / name)
    return tensors


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """Six steps without a break."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(shards, run)
    return run


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


def test_stop_and_resume_is_bit_identical(straight, shards, tmp_path):
    train(shards, tmp_path / "run", stop_step=3)
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    train(shards, tmp_path / "run")
    first, second = weights(straight, 6), weights(tmp_path / "run", 6)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    kept = ("step", "loss", "lr", "grad_norm", "validation_loss")
    assert [{k: line.get(k) for k in kept} for line in metrics(straight)] == [
        {k: line.get(k) for k in kept} for line in metrics(tmp_path / "run")
    ]


def start_and_signal(shards, run, signal_number, processes=1, **flags):
    """Start a run far too long to end by itself, send a signal after its first checkpoint; the launcher's exit code.

    With two processes only the second rank gets the signal: the stop has to reach the first over the network.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launched = subprocess.Popen(
        [*launcher, *command(shards, run, steps=5000, checkpoint_every=1, validation_every=0, **flags)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(run.glob("checkpoints/step-*")):
        assert launched.poll() is None
        time.sleep(0.01)
    if processes == 1:
        launched.send_signal(signal_number)
    else:
        ranks = sorted(psutil.Process(launched.pid).children(), key=lambda child: int(child.environ()["RANK"]))
        ranks[-1].send_signal(signal_number)
    return launched.wait(timeout=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_the_step_at_hand(shards, tmp_path, processes):
    assert start_and_signal(shards, tmp_path / "run", signal.SIGTERM, processes) == 0
    last = [line["step"] for line in metrics(tmp_path / "run")][-1]
    assert last < 5000
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name == f"step-{last:08d}"


def test_killed_run_continues_bit_for_bit(shards, tmp_path):
    """After SIGKILL the last whole checkpoint counts; what it left half written is replaced."""
    run = tmp_path / "run"
    assert start_and_signal(shards, run, signal.SIGKILL) == -signal.SIGKILL
    reached = [line["step"] for line in metrics(run)][-1]
    flags = {"steps": 5000, "validation_every": 0, "stop_step": reached + 3}
    train(shards, run, **flags)
    train(shards, tmp_path / "straight", **flags)
    first, second = weights(tmp_path / "straight", reached + 3), weights(run, reached + 3)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert [line["step"] for line in metrics(run)] == list(range(1, reached + 4))


def test_layouts_equal_one_process(shards, tmp_path):
    """Data parallel, tensor parallel, both, and state moving between them: in float64, with a vocabulary that 2 does not
    divide."""
    train(shards, tmp_path / "one", dtype="float64")
    for out, processes, flags in (
        ("two", 2, {}), ("split", 2, {"tp": 2}), ("both", 4, {"tp": 2}),
        ("mixed", 2, {"stop_step": 2}), ("mixed", 1, {"stop_step": 3}), ("mixed", 2, {"tp": 2, "stop_step": 5}), ("mixed", 1, {}),
    ):  # fmt: skip
        if processes == 1:
            train(shards, tmp_path / out, dtype="float64", **flags)
        else:
            result = launch(shards, tmp_path / out, processes, dtype="float64", **flags)
            assert result.returncode == 0, result.stderr
    expected = weights(tmp_path / "one", 6)
    for other in ("two", "split", "both", "mixed"):
        assert len(expected["lm_head.weight"]) % 2 == 1
        for name, tensor in weights(tmp_path / other, 6).items():
            difference = (tensor - expected[name]).abs().max()
            assert difference <= 1e-9 * expected[name].abs().max(), f"{other} {name} {difference}"
        for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / other), strict=True):
            for key in ("loss", "grad_norm", "validation_loss"):
                if key in ours:
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-9), key


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
    with pytest.raises(ValueError, match="is not the one the shards were made with"):
        train(shards, tmp_path / "run", data=data, tokenizer=str(assets / "model" / "llama2_tokenizer.model"))


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


def test_a_skipped_step_is_remembered(shards, straight, tmp_path, monkeypatch):
    """One poisoned step: its samples are written down, AdamW does not count it, and a resume agrees bit for bit."""

    def poison(self, micro_batches, original=Trainer.train_step):
        if self.position.step == 1:
            self.model.buffer.parameters[0].main_grad[0, 0] = float("nan")
        return original(self, micro_batches)

    monkeypatch.setattr(Trainer, "train_step", poison)
    train(shards, tmp_path / "whole")
    train(shards, tmp_path / "halves", stop_step=3)
    train(shards, tmp_path / "halves")
    for run in ("whole", "halves"):
        state = json.loads((tmp_path / run / "checkpoints/step-00000006/training/state.json").read_text())
        assert state["skipped"] == [[8, 16]]
        assert state["optimizer_steps"] == 5
        assert [line["skipped"] for line in metrics(tmp_path / run) if "loss" in line] == [False, True] + [False] * 4
    first, second = weights(tmp_path / "whole", 6), weights(tmp_path / "halves", 6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], tensor) for name, tensor in weights(straight, 6).items())


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


def test_weights_that_are_not_finite_are_never_saved(shards, tmp_path, monkeypatch):
    def destroy(self, original=Trainer.save):
        self.model.buffer.data[7] = float("inf")
        original(self)

    monkeypatch.setattr(Trainer, "save", destroy)
    with pytest.raises(ValueError, match="step 6: 1 weights are not finite, nothing is saved"):
        train(shards, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    assert (tmp_path / "run" / "loss.png").is_file()


def test_resume_needs_neither_the_first_model_nor_the_same_path_of_the_data(straight, shards, tmp_path):
    """Both may have moved; the checkpoint has its own shape, weights and tokenizer, and data is compared by content."""
    first = tmp_path / "first"
    shutil.copytree(straight, first)
    train(shards, tmp_path / "run", model=str(first), stop_step=2)
    shutil.rmtree(first)
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    train(moved, tmp_path / "run", model=str(first))
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


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
