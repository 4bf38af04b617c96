"""Documents of similar length as padded batches: how the plain-torch attention avoids one call a document."""

import functools
from typing import NamedTuple

import numpy as np
import torch


class Padded(NamedTuple):
    """Documents of similar length as one batch [documents, length], for the plain-torch attention.

    tokens   int64 [real tokens], their place on the packed token axis
    places   int64 [real tokens], their place on the flattened [documents * length] axis
    `begin` is the first token when the batch needs no copying (equal lengths, end to end), else None.
    """

    documents: int
    length: int
    begin: int | None
    tokens: torch.Tensor
    places: torch.Tensor


@functools.lru_cache(maxsize=64)
def padded_batches(cu_seqlens: tuple[int, ...]) -> tuple[Padded, ...]:
    """Groups documents by length so that few torch calls remain and padding adds little work. Empty ones are left out.

    Sorted by length, a group ends before a document longer than 1.1 times its shortest + 4 tokens. Measured on two
    cores (heads of 16, 2,048 tokens): 59 documents of 30 to 40 tokens take half the time of one call each, 23 documents
    of 20 to 150 tokens the same; looser bounds lose to the quadratic work of the padding.
    """
    bounds = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = np.diff(bounds)
    order = [int(d) for d in np.argsort(lengths, kind="stable") if lengths[d] > 0]
    batches, group = [], []
    for document in order:
        if group and lengths[document] > 1.1 * lengths[group[0]] + 4:
            batches.append(_pad(bounds, sorted(group)))
            group = []
        group.append(document)
    if group:
        batches.append(_pad(bounds, sorted(group)))
    return tuple(batches)


def _pad(bounds: np.ndarray, group: list[int]) -> Padded:
    begins, lengths = bounds[group], bounds[np.array(group) + 1] - bounds[group]
    length = int(lengths.max())
    position = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = np.repeat(begins, lengths) + position
    places = np.repeat(np.arange(len(group)) * length, lengths) + position
    end_to_end = bool((lengths == length).all()) and bool((np.diff(begins) == length).all())
    begin = int(begins[0]) if end_to_end else None
    return Padded(len(group), length, begin, torch.from_numpy(tokens), torch.from_numpy(places))


def take(batch: Padded, x: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] -> [documents, heads, length, head_dim]; padding is zero. A view where it can be."""
    shape = (batch.documents, batch.length, *x.shape[1:])
    if batch.begin is not None:
        padded = x[batch.begin : batch.begin + batch.documents * batch.length]
    else:
        padded = x.new_zeros((batch.documents * batch.length, *x.shape[1:]))
        padded.index_copy_(0, batch.places, x.index_select(0, batch.tokens))
    return padded.unflatten(0, shape[:2]).transpose(1, 2)


def place(batch: Padded, padded: torch.Tensor, out: torch.Tensor) -> None:
    """The inverse of `take`: writes the real tokens of `padded` to their rows of `out`."""
    rows = padded.transpose(1, 2)
    if batch.begin is not None:
        out[batch.begin : batch.begin + batch.tokens.numel()].unflatten(0, rows.shape[:2]).copy_(rows)
    else:
        out.index_copy_(0, batch.tokens, rows.flatten(0, 1).index_select(0, batch.places))


def repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[documents, kv_heads, length, head_dim] with every kv head repeated for the query heads that read it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def visible(queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Additive mask [queries, keys], 0 where query i may read key j, else -inf; the last query meets the last key.

    None where plain causality on a square says it all, which torch computes without a mask (and skips blocks).
    """
    if queries == keys and (window is None or window >= keys):
        return None
    behind = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    return torch.zeros(behind.shape, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
