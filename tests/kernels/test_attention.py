import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import attention, attention_backward
from kernels.attention import attention_forward, merge_attention
from kernels.attention_blocks import head_parts
from kernels.documents import Documents

BOUNDS = [0, 5, 5, 6, 40, 107, 107]  # lengths 5, 0, 1, 34, 67, 0: empty, single, within and across blocks


def plain(q, k, v, bounds, key_bounds=None, window=None, scale=None):
    """Attention written out, one document at a time: (out, lse)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    outs, lses = [], []
    for (begin, end), (key_begin, key_end) in zip(
        itertools.pairwise(bounds), itertools.pairwise(key_bounds or bounds), strict=True
    ):
        keys, values = (x[key_begin:key_end].repeat_interleave(group, 1) for x in (k, v))
        score = torch.einsum("qhd,khd->hqk", q[begin:end], keys) * scale
        last = torch.arange(end - begin, device=q.device)[:, None] + (key_end - key_begin) - (end - begin)
        behind = last - torch.arange(key_end - key_begin, device=q.device)
        score = score.masked_fill((behind < 0) | (behind >= (window or 10**9)), -torch.inf)
        lses.append(score.logsumexp(-1))
        probability = score.softmax(-1).nan_to_num(0.0)  # a row without any key
        outs.append(torch.einsum("hqk,khd->qhd", probability, values))
    return torch.cat(outs), torch.cat(lses, 1)


def plain_gradients(q, k, v, dout, bounds, window):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(plain(*leaves, bounds, window=window)[0], leaves, dout)


def torch_gradients(q, k, v, dout, bounds, window):
    """Gradients by torch's own attention operator, one document at a time. On a CPU its float32 matrix products are up to
    five times less accurate than those of the formula written out, and the twin is built on it."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    outs = []
    for begin, end in itertools.pairwise(bounds):
        heads_first = [x[begin:end].transpose(0, 1)[None] for x in leaves]
        behind = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        mask = (behind >= 0) & (behind < (window or 10**9))
        outs.append(F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.autograd.grad(torch.cat(outs), leaves, dout)


def packed(backend, tokens, heads, kv_heads, head_dim, seed=0):
    """q, k, v as strided views of one packed tensor, as the model has them."""
    qkv = backend.tensor(tokens, heads + 2 * kv_heads, head_dim, seed=seed)
    return qkv.split([heads, kv_heads, kv_heads], 1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window"),
    [
        (2, 2, 16, None),
        (4, 2, 24, None),
        (2, 1, 64, 7),
        (3, 1, 8, 40),
        (1, 1, 96, None),  # 64 + 32
        (1, 1, 136, 2),  # 128 + 8 of 16
        (2, 1, 256, None),  # two halves, dk and dv in two passes
    ],
)
def test_forward_and_backward(backend, assert_accurate, heads, kv_heads, head_dim, window):
    backend.use(attention, attention_backward)
    documents = Documents.build(BOUNDS, backend.device, window=window)
    q, k, v = packed(backend, BOUNDS[-1], heads, kv_heads, head_dim)
    dout = backend.tensor(*q.shape, seed=1)
    given = [x.clone() for x in (q, k, v, dout)]

    out, lse = attention_forward(q, k, v, documents, window=window)
    plain_out, plain_lse = plain(q, k, v, BOUNDS, window=window)
    exact_out, exact_lse = plain(q.double(), k.double(), v.double(), BOUNDS, window=window)
    assert_accurate(out, plain_out, exact_out, 2)
    assert lse.dtype == (torch.float64 if q.dtype == torch.float64 else torch.float32)
    assert_accurate(lse.to(q.dtype), plain_lse, exact_lse, 2)

    gradients = torch.empty(q.shape[0], heads + 2 * kv_heads, head_dim, dtype=q.dtype, device=q.device)
    dq, dk, dv = gradients.split([heads, kv_heads, kv_heads], 1)
    attention_backward.attention_backward(dout, q, k, v, out, lse, documents, dq, dk, dv, window=window)
    plain_grads = (torch_gradients if backend.name == "twin" else plain_gradients)(q, k, v, dout, BOUNDS, window)
    exact_grads = plain_gradients(q.double(), k.double(), v.double(), dout.double(), BOUNDS, window)
    for ours, plain_grad, exact in zip((dq, dk, dv), plain_grads, exact_grads, strict=True):
        assert_accurate(ours, plain_grad, exact, 3)
    assert all(torch.equal(a, b) for a, b in zip(given, (q, k, v, dout), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=10),
    window=st.sampled_from([None, 1, 9, 45]),
    group=st.sampled_from([1, 3]),
)
def test_twin_on_any_lengths(lengths, window, group):
    """fp64 against the formula: any grouping of documents into padded batches gives the same numbers."""
    bounds = [0, *itertools.accumulate(lengths)]
    documents = Documents.build(bounds, "cpu")
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v, dout = (
        torch.randn(bounds[-1], heads, 8, dtype=torch.float64, generator=generator)
        for heads in (2 * group, 2, 2, 2 * group)
    )
    out, lse = attention_forward(q, k, v, documents, window=window, scale=0.7)
    exact_out, exact_lse = plain(q, k, v, bounds, window=window, scale=0.7)
    torch.testing.assert_close(out, exact_out, rtol=0, atol=1e-13)
    torch.testing.assert_close(lse, exact_lse, rtol=0, atol=1e-12)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    arguments = (dout, q, k, v, out, lse, documents, dq, dk, dv)
    attention_backward.attention_backward(*arguments, window=window, scale=0.7)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = torch.autograd.grad(plain(*leaves, bounds, window=window, scale=0.7)[0], leaves, dout)
    for ours, wanted in zip((dq, dk, dv), exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 4])
