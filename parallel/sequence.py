"""Sequence parallelism: between the linear layers each rank of tp holds a share of the tokens (arXiv 2205.05198).

With `pieces` > 1 the tokens are cut into so many pieces and each piece is shared out over the ranks. Where a linear
layer reads gathered tokens or its result is scattered, the exchange of one piece then runs beside the product of
another:

    before: gather all | product of all            now: gather 1 | gather 2    | ...
                                                                 | product of 1 | product of 2 ...

On a group of one everything is the identity. Shapes: `[tokens, features]` gathered, `[tokens / tp, features]` shared.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .comm import Group, Transfer, start_all_gather, start_reduce_scatter


@dataclass
class Exchange:
    """A gather or a scatter under way: one transfer a piece, into pieces of one tensor."""

    result: Tensor
    transfers: list[Transfer]

    def wait(self) -> Tensor:
        for transfer in self.transfers:
            transfer.wait()
        return self.result


@dataclass(frozen=True)
class SequenceParallel:
    """How tokens are shared out."""

    tp: Group
    pieces: int = 1

    @property
    def multiple(self) -> int:
        """The number of tokens is a multiple of this."""
        return self.tp.size * self.pieces if self.tp.size > 1 else 1

    def _cut(self, x: Tensor) -> tuple[Tensor, ...]:
        assert len(x) % self.pieces == 0
        return x.chunk(self.pieces) if self.pieces > 1 else (x,)

    def start_gather(self, x: Tensor) -> Exchange:
        """`[tokens / tp, features]` -> `[tokens, features]`."""
        if self.tp.size == 1:
            return Exchange(x, [])
        whole = x.new_empty((len(x) * self.tp.size, *x.shape[1:]))
        pairs = zip(self._cut(x), self._cut(whole), strict=True)
        return Exchange(whole, [start_all_gather(piece, self.tp, out) for piece, out in pairs])

    def start_scatter(self, x: Tensor) -> Exchange:
        """`[tokens, features]`, to be summed over the ranks -> `[tokens / tp, features]`."""
        if self.tp.size == 1:
            return Exchange(x, [])
        share = x.new_empty((len(x) // self.tp.size, *x.shape[1:]))
        pairs = zip(self._cut(x), self._cut(share), strict=True)
        return Exchange(share, [start_reduce_scatter(piece, self.tp, out) for piece, out in pairs])

    def gather_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """gathered x @ weight.T, each product beside the gather of the next piece."""
        if self.tp.size == 1:
            return x @ weight.t()
        gathering = self.start_gather(x)
        out = x.new_empty((len(gathering.result), weight.shape[0]))
        for rows, whole, transfer in self._pieces(out, gathering):
            transfer.wait()
            torch.mm(whole, weight.t(), out=rows)
        return out

    def linear_scatter_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        """residual + the sum over tp of x @ weight.T, scattered; each product beside the sum of the piece before.

        x `[tokens, in / tp]`, residual and result `[tokens / tp, out]`.
        """
        if self.tp.size == 1:
            return torch.addmm(residual, x, weight.t())  # inside the GEMM where there is nothing to sum
        out = torch.empty_like(residual)
        summing = [
            start_reduce_scatter(rows @ weight.t(), self.tp, share)
            for rows, share in zip(self._cut(x), self._cut(out), strict=True)
        ]
        for share, rest, transfer in zip(self._cut(out), self._cut(residual), summing, strict=True):
            transfer.wait()
            share.add_(rest)
        return out

    def _pieces(self, out: Tensor, gathering: Exchange) -> Iterator[tuple[Tensor, Tensor, Transfer]]:
        return zip(self._cut(out), self._cut(gathering.result), gathering.transfers, strict=True)
