"""What only a GPU can show, beside the operators' own tests marked gpu: gradients in bfloat16 at real sizes, the same
bits a hundred times, CUDA graphs, no compilation for another batch, float32 without TF32, more than 2^31 elements.
"""

import copy

import pytest
import torch

from bench import rows, rows_matrix
from bench.measure import OURS, poisoned_memory, relative_error
from kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    cross_entropy_row,
    decode,
    linear_cross_entropy,
    rmsnorm,
    rope,
    swiglu,
)
from kernels.documents import Documents
from kernels.triton_or_stub import triton

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
MODULES = (adamw, attention, attention_backward, cross_entropy, cross_entropy_row, decode, rmsnorm, rope, swiglu)
ROWS = {row.name: row for row in (*rows.MEMORY_ROWS, *rows_matrix.MATRIX_ROWS)}
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WIDTH, VOCABULARY = 8, 2, 64, 512, 1408, 3001
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM


def same_bits(first, second):
    return all(
        torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


# ---- accuracy --------------------------------------------------------------------------------------------------------

REAL_SIZES = {
    **{f"{add}rmsnorm_{way}-4096": {"tokens": 4001} for add in ("", "add_") for way in ("forward", "backward")},
    **{f"{add}rmsnorm_{way}-8192": {"tokens": 2001} for add in ("", "add_") for way in ("forward", "backward")},
    **{f"rope_{way}": {"tokens": 4001} for way in ("forward", "backward")},
    **{f"swiglu_{way}": {"tokens": 2001} for way in ("forward", "backward")},
    **{f"attention_{way}-{heads}": {"tokens": 4001, "document": 1500} for way in ("forward", "backward")
       for heads in ("64_8", "32_32")},
    "adamw": {"elements": 10_000_019},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_SIZES)
def test_bfloat16_at_real_sizes(name, assert_accurate):
    """Against float64 and beside plain torch, in memory where what nobody writes is NaN."""
    row = ROWS[name]
    inputs = row.inputs({**row.size, **REAL_SIZES[name]}, DEVICE, torch.bfloat16, 0)
    exact = row.reference(inputs)
    plain = row.candidates["eager"](inputs).run()
    with poisoned_memory():
        ours = row.candidates[OURS](inputs).run()
    factor = 3 if "backward" in name else 2
    for mine, theirs, wanted in zip(ours, plain, exact, strict=True):
        if name == "adamw" and mine.dtype == torch.float32:
            assert relative_error(mine, wanted) < 1e-6
        else:
            assert_accurate(mine, theirs.to(mine.dtype), wanted, factor)


FLOAT32 = ("attention_forward-32_32", "attention_backward-32_32", "decode-4k", "linear_cross_entropy-32k",
           "rmsnorm_backward-4096", "swiglu_backward", "rope_forward")  # fmt: skip


@pytest.mark.parametrize("name", FLOAT32)
def test_float32_is_not_rounded_to_tf32(name):
    """TF32 has 11 bits: a product would be wrong by about 3e-4."""
    row = ROWS[name]
    small = {"tokens": 512, "document": 300, "vocabulary": 2000, "width": 1024, "hidden": 4096, "batch": 4}
    size = {key: min(value, small.get(key, value)) for key, value in row.size.items()}
    assert torch.get_float32_matmul_precision() == "highest"
    inputs = row.inputs(size, DEVICE, torch.float32, 0)
    for mine, wanted in zip(row.candidates[OURS](inputs).run(), row.reference(inputs), strict=True):
        assert relative_error(mine, wanted) < 1e-5


# ---- determinism -----------------------------------------------------------------------------------------------------

REPEATED = {
    "attention_forward-64_8": {"tokens": 4096, "document": 1500},
    "attention_backward-64_8": {"tokens": 4096, "document": 1500},
    "attention_backward-d64": {"tokens": 4096, "document": 350},
    "cross_entropy-128k": {"tokens": 1024},
    "linear_cross_entropy-32k": {"tokens": 4096, "width": 1024},
    "rmsnorm_backward-4096": {"tokens": 8192},
    "add_rmsnorm_backward-8192": {"tokens": 8192},
    "decode-4k": {},
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_hundred_runs_give_the_same_bits(name):
    row = ROWS[name]
    work = row.candidates[OURS](row.inputs({**row.size, **REPEATED[name]}, DEVICE, torch.bfloat16, 0))
    first = None
    for _ in range(100):
        if work.reset is not None:
            work.reset()
        results = work.run()
        if first is None:
            first = [x.clone() for x in results]
        assert same_bits(first, results)


# ---- a block's operators together ------------------------------------------------------------------------------------


def block_inputs(tokens, bounds, seed):
    """Inputs of `block`: the batch, which changes, and the documents."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16().to(DEVICE)
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator).to(DEVICE)
    return x, targets, Documents.build(bounds, DEVICE)


def block_weights():
    generator = torch.Generator().manual_seed(9)

    def weight(*shape):
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16().to(DEVICE)

    shapes = {"qkv": (QKV, HIDDEN), "out": (HIDDEN, HEADS * HEAD_DIM), "up": (2 * WIDTH, HIDDEN), "down": (HIDDEN, WIDTH),
              "head": (VOCABULARY, HIDDEN)}  # fmt: skip
    weights = {name: weight(*shape) for name, shape in shapes.items()}
    angle = torch.outer(torch.arange(4096.0), 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    tables = {"cos": angle.cos().to(DEVICE), "sin": angle.sin().to(DEVICE)}
    return {**weights, **tables, "norm": torch.ones(HIDDEN, device=DEVICE, dtype=torch.bfloat16)}


def heads_of(packed):
    return packed.unflatten(1, (-1, HEAD_DIM)).split([HEADS, KV_HEADS, KV_HEADS], 1)


def block(weights, x, targets, documents):
    """Forward and backward pass of one layer and the loss: (loss, gradient of x, gradients of norm and head)."""
    turn = (weights["cos"], weights["sin"], documents.positions, HEADS, KV_HEADS)
    normed, rstd = rmsnorm.rmsnorm_forward(x, weights["norm"], 1e-5)
    qkv = rope.rope_forward(normed @ weights["qkv"].t(), *turn)
    out, lse = attention.attention_forward(*heads_of(qkv), documents)
    projected = out.flatten(1) @ weights["out"].t()
    normed2, rstd2, summed = rmsnorm.rmsnorm_forward(projected, weights["norm"], 1e-5, residual=x)
    gate_up = normed2 @ weights["up"].t()
    hidden = summed + swiglu.swiglu_forward(gate_up) @ weights["down"].t()
    head_grad = torch.zeros(VOCABULARY, HIDDEN, device=x.device)
    loss, dhidden = linear_cross_entropy.linear_cross_entropy_forward(
        hidden, weights["head"], targets, weight_grad=head_grad, need_gradient=True
    )
    norm_grad = torch.zeros(HIDDEN, device=x.device)
    dgate_up = swiglu.swiglu_backward(dhidden @ weights["down"], gate_up, out=gate_up)
    dsummed = rmsnorm.rmsnorm_backward(
        dgate_up @ weights["up"], summed, weights["norm"], rstd2, weight_grad=norm_grad, dsummed=dhidden
    )
    dout = (dsummed @ weights["out"]).unflatten(1, (-1, HEAD_DIM))
    dqkv = torch.empty_like(qkv)
    attention_backward.attention_backward(dout, *heads_of(qkv), out, lse, documents, *heads_of(dqkv))
    rope.rope_backward(dqkv, *turn)
    dx = rmsnorm.rmsnorm_backward(
        dqkv @ weights["qkv"], x, weights["norm"], rstd, weight_grad=norm_grad, dsummed=dsummed
    )
    return loss, dx, norm_grad, head_grad


def test_a_block_in_a_cuda_graph():
    """Captured once, replayed on other tokens, targets and documents: the same as without a graph, but for what cuBLAS
    makes of its products on another stream."""
    weights = block_weights()
    tokens = 1500
    static = block_inputs(tokens, [0, 700, 701, tokens], 0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            block(weights, *static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = block(weights, *static)
    for seed, bounds in enumerate(([0, 1, 1499, tokens], [0, 0, tokens, tokens], [0, 500, 1000, tokens]), start=1):
        batch = block_inputs(tokens, bounds, seed)
        wanted = block(weights, *batch)
        for place, value in zip(static[:2], batch[:2], strict=True):
            place.copy_(value)
        for place, value in zip(static[2].tensors(), batch[2].tensors(), strict=True):
            place.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert all(relative_error(ours, theirs) < 1e-2 for ours, theirs in zip(results, wanted, strict=True))


def compiled_variants():
    """Number of compiled kernels on this GPU, by jitted function."""
    index = torch.cuda.current_device()
    functions = {
        f"{module.__name__}.{name}": function
        for module in MODULES
        for name, function in vars(module).items()
        if isinstance(function, triton.JITFunction) and name.endswith("_kernel")
    }
    return {name: len(function.device_caches[index][0]) for name, function in functions.items()}


def test_no_compilation_for_other_batches():
    """Numbers of tokens, 1 and multiples of 16 among them, and of documents."""
    weights = block_weights()
    block(weights, *block_inputs(1000, [0, 300, 1000], 0))
    before = compiled_variants()
    assert sum(before.values()) >= 8
    for tokens, bounds in ((1, [0, 1]), (16, [0, 8, 16]), (1024, [0, 1024]), (777, [0, 1, 1, 5, 777])):
        block(weights, *block_inputs(tokens, bounds, tokens))
    torch.cuda.synchronize()
    assert compiled_variants() == before


def test_a_block_twice_and_its_inputs_unchanged():
    weights = block_weights()
    batch = block_inputs(1000, [0, 300, 1000], 0)
    kept = copy.deepcopy(batch[:2]), {name: weight.clone() for name, weight in weights.items()}
    with poisoned_memory():
        first = block(weights, *batch)
    assert all(x.isfinite().all() for x in first)
    assert same_bits(first, block(weights, *batch))
    assert same_bits(batch[:2], kept[0])
    assert same_bits(weights.values(), kept[1].values())


# ---- size ------------------------------------------------------------------------------------------------------------


def test_more_than_two_to_the_31_elements():
    """SwiGLU and RMSNorm of 2^31 and more elements: the last rows are as they are alone."""
    if torch.cuda.get_device_properties(DEVICE).total_memory < 40e9:
        pytest.skip("needs a GPU with 40 GB")
    tokens, width = (1 << 17) + 3, 1 << 13
    gate_up = torch.empty(tokens, 2 * width, device=DEVICE, dtype=torch.bfloat16)
    assert gate_up.numel() > 1 << 31
    gate_up[-5:] = torch.randn(5, 2 * width, device=DEVICE)
    gate_up[:-5] = 1.0
    product = swiglu.swiglu_forward(gate_up)
    assert same_bits([product[-5:]], [swiglu.swiglu_forward(gate_up[-5:].clone())])
    weight = torch.ones(2 * width, device=DEVICE, dtype=torch.bfloat16)
    normed, rstd = rmsnorm.rmsnorm_forward(gate_up, weight, 1e-5)
    assert same_bits([normed[-5:], rstd[-5:]], rmsnorm.rmsnorm_forward(gate_up[-5:].clone(), weight, 1e-5))
    alone = swiglu.swiglu_backward(product[-5:].clone(), gate_up[-5:].clone())
    swiglu.swiglu_backward(product, gate_up, out=gate_up)
    assert same_bits([gate_up[-5:]], [alone])
