"""`patch_llama` on a tiny transformers Llama: README's code as it stands, beside the unpatched model."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

import kernels.huggingface
from kernels import rope
from kernels.documents import Documents
from kernels.huggingface import patch_llama

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5  # of each tensor's largest magnitude, float32

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
CHANGES = {
    "grouped": {},
    "tied, head_dim not hidden / heads": {"tie_word_embeddings": True, "head_dim": 16},
    "biases, linear scaling": {
        "attention_bias": True,
        "mlp_bias": True,
        # angles so large that the gradient of the keys' bias, which cancels without them, is no rounding error
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10.0, "factor": 2.0},
    },
}
LENGTHS = [7, 1, 20, 12]


def make(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SHAPE | changes))).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)  # not all ones or zeros
    return model.train()


def packed():
    """One row of documents: input_ids, position_ids, labels without each document's first token."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(61, (1, sum(LENGTHS)), generator=generator)
    position_ids = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    return input_ids, position_ids, input_ids.masked_fill(position_ids == 0, -100)


def bounds():
    return [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]


def assert_equal(ours, theirs, name, tolerance=TOLERANCE):
    difference = (ours.double() - theirs.double()).abs().max().item()
    assert difference <= tolerance * theirs.double().abs().max().item(), f"{name}: differs by {difference}"


def assert_same_gradients(ours, theirs, tolerance=TOLERANCE):
    parameters = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(parameters)
    for name, parameter in ours.named_parameters():
        assert_equal(parameter.grad, parameters[name].grad, name, tolerance)


def pair(dtype=torch.float32, **changes):
    """(the model, its patched copy)"""
    theirs = make(dtype, **changes)
    ours = copy.deepcopy(theirs)
    patch_llama(ours)
    return theirs, ours


