"""config.json in both spellings, refusals, presets, rotary frequencies and parameter counts against transformers."""

import json

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.config import PRESETS, LlamaConfig, Rope, preset
from model.rope import inverse_frequencies

OLD = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    return LlamaConfig.from_huggingface(tmp_path)


def test_old_and_new_spelling_of_rotary_settings(tmp_path):
    old = read(tmp_path, OLD | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    new = read(tmp_path, OLD | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}})
    oldest = read(tmp_path, OLD | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert old == new
    assert old.rope == Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    assert oldest.rope == Rope(5e5, "linear", 2.0)
    assert read(tmp_path, OLD).rope == Rope(10000.0)
    assert read(tmp_path, OLD | {"rope_scaling": None}).num_kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel', model_type None is not one of"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not silu"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not one of"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "key 'low_freq_factor' is missing"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3"),
        ({"head_dim": 12}, "head_dim 12 is not supported"),
        ({"head_dim": 264}, "head_dim 264 is not supported"),
        ({"architectures": None, "model_type": "qwen2"}, "model_type 'qwen2' is not one of"),
        ({"model_type": "mistral"}, "'LlamaForCausalLM', model_type 'mistral' is not one of"),
        ({"num_key_value_heads": -2}, "num_kv_heads is -2; it must be at least 1"),
        ({"architectures": None, "model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        ({"eos_token_id": None}, "eos_token_id is null"),
        ({"hidden_size": "wide"}, "config.json: "),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, OLD | changes)


def test_left_out_keys_mean_what_transformers_takes(tmp_path):
    bare = {key: value for key, value in OLD.items() if key != "architectures"} | {"num_attention_heads": 8}
    for model_type, config_class in (("llama", transformers.LlamaConfig), ("mistral", transformers.MistralConfig)):
        ours, theirs = read(tmp_path, bare | {"model_type": model_type}), config_class(**bare)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.sliding_window == getattr(theirs, "sliding_window", None)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        LlamaConfig.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        LlamaConfig.from_huggingface(tmp_path)
    with pytest.raises(ValueError, match="key 'hidden_size' is missing"):
        read(tmp_path, {key: value for key, value in OLD.items() if key != "hidden_size"})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_back_and_have_the_published_size(name, tmp_path):
    config = PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(config.to_huggingface("bfloat16")))
    assert LlamaConfig.from_huggingface(tmp_path) == config
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in reference.parameters()) == config.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama2-7b", 6.74), ("llama2-13b", 13.02), ("llama2-70b", 68.98), ("tinyllama-1.1b", 1.10), ("smollm2-135m", 0.1345),
     ("llama3.1-8b", 8.03), ("llama3.2-1b", 1.236), ("mistral-7b", 7.24)],
)  # fmt: skip
def test_parameter_counts_of_model_cards(name, billions):
    assert PRESETS[name].parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_flops_of_llama2_7b():
    """6 N + 12 L d s at 4,096 tokens, N without the input embedding: 46.1 GFLOP a token."""
    assert PRESETS["llama2-7b"].flops_per_token(4096) / 1e9 == pytest.approx(46.1, rel=2e-3)


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match=r"presets? \(tiny, .*llama2-70b"):
        preset("llama2-8b")


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}],
)
def test_frequencies_equal_transformers(scaling, tmp_path):
    config = read(tmp_path, OLD | {"rope_parameters": scaling, "head_dim": 128})
    reference = transformers.LlamaConfig(**OLD, rope_parameters=scaling, head_dim=128)
    expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](reference, "cpu")
    torch.testing.assert_close(inverse_frequencies(config.rope, 128), expected, rtol=1e-6, atol=0)
