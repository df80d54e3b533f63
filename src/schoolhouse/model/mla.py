"""Multi-head latent attention: keys and values of all heads in one short vector a token.

Two forms that give the same numbers. Expanded: each head's keys and values are made from the latents, and attention is
as usual; right for many queries at once. Absorbed: the query is taken into the space of the latents, which serve all
heads as key and as value; right for one query over a long memory, which then holds R + Dr numbers a token and layer.

Source: arXiv 2405.04434, section 2.1 and appendix C; names as in DeepSeek's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schoolhouse.kernels.attention import Scoring
from schoolhouse.kernels.fused import turn
from schoolhouse.kernels.heads import HeadProducts, PackedHeads, can_pack_heads
from schoolhouse.kernels.latent import make_latents, spread_keys
from schoolhouse.kernels.native import takes
from schoolhouse.model.attention import Context, Ropes
from schoolhouse.model.config import FULL, ModelConfig
from schoolhouse.model.layers import Linear, RMSNorm, softmax_scale

LATENT_EPS = 1e-6  # of the norms over latents, whatever the config says of the others


class LatentAttention(nn.Module):
    """MLA. Shapes: `Dn` and `Dr` a query head's still and turning part, `Dv` a value head, `R` the latent."""

    packed: PackedHeads | None = None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.sizes = m = config.mla
        d, heads = config.hidden_size, config.num_attention_heads
        self.layer = layer
        self.interleaved = config.rope_interleave
        self.scoring = Scoring(softmax_scale(config))
        if m.q_lora_rank is None:
            self.q_proj = Linear(d, heads * m.qk_head_dim, bias=False)
        else:
            self.q_a_proj = Linear(d, m.q_lora_rank, bias=config.attention_bias)
            self.q_a_layernorm = RMSNorm(m.q_lora_rank, LATENT_EPS)
            self.q_b_proj = Linear(m.q_lora_rank, heads * m.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(d, m.kv_lora_rank + m.qk_rope_head_dim, bias=config.attention_bias)
        self.kv_a_layernorm = RMSNorm(m.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = Linear(m.kv_lora_rank, heads * (m.qk_nope_head_dim + m.v_head_dim), bias=False)
        self.o_proj = Linear(heads * m.v_head_dim, d, bias=config.attention_out_bias)

    def forward(self, x: Tensor, ropes: Ropes, context: Context) -> Tensor:
        """x: (B, T, D) to (B, T, D)."""
        batch, length, _ = x.shape
        m, rope = self.sizes, ropes[FULL]
        q = self._queries(x).view(batch, length, -1, m.qk_head_dim)
        q = turn(q, *rope, still=m.qk_nope_head_dim, neighbours=self.interleaved)  # (B, T, H, Dn + Dr)
        norm = self.kv_a_layernorm
        latent = make_latents(self.kv_a_proj_with_mqa(x), norm.weight, norm.eps, *rope, neighbours=self.interleaved)[
            :, :, None
        ]  # (B, T, 1, R + Dr)
        out = context.attend_latent(self.layer, q, latent, self, self.scoring)
        return self.o_proj(out.reshape(batch, length, -1))

    @property
    def rank(self) -> int:
        """R, how much of a latent is value and still key; the turning key lies behind it."""
        return self.sizes.kv_lora_rank

    def _queries(self, x: Tensor) -> Tensor:
        if self.sizes.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, S, H, Dn + Dr) and values (B, S, H, Dv) of latents (B, S, 1, R + Dr)."""
        m = self.sizes
        batch, length = latent.shape[:2]
        latent, key = latent.split((m.kv_lora_rank, m.qk_rope_head_dim), dim=-1)
        both = self.kv_b_proj(latent).view(batch, length, -1, m.qk_nope_head_dim + m.v_head_dim)
        return spread_keys(both, key, m.qk_nope_head_dim)

    @property
    def is_packed(self) -> bool:
        """True if there is nothing to pack: the copy of the heads' matrices holds, or no kernel would take it."""
        return self.packed_heads is not None or not self._can_pack()

    def pack(self) -> None:
        """Make that copy anew."""
        m = self.sizes
        self.packed = PackedHeads(self.kv_b_proj.weight, m.qk_nope_head_dim, m.v_head_dim)

    @property
    def packed_heads(self) -> PackedHeads | None:
        """The copy, while it is one of the weights that there are."""
        linear = self.kv_b_proj
        holds = self.packed is not None and isinstance(linear, Linear) and self.packed.is_of([linear.weight])
        return self.packed if holds else None

    def _can_pack(self) -> bool:
        linear, m = self.kv_b_proj, self.sizes
        return isinstance(linear, Linear) and can_pack_heads(linear.weight, m.qk_nope_head_dim, m.v_head_dim)

    def absorb(self, q: Tensor) -> Tensor:
        """Queries (B, T, H, Dn + Dr) to queries of latents (B, T, H, R + Dr)."""
        still, turning = q.split((self.sizes.qk_nope_head_dim, self.sizes.qk_rope_head_dim), dim=-1)
        heads = self._heads_for(q)
        if heads is None:
            keys, _ = self._up()
            return torch.cat((_by_token("bthn,hnr->bthr", still, keys), turning), dim=-1)
        out = q.new_empty(*q.shape[:3], self.rank + turning.shape[-1])
        out[..., self.rank :] = turning
        _into(heads.keys, out[..., : self.rank], still)
        return out

    def emerge(self, latent: Tensor) -> Tensor:
        """Sums of latents (B, T, H, R) to sums of values (B, T, H, Dv)."""
        heads = self._heads_for(latent)
        if heads is None:
            _, values = self._up()
            return _by_token("bthr,hvr->bthv", latent, values)
        return _into(heads.values, latent.new_empty(*latent.shape[:3], self.sizes.v_head_dim), latent)

    def _heads_for(self, x: Tensor) -> PackedHeads | None:
        """The copy, if it serves for these rows."""
        return None if torch.is_grad_enabled() or not takes(x) else self.packed_heads

    def _up(self) -> tuple[Tensor, Tensor]:
        """What makes keys (H, Dn, R) and values (H, Dv, R) from latents."""
        m = self.sizes
        both = self.kv_b_proj.weight.view(-1, m.qk_nope_head_dim + m.v_head_dim, m.kv_lora_rank)
        keys, values = both.split((m.qk_nope_head_dim, m.v_head_dim), dim=1)
        return keys, values


def _by_token(products: str, x: Tensor, weight: Tensor) -> Tensor:
    """An einsum of (B, T, H, ...) token by token: one that is verified gets the bits of one that is drawn.

    torch's order of summing hangs on how many tokens there are.
    """
    return torch.cat([torch.einsum(products, x[:, t : t + 1], weight) for t in range(x.shape[1])], dim=1)


def _into(heads: HeadProducts, out: Tensor, x: Tensor) -> Tensor:
    """Each head's product of (B, T, H, K) into (B, T, H, N)."""
    heads.into(out.flatten(0, 1), x.flatten(0, 1))
    return out
