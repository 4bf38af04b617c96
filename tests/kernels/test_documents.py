import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.documents import Documents
from kernels.padding import padded_batches
from kernels.tiles import work_blocks

LENGTHS = st.lists(st.integers(0, 200), min_size=1, max_size=12)


def bounds(lengths):
    return [0, *np.cumsum(lengths).tolist()]


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.sampled_from([None, 1, 50]))
def test_work_lists_cover_every_block_once_and_start_with_the_longest(lengths, window):
    documents = Documents.build(bounds(lengths), "cpu", window=window)
    reach = window or 10**9
    for block in work_blocks():
        wanted = {(d, b) for d, length in enumerate(lengths) for b in range(0, length, block)}
        for work, amount in (
            (documents.query_blocks(block), lambda b, e, length: e - max(0, b + 1 - reach)),
            (documents.key_blocks(block), lambda b, e, length: min(length, e - 1 + reach) - b),
        ):
            assert work.dtype == torch.int32
            assert len(work) == -(-sum(lengths) // block) + len(lengths)
            entries = [(d, s - bounds(lengths)[d]) for d, s in work.tolist() if d >= 0]
            assert len(entries) == len(wanted)
            assert set(entries) == wanted
            assert all(entry == [-1, 0] for entry in work[len(entries) :].tolist())
            amounts = [amount(b, min(b + block, lengths[d]), lengths[d]) for d, b in entries]
            assert amounts == sorted(amounts, reverse=True)


def test_positions_restart_at_each_document():
    documents = Documents.build(np.array([0, 3, 3, 5, 5]), "cpu")
    assert documents.positions.tolist() == [0, 1, 2, 0, 1]
    assert documents.cu_seqlens.tolist() == [0, 3, 3, 5, 5]
    assert documents.positions.dtype == documents.cu_seqlens.dtype == torch.int32


def test_shapes_depend_only_on_the_numbers_of_tokens_and_documents():
    one, other = Documents.build([0, 1, 300, 300], "cpu"), Documents.build([0, 100, 200, 300], "cpu")
    assert [t.shape for t in one.tensors()] == [t.shape for t in other.tensors()]


def test_tensors_and_back():
    documents = Documents.build([0, 7, 9], "cpu")
    again = Documents.of(documents.tensors())
    assert all(torch.equal(a, b) for a, b in zip(documents.tensors(), again.tensors(), strict=True))
    assert torch.equal(again.query_blocks(64), documents.query_blocks(64))
    assert torch.equal(again.key_blocks(32), documents.key_blocks(32))


@pytest.mark.parametrize("cu_seqlens", [[], [1, 2], [0, 5, 4], [[0, 1]]])
def test_wrong_bounds_are_refused(cu_seqlens):
    with pytest.raises(ValueError, match="cu_seqlens must start at 0 and never decrease"):
        Documents.build(cu_seqlens, "cpu")


def test_too_many_tokens_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="at most 2\\^31 - 1"):
        Documents.build([0, 2**31], "cpu")


@settings(max_examples=50, deadline=None)
@given(LENGTHS)
def test_padded_batches_hold_every_token_once_and_little_padding(lengths):
    batches = padded_batches(tuple(bounds(lengths)))
    tokens = torch.cat([batch.tokens for batch in batches]) if batches else torch.empty(0, dtype=torch.int64)
    assert sorted(tokens.tolist()) == list(range(sum(lengths)))
    for batch in batches:
        assert batch.documents * batch.length <= 1.1 * len(batch.tokens) + 4 * batch.documents
        assert len(set(batch.places.tolist())) == len(batch.places)
        document = np.searchsorted(bounds(lengths), batch.tokens.numpy(), side="right") - 1
        position = batch.tokens.numpy() - np.array(bounds(lengths))[document]
        assert (batch.places.numpy() % batch.length == position).all()


@pytest.mark.gpu
def test_documents_on_a_gpu_are_the_same():
    cpu, cuda = Documents.build([0, 7, 300], "cpu"), Documents.build([0, 7, 300], "cuda")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu.tensors(), cuda.tensors(), strict=True))
