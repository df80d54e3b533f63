"""Grouped-query attention: what it projects. What it may look at is the context's business.

A `Context` knows where the tokens of a forward pass stand and which of them see which: a plain causal batch, rows
packed for training with a shared prompt, or the slots of the engine's cache. The network is the same for all of them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from schoolhouse.kernels.attention import attend, causal_bias
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.layers import RMSNorm, apply_rope


class Context(Protocol):
    """Where the tokens of one forward pass stand, and what each may look at."""

    positions: Tensor
    """(B, T) int64, the place of each token in its own text."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """q: (B, T, H, Dh); k, v: (B, T, Hk, Dh); returns (B, T, H, Dh)."""


class Causal:
    """Every row of a batch is one text from its start; a token sees itself and those before it."""

    def __init__(self, batch: int, length: int, device: torch.device | str = "cpu") -> None:
        self.positions = torch.arange(length, device=device).expand(batch, length)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Context.attend`."""
        bias = causal_bias(q.shape[1], k.shape[1], q.dtype, window).to(q.device)
        return attend(q, k.transpose(1, 2), v.transpose(1, 2), bias, scale)


class Attention(nn.Module):
    """Queries in groups that share a key and a value head. Source: arXiv 2305.13245, section 2.2."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, head = config.hidden_size, config.head_dim
        self.layer = layer
        self.head_dim = head
        self.scale = head**-0.5
        self.window = config.sliding_window
        self.q_proj = nn.Linear(d, config.num_attention_heads * head, bias=config.attention_bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * head, bias=config.attention_bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * head, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head, d, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(head, config.rms_norm_eps)
            self.k_norm = RMSNorm(head, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Context) -> Tensor:
        """x: (B, T, D) to (B, T, D)."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, H, Dh)
        k = self.k_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, Hk, Dh)
        v = self.v_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, Hk, Dh)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        out = context.attend(self.layer, q, k, v, self.scale, self.window)
        return self.o_proj(out.reshape(batch, length, -1))
