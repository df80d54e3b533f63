"""All layers of a Llama-like decoder in one call of C++, for prompts and for the new tokens of each text.

Twelve operations a layer, each a call from Python and a meeting of all threads, cost as much as their arithmetic while
few texts run. What a call does to a number is what the operations one by one would do; `Transformer.hidden` over a
`PrefillContext` or a `DecodeContext` is the twin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from schoolhouse.infer.cache import PrefillContext, SlotCache
from schoolhouse.kernels.native import library, takes
from schoolhouse.kernels.packed_experts import AT_ONCE, feed_room
from schoolhouse.kernels.packed_weight import FILL, Matrix, room
from schoolhouse.model.attention import Attention
from schoolhouse.model.config import FULL, ModelConfig
from schoolhouse.model.layers import GatedFeedForward, Linear, RMSNorm
from schoolhouse.model.quantized import QuantLinear
from schoolhouse.model.transformer import DecoderLayer, Transformer

FIRST = 6  # words of a layer before those of its matrices: two norms, keys, values, the scales of both
WIDTHS = 32  # what the sizes of rows and heads are multiples of


class FusedLayers:
    """The layers of one model over one cache; `made_for` says if it takes them."""

    def __init__(self, model: Transformer, cache: SlotCache, matrices: Sequence[Sequence[Matrix]]) -> None:
        self._model, self._cache, self._config = model, cache, model.config
        self._matrices = matrices  # they own the memory that the words below point to
        words = []
        for layer, each in zip(layers_of(model), matrices, strict=True):
            norms = [
                n.get_parameter("weight").data_ptr() for n in (layer.input_layernorm, layer.post_attention_layernorm)
            ]
            words.append([*norms, 0, 0, 0, 0, *(word for matrix in each for word in matrix.words)])
        self._words = torch.tensor(words, dtype=torch.int64)
        self._strides = torch.zeros(5, dtype=torch.int64)
        self._placed: list[tuple[Tensor, ...]] | None = None

    @classmethod
    def made_for(cls, model: Transformer, cache: SlotCache) -> FusedLayers | None:
        """The layers in one call, or None where an operation is not among those that the call knows."""
        if library() is None or not takes(next(model.parameters()).detach()) or not _is_plain(model):
            return None
        matrices = [[matrix_of(linear) for linear in _linears(layer)] for layer in layers_of(model)]
        known = [[matrix for matrix in each if matrix is not None] for each in matrices]
        shapes = {tuple(matrix.shape for matrix in each) for each in known}
        fits = shapes == {_shapes(model.config)} and all(_are_alike(each) for each in known)
        return cls(model, cache, known) if fits else None

    def is_of(self, model: Transformer) -> bool:
        """True while the model's packed matrices are those that this was made from."""
        now = (matrix_of(linear) for layer in layers_of(model) for linear in _linears(layer))
        return all(a is b for a, b in zip(now, (m for each in self._matrices for m in each), strict=True))

    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states after the last norm of ids (B, T), the next tokens of the first B slots: (B, T, D).

        lengths: (B,) int64, tokens that each slot holds already. Their keys and values go into the cache.
        """
        config, native, (texts, tokens) = self._config, library(), ids.shape
        assert native is not None, "made_for asks for the kernels"
        self._place()
        x = self._model.embed(ids).flatten(0, 1).contiguous()  # (B * T, D)
        cos, sin = self._model.rotary.tables(lengths[:, None] + torch.arange(tokens), x.dtype)[FULL]
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        inner, width = config.intermediate_size, config.hidden_size
        whole = (heads + 2 * kv_heads) * size
        rows, row = -(-texts * tokens // FILL) * FILL, 3 * width + whole + heads * size + 2 * inner
        scratch = torch.empty(rows * row + room(rows, max(width, inner, heads * size)), dtype=x.dtype)
        scale = layers_of(self._model)[0].self_attn.scoring.scale
        native.decode_layers(
            self._words.data_ptr(), len(self._words), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), lengths.data_ptr(),
            self._strides.data_ptr(), texts, tokens, heads, kv_heads, size, width, inner, scale,
            config.rms_norm_eps, scratch.data_ptr(),
        )  # fmt: skip
        normed: Tensor = self._model.model.norm(x.view(texts, tokens, width))
        return normed

    def read(self, ids: Tensor, context: PrefillContext, only: Tensor) -> Tensor:
        """Hidden states after the last norm of prompts (1, N) at the places `only` (P,), which rise: (1, P, D).

        Their keys and values go into the context.
        """
        config, native, tokens = self._config, library(), ids.shape[1]
        assert native is not None, "made_for asks for the kernels"
        x = self._model.embed(ids)[0].contiguous()  # (N, D)
        cos, sin = self._model.rotary.tables(context.positions, x.dtype)[FULL]
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        inner, width, table = config.intermediate_size, config.hidden_size, context.layout.table
        keys, values = context.room(kv_heads, size, x)
        words = self._words.clone()
        for layer, own in enumerate(words):
            own[2:FIRST] = torch.tensor([keys[layer].data_ptr(), values[layer].data_ptr(), 0, 0])
        rows, row = -(-tokens // FILL) * FILL, 2 * width + 2 * heads * size
        feed = max(2 * rows * inner, feed_room(AT_ONCE, width, 0, 0, inner))
        scratch = torch.empty(rows * row + feed + room(rows, max(width, inner, heads * size)), dtype=x.dtype)
        scale = layers_of(self._model)[0].self_attn.scoring.scale
        native.read_layers(
            words.data_ptr(), len(words), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), table.data_ptr(), len(table),
            only.data_ptr(), len(only), tokens, len(keys[0]) - tokens, heads, kv_heads, size, width, inner, scale,
            config.rms_norm_eps, scratch.data_ptr(), feed,
        )  # fmt: skip
        normed: Tensor = self._model.model.norm(x[: len(only)])
        return normed[None]

    def _place(self) -> None:
        """Where the cache holds each layer's keys and values, and scales if it has some; they move when it grows."""
        if self._placed is self._cache.layers:
            return
        self._placed = self._cache.layers
        for words, stores in zip(self._words, self._placed, strict=True):
            keys, values, *scales = (stores[0], stores[2], stores[1], stores[3]) if self._cache.coded else stores
            assert keys.stride() == values.stride()
            for place, store in enumerate((keys, values, *scales), start=2):
                words[place] = store.data_ptr()
        rows, scales_of = self._placed[0][0], self._placed[0][1]
        self._strides = torch.tensor([*rows.stride()[:3], *scales_of.stride()[:2]], dtype=torch.int64)


