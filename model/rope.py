"""Rotary position tables: the cosines and sines that `kernels.rope` reads."""

import math

import torch
from torch import Tensor

from .config import LlamaConfig, Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians a position turns each channel pair by: float32 `[head_dim // 2]`.

    theta ** (-2 i / head_dim) (arXiv 2104.09864, eq. 15); `llama3` divides the frequencies of long wavelengths by
    `factor`, keeps the short ones, and interpolates between (Llama 3.1 model card). float32, because the published
    weights were trained with angles rounded so.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "default":
        return frequencies
    assert rope.kind == "llama3"
    turns = rope.original_context * frequencies / (2 * math.pi)  # full turns within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def rotary_tables(config: LlamaConfig, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(cos, sin), each `[max_position_embeddings, head_dim // 2]`: float64 for a float64 model, else float32."""
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    positions = torch.arange(config.max_position_embeddings, dtype=table_dtype)
    angles = torch.outer(positions, inverse_frequencies(config.rope, config.head_dim).to(table_dtype))
    return angles.cos().to(device), angles.sin().to(device)
