"""Many texts in one row without padding, and replies that share the pass over their prompt.

Every matrix product runs over the bare tokens; only attention, a few percent of the work for short texts, lays them
out as rows. In a group of `G` replies to one prompt the prompt is computed once: with 75 tokens of prompt and 75 of
reply and G = 8 this saves 44% of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from schoolhouse.kernels.attention import Scoring, attend
from schoolhouse.kernels.causal import attend_texts
from schoolhouse.kernels.grid import filler
from schoolhouse.kernels.texts import Layout, attend_layout
from schoolhouse.model.attention import Context

WIDTH_GRID = 16  # of rows as attention sees them
LONG = 256  # tokens of a text from which on blocks are faster than rows


class _Take(torch.autograd.Function):
    """Take rows by an index whose inverse is known: both ways are a gather, never a scattered sum.

    Where the inverse names row `len(index)`, the gradient is zero: that row of the input was not taken.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """x: (N, C) to (len(index), C)."""
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Each row gets the gradient of the place where it went."""
        (inverse,) = ctx.saved_tensors
        if len(inverse) > len(grad):  # rows were dropped
            grad = torch.cat((grad, grad.new_zeros(1, grad.shape[1])))
        return grad.index_select(0, inverse), None, None


class Rows:
    """Texts laid end to end (N tokens) seen as padded rows (R, T), and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        sizes = torch.tensor(lengths, dtype=torch.int64, device=device)
        starts = sizes.cumsum(0) - sizes
        self.count = len(lengths)
        longest = int(sizes.max())
        self.width = longest + filler(longest, WIDTH_GRID)
        self.lengths = sizes
        column = torch.arange(self.width, device=device)[None]
        inside = column < sizes[:, None]  # (R, T)
        self._to_rows = (starts[:, None] + column).where(inside, 0).flatten()  # padding repeats token 0
        self._to_flat = inside.flatten().nonzero().squeeze(1)  # (N,)
        # (R * T,); padding points behind the end
        self._back = torch.full((inside.numel(),), len(self._to_flat), device=device)
        self._back[self._to_flat] = torch.arange(len(self._to_flat), device=device)

    def spread(self, x: Tensor) -> Tensor:
        """(N, H, Dh) to (R, T, H, Dh); what lies in the padding is arbitrary."""
        out = _Take.apply(x.flatten(1), self._to_rows, self._to_flat)
        return out.view(self.count, self.width, *x.shape[1:])

    def join(self, x: Tensor) -> Tensor:
        """(R, T, H, Dh) to (N, H, Dh), the inverse of `spread`."""
        return _Take.apply(x.flatten(0, 1).flatten(1), self._to_flat, self._back).view(-1, *x.shape[2:])


class Packed(Context):
    """Context of one packed row: prompts first, then their replies, prompt by prompt.

    prompts: the length of each prompt in tokens; replies: for each prompt the lengths of its replies, equally many for
    all (none, where the prompts are whole texts). A reply sees its own prompt and itself.
    """

    def __init__(
        self,
        prompts: Sequence[int],
        replies: Sequence[Sequence[int]] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self._device = device
        self._prompts = Rows(prompts, device)
        self._prompt_lengths, self._prompt_tokens = prompts, sum(prompts)
        parts = [torch.arange(n) for n in prompts]
        self._group = len(replies[0]) if replies else 0
        assert all(len(r) == self._group for r in replies), "every prompt needs equally many replies"
        self._layout = Layout(prompts, replies)
        self._replies: Rows | None = None
        if self._group:
            self._replies = Rows([n for row in replies for n in row], device)
            parts += [p + torch.arange(n) for p, row in zip(prompts, replies, strict=True) for n in row]
        self.positions = torch.cat(parts)[None].to(device)  # (1, N)
        self._bias: dict[tuple[torch.dtype, int | None], tuple[Tensor, Tensor | None]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """See `Context.attend`; B is 1."""
        q, k, v = (x.squeeze(0) for x in (q, k, v))  # x[0]'s gradient would be filled up with zeros first
        out = attend_layout(q, k, v, self._layout, scoring)
        if out is not None:
            return out[None]
        if self._replies is None and self._prompts.width > LONG:
            return attend_texts(q, k, v, self._prompt_lengths, scoring)[None]
        prompt_bias, reply_bias = self._biases(q.dtype, scoring.window)
        if self._replies is None or reply_bias is None:
            rows = self._prompts
            keys, values = (rows.spread(x).transpose(1, 2) for x in (k, v))
            wide = attend(rows.spread(q), keys, values, prompt_bias, scoring)
            return rows.join(wide)[None]
        sizes = [self._prompt_tokens, len(q) - self._prompt_tokens]
        (q_prompt, q_reply), (k_prompt, k_reply), (v_prompt, v_reply) = (x.split(sizes) for x in (q, k, v))
        keys, values = (self._prompts.spread(x).transpose(1, 2) for x in (k_prompt, v_prompt))  # (P, Hk, Tp, Dh)
        first = attend(self._prompts.spread(q_prompt), keys, values, prompt_bias, scoring)
        all_keys = torch.cat((self._share(keys), self._replies.spread(k_reply).transpose(1, 2)), dim=2)
        all_values = torch.cat((self._share(values), self._replies.spread(v_reply).transpose(1, 2)), dim=2)
        second = attend(self._replies.spread(q_reply), all_keys, all_values, reply_bias, scoring)
        return torch.cat((self._prompts.join(first), self._replies.join(second)))[None]

    def _share(self, x: Tensor) -> Tensor:
        """(P, Hk, Tp, Dh) to (P * G, Hk, Tp, Dh): each reply reads its prompt's."""
        return x[:, None].expand(-1, self._group, -1, -1, -1).flatten(0, 1)

    def _biases(self, dtype: torch.dtype, window: int | None) -> tuple[Tensor, Tensor | None]:
        """Masks of prompts (1, Tp, Tp) and of replies (P * G, Tr, Tp + Tr), made once for all layers."""
        if (dtype, window) not in self._bias:
            width = self._prompts.width
            place = torch.arange(width, device=self._device)
            prompt = _bias(place[None, :, None], place[None, None], None, dtype, window)
            reply = None
            if self._replies is not None:
                starts = self._prompts.lengths.repeat_interleave(self._group)[:, None]  # (P * G, 1)
                own = starts + torch.arange(self._replies.width, device=self._device)[None]  # (P * G, Tr)
                key_at = torch.cat((place[None].expand(len(starts), -1), own), dim=1)
                real = torch.cat((place[None] < starts, torch.ones_like(own, dtype=torch.bool)), dim=1)
                reply = _bias(own[:, :, None], key_at[:, None], real[:, None], dtype, window)
            self._bias[dtype, window] = (prompt, reply)
        return self._bias[dtype, window]


def _bias(query_at: Tensor, key_at: Tensor, real: Tensor | None, dtype: torch.dtype, window: int | None) -> Tensor:
    """0 where a query at its place may look at a key at its place, -inf elsewhere."""
    seen = key_at <= query_at
    if window is not None:
        seen = seen & (key_at > query_at - window)
    if real is not None:
        seen = seen & real
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
