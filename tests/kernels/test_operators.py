"""The public operators: gradients, torch.library.opcheck, torch.compile, and what those do not see."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from kernels import attention, cross_entropy, decode, linear_cross_entropy, rmsnorm, rope, swiglu
from kernels.documents import Documents

BOUNDS = [0, 4, 4, 5, 12]
HEADS, KV_HEADS, HEAD_DIM = 2, 1, 8
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
TARGETS = torch.tensor([3, 0, -100, 9, 9, 1, 2, 3, 4, 5, 6, -100])


def random(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


ANGLE = random(16, HEAD_DIM // 2, grad=False)
COS, SIN = ANGLE.cos(), ANGLE.sin()
DOCUMENTS = Documents.build(BOUNDS, "cpu")


def run_rope(qkv, documents=DOCUMENTS):
    return rope.rope(qkv, COS.to(qkv.dtype), SIN.to(qkv.dtype), documents.positions, HEADS, KV_HEADS)


def run_attention(qkv, documents=DOCUMENTS, window=None, return_lse=False):
    q, k, v = qkv.unflatten(1, (-1, HEAD_DIM)).split([HEADS, KV_HEADS, KV_HEADS], 1)
    return attention.attention(q, k, v, documents, window=window, return_lse=return_lse)


def run_attention_lse(qkv):
    out, lse = run_attention(qkv, return_lse=True)
    return torch.cat([out.flatten(1), lse.t()], 1)


def run_cross_entropy(hidden, weight, z_loss=0.0):
    return linear_cross_entropy.linear_cross_entropy(hidden, weight, TARGETS, z_loss=z_loss)


# name -> (function of differentiable tensors, makes these tensors)
OPERATORS = {
    "rmsnorm": (lambda x, w: rmsnorm.rmsnorm(x, w, 1e-5), lambda: (random(12, 24), random(24, seed=1))),
    "add_rmsnorm": (
        lambda x, r, w: torch.cat(rmsnorm.add_rmsnorm(x, r, w, 1e-5)),
        lambda: (random(12, 24), random(12, 24, seed=1), random(24, seed=2)),
    ),
    "rope": (run_rope, lambda: (random(12, WIDTH),)),
    "swiglu": (swiglu.swiglu, lambda: (random(12, 30),)),
    "attention": (run_attention, lambda: (random(12, WIDTH),)),
    "attention_lse": (run_attention_lse, lambda: (random(12, WIDTH),)),
    "attention_window": (lambda qkv: run_attention(qkv, window=2), lambda: (random(12, WIDTH),)),
    "cross_entropy": (lambda x: cross_entropy.cross_entropy(x, TARGETS, z_loss=0.1), lambda: (random(12, 10),)),
    "linear_cross_entropy": (run_cross_entropy, lambda: (random(12, 6), random(10, 6, seed=1))),
    "linear_cross_entropy_z": (
        lambda h, w: run_cross_entropy(h, w, 0.1),
        lambda: (random(12, 6), random(10, 6, seed=1)),
    ),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


@every_operator
def test_gradcheck(name):
    function, make = OPERATORS[name]
    assert torch.autograd.gradcheck(function, make())


@every_operator
def test_inputs_stay_and_gradients_need_no_contiguity(name):
    """y.sum() sends back a gradient of stride 0; a weighted one must agree with a contiguous copy of itself."""
    function, make = OPERATORS[name]
    inputs = make()
    before = [x.detach().clone() for x in inputs]
    y = function(*inputs)
    expanded = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    dense = torch.autograd.grad(y, inputs, torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@every_operator
def test_backward_twice_and_shared_gradients(name):
    """retain_graph, and an incoming gradient that others read too (a residual branch) stays as it was."""
    function, make = OPERATORS[name]
    inputs = make()
    y = function(*inputs)
    dy = random(*y.shape, seed=5, grad=False)
    given = dy.clone()
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(dy, given)


@every_operator
def test_gradients_add_up_in_leaves(name):
    """Two backward passes into `.grad`: twice the gradient; no two leaves, nor a leaf and the incoming gradient, share
    memory, where a sum in place would change both."""
    function, make = OPERATORS[name]
    inputs = make()
    y = function(*inputs)
    dy = random(*y.shape, seed=5, grad=False)
    given = dy.clone()
    wanted = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    y.backward(dy, retain_graph=True)
    y.backward(dy)
    assert all(torch.equal(x.grad, 2 * gradient) for x, gradient in zip(inputs, wanted, strict=True))
    assert torch.equal(dy, given)
    storages = [x.untyped_storage().data_ptr() for x in (dy, *(x.grad for x in inputs))]
    assert len(set(storages)) == len(storages)


@every_operator
def test_under_activation_checkpointing(name):
    """Run again in the backward pass (torch.utils.checkpoint): the same gradients to the bit."""
    function, make = OPERATORS[name]
    inputs = make()
    outputs = function(*inputs), checkpoint(function, *inputs, use_reentrant=False)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in outputs]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@every_operator
def test_autocast_changes_nothing(name):
    """Operators compute in the dtype of what they are given, also where torch's own products would be cast (which those
    of float64 never are)."""
    function, make = OPERATORS[name]
    inputs = [x.detach().float().requires_grad_() for x in make()]
    wanted = function(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = function(*inputs)
        gradients = [torch.autograd.grad(x.sum(), inputs) for x in (y, wanted)]
    assert torch.equal(y, wanted)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["rmsnorm", "rope"])
def test_residual_branch(name):
    """The gradient of h + f(h) is that of h and of f(h), summed."""
    function, make = OPERATORS[name]
    inputs = make()
    dy = random(*inputs[0].shape, seed=5, grad=False)
    joint = torch.autograd.grad(inputs[0] + function(*inputs), inputs[0], dy)[0]
    branch = torch.autograd.grad(function(*inputs), inputs[0], dy)[0]
    torch.testing.assert_close(joint, dy + branch, rtol=1e-14, atol=1e-14)


@every_operator
def test_compiles_whole(name):
    """torch.compile without a graph break: the same output and gradients."""
    function, make = OPERATORS[name]
    inputs = make()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y, wanted = compiled(*inputs), function(*inputs)
    assert torch.equal(y, wanted)
    gradients = [torch.autograd.grad(x.square().sum(), inputs) for x in (y, wanted)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_opcheck():
    """Schema, fake tensors, autograd registration and tracing of every registered operator."""
    documents = DOCUMENTS.tensors()
    q, k, v = (
        random(12, HEADS, HEAD_DIM),
        random(12, KV_HEADS, HEAD_DIM, seed=1),
        random(12, KV_HEADS, HEAD_DIM, seed=2),
    )
    x, residual, weight = random(12, 24), random(12, 24, seed=1), random(24, seed=2)
    hidden, vocabulary = random(12, 6), random(10, 6, seed=1)
    opcheck(rmsnorm._rmsnorm_op, (x, weight, 1e-5))
    opcheck(rmsnorm._add_rmsnorm_op, (x, residual, weight, 1e-5))
    opcheck(rope._rope_op, (random(12, WIDTH), COS, SIN, DOCUMENTS.positions, HEADS, KV_HEADS, False))
    opcheck(swiglu._swiglu_op, (random(12, 30),))
    opcheck(attention._attention_op, (q, k, v, documents, [], None, 0.3))
    opcheck(attention._attention_op, (q, k, v, documents, [], 2, 0.3))
    with torch.no_grad():
        opcheck(attention._attention_op, (q, k, v, documents, documents, None, 0.3))
    # none ignored: the NaN in what is saved for such a row is not equal to itself
    opcheck(cross_entropy._cross_entropy_op, (random(12, 10), TARGETS.abs().clamp(max=9), -100, 0.1))
    for need in (True, False):
        opcheck(linear_cross_entropy._linear_cross_entropy_op, (hidden, vocabulary, TARGETS, need, need, -100, 0.0))


def test_other_token_and_document_counts_do_not_recompile():
    """After the second shape has made tokens and documents dynamic, new counts run the same graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def block(qkv, weight, documents):
        qkv = run_rope(rmsnorm.rmsnorm(qkv, weight, 1e-5), documents)
        return swiglu.swiglu(run_attention(qkv, documents).flatten(1))

    for bounds in ([0, 4, 9], [0, 3, 7, 12], [0, 10, 14, 14, 15], [0, 5, 6], [0, 1, 2, 3, 4, 16]):
        block(random(bounds[-1], WIDTH), random(WIDTH, seed=1), Documents.build(bounds, "cpu"))
    assert len(graphs) <= 2


