"""The operators of this package in a Llama of Hugging Face's transformers (5.x): `patch_llama(model)`.

transformers is imported only when `patch_llama` is called; this package does not depend on it.
"""

import types
from typing import Any

import numpy as np
import torch

from .attention import attention
from .documents import Documents
from .linear_cross_entropy import linear_cross_entropy
from .rmsnorm import rmsnorm
from .rope import rope
from .swiglu import swiglu

_NAME = "materia"
"""Name of the attention in transformers' table: it makes no mask for a name that has no mask function."""


def patch_llama(model: torch.nn.Module) -> None:
    """Replaces the operators of a `transformers.LlamaForCausalLM`, in place; weights and their names stay as they are.

    Replaced, in the forward and the backward pass:
    - every RMSNorm by `rmsnorm`; SiLU and product of the MLP by `swiglu`. It reads gate and up as one tensor, which
      transformers' two linear modules do not make: they are copied together, 8 bytes a channel of the MLP in bf16.
    - rotary embedding by `rope`, with the cosines that the model's own module computes (any scaling), and attention by
      `attention`, without any mask in memory.
    - in training mode (`model.train()`) with `labels`, head and loss by `linear_cross_entropy`: no logits are made, the
      output's `logits` is None. The value is that of transformers: the mean over targets other than -100, or their sum
      divided by `num_items_in_batch`; the last token of a packed document predicts what its label says, so labels are
      -100 at the first token of each document (as transformers' DataCollatorWithFlattening sets them).
    Not replaced: linear modules (adapters and quantised ones keep working), embedding, residual sums.

    Documents: each row of `input_ids` is one or more whole documents, packed end to end without padding; `position_ids`
    [rows, tokens] count from 0 in each (without them a row is one document). They are read back from the device, once
    a forward pass. `documents=Documents.build(...)` over all rows' tokens, given instead of `position_ids`, avoids that
    and makes the whole model one graph under `torch.compile(fullgraph=True)`.

    Raises ValueError here for another architecture, an activation other than SiLU, attention dropout, or a head that is
    not a plain linear module without bias; in the forward pass for a mask with zeros or more than two dimensions,
    positions that do not count from 0, keys from an earlier call (generation beyond the first token), another
    attention implementation set after patching, and for what the operators refuse themselves.
    """
    from transformers import AttentionInterface, LlamaForCausalLM

    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"patch_llama takes a transformers.LlamaForCausalLM, not a {type(model).__name__}")
    config = model.config
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act is {config.hidden_act!r}; the MLP's operator computes SiLU only ('silu')")
    if config.attention_dropout:
        raise ValueError(f"attention_dropout is {config.attention_dropout}; the kernels have none: set it to 0")
    if type(model.lm_head) is not torch.nn.Linear or model.lm_head.bias is not None:
        raise ValueError("lm_head must be a torch.nn.Linear without bias: the loss reads its weight")
    AttentionInterface.register(_NAME, _attention_function)
    model.set_attn_implementation(_NAME)
    _replace(model, _causal_forward)
    _replace(model.model, _model_forward)
    _replace(model.model.norm, _rmsnorm_forward)
    for layer in model.model.layers:
        _replace(layer.input_layernorm, _rmsnorm_forward)
        _replace(layer.post_attention_layernorm, _rmsnorm_forward)
        _replace(layer.self_attn, _attention_forward)
        _replace(layer.mlp, _mlp_forward)


def _replace(module: torch.nn.Module, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)


def _rmsnorm_forward(self, hidden_states):
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    return rmsnorm(flat, self.weight, self.variance_epsilon).view(hidden_states.shape)


def _mlp_forward(self, x):
    gate_up = torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)
    product = swiglu(gate_up.view(-1, gate_up.shape[-1]))
    return self.down_proj(product.view(*x.shape[:-1], -1))


