"""The decoder. Parameter names are the keys of a Hugging Face checkpoint, so nothing is converted on the way in or out.

Reading order: `config`, `layers`, `attention`, this. It knows no text: ids in, hidden states or logits out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.model.attention import Attention, Causal, Context
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.layers import RMSNorm, SwiGLU, rope_frequencies, rope_table


class Output(NamedTuple):
    """What a forward pass gives: logits (B, T, V); the other two are for networks that have them."""

    logits: Tensor
    mtp_logits: Tensor | None = None
    router: Tensor | None = None


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Context) -> Tensor:
        """x: (B, T, D) to (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last norm: everything under the key `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A causal language model built from a `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Computed on the CPU even under a meta-device context: it is no part of the checkpoint.
        with torch.device("cpu"):
            self.frequencies = rope_frequencies(config)

    def hidden(self, ids: Tensor, context: Context) -> Tensor:
        """Hidden states after the last norm. ids: (B, T) int64; returns (B, T, D)."""
        x = self.model.embed_tokens(ids)  # (B, T, D)
        rope = rope_table(self.frequencies.to(ids.device), context.positions.to(ids.device), x.dtype)
        for layer in self.model.layers:
            x = layer(x, rope, context)
        return self.model.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix (V, D): the embedding's own where the two are tied."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states. (..., D) to (..., V)."""
        return (
            F.linear(hidden, self.model.embed_tokens.weight)
            if self.config.tie_word_embeddings
            else self.lm_head(hidden)
        )

    def forward(self, ids: Tensor, cache: Context | None = None) -> Output:
        """Logits of every token. ids: (B, T) int64. Without a cache each row is a text from its start.

        Raises ModelError for ids outside of the vocabulary and for texts longer than the model's context.
        """
        vocabulary, room = self.config.vocab_size, self.config.max_position_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ModelError(
                f"Token ids run from {int(ids.min())} to {int(ids.max())}, the vocabulary has {vocabulary}: "
                "the tokenizer belongs to another model."
            )
        if cache is None and ids.shape[1] > room:
            raise ModelError(f"The text has {ids.shape[1]} tokens, the model's context holds {room}: shorten it.")
        context = cache if cache is not None else Causal(ids.shape[0], ids.shape[1], ids.device)
        return Output(self.head(self.hidden(ids, context)))

    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every matrix from a normal of `initializer_range`, norms with ones, biases with zeros."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=self.config.initializer_range, generator=generator)
