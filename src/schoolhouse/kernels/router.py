"""A mixture's router in training: which experts a token meets, and by what share, in one call each way."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from schoolhouse.kernels.native import fits, has_tiles, library

BLOCKS = 16  # of tokens whose part of a weight's gradient the C++ sums up together


class Rule(NamedTuple):
    """How many experts there are and are chosen, from how many of the best groups, and what their shares are.

    softmax: scores are a softmax's, otherwise sigmoids; normalised: shares add up to `scale`.
    """

    experts: int
    active: int
    groups: int
    kept: int
    softmax: bool
    normalised: bool
    scale: float


def can_route(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if `route_tokens` takes rows and a router's weight: bf16 on the CPU, where there are tiles."""
    near = weight.is_contiguous() and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()))
    return has_tiles() and fits(x, weight) and near and len(x) > 0


def route_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen experts (N, A) int64, the best first, their shares (N, A) and all scores (N, E), both float32.

    x: (N, D); weight: (E, D), both bf16; bias: (E,) float32, which is added to the scores to choose by and has no
    gradient. Sums are in fp32. `choose` is the twin of what follows the product.
    """
    chosen, shares, scores = _Route.apply(x, weight, bias, rule)
    return chosen, shares, scores


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        """See `route_tokens`."""
        native, x, tokens = library(), x.contiguous(), len(x)
        assert native is not None
        chosen = torch.empty(tokens, rule.active, dtype=torch.int64)
        shares, scores = (torch.empty(tokens, n, dtype=torch.float32) for n in (rule.active, rule.experts))
        told = struct.pack("6qd", *(int(part) for part in rule[:-1]), rule.scale)
        native.router(
            x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), told, chosen.data_ptr(),
            shares.data_ptr(), scores.data_ptr(), tokens, x.shape[1],
        )  # fmt: skip
        ctx.save_for_backward(x, weight, chosen, scores)
        ctx.told = told
        ctx.mark_non_differentiable(chosen)
        ctx.set_materialize_grads(False)
        return chosen, shares, scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _chosen: Tensor | None, shares: Tensor | None, scores: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of rows and weight."""
        x, weight, chosen, held = ctx.saved_tensors
        native = library()
        assert native is not None
        if shares is None and scores is None:
            return None, None, None, None
        shares = held.new_zeros(chosen.shape) if shares is None else shares.contiguous()
        scores = None if scores is None else scores.contiguous()
        to_x, to_weight, parts = torch.empty_like(x), torch.empty_like(weight), held.new_empty(BLOCKS, weight.numel())
        native.router_back(
            x.data_ptr(), weight.data_ptr(), ctx.told, chosen.data_ptr(), held.data_ptr(), shares.data_ptr(),
            None if scores is None else scores.data_ptr(), to_x.data_ptr(), parts.data_ptr(),
            to_weight.data_ptr(), *x.shape,
        )  # fmt: skip
        return to_x, to_weight, None, None


def choose(logits: Tensor, bias: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The same from logits (N, E), float32 or float64, with torch's own operations."""
    scores = logits.softmax(dim=-1) if rule.softmax else logits.sigmoid()
    rank = scores if bias is None else scores + bias
    if rule.groups > 1:
        groups = rank.unflatten(1, (rule.groups, -1))  # (N, groups, experts of a group)
        best = groups.topk(2, dim=-1).values.sum(-1) if bias is not None else groups.amax(-1)
        kept = torch.zeros_like(best).scatter_(1, best.topk(rule.kept, dim=-1).indices, 1.0)
        rank = groups.masked_fill(kept[..., None] == 0, float("-inf")).flatten(1)
    chosen = rank.topk(rule.active, dim=-1).indices
    shares = scores.gather(1, chosen)
    if rule.normalised:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen, (shares * rule.scale).float(), scores.float()