def _attention_forward(
    self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, *, documents, **kwargs
):
    """What transformers' LlamaAttention computes; `documents` comes from `_model_forward` through all layers."""
    shape = hidden_states.shape[:-1]
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    q, k, v = self.q_proj(flat), self.k_proj(flat), self.v_proj(flat)
    cos, sin = (_table(x, shape, q.dtype) for x in position_embeddings)
    row = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)  # the tables have one row a token
    # each on its own, as heads without keys and values: packing them would be one more copy
    q, k = (rope(x, cos, sin, row, x.shape[1] // self.head_dim, 0) for x in (q, k))
    q, k, v = (x.view(x.shape[0], -1, self.head_dim) for x in (q, k, v))
    if past_key_values is not None:  # empty so far (see `_model_forward`): attention reads this call's keys
        past_key_values.update(*(x.unflatten(0, shape).transpose(1, 2) for x in (k, v)), self.layer_idx)
    return self.o_proj(attention(q, k, v, documents, scale=self.scaling).view(*shape, -1)), None


def _table(values: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """[rows or 1, tokens, head_dim], both halves equal -> [all tokens, head_dim / 2] as `rope` takes it."""
    half = values[..., : values.shape[-1] // 2].expand(*shape, -1)
    return half.to(torch.float64 if dtype == torch.float64 else torch.float32).reshape(-1, half.shape[-1]).contiguous()


def _attention_function(*args, **kwargs):
    raise ValueError(f"attention {_NAME!r} belongs to models that patch_llama has patched: call it on this one")


def _model_forward(
    self,
    input_ids=None,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    inputs_embeds=None,
    use_cache=None,
    documents=None,
    **kwargs,
):
    if self.config._attn_implementation != _NAME:
        raise ValueError("patch_llama fixes the attention implementation: load the model again to use another")
    if attention_mask is not None and (attention_mask.dim() != 2 or not attention_mask.bool().all()):
        raise ValueError("attention_mask has zeros or is not 2-D: pack documents without padding, give position_ids")
    if past_key_values is not None and past_key_values.get_seq_length():
        raise ValueError("keys of an earlier call are not supported: load an unpatched model to generate text")
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give input_ids or inputs_embeds, one of the two")
    inputs = inputs_embeds if input_ids is None else input_ids
    rows, tokens = inputs.shape[:2]
    if documents is None:
        documents = Documents.build(_bounds(position_ids, rows, tokens), inputs.device)
    elif position_ids is not None:
        raise ValueError("give documents or position_ids, not both: documents hold the positions")
    elif documents.positions.shape[0] != rows * tokens:
        raise ValueError("documents were built for another number of tokens than all rows have together")
    else:
        position_ids = documents.positions.view(rows, tokens)
    return type(self).forward(
        self,
        input_ids=input_ids,
        position_ids=position_ids,
        past_key_values=past_key_values,
        inputs_embeds=inputs_embeds,
        use_cache=use_cache,
        documents=documents,
        **kwargs,
    )


def _bounds(position_ids: torch.Tensor | None, rows: int, tokens: int) -> np.ndarray:
    """`cu_seqlens` of the documents in all rows, laid end to end. Positions are read back from the device."""
    if position_ids is None:
        return np.arange(rows + 1) * tokens
    positions = position_ids.expand(rows, tokens).cpu().numpy()
    starts = np.ones((rows, tokens), dtype=bool)
    starts[:, 1:] = np.diff(positions) != 1
    if positions[starts].any():
        raise ValueError("position_ids must count 0, 1, 2, ... in each document, without padding between documents")
    return np.append(np.flatnonzero(starts), rows * tokens)


def _causal_forward(
    self,
    input_ids=None,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    inputs_embeds=None,
    labels=None,
    use_cache=None,
    logits_to_keep=0,
    **kwargs,
):
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "past_key_values": past_key_values,
        "inputs_embeds": inputs_embeds,
        "use_cache": use_cache,
    }
    if labels is None or not self.training:
        return type(self).forward(self, **inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    shift_labels, items = kwargs.pop("shift_labels", None), kwargs.pop("num_items_in_batch", None)
    as_tuple = not kwargs.pop("return_dict", True)
    outputs = self.model(**inputs, return_dict=True, **kwargs)
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    targets = shift_labels.reshape(-1)
    hidden, weight = outputs.last_hidden_state.flatten(0, 1), self.lm_head.weight
    if torch.is_autocast_enabled(hidden.device.type):  # custom operators run in their inputs' dtype, linear modules not
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    total = linear_cross_entropy(hidden, weight, targets)
    result = CausalLMOutputWithPast(
        loss=total / ((targets != -100).sum() if items is None else items),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )
    return result.to_tuple() if as_tuple else result
