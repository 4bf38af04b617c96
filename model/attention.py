"""RoPE and attention on the packed qkv as one gradient function."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from kernels.attention import attention_forward
from kernels.attention_backward import attention_backward
from kernels.documents import Documents
from kernels.rope import rope_backward, rope_forward


def split_qkv(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the packed `[tokens, (heads + 2 * kv_heads) * head_dim]`: q `[tokens, heads, head_dim]`, k and v
    `[tokens, kv_heads, head_dim]`.
    """
    return qkv.view(qkv.shape[0], heads + 2 * kv_heads, -1).split([heads, kv_heads, kv_heads], dim=1)


class _RopeAttention(Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, documents, heads, kv_heads, window) -> Tensor:
        # In place: qkv is a GEMM's fresh output that no one else has saved.
        rope_forward(qkv, cos, sin, documents.positions, heads, kv_heads)
        q, k, v = split_qkv(qkv, heads, kv_heads)
        out, lse = attention_forward(q, k, v, documents, window=window)
        ctx.save_for_backward(qkv, out, lse, cos, sin)
        ctx.documents, ctx.heads, ctx.kv_heads, ctx.window = documents, heads, kv_heads, window
        return out.view(out.shape[0], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, cos, sin = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        q, k, v = split_qkv(qkv, ctx.heads, ctx.kv_heads)
        dq, dk, dv = split_qkv(dqkv, ctx.heads, ctx.kv_heads)
        attention_backward(dout.view(out.shape), q, k, v, out, lse, ctx.documents, dq, dk, dv, window=ctx.window)
        rope_backward(dqkv, cos, sin, ctx.documents.positions, ctx.heads, ctx.kv_heads)
        return dqkv, None, None, None, None, None, None


def rope_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, heads: int, kv_heads: int, window: int | None
) -> Tensor:
    """Rotate q and k at each token's position in its document, then attend causally within the document.

    qkv `[tokens, (heads + 2 * kv_heads) * head_dim]`, overwritten with the rotated values and saved; returns
    `[tokens, heads * head_dim]`. Saves qkv, the output and one number a token and head.
    """
    return _RopeAttention.apply(qkv, cos, sin, documents, heads, kv_heads, window)
