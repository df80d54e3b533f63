"""DeepSeekMoE: many small experts of which each token meets a few, beside some that all tokens meet.

Source: arXiv 2401.06066 (fine-grained and shared experts); arXiv 2412.19437, section 2.1.2 (sigmoid scores, a bias that
balances without a loss); arXiv 2408.15664 (that bias's rule); names as in DeepSeek's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.experts import mix_experts
from schoolhouse.kernels.fp8_linear import FP8_PRODUCTS
from schoolhouse.kernels.native import keeps_gradient, takes
from schoolhouse.kernels.packed_experts import PackedExperts, can_pack_experts
from schoolhouse.kernels.packed_weight import PackedWeight
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
    the number of rows, and a token's reply must not. `packed` is the mixture's copy, by which that is
    one call.
    """

    e_score_correction_bias: Tensor | None
    packed: PackedExperts | None = None

    def __init__(self, config: ModelConfig, moe: MoE) -> None:
        super().__init__()
        self._moe = moe
        self.weight = nn.Parameter(torch.empty(moe.n_routed_experts, config.hidden_size))
        bias = torch.zeros(moe.n_routed_experts) if moe.scoring_func == "sigmoid" else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> Routing:
        """x: (N, D)."""
        if self.packed is not None and not torch.is_grad_enabled() and takes(x) and self.is_packed:
            return Routing(*self.packed.choose(x))
        keeps = keeps_gradient(x, self.weight)
        if keeps and can_route(x, self.weight, self.e_score_correction_bias):
            return Routing(*route_tokens(x, self.weight, self.e_score_correction_bias, _rule(self._moe)))
        wide = torch.float32 if keeps else torch.float64
        logits = F.linear(x.to(wide), self.weight.to(wide))
        return route(logits, self.e_score_correction_bias, self._moe)

    @property
    def is_packed(self) -> bool:
        """True while there is a copy that holds."""
        return self.packed is not None and self.packed.routes_as(self.weight, self.e_score_correction_bias)


class MixtureOfExperts(nn.Module):
    """The feed-forward of a layer with experts."""

    packed: PackedExperts | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.moe is not None
        moe = config.moe
        if config.hidden_act != "silu" or config.mlp_bias or not config.gated_mlp:
            raise ModelError(f"Experts here are gated by 'silu' and have no bias; hidden_act is {config.hidden_act!r}.")
        self._moe = moe
        self.gate = Router(config, moe)
        self.experts = nn.ModuleList(
            GatedFeedForward(config, moe.moe_intermediate_size) for _ in range(moe.n_routed_experts)
        )
        self.shared_experts = (
            GatedFeedForward(config, moe.n_shared_experts * moe.moe_intermediate_size) if moe.n_shared_experts else None
        )

    @property
    def is_packed(self) -> bool:
        """True if there is nothing to pack: the copy of the experts holds, or no kernel would take it."""
        return self.packed_experts is not None or not self._can_pack()

    def pack(self) -> None:
        """Make that copy anew."""
        gate = self.gate
        bias = gate.e_score_correction_bias
        self.packed = gate.packed = PackedExperts(gate.weight, bias, self._matrices(), _rule(self._moe))

    def unpack(self) -> None:
        """Drop that copy."""
        self.packed = self.gate.packed = None

    @property
    def packed_experts(self) -> PackedExperts | None:
        """The copy, while it is one of the weights that there are."""
        copy = self.packed
        return copy if copy is not None and self.gate.is_packed and copy.is_of(self._matrices()) else None

    def _can_pack(self) -> bool:
        plain = all(isinstance(linear, Linear) for e in self.experts for linear in projections(e))
        return plain and can_pack_experts(self.gate.weight, self._matrices())

    def _matrices(self) -> list[Tensor]:
        """Gate, up and down of each expert."""
        return [matrix for expert in self.experts for matrix in _matrices(expert)]

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) to the same shape."""
        flat = x.flatten(0, -2)  # (N, D)
        routing = self.gate(flat)
        shared = self.shared_experts
        packed = None if torch.is_grad_enabled() or not takes(flat) else self.packed_experts
        if packed is not None:
            common = self._packed_shared()
            out = packed.mixed(flat, routing.chosen, routing.shares, common)
            shared = None if common else shared
        elif shared is not None and keeps_gradient(x, shared.gate_proj.weight) and self._are_alike(shared):
            out, shared = self._mixed(flat, routing, _matrices(shared)), None
        else:
            out = self._mixed(flat, routing)
        return out.view_as(x) if shared is None else out.view_as(x) + shared(x)

    def _are_alike(self, shared: GatedFeedForward) -> bool:
        """True if all experts multiply in the network's own type."""
        return {type(e.gate_proj) for e in (shared, *self.experts)} == {Linear}

    def _packed_shared(self) -> list[PackedWeight]:
        """Copies of the shared experts' matrices: all of them, or none."""
        linears = projections(self.shared_experts) if self.shared_experts else ()
        copies = [linear.packed for linear in linears if isinstance(linear, Linear) and linear.is_packed]
        held = [copy for copy in copies if copy is not None]
        return held if len(held) == len(linears) else []

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


def projections(expert: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Gate, up and down of a gated feed-forward."""
    return expert.gate_proj, expert.up_proj, expert.down_proj


def _matrices(expert: Any) -> tuple[Tensor, Tensor, Tensor]:
    return expert.gate_proj.weight, expert.up_proj.weight, expert.down_proj.weight
