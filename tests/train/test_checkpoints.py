"""Checkpoints of a run: moved from layout to layout, compared, kept, deleted, and never half written."""

import errno
import json
import shutil
import threading
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from model.config import LlamaConfig
from model.huggingface import load_model, save_model
from model.llama import Llama, micro_batch
from parallel.checkpoint import checkpoint_folders
from parallel.host_file import HostFile
from tests.train.runs import command, launch, metrics, python, start_and_wait, train, weights
from train import Trainer

FLAGS = {
    "dtype": "float64", "steps": 15, "validation_every": 0, "sequence_length": 32, "micro_batch_size": 1,
    "global_batch_size": 4, "pieces": 1,
}  # fmt: skip

CHAINS = {
    # Heads on two ranks each, a tied embedding on both ends, layers that do not divide: all in one model.
    "tied": [
        {"tp": 4},
        {"pp": 2, "chunks": 2, "schedule": "interleaved"},
        {"tp": 2, "pp": 2, "schedule": "zb"},
        {"pp": 4},
    ],
    "untied": [
        {"tp": 2},
        {"pp": 2, "tp": 2, "chunks": 2, "schedule": "interleaved"},
        {},
        {"tp": 4, "recompute": "full"},
    ],
}
"""Layouts of four processes; a run goes on in the next one every three steps."""