@pytest.mark.parametrize("fused", [False, True])
def test_other_token_counts_do_not_recompile_a_loss(fused):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def loss(hidden, weight, targets):
        if fused:
            return linear_cross_entropy.linear_cross_entropy(hidden, weight, targets)
        return cross_entropy.cross_entropy(hidden @ weight.t(), targets)

    for tokens in (9, 12, 5, 16, 7):
        loss(random(tokens, 6), random(10, 6, seed=1), torch.arange(tokens) % 10).backward()
    assert len(graphs) <= 2


def test_decode_of_other_lengths_and_sequence_counts():
    """One graph for any number of sequences and any lengths; inputs stay as they are."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(decode.decode_attention, fullgraph=True, backend=backend)
    cache = [random(12, 16, KV_HEADS, HEAD_DIM, seed=seed, grad=False).float() for seed in (1, 2)]
    for lengths in ([9, 20], [40, 1, 33], [0, 16, 17, 5], [7, 48, 2, 3, 31]):
        q = random(len(lengths), HEADS, HEAD_DIM, grad=False).float()
        table = torch.arange(len(lengths) * 3, dtype=torch.int32).view(-1, 3) % 12
        inputs = (q, *cache, table, torch.tensor(lengths, dtype=torch.int32))
        before = [x.clone() for x in inputs]
        assert torch.equal(compiled(*inputs), decode.decode_attention(*inputs))
        assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    assert len(graphs) <= 2


def test_no_gradient_work_when_grad_is_off(monkeypatch):
    calls = []
    monkeypatch.setattr(linear_cross_entropy, "losses_and_gradient", lambda *a, **k: calls.append(a))
    inputs = OPERATORS["linear_cross_entropy"][1]()
    with torch.no_grad():
        run_cross_entropy(*inputs)
    run_cross_entropy(*(x.detach() for x in inputs))
    assert not calls


FOUR = Documents.build([0, 4], "cpu")
Q = torch.zeros(4, 4, 16)
TABLE = torch.zeros(8, 4)
POSITIONS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rmsnorm.rmsnorm(torch.zeros(2, 3, 4), torch.zeros(4), 1e-5), "x needs 2 dimensions"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(4, 3).t(), torch.zeros(4), 1e-5), "x must have stride 1"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(2, 4), torch.zeros(3), 1e-5), "weight has 3 entries but x has 4 columns"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(2, 4).long(), torch.zeros(4), 1e-5), "x has dtype torch.int64"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(2, 4), torch.zeros(4).half(), 1e-5), "weight has dtype torch.float16"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(2, 4), torch.zeros(4, device="meta"), 1e-5), "weight is on meta"),
        (lambda: rmsnorm.rmsnorm(torch.zeros(1, 70000), torch.zeros(70000), 1e-5), "at most 65536"),
        (
            lambda: rmsnorm.add_rmsnorm(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(4), 1e-5),
            "must have one shape",
        ),
        (lambda: swiglu.swiglu(torch.zeros(2, 5)), "gate_up has 5 columns"),
        (lambda: rope.rope(torch.zeros(4, 30), TABLE, TABLE, POSITIONS, 2, 1), "not 4 heads of one even head_dim"),
        (lambda: rope.rope(torch.zeros(4, 32), TABLE.half(), TABLE, POSITIONS, 2, 1), "cos must be float32"),
        (lambda: rope.rope(torch.zeros(4, 32), TABLE, TABLE[:, :2], POSITIONS, 2, 1), "sin must be contiguous"),
        (lambda: rope.rope(torch.zeros(4, 32), TABLE, TABLE, POSITIONS[:3], 2, 1), "positions must be int32 or int64"),
        (lambda: attention.attention(Q[0], Q, Q, FOUR), "q needs 3 dimensions"),
        (lambda: attention.attention(Q, Q[:3], Q[:3], FOUR), "as many tokens as q; for other numbers give key_docum"),
        (lambda: attention.attention(Q, Q[..., :8], Q[..., :8], FOUR), "with q's head_dim"),
        (lambda: attention.attention(Q, Q[:3], Q[:3], FOUR, key_documents=FOUR), "another number of tokens than k"),
        (lambda: attention.attention(Q, Q, Q, FOUR, key_documents=Documents.build([0, 2, 4], "cpu")), "equally many"),
        (lambda: attention.attention(Q, Q, Q, FOUR, scale=0.0), "scale is 0.0; it must be above 0"),
        (lambda: attention.attention(Q, Q[:, :3], Q[:, :3], FOUR), "4 query heads are not a multiple of 3"),
        (lambda: attention.attention(*[Q[..., :12].contiguous()] * 3, FOUR), "multiple of 8 up to 256"),
        (lambda: attention.attention(*[torch.zeros(4, 1, 264)] * 3, FOUR), "multiple of 8 up to 256"),
        (lambda: attention.attention(Q, Q, Q.double(), FOUR), "v has dtype torch.float64 but q has torch.float32"),
        (lambda: attention.attention(Q, Q, Q, Documents.build([0, 5], "cpu")), "another number of tokens"),
        (lambda: attention.attention(Q, Q, Q, FOUR, window=0), "window is 0"),
        (lambda: attention.attention(*[Q.to("meta")] * 3, FOUR), "documents is on cpu but q is on meta"),
        (lambda: run_cross_entropy(torch.zeros(12, 4), torch.zeros(10, 5)), "weight has 5 columns but hidden has 4"),
        (lambda: run_cross_entropy(torch.zeros(3, 4), torch.zeros(10, 4)), "targets must be int64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
