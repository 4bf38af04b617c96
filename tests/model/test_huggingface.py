"""Weights in and out: which file holds what, what is read, and the memory that reading takes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import model.huggingface
from model.config import PRESETS, LlamaConfig
from model.huggingface import load_model, save_model, tensor_shapes, weight_files, write_description
from model.llama import Llama
from parallel.host_file import host_files

ROOT = Path(__file__).resolve().parents[2]
SMALL = LlamaConfig(61, 32, 48, 3, 4, 2, 8, 64)
TIED = LlamaConfig(61, 32, 48, 3, 4, 2, 8, 64, tie_word_embeddings=True)


@pytest.mark.parametrize("config", [SMALL, TIED])
def test_names_and_shapes_are_those_of_the_model(config):
    records = [parameter.record for parameter in Llama(config).buffer.parameters]
    assert {record.name: record.global_shape for record in records} == tensor_shapes(config)
    assert sum(map(math.prod, tensor_shapes(config).values())) == config.parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_no_file_holds_tensors_of_two_layers_or_is_too_large(preset):
    config = PRESETS[preset]
    files = weight_files(config, torch.bfloat16)
    assert [name for names in files.values() for name in names] == list(tensor_shapes(config))
    for names in files.values():
        assert len({".".join(name.split(".")[:3]) for name in names} - {"lm_head.weight"}) == 1
        assert sum(2 * math.prod(tensor_shapes(config)[name]) for name in names) <= 5e9


def test_files_of_a_size_hubs_take(monkeypatch):
    monkeypatch.setattr(model.huggingface, "MAX_FILE_BYTES", 4 * 32 * 61)
    files = weight_files(SMALL, torch.float32)
    shapes = tensor_shapes(SMALL)
    assert [name for names in files.values() for name in names] == list(shapes)
    assert all(sum(4 * math.prod(shapes[n]) for n in names) <= 4 * 32 * 61 for names in files.values())
    assert next(iter(files.values())) == ["model.embed_tokens.weight"]


def test_a_saved_model_reads_back_bit_for_bit(tmp_path):
    model = Llama(SMALL, dtype=torch.bfloat16)
    model.initialise(3)
    save_model(model, tmp_path)
    again = load_model(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(again.buffer.data.view(torch.int16), model.buffer.data.view(torch.int16))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * SMALL.parameters
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as tensors:
            assert tuple(tensors.get_slice(name).get_shape()) == tensor_shapes(SMALL)[name]
            assert tensors.metadata() == {"format": "pt"}


def test_weights_that_are_not_finite_are_found_in_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(model.huggingface, "BLOCK_BYTES", 4 * 32 * 7)
    whole = Llama(SMALL)
    whole.initialise(3)
    save_model(whole, tmp_path)
    assert torch.equal(load_model(tmp_path).buffer.data, whole.buffer.data)
    whole.embedding.data[60, 31] = float("inf")
    save_model(whole, tmp_path)
    with pytest.raises(ValueError, match=r"00001-of-00005\.safetensors: tensor model.embed_tokens.weight holds NaN"):
        load_model(tmp_path)


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from model.config import LlamaConfig
from model.huggingface import load_weights
from model.llama import Llama
from parallel.comm import Group
from parallel.grid import Grid

torch.set_num_threads(1)

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def sample():
    while not done.wait(0.002):
        seen.append(anonymous())

config = LlamaConfig.from_huggingface(sys.argv[1])
for rank in range(4):
    before = anonymous()
    grid = Grid(Group("pp"), Group("dp"), Group("tp", tuple(range(4)), rank), Group("world", tuple(range(4)), rank))
    model = Llama(config, grid=grid)
    seen, done = [], threading.Event()
    sampler = threading.Thread(target=sample)
    sampler.start()
    load_weights(model, sys.argv[1])
    done.set()
    sampler.join()
    share = 4 * sum(p.data.numel() for p in model.buffer.parameters)
    print(share, max(seen + [anonymous()]) - before)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_loading_takes_no_memory_beside_the_ranks_share(tmp_path):
    """509 MB at tp 4: anonymous memory grows by each rank's share and at most 15 % of it, at every moment."""
    config = LlamaConfig(16000, 1024, 2816, 8, 16, 8, 64, 128)
    shapes = tensor_shapes(config)
    for path, names in weight_files(config, torch.float32).items():
        (file,) = host_files({path: {name: (torch.float32, shapes[name]) for name in names}})
        for tensor in file.tensors.values():
            tensor.uniform_(-1, 1)
        file.write(tmp_path)
    write_description(config, torch.float32, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) >= 500e6
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    ranks = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(ranks) == 4
    for share, grown in ranks:
        assert share > 0.2 * 500e6
        assert 0.9 * share < grown <= 1.15 * share, ranks
