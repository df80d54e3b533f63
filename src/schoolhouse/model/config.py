"""The shape of a decoder, in the words of Hugging Face's `config.json`, and what it costs.

Knows no tensors, so that recipes can be checked and runs be estimated without loading torch.
`model/families.py` turns a checkpoint's `config.json` into a `ModelConfig` and back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a dense decoder; field names are the keys of `config.json`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, object] | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k and v
    attention_out_bias: bool = False  # on o; no key of its own, families.py sets it
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: an RMSNorm over each head of q and k
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02

    def layer_params(self) -> int:
        """Parameters of one decoder layer, norms and biases included."""
        d, f = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        attention = d * (q + 2 * kv) + q * d
        attention += (q + 2 * kv) * self.attention_bias + d * self.attention_out_bias
        attention += 2 * self.head_dim * self.qk_norm
        mlp = 3 * d * f + (2 * f + d) * self.mlp_bias
        return attention + mlp + 2 * d

    def num_params(self) -> int:
        """Parameters held on disk: a tied head counts once."""
        heads = 1 if self.tie_word_embeddings else 2
        return (
            heads * self.vocab_size * self.hidden_size + self.num_hidden_layers * self.layer_params() + self.hidden_size
        )

    def flops_per_token(self, context: int, *, head: bool = True) -> int:
        """Floating-point operations of one token's forward pass with `context` tokens in view.

        Two per multiply-add; the embedding look-up is free. Training costs three times as much.
        """
        matrices = self.num_hidden_layers * self.layer_params() + head * self.vocab_size * self.hidden_size
        attention = 2 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return 2 * (matrices + attention)

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """Bytes of cache that one token of context takes over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * element_bytes
