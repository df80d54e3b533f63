"""How far one model's next-token distributions lie from another's, over the whole vocabulary, block by block of rows.

The slope of each token's divergence is worked out with the divergence itself, so that of both models' logits one block
is held in fp32, and between the two passes one matrix in the network's own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Divergence = Literal["reverse", "forward", "jsd"]

BLOCK_ROWS = 128
TINY = 1e-8  # least probability of the bucket of tokens that were not recorded

Judge = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


def token_divergence(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, master: Callable[[slice], Tensor],
    kind: Divergence,
) -> Tensor:  # fmt: skip
    """The divergence at each token, (N,) fp32, nats; gradients go to hidden, weight and bias.

    hidden: (N, D); weight: (V, D); cap: of the logits, as `Transformer.head` has it; master: the other model's logits
    of a slice of the rows. "reverse" is KL(own || master), "forward" KL(master || own), "jsd" the mean of both KLs to
    the middle. Sources: arXiv 2306.08543, section 2.1 (reverse); arXiv 1503.02531, section 2 (forward); arXiv
    2306.13649, eq. 2 (jsd).
    """

    def judge(rows: slice, own: Tensor) -> tuple[Tensor, Tensor]:
        return _divergence_and_slope(own, master(rows).float().log_softmax(-1), kind)

    out: Tensor = _Divergence.apply(hidden, weight, bias, cap, judge)
    return out


def recorded_divergence(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, ids: Tensor, logprobs: Tensor
) -> Tensor:
    """KL(master || own) at each token, (N,) fp32, where of the master only its likeliest tokens are known.

    ids, logprobs: (N, K), those tokens and their log-probabilities. Everything else is one bucket: without it the own
    network would be taught that nothing else can come. Else as `token_divergence`.
    """

    def judge(rows: slice, own: Tensor) -> tuple[Tensor, Tensor]:
        return _recorded_and_slope(own, ids[rows], logprobs[rows])

    out: Tensor = _Divergence.apply(hidden, weight, bias, cap, judge)
    return out


def recorded_plain(own: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """The same from the own logits, (..., V), by torch's own operations: the twin."""
    q = own.float().log_softmax(-1)
    named = q.gather(-1, ids)  # (..., K)
    p = logprobs.float().exp()
    rest = (1 - p.sum(-1)).clamp(min=TINY)
    own_rest = (1 - named.exp().sum(-1)).clamp(min=TINY)
    return (p * (logprobs - named)).sum(-1) + rest * (rest.log() - own_rest.log())


def divergence_plain(own: Tensor, master: Tensor, kind: Divergence) -> Tensor:
    """The same from the logits of both, (..., V), by torch's own operations: the twin."""
    p, q = own.float().log_softmax(-1), master.float().log_softmax(-1)
    if kind == "reverse":
        return (p.exp() * (p - q)).sum(-1)
    if kind == "forward":
        return (q.exp() * (q - p)).sum(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, judge: Judge,
    ) -> Tensor:  # fmt: skip
        """See `token_divergence`. judge: of a slice of the rows and their own log-probabilities the divergence of each
        and its derivative by the own logits.
        """
        rows, keep = len(hidden), any(ctx.needs_input_grad)
        found = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        slopes = hidden.new_empty(rows if keep else 0, len(weight))  # (N, V)
        for start in range(0, rows, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows))
            logits = torch.nn.functional.linear(hidden[block], weight, bias).float()
            bend = None
            if cap is not None:
                logits = torch.tanh(logits / cap) * cap
                bend = 1 - (logits / cap).square()
            found[block], slope = judge(block, logits.log_softmax(-1))
            if keep:
                slopes[block] = slope if bend is None else slope.mul_(bend)
        ctx.save_for_backward(hidden, weight, slopes)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The slopes by the logits, times the upstream gradient."""
        hidden, weight, slopes = ctx.saved_tensors
        need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
        slopes = slopes.mul_(grad[:, None].to(slopes.dtype))
        grad_hidden = torch.mm(slopes, weight) if need_hidden else None
        grad_weight = torch.mm(slopes.t(), hidden) if need_weight else None
        return grad_hidden, grad_weight, slopes.sum(0) if need_bias else None, None, None


def _divergence_and_slope(p: Tensor, q: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence of each row, (n,), and its derivative by the own logits, (n, V), from log-probabilities."""
    own = p.exp()
    if kind == "forward":
        return (q.exp() * (q - p)).sum(-1), own - q.exp()
    if kind == "reverse":
        gap = p - q
        mean = (own * gap).sum(-1)
        return mean, own * (gap - mean[:, None])
    other = q.exp()
    middle = torch.logaddexp(p, q) - math.log(2)
    gap = p - middle
    mean = (own * gap).sum(-1)
    return (mean + (other * (q - middle)).sum(-1)) / 2, own * (gap - mean[:, None]) / 2


def _recorded_and_slope(q: Tensor, ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """As `_divergence_and_slope`, from own log-probabilities (n, V) and the master's of some tokens (n, K)."""
    named = q.gather(-1, ids)
    p = logprobs.float().exp()
    rest = (1 - p.sum(-1, keepdim=True)).clamp(min=TINY)  # (n, 1)
    own_rest = (1 - named.exp().sum(-1, keepdim=True)).clamp(min=TINY)
    found = (p * (logprobs - named)).sum(-1) + (rest * (rest.log() - own_rest.log())).squeeze(-1)
    # What the master gives the bucket is spread over it as the own network would.
    slope = q.exp() * (1 - rest / own_rest)  # (n, V)
    slope.scatter_(-1, ids, named.exp() - p)
    return found, slope
