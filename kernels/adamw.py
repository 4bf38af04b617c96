"""AdamW on flat shards (Loshchilov & Hutter 2019, arXiv:1711.05101).

Bytes moved an element, fp32 shards and 2-byte weights: 30 (four values read, three written, the weight written).
Bound by memory. Deterministic.

The Triton version is not written yet; torch operations on every device (torch's own fused step does the arithmetic).
"""

from collections.abc import Sequence

import torch

_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Elements worked on at once: it bounds the workspace, the scaled gradient of one block (8 MB and 256 MB in fp32).
On the CPU smaller blocks are no faster, and on a busy machine their many short parallel passes wait for each other."""


def adamw_step(
    master: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    gradient: torch.Tensor,
    weights: torch.Tensor,
    *,
    lr: torch.Tensor,
    gradient_scale: torch.Tensor,
    step: torch.Tensor,
    keep: torch.Tensor,
    decay_ranges: Sequence[tuple[int, int, float]],
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step in place, with g = gradient * gradient_scale and t = step (1 at the first step):

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
    master = master (1 - lr * decay) - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps);  weights = master

    master, exp_avg, exp_avg_sq, gradient: flat [n], one dtype (float32 or float64); weights [n], the model's dtype: the
    rounding of master on entry and on return; it may be master itself. lr, gradient_scale, step, keep: one-element
    tensors on the same device, so that a GPU's host never waits. keep = 0 (a bad gradient, for instance) changes
    nothing. decay_ranges: (begin, end, weight decay) within [0, n), disjoint; no decay outside them.
    """
    on_host = master.device.type == "cpu"
    if on_host and not keep.item():
        return
    acc = master.dtype
    skip = None if on_host else (keep == 0).to(torch.float32)
    step = step.reshape(()).to(torch.float32)
    for begin, end, decay in _blocks(master.numel(), decay_ranges, _BLOCK[master.device.type]):
        part = slice(begin, end)
        torch._fused_adamw_(
            [master[part]],
            [gradient[part] * gradient_scale.to(acc)],
            [exp_avg[part]],
            [exp_avg_sq[part]],
            [],
            [step],
            lr=lr.reshape(()),
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=skip,
        )
        if weights.data_ptr() != master.data_ptr():
            weights[part].copy_(master[part])


def _blocks(n: int, decay_ranges: Sequence[tuple[int, int, float]], size: int) -> list[tuple[int, int, float]]:
    """[0, n) as blocks (begin, end, decay) of at most `size` elements, each with one weight decay."""
    spans, position = [], 0
    for begin, end, decay in sorted(decay_ranges):
        assert position <= begin <= end <= n, f"decay ranges overlap or leave [0, {n}): {decay_ranges}"
        spans += [(position, begin, 0.0), (begin, end, decay)]
        position = end
    spans.append((position, n, 0.0))
    return [(at, min(at + size, end), decay) for begin, end, decay in spans for at in range(begin, end, size)]
