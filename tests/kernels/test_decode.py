import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from kernels import decode
from kernels.attention import attention_forward, merge_attention
from kernels.decode import decode_attention, decode_forward, split_count
from kernels.documents import Documents
from tests.kernels.paging import assert_equal_in_float32, paged


def plain(q, keys, values, window=None, scale=None):
    """One sequence: q [heads, head_dim], keys and values [keys, kv_heads, head_dim] -> (out, lse [heads])."""
    if window is not None:
        keys, values = keys[-window:], values[-window:]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[0] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("hd,khd->hk", q, keys) * scale
    return torch.einsum("hk,khd->hd", scores.softmax(-1), values), scores.logsumexp(-1)


def check(q, cache, window, scale, assert_accurate):
    """`decode_forward` against attention written out for each sequence."""
    *arguments, sequences = cache
    out, lse = decode_forward(q, *arguments, window=window, scale=scale)
    assert out.shape == q.shape and lse.shape == q.shape[1::-1]
    empty = arguments[-1] == 0
    assert not out[empty].any() and lse[:, empty].isneginf().all()
    rows = [row for row, (keys, _) in enumerate(sequences) if len(keys)]
    if not rows:
        return
    wanted, exact = (
        [
            torch.stack(x)
            for x in zip(
                *(plain(*(x.to(dtype) for x in (q[row], *sequences[row])), window, scale) for row in rows), strict=True
            )
        ]
        for dtype in (q.dtype, torch.float64)
    )
    for ours, plain_result, exact_result in zip((out, lse.t().to(q.dtype)), wanted, exact, strict=True):
        assert_accurate(ours[rows], plain_result, exact_result, 2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "window"),
    [
        (6, 2, 16, 16, None),
        (4, 4, 24, 48, 7),
        (24, 1, 8, 16, 40),
        (8, 1, 64, 64, None),
        (2, 1, 96, 32, 1),
        (2, 2, 136, 16, None),
    ],
)
def test_pages_in_any_order_give_attention_over_the_sequence(
    backend, assert_accurate, heads, kv_heads, head_dim, page_size, window
):
    backend.use(decode)
    lengths = [10, 1, 0, 48, 131]
    cache = paged(lengths, page_size, kv_heads, head_dim, backend.dtype, backend.device)
    check(backend.tensor(len(lengths), heads, head_dim), cache, window, None, assert_accurate)


@pytest.mark.parametrize("splits", [1, 2, 5, 20])
def test_any_number_of_splits(backend, assert_accurate, splits):
    """Also more splits than a sequence has tiles, and more than the merge takes at a time."""
    backend.use(decode)
    backend.monkeypatch.setattr(decode, "split_count", lambda *shapes: splits)
    backend.monkeypatch.setattr(decode, "LEAST_KEYS", 16)
    cache = paged([0, 5, 33, 200], 16, 2, 16, backend.dtype, backend.device)
    q = backend.tensor(4, 4, 16)
    check(q, cache, None, 0.4, assert_accurate)
    check(q, cache, 70, 0.4, assert_accurate)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    page_size=st.sampled_from([16, 32, 48]),
    window=st.sampled_from([None, 1, 17, 64]),
    group=st.sampled_from([1, 3, 20]),
    splits=st.integers(1, 6),
)
@pytest.mark.parametrize("backend", [("interpreter", "cpu", torch.float32)], indirect=True)
def test_any_lengths(backend, lengths, page_size, window, group, splits):
    backend.use(decode)
    backend.monkeypatch.setattr(decode, "split_count", lambda *shapes: splits)
    backend.monkeypatch.setattr(decode, "LEAST_KEYS", 16)
    cache = paged(lengths, page_size, 2, 8, backend.dtype, seed=sum(lengths))
    check(backend.tensor(len(lengths), 2 * group, 8), cache, window, None, assert_equal_in_float32)


def test_keys_before_the_window_may_be_gone(backend):
    """NaN where they stood, also in the page in which the window begins, and no entry in the table: no difference."""
    backend.use(decode)
    cache = paged([75, 20], 32, 1, 16, backend.dtype, backend.device)[:4]
    q = backend.tensor(2, 2, 16)
    expected = decode_forward(q, *cache, window=30)
    k_pages, v_pages, table, _ = cache
    for pages in (k_pages, v_pages):
        pages[table[0, 0]] = torch.nan
        pages[table[0, 1], : 75 - 30 - 32] = torch.nan
    table[0, 0] = 10**6
    assert all(torch.equal(a, b) for a, b in zip(decode_forward(q, *cache, window=30), expected, strict=True))