def test_the_code_of_the_readme(tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text().split("## The kernels in your own model\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    # as installed; the operators of one process can be registered under one package name only
    monkeypatch.setitem(sys.modules, "materia.kernels.huggingface", kernels.huggingface)
    theirs = make()
    theirs.save_pretrained(tmp_path)
    input_ids, position_ids, labels = packed()
    names = {"folder": tmp_path, "input_ids": input_ids, "position_ids": position_ids, "labels": labels}
    exec(code, names)
    theirs(input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss.backward()
    assert_same_gradients(names["model"], theirs)


@pytest.mark.parametrize("shape", CHANGES)
def test_packed_documents(shape):
    theirs, ours = pair(**CHANGES[shape])
    input_ids, position_ids, labels = packed()
    wanted = theirs(input_ids, position_ids=position_ids, labels=labels, use_cache=False)
    result = ours(input_ids, position_ids=position_ids, labels=labels)
    assert result.logits is None
    assert_equal(result.loss, wanted.loss, "loss")
    assert_equal(ours(input_ids, position_ids=position_ids).logits, wanted.logits, "logits")
    wanted.loss.backward()
    result.loss.backward()
    assert_same_gradients(ours, theirs)


def test_a_batch_of_rows_and_every_way_to_give_it():
    """Rows are documents; a mask of ones, a number of items, embeddings and evaluation change nothing else."""
    theirs, ours = pair()
    input_ids = packed()[0].view(4, 10)
    wanted = theirs(input_ids, labels=input_ids, num_items_in_batch=7)
    result = ours(input_ids, attention_mask=torch.ones_like(input_ids), labels=input_ids, num_items_in_batch=7)
    assert_equal(result.loss, wanted.loss, "loss")
    embeddings = ours.model.embed_tokens(input_ids)
    assert_equal(ours(inputs_embeds=embeddings, labels=input_ids, num_items_in_batch=7).loss, wanted.loss, "loss")
    shifted = torch.nn.functional.pad(input_ids, (0, 1), value=-100)[:, 1:]
    loss = ours(input_ids, labels=input_ids, shift_labels=shifted, num_items_in_batch=7, return_dict=False)[0]
    assert_equal(loss, wanted.loss, "loss")
    evaluated = ours.eval()(input_ids, labels=input_ids, num_items_in_batch=7)
    assert_equal(evaluated.logits, wanted.logits, "logits")
    assert_equal(evaluated.loss, wanted.loss, "loss")
    wanted.loss.backward()
    result.loss.backward()
    assert_same_gradients(ours, theirs)


def test_recompute_of_layers():
    theirs, ours = pair()
    ours.gradient_checkpointing_enable()
    input_ids, position_ids, labels = packed()
    theirs(input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss.backward()
    ours(input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss.backward()
    assert_same_gradients(ours, theirs)


def test_autocast():
    """float32 weights, bfloat16 products: as close to float32 as the unpatched model is under autocast."""
    theirs, ours = pair()
    input_ids, position_ids, labels = packed()
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "use_cache": False}
    exact = theirs(**inputs).loss.detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss, wanted = ours(**inputs).loss, theirs(**inputs).loss
    assert (loss - exact).abs() <= 2 * (wanted - exact).abs() + 2**-8
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16(device):
    """Against float32 at most twice the error of the unpatched model in bfloat16, plus one unit in the last place."""
    exact_model = make().to(device)
    theirs = copy.deepcopy(exact_model).bfloat16()
    ours = copy.deepcopy(theirs)
    patch_llama(ours)
    input_ids, position_ids, labels = (x.to(device) for x in packed())
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
    exact = exact_model(**inputs).logits
    error, allowed = ((model(**inputs).logits - exact).abs().max().item() for model in (ours, theirs))
    assert error <= 2 * allowed + 2**-7 * exact.abs().max().item()
    losses = [model(**inputs, labels=labels).loss for model in (exact_model, theirs, ours)]
    assert (losses[2] - losses[0]).abs() <= 2 * (losses[1] - losses[0]).abs() + 2**-8 * losses[0]
    for loss in losses:
        loss.backward()
    parameters = zip(*(model.parameters() for model in (exact_model, theirs, ours)), strict=True)
    for wanted, reference, parameter in parameters:
        error, allowed = ((x.grad - wanted.grad).abs().max().item() for x in (parameter, reference))
        assert error <= 3 * allowed + 2**-7 * wanted.grad.abs().max().item()


def test_compiles_whole_with_documents():
    """Given `documents`, nothing is read back: the whole model is one graph, for other documents too."""
    theirs, ours = pair()
    input_ids, position_ids, labels = packed()
    theirs(input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss.backward()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    documents = Documents.build(bounds(), "cpu")
    compiled(input_ids, labels=labels, documents=documents, use_cache=False).loss.backward()
    assert_same_gradients(ours, theirs)
    others = Documents.build([0, 3, 30, 30, 40], "cpu")
    position_ids = others.positions.long()[None]
    with torch.compiler.set_stance("fail_on_recompile"):
        loss = compiled(input_ids, labels=labels, documents=others, use_cache=False).loss
    assert_equal(loss, theirs(input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss, "loss")


def test_rope_of_heads_without_keys_and_values(backend):
    """q and k are rotated each on its own: what the packed product gives, in Triton too."""
    backend.use(rope)
    packed = backend.tensor(9, (4 + 2 * 2) * 16)
    angle = backend.tensor(9, 8, seed=1).to(torch.float64 if backend.dtype == torch.float64 else torch.float32)
    tables = angle.cos(), angle.sin(), torch.arange(9, device=backend.device)
    whole = rope.rope(packed, *tables, 4, 2)
    assert torch.equal(rope.rope(packed[:, :64], *tables, 4, 0), whole[:, :64])
    assert torch.equal(rope.rope(packed[:, 64:96], *tables, 2, 0), whole[:, 64:96])


def padded_mask():
    return torch.ones(1, 40, dtype=torch.int64).index_fill_(1, torch.tensor([0, 1]), 0)


def cache_with_keys(model):
    return model(packed()[0], use_cache=True).past_key_values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda model: {"attention_mask": padded_mask()}, "attention_mask has zeros"),
        (lambda model: {"attention_mask": torch.ones(1, 1, 40, 40)}, "is not 2-D"),
        (lambda model: {"position_ids": torch.arange(40)[None] + 1}, "must count 0, 1, 2"),
        (lambda model: {"position_ids": torch.arange(40)[None].clamp(min=1) - 1}, None),
        (lambda model: {"position_ids": torch.arange(40).flip(0)[None]}, "must count 0, 1, 2"),
        (lambda model: {"past_key_values": cache_with_keys(model)}, "keys of an earlier call"),
        (
            lambda model: {"position_ids": packed()[1], "documents": Documents.build(bounds(), "cpu")},
            "documents or position_ids, not both",
        ),
        (lambda model: {"documents": Documents.build([0, 41], "cpu")}, "another number of tokens"),
        (lambda model: {"inputs_embeds": torch.zeros(1, 40, 48)}, "one of the two"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(arguments, message):
    model = make()
    patch_llama(model)
    if message is None:
        assert model(packed()[0], **arguments(model)).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match=message):
        model(packed()[0], **arguments(model))


def test_generation_and_another_attention_are_refused():
    model = make().eval()
    patch_llama(model)
    with pytest.raises(ValueError, match="load an unpatched model to generate"):
        model.generate(packed()[0], attention_mask=torch.ones(1, 40), max_new_tokens=3, pad_token_id=0)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="fixes the attention implementation"):
        model(packed()[0])
    other = make()
    other.set_attn_implementation("materia")
    with pytest.raises(ValueError, match="call it on this one"):
        other(packed()[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "not a Linear"),
        (lambda: make(hidden_act="gelu"), "computes SiLU only"),
        (lambda: make(attention_dropout=0.1), "attention_dropout is 0.1"),
    ],
)
def test_models_it_cannot_patch_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        patch_llama(model())


def test_a_head_with_bias_is_refused():
    model = make()
    model.lm_head = torch.nn.Linear(48, 61)
    with pytest.raises(ValueError, match="without bias"):
        patch_llama(model)
