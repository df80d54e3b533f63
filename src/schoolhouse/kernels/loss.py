"""Log-probabilities of given tokens over a large vocabulary, a block of rows at a time.

The full matrix of log-probabilities is never held in fp32, and nothing of it between the two passes: 4,096 tokens over
49,152 words would take 800 MB. The backward pass computes each block of logits again and holds their slopes in the
network's own type, so that each of its two products is one large one.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 256  # 256 x 49,152 logits in fp32 are 50 MB: large enough for a fast product, small enough to forget


def _softmax_block(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return fp32 probabilities (N, V) for a block of rows."""
    logits = torch.mm(hidden, weight.t()).float()  # (N, V)
    weights = logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True))


class _TokenLogprobs(torch.autograd.Function):
    """Row-block log-softmax and gather; probabilities are made again on the way back."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `token_logprobs`."""
        rows = hidden.shape[0]
        logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        for start in range(0, rows, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            logits = torch.mm(hidden[block], weight.t()).float()  # (N, V)
            chosen = logits.gather(1, targets[block, None]).squeeze(1)  # (N,)
            top = logits.amax(dim=-1, keepdim=True)
            logits.sub_(top)
            weights = logits.exp()
            total = weights.sum(dim=-1)
            mean_logit = torch.linalg.vecdot(weights, logits) / total
            logprobs[block] = chosen - top.squeeze(1) - total.log()
            entropy[block] = total.log() - mean_logit
        ctx.save_for_backward(hidden, weight, targets)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad: Tensor, _entropy_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradient of a log-softmax: (one-hot minus probabilities) times the upstream gradient."""
        hidden, weight, targets = ctx.saved_tensors
        need_hidden, need_weight, _ = ctx.needs_input_grad
        slope = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)  # (N, V)
        for start in range(0, len(hidden), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            upstream = grad[block, None]
            wide = _softmax_block(hidden[block], weight).mul_(-upstream)
            slope[block] = wide.scatter_add_(1, targets[block, None], upstream)
        grad_hidden = torch.mm(slope, weight) if need_hidden else None
        grad_weight = torch.mm(slope.t(), hidden) if need_weight else None
        return grad_hidden, grad_weight, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of the distribution it came from.

    hidden: (N, D); weight: (V, D), the output head; targets: (N,) int64.
    Returns two (N,) float32 tensors in nats; the entropy carries no gradient.
    """
    return _TokenLogprobs.apply(hidden, weight, targets)


def token_logprobs_plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the textbook, with everything in memory: the twin that `token_logprobs` is tested against."""
    logp = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)  # (N, V)
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), entropy.detach()