def test_sequences_may_share_pages(backend):
    """Two sequences whose first page is the same give what each gives with a copy of its own."""
    backend.use(decode)
    k_pages, v_pages = backend.tensor(2, 4, 16, 1, 16)
    k_pages[3], v_pages[3] = k_pages[0], v_pages[0]
    q = backend.tensor(2, 2, 16, seed=1)
    lengths = torch.tensor([31, 20], dtype=torch.int32, device=backend.device)
    shared, own = (
        decode_forward(q, k_pages, v_pages, torch.tensor(table, dtype=torch.int32, device=backend.device), lengths)[0]
        for table in ([[0, 1], [0, 2]], [[0, 1], [3, 2]])
    )
    assert torch.equal(shared, own)
    assert not torch.allclose(shared[0], shared[1])


def test_caches_may_be_views(backend):
    """Keys and values of all layers side by side, and queries inside the packed qkv: strided, the same as copies."""
    backend.use(decode)
    cache = backend.tensor(5, 16, 3, 2, 2, 16)  # pages, page, layers, (k, v), kv_heads, head_dim
    q = backend.tensor(3, 8, 16, seed=1)[:, 2:6]
    table = torch.tensor([[4, 0], [1, 2], [3, 3]], dtype=torch.int32, device=backend.device)
    lengths = torch.tensor([20, 32, 5], dtype=torch.int32, device=backend.device)
    k_pages, v_pages = cache[:, :, 1].unbind(2)
    views = decode_forward(q, k_pages, v_pages, table, lengths)
    copies = decode_forward(q.contiguous(), k_pages.contiguous(), v_pages.contiguous(), table, lengths)
    torch.testing.assert_close(views, copies)


def test_merging_with_other_keys(backend, assert_accurate):
    """Attention over the cached keys and over keys that are not in it, merged by their log-sum-exp."""
    backend.use(decode)
    k_pages, v_pages, table, lengths, [(keys, values)] = paged([30], 16, 1, 16, backend.dtype, backend.device)
    q, (k, v) = backend.tensor(1, 2, 16), backend.tensor(2, 9, 1, 16, seed=1)
    one, nine = (Documents.build([0, n], backend.device) for n in (1, 9))
    cached = decode_forward(q, k_pages, v_pages, table, lengths)
    out, lse = merge_attention(*cached, *attention_forward(q, k, v, one, key_documents=nine))
    keys, values = torch.cat([keys, k]), torch.cat([values, v])
    wanted, wanted_lse = plain(q[0], keys, values)
    exact, exact_lse = plain(q[0].double(), keys.double(), values.double())
    assert_accurate(out[0], wanted, exact, 3)
    assert_accurate(lse[:, 0].to(q.dtype), wanted_lse, exact_lse, 3)


def test_the_order_of_programs_changes_nothing(backend):
    """Of splits and of their merging."""
    backend.use(decode)
    backend.monkeypatch.setattr(decode, "split_count", lambda *shapes: 3)
    backend.monkeypatch.setattr(decode, "LEAST_KEYS", 16)
    *cache, _ = paged([75, 20], 16, 2, 16, backend.dtype, backend.device)
    backend.assert_same_in_any_order(lambda: decode_forward(backend.tensor(2, 4, 16), *cache))


def test_no_sequences(backend):
    backend.use(decode)
    k_pages, v_pages = backend.tensor(2, 1, 16, 1, 16)
    nothing = torch.zeros(0, dtype=torch.int32, device=backend.device)
    out, lse = decode_forward(backend.tensor(0, 2, 16), k_pages, v_pages, nothing.view(0, 3), nothing)
    assert out.shape == (0, 2, 16) and lse.shape == (2, 0)


def test_sequences_without_room(backend):
    """A table without columns: nothing may be looked up in it."""
    backend.use(decode)
    k_pages, v_pages = backend.tensor(2, 1, 16, 1, 16)
    table, lengths = (torch.zeros(shape, dtype=torch.int32, device=backend.device) for shape in ((2, 0), 2))
    out, lse = decode_forward(backend.tensor(2, 2, 16), k_pages, v_pages, table, lengths)
    assert not out.any() and lse.isneginf().all()


@pytest.mark.parametrize(
    ("blocks", "keys", "programs", "splits"),
    [
        (
            512,
            4096,
            6 * 132,
            4,
        ),  # the benchmark: 64 sequences of 4k keys, 8 kv heads; four rounds while 1,024 keys are left
        (8, 4096, 6 * 132, 16),  # one sequence: as many programs as 256 keys each allow
        (8, 1 << 20, 6 * 132, 396),
        (8192, 4096, 6 * 132, 1),  # a full GPU needs none
        (512, 300, 6 * 132, 1),  # short sequences are not cut
        (1, 16, 3, 1),
    ],
)
def test_number_of_splits(blocks, keys, programs, splits):
    assert split_count(blocks, keys, programs) == splits


