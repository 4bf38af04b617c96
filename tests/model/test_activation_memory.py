"""What a block keeps for its backward pass, tensor by tensor: saved-tensor hooks, and storages that stay alive.

For s tokens of hidden size h in 2-byte values, with k = kv_heads / heads, r = intermediate / h and heads * head_dim = h:
norm input 2, q, k and v 2 (1 + 2 k), attention output 2, norm input 2, gate and up 4 r bytes a token and hidden
channel; in float32 the log-sum-exp, one number a token and head, and two rstd, one number a token. That is 22.75 at
Llama-2-7B's ratios (k 1, r 2.6875) and 22.5 at 70B's (k 1/8, r 3.5), plus (4 heads + 8) / h.
"""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import LlamaConfig
from model.llama import Llama, micro_batch

BOUNDS = [0, 5, 5, 40, 64]
TOKENS = BOUNDS[-1]
# name -> (bytes a token and hidden channel, shape): Llama-2-7B's own, 70B's ratios at an eighth of its size
SHAPES = {
    "7B": (22.75, {"hidden_size": 4096, "intermediate_size": 11008, "num_heads": 32, "num_kv_heads": 32}),
    "70B": (22.5, {"hidden_size": 1024, "intermediate_size": 3584, "num_heads": 8, "num_kv_heads": 1}),
}


def of_model(model):
    """Storages that are there once for all layers and micro-batches: weights, main gradients, rotary tables."""
    tensors = (model.buffer.data, model.buffer.main_grad, model.cos, model.sin)
    return {tensor.untyped_storage()._cdata for tensor in tensors if tensor is not None}


