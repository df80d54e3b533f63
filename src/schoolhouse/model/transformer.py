"""The decoder. Parameter names are those of Llama and DeepSeek checkpoints; other families' are translated as data.

Reading order: `config`, `layers`, `attention`, `mla`, `moe`, this. It knows no text: ids in, hidden states or logits
out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schoolhouse.core.errors import ModelError
from schoolhouse.core.machine import memory_bytes
from schoolhouse.kernels.loss import token_logprobs
from schoolhouse.kernels.packed_weight import PackedWeight, can_pack, linear
from schoolhouse.model.attention import Attention, Causal, Context, Ropes
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.layers import (
    FeedForward,
    GatedFeedForward,
    Linear,
    RMSNorm,
    RMSNormPlusOne,
    Rotary,
    added,
    make_norm,
)
from schoolhouse.model.mla import LatentAttention
from schoolhouse.model.moe import MixtureOfExperts
from schoolhouse.model.quantized import Coded, QuantEmbedding, QuantLinear

PACKED_SHARE = 0.25  # of the machine's memory, that copies of the weights may take


class Output(NamedTuple):
    """What a forward pass gives: logits (B, T, V), and if asked for those of the tokens after the next, one a depth."""

    logits: Tensor
    mtp_logits: tuple[Tensor, ...] = ()


class DecoderLayer(nn.Module):
    """Attention and feed-forward, added to the stream in the order and behind the norms of the config's block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.block = config.block
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = LatentAttention(config, layer) if config.mla else Attention(config, layer)
        if config.block != "parallel":
            self.post_attention_layernorm = make_norm(config, config.hidden_size)
        if config.block == "sandwich":
            self.pre_feedforward_layernorm = make_norm(config, config.hidden_size)
            self.post_feedforward_layernorm = make_norm(config, config.hidden_size)
        if config.has_experts(layer):
            self.mlp: nn.Module = MixtureOfExperts(config)
        else:
            self.mlp = GatedFeedForward(config) if config.gated_mlp else FeedForward(config)

    def forward(self, x: Tensor, ropes: Ropes, context: Context, only: Tensor | None = None) -> Tensor:
        """x: (B, T, D) to the same shape, or (B, P, D) of the places `only` (P,), which others don't read behind it."""
        x, normed = _normed(self.input_layernorm, x)
        seen = self.self_attn(normed, ropes, context)
        if only is not None:
            x, normed, seen = x[:, only], normed[:, only], seen[:, only]
        if self.block == "sequential":
            x, inner = _normed(self.post_attention_layernorm, added(seen, x))
            return self.mlp(inner, x) if isinstance(self.mlp, GatedFeedForward) else added(self.mlp(inner), x)
        if self.block == "sandwich":
            x = x + self.post_attention_layernorm(seen)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x + seen + self.mlp(normed if self.block == "parallel" else self.post_attention_layernorm(x))


def _bytes_of(module: nn.Module, *parts: str) -> int:
    """Of the parameters that belong to parts of these names."""
    return sum(p.nbytes for name, p in module.named_parameters() if set(parts) & set(name.split(".")))


def _normed(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The stream and its norm; where gradients are kept theirs come back together."""
    return norm.beside(x) if isinstance(norm, RMSNorm) and torch.is_grad_enabled() else (x, norm(x))


class PredictionLayer(DecoderLayer):
    """Predicts one token further than the layer before it. Source: arXiv 2412.19437, section 2.2, in the order of the
    published weights: [embedding ; hidden].
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.enorm = make_norm(config, config.hidden_size)
        self.hnorm = make_norm(config, config.hidden_size)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": make_norm(config, config.hidden_size)})

    def further(self, hidden: Tensor, embedded: Tensor, ropes: Ropes, context: Context) -> Tensor:
        """hidden: (B, T, D), normed, of the depth before; embedded: (B, T, D), of the token that follows it."""
        both = torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1)
        return self.shared_head["norm"](self(self.eh_proj(both), ropes, context))