def model_folder(folder, shards, tied):
    vocabulary = json.loads((shards / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    config = LlamaConfig(vocabulary, 64, 96, 5, 4, 2 if tied else 4, 16, 64, tie_word_embeddings=tied)
    model = Llama(config, dtype=torch.float64)
    model.initialise(1)
    save_model(model, folder)
    return folder


def launch_jobs(folder, jobs):
    """The jobs in four processes; for every job what each rank saw."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    result = start_and_wait([*python(4), "-m", "tests.train.moves", str(folder / "jobs.json")])
    assert result.returncode == 0, result.stderr
    return list(zip(*(json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(4)), strict=True))


@pytest.fixture(scope="module")
def moved(shards, tmp_path_factory):
    """The chains, and what goes wrong in four processes, in one launch: starting Python takes longer than a run."""
    folder = tmp_path_factory.mktemp("moved")
    jobs = []
    for name, layouts in CHAINS.items():
        model = str(model_folder(folder / f"{name}-model", shards, name == "tied"))
        for number, layout in enumerate(layouts, start=1):
            flags = FLAGS | layout | {"model": model, "stop_step": 3 * number}
            jobs.append({"action": "train", "arguments": command(shards, folder / name, **flags)[1:]})
    tied = FLAGS | {"model": str(folder / "tied-model")}
    end = 3 * len(CHAINS["tied"])
    for layout, flips in (
        ({"tp": 4}, [
            (2, "model.norm.weight", 5), (3, "model.layers.2.self_attn.k_proj.weight", 100),
        ]),
        ({"pp": 2}, [(3, "model.embed_tokens.weight", 64), (1, "model.layers.0.mlp.up_proj.weight", 9)]),
    ):  # fmt: skip
        flags = tied | layout | {"stop_step": end}
        jobs.append({
            "action": "compare_damaged", "flips": flips, "arguments": command(shards, folder / "tied", **flags)[1:]
        })  # fmt: skip
    flags = tied | {"tp": 2, "pp": 2, "checkpoint_every": 1}
    jobs.append({
        "action": "fill_the_disk", "fails": True, "rank": 2, "arguments": command(shards, folder / "full", **flags)[1:]
    })  # fmt: skip
    broken = folder / "broken-model"
    shutil.copytree(folder / "tied-model", broken)
    damaged = broken / "model-00006-of-00007.safetensors"  # layer 4, which only the last stages hold
    tensors = load_file(damaged)
    tensors["model.layers.4.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, damaged)
    jobs.append({
        "action": "train", "fails": True,
        "arguments": command(shards, folder / "broken", **tied | {"pp": 4, "model": str(broken)})[1:],
    })  # fmt: skip
    return folder, launch_jobs(folder, jobs)


@pytest.fixture(scope="module")
def unbroken(moved, shards, tmp_path_factory):
    """`unbroken(name)`: the same run in one process without a break."""
    folder, _ = moved
    runs = {}

    def of(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("unbroken") / "run"
            train(shards, runs[name], **FLAGS | {"model": str(folder / f"{name}-model"), "checkpoint_every": 3})
        return runs[name]

    return of


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_moves_over_layouts(moved, unbroken, shards, tmp_path, name):
    """Every three steps in another layout, at the end in one process: every step equals the unbroken run's."""
    folder, _ = moved
    run = tmp_path / "run"
    shutil.copytree(folder / name, run)
    train(shards, run, **FLAGS | {"model": str(folder / f"{name}-model")})
    for ours, theirs in zip(metrics(run), metrics(unbroken(name)), strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9), (ours["step"], key)
    for step in (3, 6, 9, 12, 15):
        expected = weights(unbroken(name), step)
        found = weights(run, step)
        assert found.keys() == expected.keys()
        for tensor in expected:
            difference = (found[tensor] - expected[tensor]).abs().max()
            assert difference <= 1e-9 * expected[tensor].abs().max(), (step, tensor)


@pytest.mark.parametrize("name", CHAINS)
def test_files_are_the_same_for_every_layout(moved, unbroken, name):
    folder, _ = moved
    for number, layout in enumerate(CHAINS[name], start=1):
        at = f"checkpoints/step-{3 * number:08d}"
        for file in ("config.json", "model.safetensors.index.json", "tokenizer_config.json"):
            assert (folder / name / at / file).read_bytes() == (unbroken(name) / at / file).read_bytes()
        for file in (unbroken(name) / at).glob("model-*.safetensors"):
            assert (folder / name / at / file.name).stat().st_size == file.stat().st_size
        state = json.loads((folder / name / at / "training" / "state.json").read_text())
        tp, pp = layout.get("tp", 1), layout.get("pp", 1)
        assert state["layout"] == {"tp": tp, "pp": pp, "dp": 4 // (tp * pp), "chunks": layout.get("chunks", 1)}


def test_a_split_runs_checkpoint_opens_in_transformers(moved):
    """Saved at tp 2 x pp 2, with replicated heads and tied embeddings gone through before."""
    folder, _ = moved
    for name, step in (("tied", 9), ("untied", 6)):
        checkpoint = folder / name / "checkpoints" / f"step-{step:08d}"
        reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
        model = load_model(checkpoint, dtype=torch.float64)
        document = torch.arange(3, 43)
        batch = micro_batch(document, document, [0, 40], model.config, "cpu")
        with torch.no_grad():
            ours, theirs = (
                model.logits(model.hidden(batch.tokens, batch.documents)),
                reference(document[None]).logits[0],
            )
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()  # transformers' norms are float32


def test_copies_that_differ_stop_the_run(moved):
    """One flipped bit: of a norm, of heads that two ranks hold, of a tied embedding, and of a layer's two dp copies."""
    _, seen = moved
    tp, pp = seen[-4:-2]
    for texts in (tp, pp):
        assert all(rank == texts[0] for rank in texts)
    norm, heads = tp[0]
    assert "step 12: model.norm.weight is not the same on rank 2 (host " in norm
    assert "as on ranks 0-1, 3; nothing is saved" in norm
    assert "step 12: model.layers.2.self_attn.k_proj.weight differs between rank 2 (host " in heads
    assert " and rank 3 (host " in heads
    embedding, layer = pp[0]
    assert "step 12: model.embed_tokens.weight is not the same on rank 3 (host " in embedding
    assert "as on ranks 0-2" in embedding
    assert "model.layers.0.mlp.up_proj.weight differs between rank 0 (host " in layer
    assert " and rank 1 (host " in layer


def test_a_full_disk_on_one_rank_stops_all(moved):
    folder, seen = moved
    texts = seen[-2]
    assert all(text == texts[0] for text in texts)
    assert "step-00000002: rank 2 on host " in texts[0]
    assert "No space left on device" in texts[0]
    assert [path.name for path in checkpoint_folders(folder / "full")] == ["step-00000001"]


def test_a_damaged_slice_that_one_rank_reads_is_everybodys_error(moved):
    folder, seen = moved
    file = folder / "broken-model" / "model-00006-of-00007.safetensors"
    expected = (
        f"{file}: tensor model.layers.4.mlp.down_proj.weight holds NaN or infinite weights; use an earlier checkpoint"
    )
    assert seen[-1] == (expected,) * 4
    assert not (folder / "broken").exists()


def steps_of(run):
    return [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(run)]


def test_older_checkpoints_are_deleted(shards, tmp_path):
    flags = {"validation_every": 0, "checkpoint_every": 1, "keep_last": 2, "keep_every": 3}
    leftover = tmp_path / "run/checkpoints/.step-00000001.tmp/training"
    train(shards, tmp_path / "run", **flags | {"stop_step": 2})
    assert steps_of(tmp_path / "run") == [1, 2]
    leftover.mkdir(parents=True)  # of a run that was killed
    train(shards, tmp_path / "run", **flags)
    assert steps_of(tmp_path / "run") == [3, 5, 6]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 3


def test_training_goes_on_while_a_checkpoint_is_written(shards, straight, tmp_path, monkeypatch):
    """The disk takes until two steps later; what it gets are the weights of the moment."""
    go_on = threading.Event()

    def step(self, micro_batches, original=Trainer.train_step):
        pending = original(self, micro_batches)
        if pending.step == 5:
            assert steps_of(tmp_path / "run") == []
            go_on.set()
        return pending

    def write(self, *arguments, original=HostFile.write):
        assert go_on.wait(30)
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(HostFile, "write", write)
    train(shards, tmp_path / "run", checkpoint_every=3)
    assert steps_of(tmp_path / "run") == [3, 6]
    monkeypatch.undo()
    train(shards, tmp_path / "three", stop_step=3)
    expected, found = weights(tmp_path / "three", 3), weights(tmp_path / "run", 3)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    last = weights(straight, 6)
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(tmp_path / "run", 6).items())


def test_a_run_waits_for_a_slow_disk_and_says_so(shards, tmp_path, monkeypatch, capfd):
    def slow(self, *arguments, original=HostFile.write):
        time.sleep(0.1)
        original(self, *arguments)

    monkeypatch.setattr(HostFile, "write", slow)
    train(shards, tmp_path / "run", validation_every=0, checkpoint_every=1, stop_step=2)
    assert "step 2: waiting until step-00000001 is written" in capfd.readouterr().out
    assert steps_of(tmp_path / "run") == [1, 2]


def test_a_full_disk_stops_the_run_with_one_line(shards, tmp_path, monkeypatch):
    """Noticed by the next step; what was written before stays, what could not be never has a checkpoint's name."""

    def full(self, folder, *arguments, original=HostFile.write):
        if "00000002" in folder.name and "optimizer" in self.path:
            raise OSError(errno.ENOSPC, "No space left on device", self.path)
        original(self, folder, *arguments)

    monkeypatch.setattr(HostFile, "write", full)
    run = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"step-00000002: \[Errno 28\] No space left on device: .*; make room"
    ) as error:
        train(shards, run, validation_every=0, checkpoint_every=2, steps=1000)
    assert "\n" not in str(error.value)
    assert steps_of(run) == []
    assert metrics(run)[-1]["step"] <= 4
    monkeypatch.undo()
    train(shards, run, validation_every=0, checkpoint_every=2, steps=1000, stop_step=3)
    assert steps_of(run) == [2, 3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "training/optimizer-00000.safetensors").unlink(), "optimizer-00000.safetensors: named in .* but missing"),
        (lambda f: cut(f / "training/optimizer-00000.safetensors"), "optimizer-00000.safetensors: damaged optimizer file"),
        (lambda f: (f / "training/optimizer.index.json").unlink(), "cannot be resumed, only loaded with --model"),
        (lambda f: (f / "model-00004-of-00010.safetensors").unlink(), "model-00004-of-00010.safetensors: named in"),
        (lambda f: cut(f / "model-00004-of-00010.safetensors"), "model-00004-of-00010.safetensors: damaged safetensors"),
    ],
    ids=["missing state", "short state", "no index", "missing weights", "short weights"],
)  # fmt: skip
def test_damaged_checkpoints_are_named(straight, shards, tmp_path, damage, message):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    damage(run / "checkpoints" / "step-00000006")
    with pytest.raises(ValueError, match=message):
        train(shards, run)


def test_missing_state_is_one_line_in_several_processes(straight, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    file = run / "checkpoints/step-00000006/training/optimizer-00000.safetensors"
    file.unlink()
    result = launch(shards, run, 2, tp=2)
    assert result.returncode != 0
    line = f"error: {file}: named in optimizer.index.json but missing; resume from an earlier checkpoint"
    assert result.stderr.count(line) == 2
    assert "exitcode  : 2" in result.stderr


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 100])