def test_fewer_queries_than_keys_are_aligned_at_the_end(backend, assert_accurate, window):
    """Cached prefixes; a document with more queries than keys, whose first queries read nothing; one whose first query
    stands one key before the end of a block."""
    backend.use(attention)
    bounds, key_bounds = [0, 3, 3, 8, 40, 41, 45], [0, 10, 12, 15, 80, 120, 154]
    documents, key_documents = (Documents.build(b, backend.device) for b in (bounds, key_bounds))
    q = backend.tensor(45, 4, 16)
    k, v = backend.tensor(2, 154, 2, 16, seed=1)
    out, lse = attention_forward(q, k, v, documents, window=window, key_documents=key_documents)
    plain_out, plain_lse = plain(q, k, v, bounds, key_bounds, window)
    exact_out, exact_lse = plain(q.double(), k.double(), v.double(), bounds, key_bounds, window)
    assert_accurate(out, plain_out, exact_out, 2)
    reads = ~exact_lse.isneginf()
    assert reads.sum() == 4 * (45 - 2)
    assert torch.equal(lse.isneginf(), ~reads)
    assert_accurate(lse[reads].to(q.dtype), plain_lse[reads], exact_lse[reads], 2)


def test_merging_two_sets_of_keys_gives_attention_over_all(backend, assert_accurate):
    """A row of keys cut in two, the first part read as a whole by queries that stand behind it."""
    backend.use(attention)
    q = backend.tensor(6, 2, 16)
    k, v = backend.tensor(2, 20, 2, 16, seed=1)
    queries, everything = Documents.build([0, 6], backend.device), Documents.build([0, 20], backend.device)
    whole, whole_lse = attention_forward(q, k, v, queries, key_documents=everything)
    own = attention_forward(q, k[14:], v[14:], queries)
    # each query is a document of its own here, so that it reads all 14 keys of the prefix
    each = Documents.build(list(range(7)), backend.device)
    repeated = Documents.build([14 * i for i in range(7)], backend.device)
    prefix = attention_forward(q, k[:14].repeat(6, 1, 1), v[:14].repeat(6, 1, 1), each, key_documents=repeated)
    out, lse = merge_attention(*prefix, *own)
    exact, exact_lse = plain(q.double(), k.double(), v.double(), [0, 6], [0, 20])
    assert_accurate(out, whole, exact, 3)
    assert_accurate(lse.to(q.dtype), whole_lse.to(q.dtype), exact_lse, 3)


