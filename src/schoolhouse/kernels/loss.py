"""Log-probabilities of given tokens over a large vocabulary, a block of rows at a time.

The full matrix of log-probabilities is never held in fp32: 4,096 tokens over 49,152 words would take 800 MB. What stays
between the two passes are the logits in the network's own type; the backward pass turns them, in their place, into
slopes, so that each of its two products is one large one and no product is computed twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.grid import filler
from schoolhouse.kernels.products import weight_gradient

BLOCK_ROWS = 256  # 256 x 49,152 logits in fp32 are 50 MB: large enough for a fast product, small enough to forget


class _TokenLogprobs(torch.autograd.Function):
    """Row-block log-softmax and gather; one pair of passes, for the logits are overwritten on the way back."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        """See `token_logprobs`."""
        ctx.rows, ctx.cap = hidden.shape[0], cap
        fill = filler(ctx.rows)
        hidden, targets = F.pad(hidden, (0, 0, 0, fill)), F.pad(targets, (0, fill))
        rows, words = hidden.shape[0], weight.shape[0]
        logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy, log_total = torch.empty_like(logprobs), torch.empty_like(logprobs)
        keep = any(ctx.needs_input_grad)
        held = hidden.new_empty(rows if keep else min(rows, BLOCK_ROWS), words)  # (N, V)
        wide = held.new_empty(min(rows, BLOCK_ROWS), words, dtype=torch.float32)
        for start in range(0, rows, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows))
            size = block.stop - start
            raw = held[block] if keep else held[:size]
            torch.mm(hidden[block], weight.t(), out=raw)
            if bias is not None:
                raw += bias
            if cap is not None:
                raw.div_(cap).tanh_().mul_(cap)
            logits = wide[:size].copy_(raw)
            chosen = logits.gather(1, targets[block, None]).squeeze(1)  # (N,)
            top = logits.amax(dim=-1)
            weights = logits.sub_(top[:, None]).exp_()
            total = weights.sum(dim=-1)
            mean_logit = torch.linalg.vecdot(weights, raw.float()) / total
            log_total[block] = top + total.log()
            logprobs[block] = chosen - log_total[block]
            entropy[block] = log_total[block] - mean_logit
        ctx.save_for_backward(hidden, weight, targets, log_total)
        ctx.logits = held if keep else None
        entropy = entropy[: ctx.rows]
        ctx.mark_non_differentiable(entropy)
        return logprobs[: ctx.rows], entropy

    @staticmethod
    def backward(
        ctx, grad: Tensor, _entropy_grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        """Gradient of a log-softmax: (one-hot minus probabilities) times the upstream gradient."""
        hidden, weight, targets, log_total = ctx.saved_tensors
        need_hidden, need_weight, _, need_bias, _ = ctx.needs_input_grad
        slope, ctx.logits = ctx.logits, None  # (N, V)
        grad = F.pad(grad, (0, len(hidden) - ctx.rows))
        for start in range(0, len(hidden), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            upstream = grad[block, None]
            bend = None if ctx.cap is None else 1 - (slope[block].float() / ctx.cap).square_()  # d tanh
            wide = slope[block].float().sub_(log_total[block, None]).exp_().mul_(-upstream)
            wide.scatter_add_(1, targets[block, None], upstream)
            slope[block] = wide if bend is None else wide.mul_(bend)
        grad_hidden = torch.mm(slope, weight)[: ctx.rows] if need_hidden else None
        grad_weight = weight_gradient(slope, hidden) if need_weight else None
        grad_bias = slope[: ctx.rows].sum(0) if need_bias else None
        return grad_hidden, grad_weight, None, grad_bias, None


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of the distribution it came from.

    hidden: (N, D); weight: (V, D) and bias: (V,), the output head; targets: (N,) int64; cap: logits are cap * tanh(. /
    cap). Returns two (N,) float32 tensors in nats; the entropy carries no gradient.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, bias, cap)


def token_logprobs_plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same by the textbook, with everything in memory: the twin that `token_logprobs` is tested against."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    logp = torch.log_softmax(logits.float(), dim=-1)  # (N, V)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), entropy.detach()