class NewStorages(TorchDispatchMode):
    """Weak references to the storage of every tensor that an operation returns: what stays alive is kept, whoever
    keeps it and whether or not `save_for_backward` was told."""

    def __init__(self, model):
        super().__init__()
        self.references, self.known = {}, of_model(model)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.references[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def alive(self, *exclude):
        """Bytes of storages that still exist, without those of the tensors `exclude`."""
        known = self.known | {tensor.untyped_storage()._cdata for tensor in exclude}
        return sum(n for key, (storage, n) in self.references.items() if key not in known and not storage.expired())


def make(shape, layers=1, **options):
    config = LlamaConfig(
        vocab_size=16, num_layers=layers, head_dim=128, max_position_embeddings=TOKENS, **SHAPES[shape][1]
    )
    model = Llama(config, dtype=torch.bfloat16, **options)
    tokens = torch.arange(TOKENS) % 16
    return model, micro_batch(tokens, tokens, BOUNDS, config, "cpu")


def run_block(model, batch):
    """(the block's input, its output), as `Llama.hidden` runs it in training."""
    x = torch.zeros(TOKENS, model.config.hidden_size, dtype=model.dtype, requires_grad=True)
    return x, model.blocks[0](x, model.cos, model.sin, batch.documents)


def expected(config):
    """What a block keeps: the tensors in the order in which the forward pass saves them, and their bytes."""
    hidden, heads = config.hidden_size, config.num_heads
    return [
        ("attention norm's input", 2 * TOKENS * hidden),
        ("attention norm's rstd", 4 * TOKENS),
        ("rotated qkv", 2 * TOKENS * (heads + 2 * config.num_kv_heads) * config.head_dim),
        ("attention output", 2 * TOKENS * heads * config.head_dim),
        ("attention lse", 4 * TOKENS * heads),
        ("MLP norm's input", 2 * TOKENS * hidden),
        ("MLP norm's rstd", 4 * TOKENS),
        ("gate and up", 2 * TOKENS * 2 * config.intermediate_size),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_block_saves_these_tensors_and_no_others(shape):
    model, batch = make(shape)
    known, saved, keep = of_model(model), {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()  # whole: a view keeps all of it
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
            keep.append(tensor)  # an address that is freed would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_block(model, batch)
    components = expected(model.config)
    names = [name for name, _ in components] + [f"surplus {i}" for i in range(len(saved))]
    assert list(zip(names, saved.values(), strict=False)) == components

    hidden, total = model.config.hidden_size, sum(saved.values())
    bar, extra = SHAPES[shape][0], (4 * model.config.num_heads + 8) / hidden
    print(f"{shape}: {total / TOKENS / hidden:.4f} bytes a token and hidden channel, at most {bar + extra:.4f}")
    assert total <= (bar + extra) * TOKENS * hidden


def test_nothing_else_stays_alive():
    """Tensors that hang on the graph by other ways than save_for_backward, which hooks do not see, would count here."""
    model, batch = make("70B")
    with NewStorages(model) as storages:
        x, y = run_block(model, batch)
    assert storages.alive(x, y) == sum(n for name, n in expected(model.config) if name != "attention norm's input")
    del y
    assert storages.alive(x) == 0


def test_backward_frees_all_it_kept():
    model, batch = make("70B", gradients=True)
    with NewStorages(model) as storages:
        x, y = run_block(model, batch)
        y.backward(torch.ones_like(y))
    assert storages.alive(x, y, x.grad) == 0


KEPT = {
    "none": range(8),
    "mlp": range(6),  # all but its rstd and gate and up: 10.75 bytes a token and channel fewer at 7B
    "attention": (0, 5, 6, 7),  # all but its rstd, qkv, output and lse: 8 bytes fewer at 7B
    "full": (0, 5),  # the two residuals: 4 bytes are left
}
"""Rows of `expected` that each kind of recompute keeps."""


def kept_bytes(recompute, config):
    return sum(expected(config)[row][1] for row in KEPT[recompute])


@pytest.mark.parametrize("recompute", KEPT)
@pytest.mark.parametrize("shape", SHAPES)
def test_recompute_keeps_these_bytes(shape, recompute):
    """Measured by the storages that stay alive, in a model of two layers (their shapes are those of test 7B and 70B)."""
    model, batch = make(shape, layers=2 if shape == "70B" else 1, gradients=shape == "70B", recompute=recompute)
    layers, hidden = model.config.num_layers, model.config.hidden_size
    with NewStorages(model) as storages:
        x = torch.zeros(TOKENS, hidden, dtype=model.dtype, requires_grad=True)
        y = x
        for block in model.blocks:
            y = block(y, model.cos, model.sin, batch.documents)
    assert storages.alive(y) == layers * kept_bytes(recompute, model.config)
    saved = (expected(model.config)[i][1] for i in range(8) if i not in KEPT[recompute])
    fewer = sum(saved) / TOKENS / hidden
    ratio = model.config.intermediate_size / hidden, model.config.num_kv_heads / model.config.num_heads
    tensors = {"none": 0, "mlp": 4 * ratio[0], "attention": 2 + 2 * (1 + 2 * ratio[1])}
    tensors["full"] = tensors["mlp"] + tensors["attention"]
    assert tensors[recompute] <= fewer <= tensors[recompute] + 0.05  # and a few numbers a token
    if shape == "7B":
        assert (tensors["mlp"], tensors["attention"]) == (10.75, 8)


def test_recompute_of_the_first_layers_alone():
    model, batch = make("70B", layers=3, gradients=True, recompute="full-2")
    with NewStorages(model) as storages:
        y = model.hidden(batch.tokens, batch.documents)
    of_embedding = TOKENS * (8 + 1)  # row int64, whether it is of this rank bool
    assert storages.alive(y) == 2 * kept_bytes("full", model.config) + kept_bytes("none", model.config) + of_embedding


@pytest.mark.parametrize("recompute", KEPT)
def test_recompute_gives_the_same_gradients(recompute):
    """To the bit: the same operations on the same numbers."""
    gradients = []
    for setting in ("none", recompute):
        model, batch = make("70B", layers=2, gradients=True, recompute=setting)
        model.initialise(0)
        model(batch).backward()
        gradients.append(model.buffer.main_grad)
    assert gradients[0].count_nonzero() > 0
    assert torch.equal(*gradients)
