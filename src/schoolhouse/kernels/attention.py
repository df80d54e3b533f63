"""Attention of grouped queries by plain matrix products.

On a CPU the products of short sequences are faster than torch's flash attention (2.5 times with a backward pass and
3 times in decoding, `docs/lab-log.md` 2026-11-22), and their memory is small while a reply has a few hundred tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Softmax attention in which the query heads of a group share one key/value head.

    q: (B, T, H, Dh); k, v: (B, Hk, S, Dh); bias: (B or 1, T, S), added to the scores, -inf where a query must not look.
    Returns (B, T, H, Dh). The softmax is in fp32; the scores have the type of the products.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    share = heads // kv_heads
    folded = q.reshape(batch, length, kv_heads, share, head_dim).permute(0, 2, 3, 1, 4)  # (B, Hk, H/Hk, T, Dh)
    folded = folded.reshape(batch * kv_heads, share * length, head_dim)
    scores = torch.bmm(folded, k.reshape(batch * kv_heads, keys, head_dim).transpose(1, 2))
    scores = scores.view(batch, kv_heads * share, length, keys) * scale + bias[:, None]  # (B, H, T, S)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    out = torch.bmm(shares.view(batch * kv_heads, share * length, keys), v.reshape(batch * kv_heads, keys, head_dim))
    out = out.view(batch, kv_heads, share, length, head_dim).permute(0, 3, 1, 2, 4)  # (B, T, Hk, H/Hk, Dh)
    return out.reshape(batch, length, heads, head_dim)


def causal_bias(queries: int, keys: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Scores' bias for queries that are the last of the keys: (1, T, S), 0 where allowed and -inf elsewhere."""
    query_at = torch.arange(keys - queries, keys)[:, None]
    key_at = torch.arange(keys)[None]
    hidden = key_at > query_at
    if window is not None:
        hidden |= key_at <= query_at - window
    return torch.zeros(1, queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))
