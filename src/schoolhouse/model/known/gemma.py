"""Gemma 2 and 3: norms on both sides, layers that slide between those that do not.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23; the published `config.json` of each family.
"""

from __future__ import annotations

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import FULL, SLIDING, ModelConfig
from schoolhouse.model.family import Family, Values, layer_windows, size


def _read_gemma2(values: Values) -> Values:
    layers = range(size(values, "num_hidden_layers"))
    kinds = values.get("layer_types") or [FULL if i % 2 else SLIDING for i in layers]
    return layer_windows(kinds, values.get("sliding_window"))


def _write_layer_types(config: ModelConfig) -> Values:
    kinds = config.layer_types or ([FULL if config.sliding_window is None else SLIDING] * config.num_hidden_layers)
    return {"sliding_window": config.sliding_window, "layer_types": list(kinds)}


def _read_gemma3(values: Values) -> Values:
    layers, pattern = size(values, "num_hidden_layers"), values.get("sliding_window_pattern", 6)
    kinds = values.get("layer_types") or [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    fields = layer_windows(kinds, values.get("sliding_window")) | {"rope_local_theta": 10000.0}
    if "rope_local_base_freq" in values:
        fields["rope_local_theta"] = float(values["rope_local_base_freq"])
    modern = values.get("rope_parameters")
    if modern and (FULL in modern or SLIDING in modern):
        local = dict(modern.get(SLIDING) or {})
        if local.get("rope_type", "default") != "default":
            raise ModelError(f"config.json scales the rotary positions of layers that slide ({local}): not built here.")
        fields["rope_local_theta"] = float(local.get("rope_theta", 10000.0))
        fields["rope_parameters"] = modern.get(FULL)
    return fields


def _write_gemma3(config: ModelConfig) -> Values:
    return _write_layer_types(config) | {"rope_local_base_freq": config.rope_local_theta}


_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA_KEYS = frozenset({"attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types"})
_GEMMA_FIELDS = ("query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping")
_GEMMA_BLOCK = {"norm": "rms_plus_one", "block": "sandwich", "scale_embeddings": True}
_LOOKS_AHEAD = {"use_bidirectional_attention": (False, "attention that looks ahead is not built here")}


FAMILIES: dict[str, Family] = {
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {
            **_DEFAULTS,
            "max_position_embeddings": 8192,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
        keys={"hidden_activation": "hidden_act"},
        reads=_GEMMA_KEYS | {"final_logit_softcapping", "attn_logit_softcapping"},
        only_at=_LOOKS_AHEAD,
        fields=(*_GEMMA_FIELDS, "attn_logit_softcapping"),
        fixed=_GEMMA_BLOCK,
        read=_read_gemma2,
        write=_write_layer_types,
        written=(
            "attention_bias",
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            "attn_logit_softcapping",
        ),
        writes_head_dim=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {**_DEFAULTS, "max_position_embeddings": 131072},
        keys={"hidden_activation": "hidden_act"},
        reads=_GEMMA_KEYS
        | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq", "final_logit_softcapping"},
        only_at=_LOOKS_AHEAD | {"attn_logit_softcapping": (None, "no Gemma 3 caps its scores")},
        fields=(*_GEMMA_FIELDS, "rope_local_theta"),
        fixed={**_GEMMA_BLOCK, "qk_norm": True},
        rope_theta=1000000.0,
        read=_read_gemma3,
        write=_write_gemma3,
        written=("attention_bias", "query_pre_attn_scalar", "final_logit_softcapping"),
        writes_head_dim=True,
    ),
}
