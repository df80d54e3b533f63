"""The parts that every family shares: norm, rotary positions, feed-forward.

Shape letters, used all over the house: `B` batch, `T` query tokens, `S` cached tokens, `D` hidden, `H` heads,
`Hk` key/value heads, `Dh` head dim, `F` FFN width, `V` vocabulary, `N` tokens of a packed row, `P` prompts, `G` group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.fused import rms_norm
from schoolhouse.model.config import ModelConfig


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, then by a learnt weight. Source: arXiv 1910.07467, eq. 4."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) to the same shape and dtype; the mean square is taken in fp32."""
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """Feed-forward with a gate: down(silu(gate(x)) * up(x)). Source: arXiv 2002.05202, eq. 6."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.hidden_act != "silu":
            raise ModelError(f"hidden_act is {config.hidden_act!r}: this decoder's feed-forward knows 'silu' only.")
        d, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, f, bias=bias)
        self.up_proj = nn.Linear(d, f, bias=bias)
        self.down_proj = nn.Linear(f, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) to (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each rotary pair: (Dh / 2,) float32.

    Source: arXiv 2104.09864, eq. 15; `llama3` scaling as transformers 5.23 computes it.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return frequencies / float(scaling["factor"])  # type: ignore[arg-type]
    if kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    raise ModelError(f"rope_scaling has type {kind!r}: this decoder knows 'linear' and 'llama3'.")


def _llama3_frequencies(frequencies: Tensor, scaling: dict[str, object]) -> Tensor:
    """Slow waves are stretched by `factor`, fast ones kept, those between are mixed."""
    factor = float(scaling["factor"])  # type: ignore[arg-type]
    low = float(scaling["low_freq_factor"])  # type: ignore[arg-type]
    high = float(scaling["high_freq_factor"])  # type: ignore[arg-type]
    original = float(scaling["original_max_position_embeddings"])  # type: ignore[arg-type]
    turns = original * frequencies / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * keep + frequencies / factor * (1 - keep)


def rope_table(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each token's angles: two (B, T, 1, Dh / 2) tensors. positions: (B, T) int64."""
    angles = positions[..., None].float() * frequencies  # (B, T, Dh/2)
    return angles.cos()[:, :, None].to(dtype), angles.sin()[:, :, None].to(dtype)


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head's pairs (i, i + Dh/2) by their token's angles. x: (B, T, H, Dh) to the same shape."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
