"""DeepSeekMoE: many small experts of which each token meets a few, beside some that all tokens meet.

Source: arXiv 2401.06066 (fine-grained and shared experts); arXiv 2412.19437, section 2.1.2 (sigmoid scores, a bias that
balances without a loss); arXiv 2408.15664 (that bias's rule); names as in DeepSeek's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.experts import mix_experts
from schoolhouse.kernels.fp8_linear import FP8_PRODUCTS
from schoolhouse.kernels.native import keeps_gradient
from schoolhouse.kernels.router import Rule, can_route, choose, route_tokens
from schoolhouse.model.config import ModelConfig, MoE
from schoolhouse.model.fp8_linear import Fp8Linear
from schoolhouse.model.layers import GatedFeedForward, Linear


class Routing(NamedTuple):
    """Where a router sends its tokens: experts (N, A) int64, their shares (N, A) float32, all scores (N, E) float32."""

    chosen: Tensor
    shares: Tensor
    scores: Tensor


def route(logits: Tensor, bias: Tensor | None, config: MoE) -> Routing:
    """Choose each token's experts. logits: (N, E) float32 or float64; bias: (E,) float32, only with sigmoid scores.

    The bias decides who is chosen, never how much an expert counts. Groups that are left out can't be chosen, however
    low the scores of the others are.
    """
    return Routing(*choose(logits, bias, _rule(config)))


def _rule(config: MoE) -> Rule:
    return Rule(
        config.n_routed_experts, config.num_experts_per_tok, config.n_group, config.topk_group,
        config.scoring_func != "sigmoid", config.norm_topk_prob, config.routed_scaling_factor,
    )  # fmt: skip


class Router(nn.Module):
    """Scores of the experts, in fp32 whatever the network's type.

    Where no gradient is kept they are computed in fp64 and rounded: the last bits of torch's sums and sigmoids hang on
    the number of rows, and a token's reply must not.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig, moe: MoE) -> None:
        super().__init__()
        self._moe = moe
        self.weight = nn.Parameter(torch.empty(moe.n_routed_experts, config.hidden_size))
        bias = torch.zeros(moe.n_routed_experts) if moe.scoring_func == "sigmoid" else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> Routing:
        """x: (N, D)."""
        keeps = keeps_gradient(x, self.weight)
        if keeps and can_route(x, self.weight, self.e_score_correction_bias):
            return Routing(*route_tokens(x, self.weight, self.e_score_correction_bias, _rule(self._moe)))
        wide = torch.float32 if keeps else torch.float64
        logits = F.linear(x.to(wide), self.weight.to(wide))
        return route(logits, self.e_score_correction_bias, self._moe)


class MixtureOfExperts(nn.Module):
    """The feed-forward of a layer with experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        moe = config.moe
        if config.hidden_act != "silu" or config.mlp_bias or not config.gated_mlp:
            raise ModelError(f"Experts here are gated by 'silu' and have no bias; hidden_act is {config.hidden_act!r}.")
        self.gate = Router(config, moe)
        self.experts = nn.ModuleList(
            GatedFeedForward(config, moe.moe_intermediate_size) for _ in range(moe.n_routed_experts)
        )
        self.shared_experts = (
            GatedFeedForward(config, moe.n_shared_experts * moe.moe_intermediate_size) if moe.n_shared_experts else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) to the same shape."""
        flat = x.flatten(0, -2)  # (N, D)
        routing = self.gate(flat)
        shared = self.shared_experts
        if shared is None:
            return self._mixed(flat, routing).view_as(x)
        if keeps_gradient(x, shared.gate_proj.weight) and self._are_alike(shared):
            return self._mixed(flat, routing, _matrices(shared)).view_as(x)
        return self._mixed(flat, routing).view_as(x) + shared(x)

    def _are_alike(self, shared: GatedFeedForward) -> bool:
        """True if all experts multiply in the network's own type."""
        return {type(e.gate_proj) for e in (shared, *self.experts)} == {Linear}

    def _mixed(self, x: Tensor, routing: Routing, shared: Sequence[Tensor] = ()) -> Tensor:
        """The sum over each token's own experts, and of those that are shared if they are handed over. x: (N, D)."""
        if all(isinstance(e.gate_proj, nn.Linear) for e in self.experts):
            gates, ups, downs = zip(*(_matrices(e) for e in self.experts), strict=True)
            products = FP8_PRODUCTS if isinstance(self.experts[0].gate_proj, Fp8Linear) else None
            return mix_experts(x, routing.chosen, routing.shares, gates, ups, downs, products, shared)
        out = torch.zeros_like(x)  # experts in int8 are asked one by one
        for number in routing.chosen.unique().tolist():
            tokens, place = (routing.chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, tokens, self.experts[number](x[tokens]) * routing.shares[tokens, place, None].to(x.dtype))
        return out


def _matrices(expert: nn.Module) -> tuple[Tensor, ...]:
    """An expert's gate, up and down."""
    return tuple(getattr(expert, name).weight for name in ("gate_proj", "up_proj", "down_proj"))
