"""The shape of a decoder, in the words of Hugging Face's `config.json`, and what it costs.

Knows no tensors, so that recipes can be checked and runs be estimated without loading torch.
`model/families.py` turns a checkpoint's `config.json` into a `ModelConfig` and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["rms", "rms_plus_one", "layer"]
"""RMSNorm; Gemma's, whose weight is what is added to one; LayerNorm with a bias."""

Block = Literal["sequential", "parallel", "parallel_two_norms", "sandwich"]
"""Feed-forward after attention, beside it (behind one norm or two), or each between two norms (Gemma)."""

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class MLA:
    """Sizes of multi-head latent attention. Source: arXiv 2405.04434, section 2.1."""

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None

    @property
    def qk_head_dim(self) -> int:
        """Width of a query head: what turns with the position and what does not."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


@dataclass(frozen=True)
class MoE:
    """A mixture of experts in the place of the feed-forward. Source: arXiv 2412.19437, section 2.1.2.

    scoring_func: "sigmoid" selects by score plus a balancing bias, groups by their two best (DeepSeek V3); "softmax"
    selects by score, groups by their best (DeepSeek V2, Mixtral, Qwen3). dense_layers: those without experts.
    """

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder; field names are the keys of `config.json` wherever it has one."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6  # of every norm, whatever its kind
    rope_theta: float = 10000.0
    rope_scaling: dict[str, object] | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k and v; with MLA on the projections down from the stream
    attention_out_bias: bool = False  # on o; no key of its own, families.py sets it
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3, Gemma 3: a norm over each head of q and k
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    norm: Norm = "rms"
    block: Block = "sequential"
    gated_mlp: bool = True  # down(act(gate) * up); else down(act(up))
    head_bias: bool = False
    rotary_dim: int | None = None  # how much of a head turns; None for all of it
    rope_interleave: bool = False  # pairs (2i, 2i + 1) turn, not (i, i + Dh/2)
    layer_types: tuple[str, ...] | None = None  # which layers slide, where not all do
    rope_local_theta: float | None = None  # theta of the layers that slide, where it differs; they have no scaling
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; by that of the head's width without it
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    scale_embeddings: bool = False  # Gemma: times the root of hidden_size
    mla: MLA | None = None
    moe: MoE | None = None
    num_nextn_predict_layers: int = 0

    def window(self, layer: int) -> int | None:
        """How many tokens a layer looks back, itself included; None for all."""
        slides = self.layer_types is None or self.layer_types[layer] == SLIDING
        return self.sliding_window if slides else None

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward is a mixture of experts."""
        return self.moe is not None and layer not in self.moe.dense_layers

    @property
    def softmax_width(self) -> float:
        """What the scores are divided by the root of."""
        if self.query_pre_attn_scalar is not None:
            return self.query_pre_attn_scalar
        return float(self.mla.qk_head_dim if self.mla else self.head_dim)

    def layer_params(self, layer: int = 0, *, active: bool = False) -> int:
        """Parameters of one decoder layer, norms and biases included; active: those that one token meets."""
        norms = {"sequential": 2, "parallel": 1, "parallel_two_norms": 2, "sandwich": 4}[self.block]
        return self._attention_params() + self._feed_forward_params(layer, active) + norms * self._norm_params()

    def _norm_params(self) -> int:
        return self.hidden_size * (2 if self.norm == "layer" else 1)

    def _attention_params(self) -> int:
        d, heads = self.hidden_size, self.num_attention_heads
        if self.mla is None:
            q, kv = heads * self.head_dim, self.num_key_value_heads * self.head_dim
            biases = (q + 2 * kv) * self.attention_bias + d * self.attention_out_bias
            return d * (q + 2 * kv) + q * d + biases + 2 * self.head_dim * self.qk_norm
        m = self.mla
        q = heads * m.qk_head_dim
        queries = d * q
        if m.q_lora_rank is not None:
            queries = (d + self.attention_bias + 1 + q) * m.q_lora_rank  # down, its bias, its norm, up
        down = m.kv_lora_rank + m.qk_rope_head_dim
        latent = (d + self.attention_bias) * down + m.kv_lora_rank
        up = m.kv_lora_rank * heads * (m.qk_nope_head_dim + m.v_head_dim)
        return queries + latent + up + heads * m.v_head_dim * d + d * self.attention_out_bias

    def _feed_forward_params(self, layer: int, active: bool) -> int:
        d = self.hidden_size
        moe = self.moe
        if moe is None or not self.has_experts(layer):
            matrices = 3 if self.gated_mlp else 2
            f = self.intermediate_size
            return matrices * d * f + ((matrices - 1) * f + d) * self.mlp_bias
        experts = moe.num_experts_per_tok if active else moe.n_routed_experts
        router = moe.n_routed_experts * (d + (moe.scoring_func == "sigmoid"))
        return router + 3 * d * moe.moe_intermediate_size * (experts + moe.n_shared_experts)

    def num_params(self) -> int:
        """Parameters held on disk, without the layers that predict further tokens: a tied head counts once."""
        return self._params(active=False)

    def active_params(self) -> int:
        """Parameters that one token meets: of the routed experts only those that it is sent to."""
        return self._params(active=True)

    def _params(self, *, active: bool) -> int:
        heads = 1 if self.tie_word_embeddings else 2
        outer = heads * self.vocab_size * self.hidden_size + self.vocab_size * self.head_bias + self._norm_params()
        return outer + sum(self.layer_params(i, active=active) for i in range(self.num_hidden_layers))

    def flops_per_token(self, context: int, *, head: bool = True) -> int:
        """Floating-point operations of one token's forward pass with `context` tokens in view.

        Two per multiply-add; the embedding look-up is free. Training costs three times as much.
        """
        layers = sum(self.layer_params(i, active=True) for i in range(self.num_hidden_layers))
        matrices = layers + head * self.vocab_size * self.hidden_size
        m = self.mla
        widths = 2 * self.head_dim if m is None else m.qk_head_dim + m.v_head_dim
        attention = self.num_attention_heads * widths * self.num_hidden_layers * context
        return 2 * (matrices + attention)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """What is remembered of a token in each layer: tensors, heads, width of a head.

        Keys and values, or with MLA one latent vector with the rotary key beside it.
        """
        if self.mla is not None:
            return 1, 1, self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2, self.num_key_value_heads, self.head_dim

    @property
    def cache_widths(self) -> tuple[int, ...]:
        """The parts of a cached head with a scale each where they are codes: a latent and its rotary key have two."""
        return (self.head_dim,) if self.mla is None else (self.mla.kv_lora_rank, self.mla.qk_rope_head_dim)

    def kv_bytes_per_token(self, element_bytes: int = 2, *, int8: bool = False) -> int:
        """Bytes of cache that one token of context takes over all layers; int8: as codes with scales of two bytes."""
        tensors, heads, width = self.cache_shape
        head_bytes = width + 2 * len(self.cache_widths) if int8 else width * element_bytes
        return tensors * heads * self.num_hidden_layers * head_bytes
