import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from kernels import attention, paged_prefill
from kernels.documents import Documents
from kernels.tiles import TABLES, tile, work_blocks
from tests.kernels.paging import assert_equal_in_float32, paged

paged_prefill_forward = paged_prefill.paged_prefill_forward


def plain(q, bounds, sequences, window=None, scale=None):
    """Attention of the packed queries written out, sequence by sequence."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs = []
    for (begin, end), (keys, values) in zip(itertools.pairwise(bounds), sequences, strict=True):
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
        last = torch.arange(end - begin, device=q.device)[:, None] + len(keys) - (end - begin)
        behind = last - torch.arange(len(keys), device=q.device)
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], keys) * scale
        scores = scores.masked_fill((behind < 0) | (behind >= (window or 10**9)), -torch.inf)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(outs)


def check(q, bounds, cache, window, scale, assert_accurate):
    """`paged_prefill_forward` of all sequences against attention written out."""
    *arguments, sequences = cache
    documents = Documents.build(bounds, q.device, window=window)
    out = paged_prefill_forward(q, *arguments, documents, window=window, scale=scale)
    wide = [(keys.double(), values.double()) for keys, values in sequences]
    exact = plain(q.double(), bounds, wide, window, scale)
    assert_accurate(out, plain(q, bounds, sequences, window, scale), exact, 2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "window"),
    [(2, 1, 16, 16, None), (2, 2, 24, 48, 7), (3, 1, 8, 32, 40), (2, 1, 64, 64, 150), (1, 1, 96, 64, None)],
)
def test_new_tokens_attend_to_their_pages(backend, assert_accurate, heads, kv_heads, head_dim, page_size, window):
    """Queries without a prefix, behind one that ends inside a page or with one, none, one, more than a block of them."""
    backend.use(attention, paged_prefill)
    bounds, lengths = [0, 20, 25, 25, 26, 165], [20, 69, 10, 64, 200]
    cache = paged(lengths, page_size, kv_heads, head_dim, backend.dtype, backend.device)
    packed = backend.tensor(bounds[-1], heads + 2, head_dim)
    check(packed[:, 1:-1], bounds, cache, window, 0.2, assert_accurate)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 80)), min_size=1, max_size=3),
    page_size=st.sampled_from([16, 32, 48]),
    window=st.sampled_from([None, 1, 17, 64]),
    group=st.sampled_from([1, 3]),
)
@pytest.mark.parametrize("backend", [("interpreter", "cpu", torch.float32)], indirect=True)
def test_any_lengths(backend, sequences, page_size, window, group):
    """sequences: (new tokens, tokens in the cache before)."""
    backend.use(attention, paged_prefill)
    bounds = [0, *itertools.accumulate(new for new, _ in sequences)]
    cache = paged([new + old for new, old in sequences], page_size, 1, 8, backend.dtype, seed=bounds[-1])
    check(backend.tensor(bounds[-1], group, 8), bounds, cache, window, None, assert_equal_in_float32)


def test_full_pages_in_a_full_table(backend, assert_accurate):
    """The last key stands at the end of the last page, behind which nothing may be looked up."""
    backend.use(attention, paged_prefill)
    cache = paged([64, 64], 32, 1, 16, backend.dtype, backend.device, extra=0)
    check(backend.tensor(2, 2, 16), [0, 1, 2], cache, None, None, assert_accurate)


def test_keys_before_the_window_may_be_gone(backend):
    """NaN where they stood, also in the page in which the window begins, and no entry in the table: no difference."""
    backend.use(attention, paged_prefill)
    k_pages, v_pages, table, lengths, _ = paged([75, 20], 32, 1, 16, backend.dtype, backend.device)
    q, documents = backend.tensor(3, 2, 16), Documents.build([0, 1, 3], backend.device)
    arguments = (q, k_pages, v_pages, table, lengths, documents)
    expected = paged_prefill_forward(*arguments, window=30)
    for pages in (k_pages, v_pages):
        pages[table[0, 0]] = torch.nan
        pages[table[0, 1], : 75 - 30 - 32] = torch.nan
    table[0, 0] = 10**6
    assert torch.equal(paged_prefill_forward(*arguments, window=30), expected)


def test_a_shared_prefix(backend):
    """Two sequences whose first page is the same give what each gives with a copy of its own."""
    backend.use(attention, paged_prefill)
    k_pages, v_pages = backend.tensor(2, 4, 16, 1, 16)
    k_pages[3], v_pages[3] = k_pages[0], v_pages[0]
    q, documents = backend.tensor(7, 2, 16, seed=1), Documents.build([0, 4, 7], backend.device)
    lengths = torch.tensor([31, 20], dtype=torch.int32, device=backend.device)
    shared, own = (
        paged_prefill_forward(
            q, k_pages, v_pages, torch.tensor(table, dtype=torch.int32, device=backend.device), lengths, documents
        )
        for table in ([[0, 1], [0, 2]], [[0, 1], [3, 2]])
    )
    assert torch.equal(shared, own)


def test_the_order_of_programs_changes_nothing(backend):
    backend.use(attention, paged_prefill)
    k_pages, v_pages, table, lengths, _ = paged([75, 20], 32, 1, 16, backend.dtype, backend.device)
    q, documents = backend.tensor(43, 2, 16), Documents.build([0, 40, 43], backend.device)
    backend.assert_same_in_any_order(
        lambda: paged_prefill_forward(q, k_pages, v_pages, table, lengths, documents, window=50)
    )


def test_nothing(backend):
    backend.use(attention, paged_prefill)
    k_pages, v_pages = backend.tensor(2, 1, 16, 1, 16)
    table, lengths = (torch.zeros(shape, dtype=torch.int32, device=backend.device) for shape in ((2, 0), 2))
    documents = Documents.build([0, 0, 0], backend.device)
    assert paged_prefill_forward(backend.tensor(0, 2, 16), k_pages, v_pages, table, lengths, documents).shape == (
        0,
        2,
        16,
    )


def test_work_lists_exist_for_every_tile():
    rows = {tile("attention_paged_prefill", size, table).rows for table in TABLES for size in range(8, 257, 8)}
    assert rows <= set(work_blocks())


def test_as_a_custom_operator():
    k_pages, v_pages, table, lengths, _ = paged([20, 7], 16, 1, 8, torch.float32)
    q, documents = torch.randn(9, 2, 8), Documents.build([0, 4, 9], "cpu")
    arguments = (q, k_pages, v_pages, table, lengths)
    opcheck(paged_prefill._paged_prefill_op, (*arguments, documents.tensors(), 3, 0.3))
    compiled = torch.compile(paged_prefill.paged_prefill, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments, documents), paged_prefill.paged_prefill(*arguments, documents))


def integers(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(5, 3, 8)}, "3 query heads are not a multiple of 2 kv heads"),
        ({"q": torch.zeros(6, 4, 8)}, "documents were built for another number of tokens"),
        ({"v_pages": torch.zeros(3, 16, 2, 8).half()}, "v_pages has dtype torch.float16"),
        ({"documents": Documents.build([0, 1, 2, 5], "cpu")}, "one row for each document"),
        ({"block_table": integers(2, 0)}, "block_table has no columns"),
        ({"lengths": torch.tensor([17, 2], dtype=torch.int32)}, "a length needs 2 pages"),
        ({"window": 0}, "window is 0"),
        ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(change, message):
    arguments = {name: torch.zeros(3, 16, 2, 8) for name in ("k_pages", "v_pages")}
    arguments |= {"q": torch.zeros(5, 4, 8), "block_table": integers(2, 1), "lengths": integers(2) + 5}
    arguments |= {"documents": Documents.build([0, 3, 5], "cpu")}
    with pytest.raises(ValueError, match=message):
        paged_prefill.paged_prefill(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(64, 8, 128), (16, 16, 64), (8, 2, 96), (4, 1, 256)])
def test_real_sizes_on_a_gpu(assert_accurate, heads, kv_heads, head_dim, window):
    """Suffixes of up to 600 tokens behind up to 4k cached ones in bfloat16; the run repeated gives the same bits."""
    torch.manual_seed(0)
    new = [600, 0, 1, *torch.randint(1, 300, (5,)).tolist()]
    bounds = [0, *itertools.accumulate(new)]
    lengths = [n + old for n, old in zip(new, [4000, 10, *torch.randint(0, 4000, (6,)).tolist()], strict=True)]
    cache = paged(lengths, 64, kv_heads, head_dim, torch.bfloat16, "cuda")
    q = torch.randn(bounds[-1], heads, head_dim, device="cuda", dtype=torch.bfloat16)
    check(q, bounds, cache, window, None, assert_accurate)
    documents = Documents.build(bounds, "cuda", window=window)
    first, *others = (paged_prefill_forward(q, *cache[:4], documents, window=window) for _ in range(100))
    assert all(torch.equal(first, other) for other in others)
