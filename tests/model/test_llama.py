"""Logits and weight gradients against transformers; packed documents against one document at a time."""

import json

import pytest
import torch
import transformers

from model.config import LlamaConfig
from model.huggingface import load_model, save_model
from model.llama import Llama, check_split, micro_batch

TOLERANCE = 1e-5  # of each tensor's largest magnitude, float32

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES = {
    "multi-head": (transformers.LlamaConfig, {}),
    "grouped": (transformers.LlamaConfig, {"num_key_value_heads": 2}),
    "multi-query": (transformers.LlamaConfig, {"num_key_value_heads": 1}),
    "tied": (transformers.LlamaConfig, {"num_key_value_heads": 3, "tie_word_embeddings": True}),
    "head_dim not hidden / heads": (transformers.LlamaConfig, {"head_dim": 16, "num_key_value_heads": 2}),
    "llama 3 scaling": (transformers.LlamaConfig, {"rope_parameters": SCALING}),
    "linear scaling": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral window": (transformers.MistralConfig, {"num_key_value_heads": 2, "sliding_window": 7}),
}


def assert_equal(ours, theirs, name, tolerance=TOLERANCE):
    """The project's measure: largest difference over largest magnitude."""
    difference = (ours.double() - theirs.double()).abs().max().item()
    assert difference <= tolerance * theirs.double().abs().max().item(), f"{name}: differs by {difference}"


def reference_model(shape):
    config_class, changes = SHAPES[shape]
    torch.manual_seed(0)
    config = config_class(**(LLAMA | changes), attn_implementation="eager")
    reference = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            # Norm gains off 1 and weights large enough that attention is far from uniform.
            weight.copy_(torch.rand_like(weight) + 0.5 if weight.dim() == 1 else torch.randn_like(weight) * 0.15)
            assert name
    return reference


def load_from_reference(reference, folder, **options):
    reference.save_pretrained(folder)
    return load_model(folder, **options)


def batch_of(model, documents):
    tokens = torch.cat(documents)
    targets = torch.cat([torch.cat([document[1:], document.new_tensor([-100])]) for document in documents])
    bounds = [0]
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    return micro_batch(tokens, targets, bounds, model.config, "cpu")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_transformers(shape, tmp_path):
    reference = reference_model(shape)
    model = load_from_reference(reference, tmp_path, gradients=True)
    torch.manual_seed(1)
    documents = [torch.randint(97, (length,)) for length in (31, 1, 18)]
    batch = batch_of(model, documents)

    logits = model.logits(model.hidden(batch.tokens, batch.documents)).detach()
    loss = model(batch)
    loss.backward()

    expected_logits, expected_loss = [], 0.0
    for document in documents:
        out = reference(document[None]).logits[0]
        expected_logits.append(out.detach())
        if len(document) > 1:
            expected_loss = expected_loss + torch.nn.functional.cross_entropy(out[:-1], document[1:], reduction="sum")
    expected_loss.backward()

    assert_equal(logits, torch.cat(expected_logits), "logits")
    assert_equal(loss.detach(), expected_loss.detach(), "loss")
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    assert {p.record.name for p in model.buffer.parameters} == set(gradients)
    for parameter in model.buffer.parameters:
        assert_equal(parameter.main_grad, gradients[parameter.record.name], parameter.record.name)


@pytest.mark.parametrize("shape", ["grouped", "mistral window"])
def test_packed_documents_equal_one_at_a_time(shape, tmp_path):
    packed = load_from_reference(reference_model(shape), tmp_path, dtype=torch.float64, gradients=True)
    single = load_model(tmp_path, dtype=torch.float64, gradients=True)
    documents = [torch.randint(97, (length,)) for length in (9, 1, 40, 2)]
    total = packed(batch_of(packed, documents))
    total.backward()
    separate = [single(batch_of(single, [document])) for document in documents]
    torch.stack(separate).sum().backward()
    assert_equal(total.detach(), torch.stack(separate).sum().detach(), "loss", 1e-12)
    assert_equal(packed.buffer.main_grad, single.buffer.main_grad, "gradients", 1e-12)


def test_full_recompute_gives_the_same_gradients(tmp_path):
    kept = load_from_reference(reference_model("grouped"), tmp_path, gradients=True)
    recomputed = load_model(tmp_path, gradients=True, recompute="full")
    documents = [torch.randint(97, (length,)) for length in (20, 30)]
    for model in (kept, recomputed):
        model(batch_of(model, documents)).backward()
    assert torch.equal(kept.buffer.main_grad, recomputed.buffer.main_grad)


def test_main_gradients_add_up_over_micro_batches(tmp_path):
    model = load_from_reference(reference_model("tied"), tmp_path, dtype=torch.float64, gradients=True)
    first, second = torch.randint(97, (12,)), torch.randint(97, (20,))
    model(batch_of(model, [first, second])).backward()
    together = model.buffer.main_grad.clone()
    model.buffer.main_grad.zero_()
    for document in (first, second):
        model(batch_of(model, [document])).backward()
    assert_equal(model.buffer.main_grad, together, "gradients", 1e-12)


def test_no_gradient_work_without_gradients(tmp_path):
    model = load_from_reference(reference_model("grouped"), tmp_path, gradients=True)
    with torch.no_grad():
        loss = model(batch_of(model, [torch.randint(97, (16,))]))
    assert not loss.requires_grad
    assert model.buffer.main_grad.count_nonzero() == 0


