"""Attention within texts that lie end to end, by the C++ kernel: for training and for reading prompts.

A token sees those of its own text before it and, where texts go on from a common start (a prompt with its replies, a
prefix that is remembered), all of that. Nothing is padded, copied or kept but the output and one number a query. The
twins are `attend` over padded rows and `attend_texts` of `kernels/causal.py`.

Source: arXiv 2307.08691 (blocks, and scores made anew on the way back).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from schoolhouse.kernels.attention import Scoring
from schoolhouse.kernels.native import library


class Layout:
    """Which keys each query sees.

    Groups of texts; each has a start, whose length comes first, and texts that see it wholly, their lengths behind it.
    """

    def __init__(self, starts: Sequence[int], followers: Sequence[Sequence[int]] = (), known: int = 0) -> None:
        """Keys lie start by start, then follower by follower; so do queries, but for the first `known` keys.

        starts: tokens of each start; followers: for each start those of its followers (none at all if empty). If
        `known` is not 0 it is the only start, and nobody asks from there.
        """
        assert not known or list(starts) == [known]
        rows: list[tuple[int, int, int, int, int]] = []  # first query, queries, first key, keys, leader's row
        start_at, at = 0, sum(starts)
        for index, start in enumerate(starts):
            leader = len(rows)
            rows.append((start_at, 0 if known else start, start_at, start, leader))
            start_at += start
            for length in followers[index] if followers else ():
                rows.append((at - known, length, at, length, leader))
                at += length
        self.table = torch.tensor(rows, dtype=torch.int64).view(-1, 5)
        self.keys, self.queries = at, at - known
        self.longest = max((row[3] + (rows[row[4]][3] if row[4] != i else 0) for i, row in enumerate(rows)), default=0)
        """Keys that any query sees, at most."""


def attend_layout(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor | None:
    """Softmax attention, with gradients; None where no kernel does it.

    q: (N, H, Dk); k: (M, Hk, Dk); v: (M, Hk, Dv), as `layout` says, in bf16 and with any strides. Returns (N, H, Dv).
    The result has the same bits with any number of threads. Scores that are capped, and windows that hide anything,
    are left to the twins.
    """
    if library() is None or any(t.dtype != torch.bfloat16 or t.device.type != "cpu" for t in (q, k, v)):
        return None
    if scoring.cap is not None or (scoring.window is not None and scoring.window < layout.longest):
        return None
    assert len(q) == layout.queries
    assert len(k) == len(v) == layout.keys
    out: Tensor = _Attention.apply(q, k, v, layout, scoring.scale)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        """See `attend_layout`."""
        native = library()
        assert native is not None
        q, k, v = _near(q), _near(k), _near(v)
        (tokens, heads, width), (kv_heads, depth) = q.shape, v.shape[1:]
        out, logs = q.new_empty(tokens, heads, depth), q.new_empty(heads, tokens, dtype=torch.float32)
        native.attend_texts(
            *_told(q), *_told(k), *_told(v), layout.table.data_ptr(), len(layout.table), out.data_ptr(),
            logs.data_ptr(), tokens, kv_heads, heads // kv_heads, width, depth, scale,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, logs)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        native = library()
        assert native is not None
        q, k, v, out, logs = ctx.saved_tensors
        (tokens, heads, width), (kv_heads, depth) = q.shape, v.shape[1:]
        grad, found = _near(grad), [x.new_empty(x.shape) for x in (q, k, v)]
        native.attend_texts_back(
            *_told(q), *_told(k), *_told(v), *_told(grad), ctx.layout.table.data_ptr(), len(ctx.layout.table),
            out.data_ptr(), logs.data_ptr(), *(x.data_ptr() for x in found), tokens, kv_heads, heads // kv_heads,
            width, depth, ctx.scale,
        )  # fmt: skip
        return *found, None, None


def _near(x: Tensor) -> Tensor:
    """The numbers of a head side by side, as the kernel reads them."""
    return x if x.stride(2) == 1 else x.contiguous()


def _told(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)
