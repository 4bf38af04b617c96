"""Rows of tokens that a stored model does not have."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import LlamaConfig
from model.huggingface import NOISE, load_model, load_weights, save_model
from model.llama import Llama
from parallel.comm import Group
from parallel.grid import Grid

SMALL = LlamaConfig(61, 32, 48, 3, 4, 4, 8, 64)
NEW = 12


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def stored(request, tmp_path):
    model = Llama(replace(SMALL, tie_word_embeddings=request.param))
    model.initialise(0)
    save_model(model, tmp_path)
    return tmp_path, model


def grown(folder, config, tp=1, rank=0):
    ranks = tuple(range(tp))
    grid = Grid(Group("pp"), Group("dp"), Group("tp", ranks, rank), Group("world", ranks, rank))
    model = Llama(replace(config, vocab_size=config.vocab_size + NEW), grid=grid)
    load_weights(model, folder)
    return model


def test_old_rows_stay_and_new_ones_are_near_the_mean(stored):
    folder, model = stored
    old = {parameter.record.name: parameter.data for parameter in model.buffer.parameters}
    found = {parameter.record.name: parameter.data for parameter in grown(folder, model.config).buffer.parameters}
    assert found.keys() == old.keys()
    for name, tensor in found.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensor, old[name])
            continue
        assert tensor.shape == (61 + NEW, 32)
        assert torch.equal(tensor[:61], old[name])
        mean, deviation = old[name].double().mean(0), old[name].double().std(0, correction=0)
        noise = (tensor[61:].double() - mean) / deviation
        assert 0.7 * NOISE < noise.std() < 1.3 * NOISE
        assert noise.abs().max() < 5 * NOISE
        assert torch.pdist(tensor[61:]).min() > 0.1 * NOISE * deviation.norm()  # no two alike
    if len(found) > len(old.keys() - {"lm_head.weight"}):
        assert not torch.equal(found["lm_head.weight"][61:], found["model.embed_tokens.weight"][61:])


@pytest.mark.parametrize("tp", [2, 4])
def test_every_rank_makes_the_same_rows(stored, tp, monkeypatch):
    folder, model = stored
    monkeypatch.setattr("model.huggingface.BLOCK_BYTES", 1000)  # several blocks
    whole = {parameter.record.name: parameter.data for parameter in grown(folder, model.config).buffer.parameters}
    covered = dict.fromkeys(whole, 0)
    for rank in range(tp):
        for parameter in grown(folder, model.config, tp, rank).buffer.parameters:
            record = parameter.record
            place = tuple(slice(o, o + n) for o, n in zip(record.offsets, record.shape, strict=True))
            assert torch.equal(parameter.data, whole[record.name][place])
            covered[record.name] += parameter.data.numel()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert name not in whole or covered[name] == whole[name].numel()


def test_it_is_a_model_like_any_other_afterwards(stored, tmp_path):
    folder, model = stored
    larger = grown(folder, model.config)
    save_model(larger, tmp_path / "grown")
    again = load_model(tmp_path / "grown")
    assert again.config.vocab_size == 61 + NEW
    for mine, theirs in zip(larger.buffer.parameters, again.buffer.parameters, strict=True):
        assert torch.equal(mine.data, theirs.data)


def test_a_file_that_is_not_what_its_config_says_is_still_refused(stored):
    folder, model = stored
    file = next(path for path in folder.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path))
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    save_file(tensors, file)
    for config in (model.config, replace(model.config, vocab_size=61 + NEW)):
        with pytest.raises(ValueError, match=r"embed_tokens.weight is \(60, 32\), config.json asks for \(61, 32\)"):
            load_weights(Llama(config), folder)
