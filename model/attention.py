"""RoPE and attention between a block's qkv and output projections."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import attention_forward
from kernels.attention_backward import attention_backward
from kernels.documents import Documents
from kernels.rope import rope_backward, rope_forward


def split_qkv(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the packed `[tokens, (heads + 2 * kv_heads) * head_dim]`: q `[tokens, heads, head_dim]`, k and v
    `[tokens, kv_heads, head_dim]`.
    """
    return qkv.view(qkv.shape[0], heads + 2 * kv_heads, -1).split([heads, kv_heads, kv_heads], dim=1)


@dataclass(frozen=True)
class RopeAttention:
    """`parallel.linear.Inner` of attention: rotate q and k at each token's position in its document, then attend
    causally within the document.

    qkv `[tokens, (heads + 2 * kv_heads) * head_dim]`, overwritten with the rotated values and saved ->
    `[tokens, heads * head_dim]`. Saves qkv, the output and one number a token and head.
    """

    cos: Tensor
    sin: Tensor
    documents: Documents
    heads: int
    kv_heads: int
    window: int | None

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        # In place: x is a GEMM's fresh output that no one else has saved.
        rope_forward(x, self.cos, self.sin, self.documents.positions, self.heads, self.kv_heads)
        q, k, v = split_qkv(x, self.heads, self.kv_heads)
        out, lse = attention_forward(q, k, v, self.documents, window=self.window)
        out = out.view(out.shape[0], -1)
        return out, (x, out, lse)

    def backward(self, dy: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        qkv, out, lse = saved
        dqkv = torch.empty_like(qkv)
        q, k, v = split_qkv(qkv, self.heads, self.kv_heads)
        dq, dk, dv = split_qkv(dqkv, self.heads, self.kv_heads)
        attention_backward(
            dy.view(q.shape), q, k, v, out.view(q.shape), lse, self.documents, dq, dk, dv, window=self.window
        )
        rope_backward(dqkv, self.cos, self.sin, self.documents.positions, self.heads, self.kv_heads)
        return dqkv, out
