import pytest
import torch
from torch.library import opcheck

from kernels.paged_cache import page_tile, write_pages
from kernels.tiles import tile


def test_keys_stand_where_their_slot_says():
    k_pages, v_pages = torch.zeros(2, 3, 16, 1, 8)
    k, v = torch.randn(2, 2, 1, 8)
    write_pages(k, v, k_pages, v_pages, torch.tensor([2 * 16 + 3, 0]))
    for pages, new in ((k_pages, k), (v_pages, v)):
        assert torch.equal(pages[2, 3], new[0]) and torch.equal(pages[0, 0], new[1])
        assert torch.count_nonzero(pages) == new.numel()


def test_as_a_custom_operator():
    k_pages, v_pages = torch.randn(2, 3, 16, 1, 8)
    opcheck(write_pages, (torch.randn(2, 1, 8), torch.randn(2, 1, 8), k_pages, v_pages, torch.tensor([3, 9])))


@pytest.mark.parametrize(("page_size", "columns"), [(16, 16), (48, 16), (96, 32), (256, None)])
def test_a_tile_of_keys_lies_in_one_page(page_size, columns):
    whole = tile("decode_attention", 64, "safe")
    taken = page_tile("decode_attention", torch.empty(1, 1, 64, dtype=torch.float16), page_size)
    assert taken == whole._replace(columns=min(whole.columns, columns or whole.columns))


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
