"""Weights that several ranks hold must be the same to the bit: dp copies, norms over tp, replicated key/value heads, a
tied embedding on both ends of the pipeline. A GPU that computes wrongly, or a broken link, shows here first.
"""

import socket
from collections import Counter, defaultdict

import torch
from torch import Tensor

from .comm import all_gather, all_reduce, gather_json, spans
from .grid import Grid
from .parameter import Parameter, ParameterBuffer

PIECE = 2**22
"""Elements summed at once: more would take gigabytes of int64 beside the weights."""
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_weights(buffer: ParameterBuffer, grid: Grid, step: int) -> None:
    """ValueError, the same on every rank, when a weight is NaN or infinite or copies differ.

    All ranks enter together. One all-gather of 8 bytes a parameter for each kind of copy, and one small sum.
    """
    buffer.wait()
    device = buffer.data.device
    parameters = buffer.parameters
    checked = [_checksum(parameter.data) for parameter in parameters]
    checksums = torch.stack([checksum for checksum, _ in checked])
    damaged = torch.stack([bad for _, bad in checked]).sum()
    differing = _differing(checksums, grid.dp.size, all_gather(checksums, grid.dp))
    for name in ("tp", "kv", "ends"):
        group = getattr(grid, name)
        shared = [i for i, parameter in enumerate(parameters) if name in parameter.record.sum_groups]
        # A group of a rank's neighbours, of which all share these parameters in the same order.
        if group.size > 1 and shared:
            own = checksums[shared]
            differing += _differing(own, group.size, all_gather(own, group))
    damaged, differing = all_reduce(torch.stack([damaged, differing]), grid.world).tolist()
    if damaged:
        raise ValueError(
            f"step {step}: {damaged} weights are not finite, nothing is saved; "
            "lower --lr and start again, or from an earlier checkpoint"
        )
    if differing:
        raise ValueError(f"step {step}: {_report(parameters, checksums, grid, device)}")


def _checksum(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of the bits of all elements, each times an odd number of its own, modulo 2^64; elements that are not
    finite), int64 `[]`. An odd factor makes every single flipped bit change the sum.
    """
    total = torch.zeros((), dtype=torch.int64, device=weights.device)
    bad = torch.zeros((), dtype=torch.int64, device=weights.device)
    flat = weights.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        places = torch.arange(start, start + piece.numel(), device=weights.device)
        total += (piece.view(BITS[piece.element_size()]) * places.mul_(2).add_(1)).sum()
        bad += (~torch.isfinite(piece)).sum()
    return total, bad


def _differing(own: Tensor, size: int, everyone: Tensor) -> Tensor:
    return (everyone.view(size, -1) != own).any(0).sum()


def _report(parameters: list[Parameter], checksums: Tensor, grid: Grid, device: torch.device) -> str:
    """Which rank has another copy than most, or which two differ. All ranks enter together."""
    own = {
        f"{parameter.record.name}|{parameter.record.offsets}|{parameter.record.shape}": checksum
        for parameter, checksum in zip(parameters, checksums.tolist(), strict=True)
    }
    ranks = gather_json({"host": socket.gethostname(), "checksums": own}, grid.world, device)
    copies: dict[str, dict[int, int]] = defaultdict(dict)
    for rank, values in enumerate(ranks):
        for key, checksum in values["checksums"].items():
            copies[key][rank] = checksum
    differing = {key: held for key, held in copies.items() if len(set(held.values())) > 1}
    key, held = next(iter(differing.items()))
    name = key.split("|")[0]
    others = f" (and {len(differing) - 1} other slices of weights)" if len(differing) > 1 else ""
    remedy = "nothing is saved; test the hardware and start again, from the last checkpoint"
    (most, votes), *_ = Counter(held.values()).most_common()
    if 2 * votes > len(held):
        odd = " and ".join(_place(rank, ranks) for rank, checksum in held.items() if checksum != most)
        same = spans([rank for rank, checksum in held.items() if checksum == most])
        return f"{name}{others} is not the same on {odd} as on ranks {same}; {remedy}"
    return f"{name}{others} differs between {' and '.join(_place(rank, ranks) for rank in held)}; {remedy}"


def _place(rank: int, ranks: list[dict]) -> str:
    return f"rank {rank} (host {ranks[rank]['host']})"
