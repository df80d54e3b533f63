"""DeepSeekMoE: many small experts of which each token meets a few, beside some that all tokens meet.

Source: arXiv 2401.06066 (fine-grained and shared experts); arXiv 2412.19437, section 2.1.2 (sigmoid scores, a bias that
balances without a loss); arXiv 2408.15664 (that bias's rule); names as in DeepSeek's checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.experts import mix_experts
from schoolhouse.kernels.fp8_linear import FP8_PRODUCTS
from schoolhouse.kernels.native import keeps_gradient, takes
from schoolhouse.kernels.packed_experts import PackedExperts, Rules, can_pack_experts
from schoolhouse.kernels.packed_weight import PackedWeight
from schoolhouse.model.config import ModelConfig, MoE
from schoolhouse.model.fp8_linear import Fp8Linear
from schoolhouse.model.layers import GatedFeedForward, Linear

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


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
    scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(dim=-1)
    rank = scores if bias is None else scores + bias
    if config.n_group > 1:
        groups = rank.unflatten(1, (config.n_group, -1))  # (N, groups, experts of a group)
        best = groups.topk(2, dim=-1).values.sum(-1) if bias is not None else groups.amax(-1)
        kept = torch.zeros_like(best).scatter_(1, best.topk(config.topk_group, dim=-1).indices, 1.0)
        rank = groups.masked_fill(kept[..., None] == 0, float("-inf")).flatten(1)
    chosen = rank.topk(config.num_experts_per_tok, dim=-1).indices
    shares = scores.gather(1, chosen)
    if config.norm_topk_prob:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(chosen, (shares * config.routed_scaling_factor).float(), scores.float())


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
        wide = torch.float32 if keeps_gradient(x, self.weight) else torch.float64
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
        moe, matrices = self._moe, self._matrices()
        sigmoid = moe.scoring_func == "sigmoid"
        rules = Rules(
            moe.num_experts_per_tok, moe.n_group, moe.topk_group, sigmoid, moe.norm_topk_prob, moe.routed_scaling_factor
        )
        gate = self.gate
        self.packed = gate.packed = PackedExperts(gate.weight, gate.e_score_correction_bias, matrices, rules)

    def unpack(self) -> None:
        """Drop that copy."""
        self.packed = self.gate.packed = None

    @property
    def packed_experts(self) -> PackedExperts | None:
        """The copy, while it is one of the weights that there are."""
        copy = self.packed
        return copy if copy is not None and self.gate.is_packed and copy.is_of(self._matrices()) else None

    def _can_pack(self) -> bool:
        plain = all(isinstance(getattr(e, name), Linear) for e in self.experts for name in PROJECTIONS)
        return plain and can_pack_experts(self.gate.weight, self._matrices())

    def _matrices(self) -> list[Tensor]:
        """Gate, up and down of each expert."""
        return [getattr(expert, name).weight for expert in self.experts for name in PROJECTIONS]

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) to the same shape."""
        flat = x.flatten(0, -2)  # (N, D)
        routing = self.gate(flat)
        packed = None if torch.is_grad_enabled() or not takes(flat) else self.packed_experts
        if packed is None:
            out = self._mixed(flat, routing)
            return out.view_as(x) if self.shared_experts is None else out.view_as(x) + self.shared_experts(x)
        common = self._packed_shared()
        out = packed.mixed(flat, routing.chosen, routing.shares, common).view_as(x)
        return out if common or self.shared_experts is None else out + self.shared_experts(x)

    def _packed_shared(self) -> list[PackedWeight]:
        """Copies of the shared experts' matrices: all of them, or none."""
        linears = [getattr(self.shared_experts, name) for name in PROJECTIONS] if self.shared_experts else []
        plain = all(isinstance(linear, Linear) and linear.packed and linear.is_packed for linear in linears)
        return [linear.packed for linear in linears] if plain else []

    def _mixed(self, x: Tensor, routing: Routing) -> Tensor:
        """The sum over each token's own experts. x: (N, D)."""
        if all(isinstance(e.gate_proj, nn.Linear) for e in self.experts):
            gates, ups, downs = ([getattr(e, name).weight for e in self.experts] for name in PROJECTIONS)
            products = FP8_PRODUCTS if isinstance(self.experts[0].gate_proj, Fp8Linear) else None
            return mix_experts(x, routing.chosen, routing.shares, gates, ups, downs, products)
        out = torch.zeros_like(x)  # experts in int8 are asked one by one
        for number in routing.chosen.unique().tolist():
            tokens, place = (routing.chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, tokens, self.experts[number](x[tokens]) * routing.shares[tokens, place, None].to(x.dtype))
        return out
