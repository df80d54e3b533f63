"""Grouped-query attention: what it projects. What it may look at is the context's business.

A `Context` knows where the tokens of a forward pass stand and which of them see which: a plain causal batch, rows
packed for training with a shared prompt, or the slots of the engine's cache. The network is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from schoolhouse.kernels.attention import Scoring, attend, causal_bias
from schoolhouse.kernels.fused import turn
from schoolhouse.model.config import FULL, SLIDING, ModelConfig
from schoolhouse.model.layers import Linear, Rope, make_norm, softmax_scale

Ropes = Mapping[str, Rope]
"""Cosines and sines of the tokens' angles, for each type of layer."""


class Expands(Protocol):
    """What a context asks of latent attention (`model/mla.py`), to look at keys and values that it holds as latents."""

    @property
    def rank(self) -> int:
        """R, how much of a latent is value and still key; the turning key lies behind it."""

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, 1, R + Dr) to keys (B, S, H, Dn + Dr) and values (B, S, H, Dv)."""

    def absorb(self, q: Tensor) -> Tensor:
        """Queries (B, T, H, Dn + Dr) to queries of latents (B, T, H, R + Dr)."""

    def emerge(self, latent: Tensor) -> Tensor:
        """Sums of latents (B, T, H, R) to sums of values (B, T, H, Dv)."""


class Context(Protocol):
    """Where the tokens of one forward pass stand, and what each may look at."""

    positions: Tensor
    """(B, T) int64, the place of each token in its own text."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """q: (B, T, H, Dh); k: (B, T, Hk, Dh); v: (B, T, Hk, Dv); returns (B, T, H, Dv)."""

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, form: Expands, scoring: Scoring) -> Tensor:
        """q: (B, T, H, Dn + Dr); latent: (B, T, 1, R + Dr), the tokens' own; returns (B, T, H, Dv).

        A context that remembers nothing expands what it is handed.
        """
        k, v = form.expand(latent)
        return self.attend(layer, q, k, v, scoring)


class Causal(Context):
    """Every row of a batch is one text from its start; a token sees itself and those before it."""

    def __init__(self, batch: int, length: int, device: torch.device | str = "cpu") -> None:
        self.positions = torch.arange(length, device=device).expand(batch, length)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """See `Context.attend`."""
        bias = causal_bias(q.shape[1], k.shape[1], q.dtype, scoring.window).to(q.device)
        return attend(q, k.transpose(1, 2), v.transpose(1, 2), bias, scoring)


class Attention(nn.Module):
    """Queries in groups that share a key and a value head. Source: arXiv 2305.13245, section 2.2."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, head = config.hidden_size, config.head_dim
        self.layer = layer
        self.head_dim = head
        self.kind = SLIDING if config.window(layer) is not None and config.rope_local_theta is not None else FULL
        self.scoring = Scoring(softmax_scale(config), config.window(layer), config.attn_logit_softcapping)
        self.interleaved = config.rope_interleave
        self.q_proj = Linear(d, config.num_attention_heads * head, bias=config.attention_bias)
        self.k_proj = Linear(d, config.num_key_value_heads * head, bias=config.attention_bias)
        self.v_proj = Linear(d, config.num_key_value_heads * head, bias=config.attention_bias)
        self.o_proj = Linear(config.num_attention_heads * head, d, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm = make_norm(config, head)
            self.k_norm = make_norm(config, head)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, ropes: Ropes, context: Context) -> Tensor:
        """x: (B, T, D) to (B, T, D)."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, H, Dh)
        k = self.k_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, Hk, Dh)
        v = self.v_proj(x).view(batch, length, -1, self.head_dim)  # (B, T, Hk, Dh)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        rope = ropes[self.kind]
        q, k = turn(q, *rope, neighbours=self.interleaved), turn(k, *rope, neighbours=self.interleaved)
        out = context.attend(self.layer, q, k, v, self.scoring)
        return self.o_proj(out.reshape(batch, length, -1))