def test_block_keeps_what_the_formula_says():
    """(22.75 + (4 heads + 8) / hidden) bytes a token and hidden channel in bf16 for Llama-2-7B's proportions, from
    saved tensors.
    """
    config = LlamaConfig(64, 256, 688, 2, 2, 2, 128, 512)
    model = Llama(config, dtype=torch.bfloat16, gradients=True)
    model.initialise(0)
    tokens = 128
    documents = micro_batch(
        torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, dtype=torch.int64), [0, tokens], config, "cpu"
    ).documents
    x = torch.randn(tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    constant = {t.untyped_storage().data_ptr() for t in (model.cos, model.sin, model.buffer.data)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model.blocks[0](x, model.cos, model.sin, documents)
    kept = sum(size for pointer, size in saved.items() if pointer not in constant)
    assert y.requires_grad
    assert kept <= (22.75 + (4 * 2 + 8) / 256) * tokens * 256


def test_saved_folder_opens_in_transformers_with_equal_logits(tmp_path):
    for shape in ("grouped", "tied", "llama 3 scaling", "mistral window"):
        reference = reference_model(shape)
        model = load_from_reference(reference, tmp_path / shape / "in")
        save_model(model, tmp_path / shape / "out")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / shape / "out", dtype=torch.float32)
        document = torch.randint(97, (40,))
        batch = batch_of(model, [document])
        assert_equal(model.logits(model.hidden(batch.tokens, batch.documents)), again(document[None]).logits[0], shape)
        assert json.loads((tmp_path / shape / "out" / "config.json").read_text())["architectures"] == [
            type(reference).__name__
        ]


def test_stories260k_equals_transformers(assets):
    folder = assets / "model" / "stories260K"
    model = load_model(folder, gradients=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    document = torch.cat([torch.tensor([1]), torch.randint(3, 512, (120,))])
    batch = batch_of(model, [document])
    out = reference(document[None]).logits[0]
    assert_equal(model.logits(model.hidden(batch.tokens, batch.documents)), out, "logits")
    torch.nn.functional.cross_entropy(out[:-1], document[1:], reduction="sum").backward()
    model(batch).backward()
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    for parameter in model.buffer.parameters:
        assert_equal(parameter.main_grad, gradients[parameter.record.name], parameter.record.name)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_bf16_gradients_on_a_gpu(tmp_path, recompute):
    """Weight gradients of the kernels in bf16, against the same weights in float64 on the CPU."""
    reference = load_from_reference(reference_model("grouped"), tmp_path, dtype=torch.float64, gradients=True)
    model = load_model(tmp_path, dtype=torch.bfloat16, device="cuda", gradients=True, recompute=recompute)
    documents = [torch.randint(97, (length,)) for length in (20, 1, 30)]
    batch = batch_of(reference, documents)
    reference(batch).backward()
    bounds = batch.documents.cu_seqlens.tolist()
    model(micro_batch(batch.tokens, batch.targets, bounds, model.config, "cuda")).backward()
    for ours, exact in zip(model.buffer.parameters, reference.buffer.parameters, strict=True):
        assert ours.main_grad.dtype == torch.float32
        assert_equal(ours.main_grad.cpu(), exact.main_grad, ours.record.name, 0.05)


def test_what_tensor_parallelism_cannot_split_is_named():
    config = LlamaConfig(64, 48, 96, 2, 6, 2, 8, 32)
    for tp in (1, 2, 6):  # 6: each key/value head on three ranks
        check_split(config, tp)
    for tp, message in (
        (4, "--tp 4 does not divide the model's 6 attention heads"),
        (3, "--tp 3 neither divides the model's 2 key/value heads nor is a multiple of them"),
    ):
        with pytest.raises(ValueError, match=message):
            check_split(config, tp)
    with pytest.raises(ValueError, match="--tp 6 does not divide the model's 80 MLP channels"):
        check_split(LlamaConfig(64, 48, 80, 2, 6, 2, 8, 32), 6)


def test_micro_batches_have_few_shapes():
    """cu_seqlens is padded by empty documents, tokens to a multiple of tp by one document without targets."""
    config = LlamaConfig(64, 48, 80, 2, 6, 2, 8, 32)
    tokens = torch.arange(10)
    batch = micro_batch(tokens, tokens, [0, 4, 10], config, "cpu", multiple=4)
    assert batch.tokens.tolist() == [*range(10), 0, 0]
    assert batch.targets.tolist() == [*range(10), -100, -100]
    assert batch.documents.cu_seqlens.tolist() == [0, 4, 10] + [12] * 62
    many = micro_batch(
        torch.zeros(100, dtype=torch.int64), torch.zeros(100, dtype=torch.int64), range(101), config, "cpu"
    )
    assert many.documents.cu_seqlens.tolist() == [*range(101)] + [100] * 28


def test_random_weights_do_not_depend_on_other_tensors():
    """The same tensor of a deeper model starts from the same numbers, but for the depth's factor."""
    shallow = Llama(LlamaConfig(64, 32, 48, 1, 2, 2, 16, 32))
    deep = Llama(LlamaConfig(64, 32, 48, 4, 2, 2, 16, 32))
    for model in (shallow, deep):
        model.initialise(5)
    weights = {p.record.name: p.data for p in deep.buffer.parameters}
    for parameter in shallow.buffer.parameters:
        factor = 2.0 if parameter.record.name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(parameter.data, weights[parameter.record.name] * factor)
