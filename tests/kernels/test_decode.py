import pytest
import torch
from torch.library import opcheck

from kernels import decode
from kernels.decode import decode_attention, write_pages

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def plain(q, keys, values, window, scale):
    """One sequence: q [heads, head_dim], keys and values [keys, kv_heads, head_dim]."""
    if window is not None:
        keys, values = keys[-window:], values[-window:]
    group = q.shape[0] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    weights = (torch.einsum("hd,khd->hk", q, keys) * scale).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 6])
def test_pages_in_any_order_give_attention_over_the_sequence(device, dtype, window, assert_accurate):
    """Written token by token into scattered pages; what was never written is NaN; unused table entries are garbage."""
    torch.manual_seed(0)
    lengths, page_size, kv_heads, head_dim = [10, 1, 0, 16], 4, 2, 8
    pages = [[7, 2, 5], [0], [], [1, 3, 6, 4]]
    table = torch.full((4, 5), 10**6, dtype=torch.int32)
    for row, own in enumerate(pages):
        table[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
    k_pages, v_pages = (torch.full((8, page_size, kv_heads, head_dim), torch.nan, dtype=dtype) for _ in range(2))
    tensors = [t.to(device) for t in (k_pages, v_pages, table, torch.tensor(lengths, dtype=torch.int32))]
    k_pages, v_pages, table, device_lengths = tensors
    sequences = [torch.randn(2, n, kv_heads, head_dim, dtype=torch.float64).to(device, dtype) for n in lengths]
    for own, (keys, values) in zip(pages, sequences, strict=True):
        slots = torch.tensor([own[i // page_size] * page_size + i % page_size for i in range(len(keys))], device=device)
        write_pages(keys, values, k_pages, v_pages, slots.to(torch.int64))
    q = torch.randn(4, 6, head_dim, dtype=torch.float64).to(device, dtype)
    out = decode_attention(q, k_pages, v_pages, table, device_lengths, window=window, scale=0.5)
    assert not out[2].any()
    for row in (0, 1, 3):
        keys, values = sequences[row]
        exact = plain(q[row].double(), keys.double(), values.double(), window, 0.5)
        assert_accurate(out[row], plain(q[row], keys, values, window, 0.5), exact, 2)


def test_sequences_may_share_pages():
    """Two sequences whose first page is the same give what each gives with a copy of its own."""
    torch.manual_seed(0)
    k_pages, v_pages = torch.randn(2, 4, 4, 1, 8)
    k_pages[3], v_pages[3] = k_pages[0], v_pages[0]
    q = torch.randn(2, 2, 8)
    lengths = torch.tensor([7, 6], dtype=torch.int32)
    shared = decode_attention(q, k_pages, v_pages, torch.tensor([[0, 1], [0, 2]], dtype=torch.int32), lengths)
    own = decode_attention(q, k_pages, v_pages, torch.tensor([[0, 1], [3, 2]], dtype=torch.int32), lengths)
    assert torch.equal(shared, own)
    assert not torch.allclose(shared[0], shared[1])


def test_bounded_memory_changes_nothing(monkeypatch):
    """Sequences in slices, as for many long ones."""
    torch.manual_seed(0)
    k_pages, v_pages = torch.randn(2, 9, 4, 1, 8)
    table = torch.randint(9, (5, 3), dtype=torch.int32)
    arguments = torch.randn(5, 2, 8), k_pages, v_pages, table, torch.tensor([12, 1, 0, 7, 5], dtype=torch.int32)
    whole = decode_attention(*arguments)
    monkeypatch.setattr(decode, "_GATHERED_ELEMENTS", 2 * 3 * 4 * 8)
    torch.testing.assert_close(decode_attention(*arguments), whole)


def test_as_custom_operators():
    k_pages, v_pages = torch.randn(2, 3, 4, 1, 8)
    q, table, lengths = torch.randn(2, 2, 8), torch.tensor([[0, 1], [0, 2]], dtype=torch.int32), torch.tensor([4, 7])
    lengths = lengths.to(torch.int32)
    opcheck(decode._decode_attention_op, (q, k_pages, v_pages, table, lengths, 3, 0.3))
    opcheck(write_pages, (k_pages[0, :2].clone(), v_pages[0, :2].clone(), k_pages, v_pages, torch.tensor([3, 9])))
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    arguments = (q, k_pages, v_pages, table, lengths)
    assert torch.equal(compiled(*arguments), decode_attention(*arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 8, 1)}, "q needs 3 dimensions"),
        ({"k_pages": torch.zeros(3, 4, 1, 16)}, "must have one shape"),
        ({"v_pages": torch.zeros(3, 4, 1, 8).half()}, "v_pages has dtype torch.float16"),
        ({"lengths": torch.zeros(2).long()}, "lengths must be int32"),
        ({"block_table": torch.zeros(3, 1, dtype=torch.int32)}, "block_table must be int32 with one row"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(change, message):
    arguments = {"q": torch.zeros(2, 2, 8), "k_pages": torch.zeros(3, 4, 1, 8), "v_pages": torch.zeros(3, 4, 1, 8)}
    arguments |= {name: torch.zeros(2, 1, dtype=torch.int32) for name in ("block_table", "lengths")}
    with pytest.raises(ValueError, match=message):
        decode_attention(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(3, 1, 8)}, "k and v must have one shape"),
        ({"k_pages": torch.zeros(3, 8, 1, 8)[:, ::2]}, "must be contiguous"),
        ({"slots": torch.zeros(3).long()}, "slots must be int64"),
    ],
)
def test_wrong_writes_are_refused_with_the_reason(change, message):
    arguments = {"k": torch.zeros(2, 1, 8), "v": torch.zeros(2, 1, 8), "slots": torch.tensor([0, 5])}
    arguments |= {"k_pages": torch.zeros(3, 4, 1, 8), "v_pages": torch.zeros(3, 4, 1, 8)}
    with pytest.raises(ValueError, match=message):
        write_pages(**(arguments | change))