def layers_of(model: Transformer) -> list[DecoderLayer]:
    """Those that give the hidden states, without the ones that predict further tokens."""
    held = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
    return held[: model.config.num_hidden_layers]


def _is_plain(model: Transformer) -> bool:
    """Norm, grouped-query attention, norm, gated feed-forward, and nothing else."""
    config = model.config
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
    rotates = not config.rope_interleave and config.rotary_dim in (None, config.head_dim)
    if config.mla is not None or config.qk_norm or not rotates or any(size % WIDTHS for size in sizes):
        return False
    return all(_is_plain_layer(layer, i) for i, layer in enumerate(layers_of(model)))


def _is_plain_layer(layer: DecoderLayer, place: int) -> bool:
    attention, feed = layer.self_attn, layer.mlp
    if layer.block != "sequential" or not isinstance(attention, Attention) or not isinstance(feed, GatedFeedForward):
        return False
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    plain = attention.scoring.window is None and attention.scoring.cap is None and attention.kind == FULL
    gated = feed.activation is nn.functional.silu
    unbiased = all(getattr(linear, "bias", None) is None for linear in _linears(layer))
    return plain and gated and unbiased and all(type(norm) is RMSNorm for norm in norms)


def _linears(layer: DecoderLayer) -> list[nn.Module]:
    attention, feed = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    return [getattr(layer.self_attn, name) for name in attention] + [getattr(layer.mlp, name) for name in feed]


def _shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Of a layer's matrices, in the order of `_linears`."""
    d, f, size = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    return (q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)


def _are_alike(matrices: Sequence[Matrix]) -> bool:
    """True if those that read the same rows are of one kind: their products lay these out in one place, at once."""
    return all(len({matrix.words[2::3] for matrix in same}) == 1 for same in (matrices[:3], matrices[4:6]))


def matrix_of(linear: nn.Module) -> Matrix | None:
    """What the layer would multiply by, or None if that is no packed matrix that still holds."""
    if isinstance(linear, QuantLinear):
        return linear.packed
    if not isinstance(linear, Linear) or linear.packed is None or not linear.packed.is_of(linear.weight):
        return None
    return linear.packed