def test_gradients_through_the_log_sum_exp(backend, assert_accurate):
    """Attention in two parts merged by lse has the gradients of attention over everything."""
    backend.use(attention, attention_backward)
    q, k, v = (x.clone() for x in packed(backend, 80, 4, 2, 32))
    whole, pieces = (Documents.build(b, backend.device) for b in ([0, 80], [0, 40, 80]))
    dout = backend.tensor(80, 4, 32, seed=1)
    # The second half's queries also read the first half's keys: a prefix without causality, written out.
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    own, own_lse = attention.attention(*leaves, pieces, return_lse=True)
    q_late, k_early, v_early = leaves[0][40:], *(x[:40].repeat_interleave(2, 1) for x in leaves[1:])
    score = torch.einsum("qhd,khd->hqk", q_late, k_early) * 32**-0.5
    prefix_lse = score.to(own_lse.dtype).logsumexp(-1)
    prefix = torch.einsum("hqk,khd->qhd", score.softmax(-1), v_early)
    late, _ = merge_attention(own[40:], own_lse[:, 40:], prefix, prefix_lse)
    ours = torch.autograd.grad(torch.cat([own[:40], late]), leaves, dout)
    direct = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(attention.attention(*direct, whole), direct, dout)
    exact = plain_gradients(q.double(), k.double(), v.double(), dout.double(), [0, 80], None)
    for mine, theirs, right in zip(ours, wanted, exact, strict=True):
        assert_accurate(mine, theirs, right, 3)


def test_other_keys_have_no_gradient():
    q, k = torch.randn(3, 2, 8, requires_grad=True), torch.randn(5, 2, 8)
    documents, key_documents = Documents.build([0, 3], "cpu"), Documents.build([0, 5], "cpu")
    out = attention.attention(q, k, k, documents, key_documents=key_documents)
    assert torch.equal(out, attention_forward(q, k, k, documents, key_documents=key_documents)[0])
    with pytest.raises(RuntimeError, match="attention with key_documents has no gradient"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("head_dim", "parts"),
    [(8, (16, 0)), (16, (16, 0)), (24, (32, 0)), (40, (32, 16)), (64, (64, 0)), (80, (64, 16)), (96, (64, 32)),
     (112, (128, 0)), (128, (128, 0)), (136, (128, 16)), (192, (128, 64)), (256, (128, 128))],
)  # fmt: skip
def test_a_head_runs_as_two_powers_of_two(head_dim, parts):
    assert head_parts(head_dim) == parts


@pytest.mark.parametrize("backend", [("interpreter", "cpu", torch.float32)], indirect=True, ids=["float32"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 9, 70]),
    group=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([8, 40, 64]),
)
def test_triton_on_any_lengths(backend, lengths, window, group, head_dim):
    """The Triton code in the interpreter against the formula in float64."""
    backend.use(attention, attention_backward)
    bounds = [0, *itertools.accumulate(lengths)]
    documents = Documents.build(bounds, "cpu", window=window)
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v, dout = (torch.randn(bounds[-1], h, head_dim, generator=generator) for h in (group, 1, 1, group))
    out, lse = attention_forward(q, k, v, documents, window=window)
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    attention_backward.attention_backward(dout, q, k, v, out, lse, documents, *gradients, window=window)
    wide = [x.double() for x in (q, k, v)]
    wanted = (plain(*wide, bounds, window=window)[0], *plain_gradients(*wide, dout.double(), bounds, window))
    for ours, exact in zip((out, *gradients), wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=5e-6)


def test_merging_with_nothing():
    out, lse = torch.randn(3, 2, 8), torch.randn(2, 3)
    lse[:, 0] = -torch.inf
    nothing, none = torch.zeros(3, 2, 8), torch.full((2, 3), -torch.inf)
    out[0] = 0
    merged, merged_lse = merge_attention(nothing, none, out, lse)
    assert torch.equal(merged, out)
    assert torch.equal(merged_lse, lse)


