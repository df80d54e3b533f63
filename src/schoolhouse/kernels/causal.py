"""Attention within long texts that lie end to end: block by block, its scores never kept.

Plain attention over rows of 512 tokens spends most of its time on scores that go to memory and back, half of them of
tokens that come later. Here a block of queries meets only the keys up to its own end, its scores stay in the
processor's cache, and the backward pass makes them anew; no text pays for the width of the longest.

Source: arXiv 2205.14135 (blocks, and scores made anew), but with the softmax of a whole row at once, which fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.attention import Scoring, causal_bias
from schoolhouse.kernels.grid import filler

BLOCK = 128  # queries at once; a little faster here than 256, and by a third than 512 (docs/lab-log.md, 2026-11-23)
SUMS = torch.float32  # of the gradients that keys and values get from block after block
GRID = 64  # of a text's length: each further shape is a kernel to make and to keep


def attend_texts(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scoring: Scoring) -> Tensor:
    """What `attend` gives for each text by itself, a token seeing those before it.

    q: (N, H, Dh); k: (N, Hk, Dh); v: (N, Hk, Dv), texts end to end; lengths: theirs, N in all. Returns (N, H, Dv). The
    softmax is computed in fp32; scores and shares have the type of the products.
    """
    out: Tensor = _Texts.apply(q, k, v, lengths, scoring)
    return out


class _Texts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scoring: Scoring) -> Tensor:
        """See `attend_texts`."""
        ctx.save_for_backward(q, k, v)
        ctx.lengths, ctx.scoring = lengths, scoring
        heads, share = k.shape[1], q.shape[1] // k.shape[1]
        out = q.new_empty(*q.shape[:2], v.shape[2])
        for text in _texts(lengths):
            keys, values = _fold(k[text], heads), _fold(v[text], heads)
            for block in _blocks(text, scoring.window):
                shares, _ = _shares(_fold(q[block.queries], heads), keys[:, block.seen], share, scoring)
                _unfold(torch.bmm(shares, values[:, block.seen]), out[block.queries])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each block's shares once more, and the gradients of its queries and of the keys and values that they saw."""
        q, k, v = ctx.saved_tensors
        heads, share, scoring = k.shape[1], q.shape[1] // k.shape[1], ctx.scoring
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for text in _texts(ctx.lengths):
            keys, values = _fold(k[text], heads), _fold(v[text], heads)
            to_keys, to_values = keys.new_zeros(keys.shape, dtype=SUMS), values.new_zeros(values.shape, dtype=SUMS)
            for block in _blocks(text, scoring.window):
                queries, given = _fold(q[block.queries], heads), _fold(grad[block.queries], heads)
                shares, slope = _shares(queries, keys[:, block.seen], share, scoring)
                to_values[:, block.seen] += torch.bmm(shares.transpose(1, 2), given)
                pull = torch.bmm(given, values[:, block.seen].transpose(1, 2))
                pull = torch._softmax_backward_data(pull, shares, -1, pull.dtype).mul_(slope)
                to_keys[:, block.seen] += torch.bmm(pull.transpose(1, 2), queries)
                _unfold(torch.bmm(pull, keys[:, block.seen]), grad_q[block.queries])
            _unfold(to_keys, grad_k[text])
            _unfold(to_values, grad_v[text])
        return grad_q, grad_k, grad_v, None, None


class _Block(NamedTuple):
    """Queries, by their places among all tokens, and the keys that they see, by their places in the text."""

    queries: slice
    seen: slice


def _texts(lengths: Sequence[int]) -> Iterator[slice]:
    """The places of each text."""
    at = 0
    for length in lengths:
        if length:
            yield slice(at, at + length)
        at += length


def _blocks(text: slice, window: int | None) -> Iterator[_Block]:
    """The blocks of a text, the last one filled up to the grid."""
    length = text.stop - text.start
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        begin = 0 if window is None else max(0, (first - window + 1) // GRID * GRID)
        yield _Block(slice(text.start + first, text.start + last), slice(begin, last + filler(last, GRID)))


def _fold(x: Tensor, heads: int) -> Tensor:
    """(t, H, D) to (heads, H / heads * T, D): the rows that share a key head together, t filled up to T by zeros."""
    x = F.pad(x, (0, 0, 0, 0, 0, filler(len(x), GRID)))
    return x.unflatten(1, (heads, -1)).permute(1, 2, 0, 3).reshape(heads, -1, x.shape[-1])


def _unfold(x: Tensor, out: Tensor) -> None:
    """The inverse of `_fold`, into out (t, H, D); what had been filled up is dropped."""
    rows = x.unflatten(1, (out.shape[1] // len(x), -1))[:, :, : len(out)]
    out.unflatten(1, (len(x), -1)).copy_(rows.permute(2, 0, 1, 3))


def _shares(queries: Tensor, keys: Tensor, share: int, scoring: Scoring) -> tuple[Tensor, Tensor | float]:
    """How queries (Hk, share * T, Dh), the last of the keys (Hk, S, Dh), divide their attention: (Hk, share * T, S).

    Beside it the slope of the scores by the products.
    """
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scoring.scale)
    slope: Tensor | float = scoring.scale
    if scoring.cap is not None:
        bent = scores.div_(scoring.cap).tanh_()
        scores, slope = bent * scoring.cap, scoring.scale * (1 - bent * bent)
    count = queries.shape[1] // share
    # without a window only the block's own columns hide anything
    first = 0 if scoring.window is not None else keys.shape[1] - count
    hidden = _hidden(count, keys.shape[1] - first, scores.dtype, scoring.window, scores.device)
    scores.unflatten(1, (share, count))[..., first:] += hidden
    return torch.softmax(scores, dim=-1), slope


@lru_cache(maxsize=64)
def _hidden(count: int, seen: int, dtype: torch.dtype, window: int | None, device: torch.device) -> Tensor:
    """What hides a token's later ones from it; few shapes come again and again."""
    return causal_bias(count, seen, dtype, window).to(device)