class Decoder(nn.Module):
    """Embedding, layers and the last norm: everything under the key `model.`; `layers` ends with those that predict
    further tokens, as checkpoints number them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens: nn.Embedding | QuantEmbedding = nn.Embedding(config.vocab_size, config.hidden_size)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(depth))
        self.layers.extend(PredictionLayer(config, depth + i) for i in range(config.num_nextn_predict_layers))
        self.norm = make_norm(config, config.hidden_size)


class Transformer(nn.Module):
    """A causal language model built from a `ModelConfig`."""

    @classmethod
    def causal(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """The config.json of such a model as that of its family's causal model: here as it is."""
        return raw

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if config.tie_word_embeddings and config.head_bias:
            raise ModelError("The config ties the output head to the embedding and gives it a bias: one of them only.")
        if not config.tie_word_embeddings:
            self.lm_head: nn.Linear | QuantLinear = Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        # Computed on the CPU even under a meta-device context: it is no part of the checkpoint.
        with torch.device("cpu"):
            self.rotary = Rotary(config)
        self._packed_head: PackedWeight | None = None

    def pack(self) -> None:
        """Lay the weights out for fast products without gradients: a copy, if the machine has ample memory for it.

        A copy whose weights have changed since is left alone until the next call; where nothing changed, this is cheap.
        """
        layers: list[Linear | LatentAttention | MixtureOfExperts] = [
            m for name, m in self.named_modules() if isinstance(m, Linear) and ".experts." not in name
        ]
        room = memory_bytes() * PACKED_SHARE - sum(layer.weight.nbytes for layer in layers if isinstance(layer, Linear))
        # By what the machine has, not by what is free just now: a resumed run has to take the same way.
        if room < 0:
            return
        if _bytes_of(self, "experts", "kv_b_proj") <= room:
            layers += [m for m in self.modules() if isinstance(m, LatentAttention | MixtureOfExperts)]
        for layer in layers:
            if not layer.is_packed:
                layer.pack()
        tied = self.model.embed_tokens.weight
        held = self._packed_head is not None and self._packed_head.is_of(tied)
        if self.config.tie_word_embeddings and not held and can_pack(tied):
            self._packed_head = PackedWeight(tied)

    def unpack(self) -> None:
        """Drop those copies: training needs their memory."""
        self._packed_head = None
        for layer in self.modules():
            if isinstance(layer, Linear | LatentAttention):
                layer.packed = None
            elif isinstance(layer, MixtureOfExperts):
                layer.unpack()

    def hidden(self, ids: Tensor, context: Context, only: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm: (B, T, D), or (B, P, D) of the places `only` (P,). ids: (B, T) int64."""
        x = self.embed(ids)  # (B, T, D)
        ropes = self.rotary.tables(context.positions.to(ids.device), x.dtype)
        last = self.config.num_hidden_layers - 1
        for number, layer in enumerate(self.model.layers[: last + 1]):
            x = layer(x, ropes, context, only if number == last else None)
        return self.model.norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: (B, T) to (B, T, D), as the first layer takes them."""
        x = self.model.embed_tokens(ids)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        return x

    def further(self, hidden: Tensor, ids: Tensor, context: Context) -> list[Tensor]:
        """Hidden states for the tokens after the next, one (B, T, D) for each prediction layer.

        hidden: what `hidden` gave for ids (B, T). At depth k the last k tokens of a text know no token to go on from:
        what is predicted there means nothing, and no other token looks at it.
        """
        out: list[Tensor] = []
        for depth in range(1, self.config.num_nextn_predict_layers + 1):
            hidden = self.predict(depth, hidden, ids.roll(-depth, dims=1), context)
            out.append(hidden)
        return out

    def predict(self, depth: int, hidden: Tensor, ids: Tensor, context: Context) -> Tensor:
        """One prediction layer, counted from 1: hidden states (B, T, D) of the depth before to those of this depth.

        ids: (B, T), the tokens that stand `depth` places after those of `hidden`; `head` of what is returned predicts
        the next ones.
        """
        layer = self.model.layers[self.config.num_hidden_layers + depth - 1]
        assert isinstance(layer, PredictionLayer)
        ropes = self.rotary.tables(context.positions.to(ids.device), hidden.dtype)
        return layer.further(hidden, self.embed(ids), ropes, context)

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix (V, D): the embedding's own where they are tied; de-quantized where it is codes."""
        holder = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return holder.dequantized() if isinstance(holder, Coded) else holder.weight

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states. (..., D) to (..., V)."""
        embedding, cap = self.model.embed_tokens, self.config.final_logit_softcapping
        if not self.config.tie_word_embeddings:
            logits = self.lm_head(hidden)
        elif isinstance(embedding, Coded):
            logits = embedding.product(hidden)
        else:
            logits = linear(hidden, embedding.weight, None, self._packed_head)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and the entropy at it, without the logits in memory: see `token_logprobs`.

        hidden: (N, D); targets: (N,) int64; temperature: what the logits are divided by.
        """
        bias = self.lm_head.bias if self.config.head_bias else None
        cap = self.config.final_logit_softcapping
        return token_logprobs(
            hidden / temperature,
            self.head_weight,
            targets,
            None if bias is None else bias / temperature,
            None if cap is None else cap / temperature,
        )

    def forward(self, ids: Tensor, cache: Context | None = None, *, further: bool = False) -> Output:
        """Logits of every token. ids: (B, T) int64. Without a cache each row is a text from its start.

        further: also those of the prediction layers, where the model has some.
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
        hidden = self.hidden(ids, context)
        ahead = self.further(hidden, ids, context) if further else []
        return Output(self.head(hidden), tuple(self.head(x) for x in ahead))

    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every matrix from a normal of `initializer_range`, norms so that they only scale, biases with zeros."""
        plus_one = {id(m.weight) for m in self.modules() if isinstance(m, RMSNormPlusOne)}
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or id(parameter) in plus_one:
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=self.config.initializer_range, generator=generator)