def test_bounded_memory_changes_nothing(monkeypatch):
    """Sequences in slices, as for many long ones."""
    cache = paged([40, 1, 0, 17, 5], 16, 1, 8, torch.float32)[:4]
    q = torch.randn(5, 2, 8)
    whole = decode_attention(q, *cache)
    monkeypatch.setattr(decode, "_GATHERED_ELEMENTS", 2 * 3 * 16 * 8)
    torch.testing.assert_close(decode_attention(q, *cache), whole)


def test_as_a_custom_operator():
    cache = paged([20, 7], 16, 1, 8, torch.float32)[:4]
    q = torch.randn(2, 2, 8)
    opcheck(decode._decode_attention_op, (q, *cache, 3, 0.3))
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, *cache), decode_attention(q, *cache))
    pairs = zip(compiled(q, *cache, return_lse=True), decode_attention(q, *cache, return_lse=True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def integers(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 8, 1)}, "q needs 3 dimensions"),
        ({"q": torch.zeros(2, 3, 8)}, "3 query heads are not a multiple of 2 kv heads"),
        ({"q": torch.zeros(2, 8, 4).transpose(1, 2)}, "q must have stride 1 in its last dimension"),
        ({"k_pages": torch.zeros(3, 16, 2, 16)}, "must have one shape"),
        ({"k_pages": torch.zeros(3, 16, 4, 8)[:, :, ::2]}, "must have equal strides"),
        ({"v_pages": torch.zeros(3, 16, 2, 8).half()}, "v_pages has dtype torch.float16"),
        ({name: torch.zeros(3, 24, 2, 8) for name in ("k_pages", "v_pages")}, "pages of 24 keys; their size must be a multiple of 16"),
        ({"lengths": torch.zeros(2).long()}, "lengths must be int32 with 1 dimensions"),
        ({"lengths": integers(3)}, "block_table and lengths need one row for each sequence"),
        ({"block_table": integers(2, 2, 1)}, "block_table must be int32 with 2 dimensions"),
        ({"block_table": integers(2, 4)[:, ::2]}, "without gaps in its last one"),
        ({"block_table": integers(3, 1), "lengths": integers(3)}, "one row for each row of q"),
        ({"lengths": torch.tensor([17, 1], dtype=torch.int32)}, "a length needs 2 pages, but block_table has room for 1"),
        ({"window": 0}, "window is 0"),
        ({"scale": -1.0}, "scale is -1.0; it must be above 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_with_the_reason(change, message):
    arguments = {name: torch.zeros(3, 16, 2, 8) for name in ("k_pages", "v_pages")}
    arguments |= {"q": torch.zeros(2, 4, 8), "block_table": integers(2, 1), "lengths": integers(2)}
    with pytest.raises(ValueError, match=message):
        decode_attention(**(arguments | change))


@pytest.mark.parametrize("head_dim", [12, 264])
def test_head_dims_out_of_range_are_refused(head_dim):
    pages = torch.zeros(1, 16, 1, head_dim)
    with pytest.raises(ValueError, match=f"head_dim is {head_dim}; it must be a multiple of 8 up to 256"):
        decode_attention(torch.zeros(1, 1, head_dim), pages, pages, integers(1, 1), integers(1))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(64, 8, 128), (32, 32, 128), (16, 2, 64), (8, 1, 256), (71, 1, 96)]
)
def test_real_sizes_on_a_gpu(assert_accurate, heads, kv_heads, head_dim, window):
    """64 sequences of up to 4k keys in bfloat16; the run repeated gives the same bits."""
    torch.manual_seed(0)
    lengths = [4096, 0, 1, *torch.randint(1, 4096, (61,)).tolist()]
    cache = paged(lengths, 64, kv_heads, head_dim, torch.bfloat16, "cuda")
    q = torch.randn(64, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    check(q, cache, window, None, assert_accurate)
    first, *others = (decode_forward(q, *cache[:4], window=window) for _ in range(100))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
def test_float64_on_a_gpu_is_refused():
    pages = torch.zeros(1, 16, 1, 16, device="cuda", dtype=torch.float64)
    table = integers(1, 1).cuda()
    with pytest.raises(ValueError, match="float64 runs on the CPU only"):
        decode_attention(pages[0, :1], pages, pages, table, table[0])
