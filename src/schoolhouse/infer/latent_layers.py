"""All layers of a decoder with latent attention, dense or with experts, for each text's new tokens in one call of C++.

What `infer/layers.py` is to Llama's networks this is to DeepSeek's; `Transformer.hidden` over a `DecodeContext` is the
twin here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schoolhouse.infer.cache import SlotCache
from schoolhouse.infer.layers import layers_of, matrix_of
from schoolhouse.kernels.heads import PackedHeads
from schoolhouse.kernels.native import library, takes
from schoolhouse.kernels.packed_experts import NOTHING, PackedExperts, feed_room
from schoolhouse.kernels.packed_weight import FILL, Matrix
from schoolhouse.model.config import FULL
from schoolhouse.model.layers import GatedFeedForward, RMSNorm
from schoolhouse.model.mla import LATENT_EPS, LatentAttention
from schoolhouse.model.moe import MixtureOfExperts, projections
from schoolhouse.model.transformer import DecoderLayer, Transformer

WIDTHS = 16  # what the sizes of rows, latents and value heads are multiples of
NO_MATRIX = (0,) * 6
NO_EXPERTS = (0,) * 11


class LatentLayers:
    """The layers of one model over one cache; `made_for` says if it takes them."""

    def __init__(self, model: Transformer, cache: SlotCache, copies: Sequence[Sequence[Any]]) -> None:
        self._model, self._cache, self._copies = model, cache, copies  # they own the memory that the words point to
        self._words = torch.tensor([_words(layer) for layer in layers_of(model)], dtype=torch.int64)
        config, mla, moe = model.config, model.config.mla, model.config.moe
        assert mla is not None
        self._choices, self._inner = (moe.num_experts_per_tok, moe.moe_intermediate_size) if moe else (0, 0)
        self._common = max(_common(layer)[1] for layer in layers_of(model))
        self._sizes = torch.tensor(
            [len(self._words), 0, 0, config.hidden_size, config.num_attention_heads, mla.qk_nope_head_dim,
             mla.qk_rope_head_dim, mla.v_head_dim, mla.kv_lora_rank, mla.q_lora_rank or 0, int(config.rope_interleave),
             self._choices, self._inner, self._common]
        )  # fmt: skip
        self._placed: list[tuple[Tensor, ...]] | None = None
        self._scratch = torch.empty(0, dtype=torch.bfloat16)  # kept: memory that was never touched costs more

    @classmethod
    def made_for(cls, model: Transformer, cache: SlotCache) -> LatentLayers | None:
        """The layers in one call, or None where an operation is not among those that the call knows."""
        known = library() is not None and takes(next(model.parameters()).detach()) and _is_known(model)
        if not known or cache.coded:
            return None
        copies = [_copies(layer) for layer in layers_of(model)]
        return cls(model, cache, copies) if all(copy is not None for each in copies for copy in each) else None

    def is_of(self, model: Transformer) -> bool:
        """True while the model's packed matrices are those that this was made from."""
        now = (copy for layer in layers_of(model) for copy in _copies(layer))
        return all(a is b for a, b in zip(now, (copy for each in self._copies for copy in each), strict=True))

    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states after the last norm of ids (B, T), the next tokens of the first B slots: (B, T, D).

        lengths: (B,) int64, tokens that each slot holds already. Their latents go into the cache.
        """
        model, config, native, (texts, tokens) = self._model, self._model.config, library(), ids.shape
        assert native is not None, "made_for asks for the kernels"
        by_text, by_token = self._place()
        x = model.embed(ids).flatten(0, 1).contiguous()  # (B * T, D)
        cos, sin = model.rotary.tables(lengths[:, None] + torch.arange(tokens), x.dtype)[FULL]
        self._sizes[1], self._sizes[2] = texts, tokens
        room = self._room(texts * tokens)
        if room > len(self._scratch):
            self._scratch = x.new_empty(room)
        native.decode_latent(
            self._sizes.data_ptr(), self._words.data_ptr(), x.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            lengths.data_ptr(), by_text, by_token, layers_of(model)[0].self_attn.scoring.scale, config.rms_norm_eps,
            LATENT_EPS, self._scratch.data_ptr(),
        )  # fmt: skip
        normed: Tensor = model.model.norm(x.view(texts, tokens, config.hidden_size))
        return normed

    def _room(self, rows: int) -> int:
        """Numbers that all operations between the cache and the stream want, see `Buffers` in the C++."""
        config, mla = self._model.config, self._model.config.mla
        assert mla is not None
        width, heads, low = config.hidden_size, config.num_attention_heads, mla.q_lora_rank or 0
        latent = mla.kv_lora_rank + mla.qk_rope_head_dim
        of_heads = mla.qk_head_dim + latent + mla.kv_lora_rank + mla.v_head_dim
        row = 2 * width + low + latent + heads * of_heads + max(width, low, heads * mla.v_head_dim)
        return -(-rows // FILL) * FILL * row + feed_room(rows, width, self._choices, self._inner, self._common)

    def _place(self) -> tuple[int, int]:
        """Tells the C++ where the cache holds each layer's latents, which move when it grows; returns their strides."""
        layers = self._cache.layers
        if self._placed is not layers:
            self._placed = layers
            for words, (latents,) in zip(self._words, layers, strict=False):  # prediction layers come behind
                words[HELD] = latents.data_ptr()
        return layers[0][0].stride(0), layers[0][0].stride(2)