def test_documents_do_not_see_each_other(backend):
    """Another first document changes nothing in the second, to the bit."""
    backend.use(attention, attention_backward)
    documents = Documents.build([0, 33, 80], backend.device)
    q, k, v = (x.clone() for x in packed(backend, 80, 2, 1, 16))
    first, _ = attention_forward(q, k, v, documents)
    for x in (q, k, v):
        x[:33] = 1000
    second, _ = attention_forward(q, k, v, documents)
    assert torch.equal(first[33:], second[33:])


def test_the_order_of_programs_changes_nothing(backend):
    backend.use(attention, attention_backward)
    documents = Documents.build([0, 33, 120], backend.device)
    q, k, v = packed(backend, 120, 4, 2, 16)
    dout = backend.tensor(*q.shape, seed=1)

    def run():
        out, lse = attention_forward(q, k, v, documents)
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        attention_backward.attention_backward(dout, q, k, v, out, lse, documents, *gradients)
        return out, lse, *gradients

    backend.assert_same_in_any_order(run)


def test_no_tokens(backend):
    backend.use(attention, attention_backward)
    documents = Documents.build([0, 0], backend.device)
    q, k, v = packed(backend, 0, 2, 1, 16)
    out, lse = attention_forward(q, k, v, documents)
    assert out.shape == (0, 2, 16)
    assert lse.shape == (2, 0)
    attention_backward.attention_backward(out, q, k, v, out, lse, documents, q, k, v)


@pytest.mark.parametrize("window", [100, 2**31 - 1])
def test_unmasked_blocks_inside_a_window(assert_accurate, monkeypatch, window):
    """Documents longer than window and blocks together: the inner loops run between two masked ends. A window beyond any
    document is none."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, so Triton compiles instead of interpreting")
    bounds = [0, 190, 191, 260]
    documents = Documents.build(bounds, "cpu", window=window)
    torch.manual_seed(0)
    q, k, v = torch.randn(260, 4, 16).split([2, 1, 1], 1)
    dout = torch.randn_like(q)
    for module in (attention, attention_backward):
        name = "forward" if module is attention else "backward"
        monkeypatch.setattr(module, f"_torch_{name}", getattr(module, f"_triton_{name}"))
    out, lse = attention_forward(q, k, v, documents, window=window)
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    attention_backward.attention_backward(dout, q, k, v, out, lse, documents, *gradients, window=window)
    ours = (out, *gradients)
    wanted = (plain(q, k, v, bounds, window=window)[0], *plain_gradients(q, k, v, dout, bounds, window))
    for mine, theirs in zip(ours, wanted, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100, 1000])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_real_sizes_on_a_gpu(assert_accurate, head_dim, window):
    """bf16 at full tiles: long documents, a group of 4; the run repeated gives the same bits."""
    bounds = [0, 1500, 1501, 4096]
    documents = Documents.build(bounds, "cuda", window=window)
    torch.manual_seed(0)
    q, k, v = torch.randn(4096, 12, head_dim, device="cuda", dtype=torch.bfloat16).split([8, 2, 2], 1)
    dout = torch.randn_like(q)
    runs = []
    for _ in range(2):
        out, lse = attention_forward(q, k, v, documents, window=window)
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        attention_backward.attention_backward(dout, q, k, v, out, lse, documents, *gradients, window=window)
        runs.append((out, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    wanted = (plain(q, k, v, bounds, window=window)[0], *plain_gradients(q, k, v, dout, bounds, window))
    wide = [x.double() for x in (q, k, v)]
    exact = (plain(*wide, bounds, window=window)[0], *plain_gradients(*wide, dout.double(), bounds, window))
    for factor, ours, plain_result, exact_result in zip((2, 3, 3, 3), runs[0], wanted, exact, strict=True):
        assert_accurate(ours, plain_result, exact_result, factor)


@pytest.mark.gpu
def test_float64_on_a_gpu_is_refused():
    q = torch.zeros(4, 1, 16, device="cuda", dtype=torch.float64)
    with pytest.raises(ValueError, match="float64 runs on the CPU only"):
        attention_forward(q, q, q, Documents.build([0, 4], "cuda"))
