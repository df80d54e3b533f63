"""Log-probabilities of given tokens over a large vocabulary, a block of rows at a time.

The full matrix of log-probabilities is never held in fp32: 4,096 tokens over 49,152 words would take 800 MB. What stays
between the two passes are the logits in the network's own type; the backward pass turns them, in their place, into
slopes, so that each of its two products is one large one and no product is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from schoolhouse.kernels.grid import filler
from schoolhouse.kernels.native import fits, library
from schoolhouse.kernels.packed_weight import PackedWeight, can_pack
from schoolhouse.kernels.products import gradient_of

BLOCK_ROWS = 512  # 512 x 49,152 logits in bf16 are 50 MB; with half of the rows products take a fifth longer


MANY_ROWS = 2 * BLOCK_ROWS  # from which on a copy of the head that products read fast costs less than it saves


class _TokenLogprobs(torch.autograd.Function):
    """Row-block log-softmax and gather; one pair of passes, for the logits are overwritten on the way back."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        """See `token_logprobs`."""
        ctx.rows, ctx.cap = hidden.shape[0], cap
        fill = filler(ctx.rows)
        hidden, targets = F.pad(hidden, (0, 0, 0, fill)), F.pad(targets, (0, fill)).contiguous()
        rows, words = hidden.shape[0], weight.shape[0]
        figures = [torch.empty(rows, dtype=torch.float32, device=hidden.device) for _ in range(3)]
        keep = any(ctx.needs_input_grad)
        held = hidden.new_empty(rows if keep else min(rows, BLOCK_ROWS), words)  # (N, V)
        packs = rows >= MANY_ROWS and hidden.dtype == weight.dtype and can_pack(weight)
        packed = PackedWeight(weight) if packs else None
        for start in range(0, rows, BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, rows))
            logits = held[block] if keep else held[: block.stop - start]
            if packed is None:
                torch.mm(hidden[block], weight.t(), out=logits)
            else:
                packed.product(hidden[block], out=logits)
            if bias is not None:
                logits += bias
            if cap is not None:
                logits.div_(cap).tanh_().mul_(cap)
            _figures(logits, targets[block], [figure[block] for figure in figures])
        logprobs, log_total, entropy = figures
        ctx.save_for_backward(hidden, weight, targets, log_total)
        ctx.logits = held if keep else None
        entropy = entropy[: ctx.rows]
        ctx.mark_non_differentiable(entropy)
        return logprobs[: ctx.rows], entropy

    @staticmethod
    @once_differentiable
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
            _slopes(slope[block], targets[block], grad[block], log_total[block], ctx.cap)
        grad_hidden = torch.mm(slope, weight)[: ctx.rows] if need_hidden else None
        grad_weight = gradient_of(weight, slope, hidden) if need_weight else None
        grad_bias = slope[: ctx.rows].sum(0) if need_bias else None
        return grad_hidden, grad_weight, None, grad_bias, None


def _figures(logits: Tensor, targets: Tensor, out: Sequence[Tensor]) -> None:
    """Of rows of logits (n, V) into `out`, three (n,) float32: the targets' log-probabilities, the logarithms of the
    sums of exponentials, the entropies.
    """
    logprobs, log_total, entropy = out
    if fits(logits):
        native = library()
        assert native is not None
        native.token_logprobs(
            logits.data_ptr(), targets.data_ptr(), logprobs.data_ptr(), log_total.data_ptr(), entropy.data_ptr(),
            *logits.shape,
        )  # fmt: skip
        return
    wide = logits.float()
    chosen = wide.gather(1, targets[:, None]).squeeze(1)  # (n,)
    top = wide.amax(dim=-1)
    weights = (wide - top[:, None]).exp_()
    total = weights.sum(dim=-1)
    log_total.copy_(top + total.log())
    logprobs.copy_(chosen - log_total)
    entropy.copy_(log_total - torch.linalg.vecdot(weights, wide) / total)


def _slopes(logits: Tensor, targets: Tensor, grad: Tensor, log_total: Tensor, cap: float | None) -> None:
    """Rows of logits (n, V) become the slopes of their targets' log-probabilities, times the upstream gradient (n,)."""
    if fits(logits):
        native, grad = library(), grad.contiguous()
        assert native is not None
        native.token_slopes(
            logits.data_ptr(), targets.data_ptr(), grad.data_ptr(), log_total.data_ptr(), *logits.shape, cap or 0.0
        )
        return
    bend = None if cap is None else 1 - (logits.float() / cap).square_()  # d tanh
    wide = logits.float().sub_(log_total[:, None]).exp_().mul_(-grad[:, None])
    wide.scatter_add_(1, targets[:, None], grad[:, None])
    logits.copy_(wide if bend is None else wide.mul_(bend))


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of the distribution it came from.

    hidden: (N, D); weight: (V, D) and bias: (V,), the output head; targets: (N,) int64; cap: logits are cap * tanh(. /
    cap). Returns two (N,) float32 tensors in nats; the entropy carries no gradient. Raises IndexError for a target that
    is no row of the head.
    """
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
        raise IndexError(f"Targets run from {targets.min()} to {targets.max()}, the head has {len(weight)} rows.")
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