HELD = 4  # of a layer's words: where its latents lie


def _words(layer: DecoderLayer) -> list[int]:
    """A layer as the C++ is told of it: norms, cache, heads, projections, experts, what all tokens meet."""
    attention, feed = layer.self_attn, layer.mlp
    assert isinstance(attention, LatentAttention)
    heads = attention.packed
    assert heads is not None
    low = attention.sizes.q_lora_rank is not None
    norms = [layer.input_layernorm, layer.post_attention_layernorm, attention.kv_a_layernorm]
    before, between, latent = (norm.get_parameter("weight").data_ptr() for norm in norms)
    query = attention.q_a_layernorm.weight.data_ptr() if low else 0
    names = ("q_a_proj", "q_b_proj") if low else ("q_proj", None)
    projections = [getattr(attention, name) if name else None for name in (*names, "kv_a_proj_with_mqa", "o_proj")]
    matrices = [matrix_of(linear) if linear is not None else None for linear in projections]
    biases = [_bias(projection) for projection in (projections[0] if low else None, *projections[2:])]
    words = [before, between, query, latent, 0, heads.keys.address, heads.values.address]
    words += [bias.data_ptr() if bias is not None else 0 for bias in biases]
    for matrix in matrices:
        words += matrix.words if matrix is not None else NO_MATRIX
    own: tuple[int, ...] = NO_EXPERTS
    if isinstance(feed, MixtureOfExperts):
        assert feed.packed is not None
        own = feed.packed.words[: len(NO_EXPERTS)]
    common, width = _common(layer)
    return [*words, *own, *([*(matrix.words[0] for matrix in common), width] if common else NOTHING)]


def _common(layer: DecoderLayer) -> tuple[list[Matrix], int]:
    """Gate, up and down of what all tokens meet, none if there is nothing, and its width."""
    feed = layer.mlp.shared_experts if isinstance(layer.mlp, MixtureOfExperts) else layer.mlp
    if feed is None:
        return [], 0
    matrices = [matrix_of(linear) for linear in projections(feed)]
    known = [matrix for matrix in matrices if matrix is not None]
    return known, known[0].shape[0]


def _copies(layer: DecoderLayer) -> list[Matrix | PackedHeads | PackedExperts | None]:
    """Every copy of a layer's weights that the call reads, None where there is none that holds."""
    attention, feed = layer.self_attn, layer.mlp
    assert isinstance(attention, LatentAttention)
    names = ("q_proj",) if attention.sizes.q_lora_rank is None else ("q_a_proj", "q_b_proj")
    linears = [getattr(attention, name) for name in (*names, "kv_a_proj_with_mqa", "o_proj")]
    copies: list[Matrix | PackedHeads | PackedExperts | None] = [attention.packed_heads]
    common: nn.Module | None = feed
    if isinstance(feed, MixtureOfExperts):
        copies.append(feed.packed_experts)
        common = feed.shared_experts
    if common is not None:
        linears += projections(common)
    return copies + [_bf16(linear) for linear in linears]


def _bf16(linear: nn.Module) -> Matrix | None:
    matrix = matrix_of(linear)
    return matrix if matrix is not None and matrix.words[-1] == 16 else None


def _is_known(model: Transformer) -> bool:
    """Norm, latent attention, norm, gated feed-forward or experts, and nothing else; biases as DeepSeek's attention has
    them.
    """
    config, mla = model.config, model.config.mla
    if mla is None:
        return False
    sizes = (config.hidden_size, mla.kv_lora_rank, mla.q_lora_rank or 0, mla.v_head_dim, mla.qk_rope_head_dim)
    if any(size % WIDTHS for size in sizes):
        return False
    return all(_is_known_layer(layer) for layer in layers_of(model))


def _is_known_layer(layer: DecoderLayer) -> bool:
    attention, feed = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if (
        layer.block != "sequential"
        or not isinstance(attention, LatentAttention)
        or any(type(n) is not RMSNorm for n in norms)
    ):
        return False
    if attention.scoring.window is not None or attention.scoring.cap is not None:
        return False
    if not isinstance(feed, MixtureOfExperts) and not isinstance(feed, GatedFeedForward):
        return False
    common = feed.shared_experts if isinstance(feed, MixtureOfExperts) else feed
    gated = common is None or common.activation is nn.functional.silu
    return gated and all(_bias(m) is None for m in feed.modules())


def _bias(module: nn.Module | None) -> Tensor | None:
    """What a projection adds to all rows."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None
