"""Sizes of networks to begin from nothing: each in DeepSeek V3's style, and dense twins to compare it with.

A twin has the same depth. "-active" and "-total" are Llama's decoder, with the parameters that one token of the
mixture meets, and with all of them: what the mixture is worth shows beside both. "-latent" is "-active" with the
mixture's attention: what that is worth shows beside grouped queries.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.families import from_hf

CONTEXT = 2048

SIZES: Mapping[str, Mapping[str, Any]] = {
    "nano": {
        "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 576,
        "moe_intermediate_size": 192, "n_routed_experts": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": None, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "micro": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536,
        "moe_intermediate_size": 384, "n_routed_experts": 16, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
        "q_lora_rank": 192, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "mini": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048,
        "moe_intermediate_size": 256, "n_routed_experts": 32, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
        "q_lora_rank": 384, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "1b": {
        "hidden_size": 1024, "num_hidden_layers": 20, "num_attention_heads": 16, "intermediate_size": 2816,
        "moe_intermediate_size": 256, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 4,
        "q_lora_rank": 512, "kv_lora_rank": 256,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
}  # fmt: skip
"""What differs from size to size, in the words of `config.json`."""

_COMMON: Mapping[str, Any] = {
    "model_type": "deepseek_v3",
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
_HEAD = 64  # width of a twin's head
_SHARED_BY = 4  # query heads of a twin that share a key and a value head
_WIDEST = 4  # a twin's feed-forward beside its stream, at most
_GRID = 8

PRESETS = tuple(name + kind for name in SIZES for kind in ("", "-active", "-total", "-latent"))
"""Names of all networks that can be begun from nothing."""


def preset(name: str, vocab_size: int, tokens: Mapping[str, Any], prediction_layers: int = 0) -> ModelConfig:
    """The config of a preset. tokens: `bos_token_id` and the like; prediction_layers: of a mixture, beyond the next.

    Raises ModelError for an unknown name, and for prediction layers of a dense twin.
    """
    if name not in PRESETS:
        raise ModelError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    size, _, kind = name.partition("-")
    if kind and prediction_layers:
        raise ModelError(f"The preset {name!r} is dense and predicts the next token alone: set mtp to 0.")
    outer = {**_COMMON, **tokens, "vocab_size": vocab_size, "num_nextn_predict_layers": prediction_layers}
    mixture = from_hf({**outer, **SIZES[size]})
    if not kind:
        return mixture
    if kind == "latent":
        dense = {**outer, **SIZES[size], "first_k_dense_replace": mixture.num_hidden_layers}
        return _wide_enough(
            lambda width: from_hf({**dense, "intermediate_size": width}),
            8 * mixture.hidden_size,
            mixture.active_params(),
        )
    return dense_twin(mixture, mixture.active_params() if kind == "active" else mixture.num_params())


def dense_twin(config: ModelConfig, params: int) -> ModelConfig:
    """Llama's decoder of the same depth and vocabulary, with so many parameters to within a step of its widths.

    It is as narrow as it can be while its feed-forward is at most four times as wide as the stream.
    """
    hidden = config.hidden_size
    while _llama(config, hidden, _WIDEST * hidden).num_params() < params:
        hidden += _HEAD * _SHARED_BY
    return _wide_enough(lambda width: _llama(config, hidden, width), _WIDEST * hidden, params)


def _wide_enough(make: Callable[[int], ModelConfig], widest: int, params: int) -> ModelConfig:
    """The network with the narrowest feed-forward that has so many parameters."""
    widths = range(_GRID, widest + 1, _GRID)
    return make(widths[bisect_left(widths, params, key=lambda width: make(width).num_params())])


def _llama(config: ModelConfig, hidden: int, width: int) -> ModelConfig:
    heads = hidden // _HEAD
    return from_hf(
        {
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // _SHARED_BY,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta,
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": config.tie_word_embeddings,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        }
    )
