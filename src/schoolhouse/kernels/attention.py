"""Attention of grouped queries by plain matrix products.

On a CPU the products of short sequences are faster than torch's flash attention (2.5 times with a backward pass and
3 times in decoding, `docs/lab-log.md` 2026-11-22), and their memory is small while a reply has a few hundred tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schoolhouse.kernels.native import library, takes

LANES = 16  # numbers that the C++ kernel takes at once


@dataclass(frozen=True)
class Scoring:
    """How a layer's scores are made: times `scale`, kept within `cap` by tanh, tokens beyond `window` left out."""

    scale: float
    window: int | None = None
    cap: float | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scoring: Scoring) -> Tensor:
    """Softmax attention in which the query heads of a group share one key/value head.

    q: (B, T, H, Dh); k: (B, Hk, S, Dh); v: (B, Hk, S, Dv); bias: (B or 1, T, S), added to the scores, -inf where a
    query must not look (the window's part is in it). Returns (B, T, H, Dv). The softmax is in fp32; the scores have
    the type of the products.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    share = heads // kv_heads
    folded = q.reshape(batch, length, kv_heads, share, head_dim).permute(0, 2, 3, 1, 4)  # (B, Hk, H/Hk, T, Dh)
    folded = folded.reshape(batch * kv_heads, share * length, head_dim)
    scores = torch.bmm(folded, k.reshape(batch * kv_heads, keys, head_dim).transpose(1, 2))
    scores = scores.view(batch, kv_heads * share, length, keys) * scoring.scale  # (B, H, T, S)
    if scoring.cap is not None:
        scores = torch.tanh(scores / scoring.cap) * scoring.cap
    scores = scores + bias[:, None]
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    out = torch.bmm(shares.view(batch * kv_heads, share * length, keys), v.reshape(batch * kv_heads, keys, -1))
    out = out.view(batch, kv_heads, share, length, -1).permute(0, 3, 1, 2, 4)  # (B, T, Hk, H/Hk, Dv)
    return out.reshape(batch, length, heads, -1)


def attend_one(q: Tensor, k: Tensor, v: Tensor, firsts: Tensor, lasts: Tensor, scoring: Scoring) -> Tensor | None:
    """Attention of one new token in each text, which reads what it sees and no more; None where no kernel does.

    q: (B, 1, H, Dh); k: (B, Hk, S, Dh); v: (B, Hk, S, Dv); firsts, lasts: (B,) int64, the tokens that a text sees, from
    the first to before the last. Returns (B, 1, H, Dv); `attend` with a bias that hides the others is the twin.
    """
    native, (texts, _, heads, width), depth = library(), q.shape, v.shape[3]
    fits = width % LANES == 0 and depth % LANES == 0 and k.stride(3) == v.stride(3) == 1
    if native is None or not takes(q, k, v) or not fits:
        return None
    q, out = q.contiguous(), q.new_empty(texts, 1, heads, depth)
    native.attend_one(
        q.data_ptr(), k.data_ptr(), *k.stride()[:3], v.data_ptr(), *v.stride()[:3], firsts.data_ptr(),
        lasts.data_ptr(), out.data_ptr(), texts, k.shape[1], heads // k.shape[1], width, depth,
        scoring.scale, scoring.cap or 0.0,
    )  # fmt: skip
    return out


def causal_bias(queries: int, keys: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Scores' bias for queries that are the last of the keys: (1, T, S), 0 where allowed and -inf elsewhere."""
    query_at = torch.arange(keys - queries, keys)[:, None]
    key_at = torch.arange(keys)[None]
    hidden = key_at > query_at
    if window is not None:
        hidden |= key_at <= query_at - window
    return torch.zeros(1, queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))
