"""Model families as data: how each one's `config.json` maps to a `ModelConfig`, and back.

All dense families here are the same decoder with other switches, so a family is a row of a table, not a class. Nothing
in a config is skipped in silence: a key is read, or stands in the list of inert keys with the reason, or is an error.

Source: `configuration_*.py` of transformers 5.23 (defaults of absent keys), the published `config.json` of each family.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_PLAIN = ("rms_norm_eps", "max_position_embeddings", "hidden_act", "tie_word_embeddings", "initializer_range")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_COMMON = {*_SIZES, *_PLAIN, *_TOKENS, *_ROPE, "model_type", "architectures", "num_key_value_heads", "head_dim"}
_WINDOW = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}

# Inner keys that each kind of rotary scaling must have, beside its type.
_ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

INERT_KEYS: dict[str, str] = {
    "_name_or_path": "where somebody's copy once lay",
    "attention_dropout": "dropout is off in use and in every released checkpoint of these families",
    "dtype": "who loads the weights chooses the precision",
    "torch_dtype": "who loads the weights chooses the precision",
    "is_llama_config": "a mark of the tool that converted SmolLM2; the model is an ordinary Llama",
    "pretraining_tp": "splits a product over matrices in old code; the result is the same",
    "quantization_config": "describes the stored weights, which model/weights.py reads",
    "transformers.js_config": "settings of a browser runtime",
    "transformers_version": "which program wrote the file",
    "use_cache": "a default of another program's generation loop",
}
"""Keys of `config.json` that change nothing here, each with the reason."""

_INERT_ONLY_AT: dict[str, tuple[Any, str]] = {
    "rope_interleaved": (False, "rotary pairs side by side are not built here"),
    "use_mrope": (False, "rotary positions in several dimensions are not built here"),
}


@dataclass(frozen=True)
class Family:
    """One row of the table: what a family reads beyond the common keys, what it leaves out, what it fixes."""

    architecture: str
    defaults: dict[str, Any]
    extra_keys: frozenset[str] = frozenset()
    fixed: dict[str, Any] = field(default_factory=dict)
    bias_covers_output: bool = True
    writes_head_dim: bool = True


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
        extra_keys=frozenset({"attention_bias", "mlp_bias"}),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "num_key_value_heads": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        extra_keys=frozenset({"sliding_window"}),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 32},
        extra_keys=frozenset(_WINDOW),
        fixed={"attention_bias": True},
        bias_covers_output=False,
        writes_head_dim=False,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "num_key_value_heads": 32,
            "head_dim": 128,
        },
        extra_keys=frozenset(_WINDOW | {"attention_bias"}),
        fixed={"qk_norm": True},
    ),
}
"""The families that can be read and written, by `model_type`."""


def from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a `config.json`, classic keys or those of transformers 5.

    Raises ModelError that names an unknown family, an unknown or missing key, or a value that cannot be built.
    """
    family = _family(raw)
    _refuse_unknown_keys(raw, family)
    # null says "none", an absent key says "the family's default".
    values = {key: value for key, value in {**family.defaults, **raw}.items() if value is not None}
    sizes: dict[str, Any] = {key: _size(values, key) for key in _SIZES}
    heads = sizes["num_attention_heads"]
    kv_heads = _size({"num_key_value_heads": heads, **values}, "num_key_value_heads")
    if heads % kv_heads:
        raise ModelError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
    bias = bool(family.fixed.get("attention_bias", values.get("attention_bias", False)))
    theta, scaling = _rope(values)
    return ModelConfig(
        model_type=raw["model_type"],
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=_head_dim(values, sizes["hidden_size"], heads),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=bias,
        attention_out_bias=bias and family.bias_covers_output,
        mlp_bias=bool(values.get("mlp_bias", False)),
        qk_norm=family.fixed.get("qk_norm", False),
        sliding_window=_sliding_window(values, family, sizes["num_hidden_layers"]),
        **{key: values[key] for key in _PLAIN if key in values},
        **{key: _token(values.get(key)) for key in _TOKENS},
    )


def to_hf(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` that transformers reads for this config, in the classic keys.

    Raises ModelError if the config has a switch that its family cannot express.
    """
    family = FAMILIES[config.model_type]
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.model_type}
    raw |= {key: getattr(config, key) for key in (*_SIZES, "num_key_value_heads", *_PLAIN)}
    raw |= {
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    raw |= {key: _json_token(getattr(config, key)) for key in _TOKENS}
    if family.writes_head_dim or config.head_dim * config.num_attention_heads != config.hidden_size:
        raw["head_dim"] = config.head_dim
    raw |= {key: getattr(config, key) for key in ("attention_bias", "mlp_bias") if key in family.extra_keys}
    if "sliding_window" in family.extra_keys:
        raw["sliding_window"] = config.sliding_window
    if "use_sliding_window" in family.extra_keys:
        raw["use_sliding_window"] = config.sliding_window is not None
        raw["max_window_layers"] = 0 if config.sliding_window is not None else config.num_hidden_layers
    if from_hf(raw) != config:
        raise ModelError(
            f"A {config.model_type} config.json cannot express this model: {_differences(from_hf(raw), config)}. "
            "Choose another model_type for it."
        )
    return raw


def _family(raw: Mapping[str, Any]) -> Family:
    name = raw.get("model_type")
    if name not in FAMILIES:
        architectures = ", ".join(raw.get("architectures") or ()) or "no architecture named"
        raise ModelError(
            f"model_type {name!r} ({architectures}) is not a family known here; known are {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    for architecture in raw.get("architectures") or ():
        if architecture != family.architecture:
            raise ModelError(
                f"architecture {architecture!r} is not known for model_type {name!r}: only {family.architecture} is."
            )
    return family


def _refuse_unknown_keys(raw: Mapping[str, Any], family: Family) -> None:
    known = _COMMON | family.extra_keys | INERT_KEYS.keys()
    for key, value in raw.items():
        if key == "auto_map":
            raise ModelError("config.json has auto_map, which asks for the checkpoint's own code to be run: refused.")
        if key in _INERT_ONLY_AT:
            allowed, reason = _INERT_ONLY_AT[key]
            if value != allowed:
                raise ModelError(f"config.json sets {key} to {value!r}: {reason}.")
        elif key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ModelError(
                f"config.json has the key {key!r} (value {value!r}), unknown for {family.architecture}.{hint}"
            )


def _size(values: Mapping[str, Any], key: str) -> int:
    if key not in values:
        raise ModelError(f"config.json has no {key}.")
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json sets {key} to {value!r}: a whole number above 0 is needed.")
    return value


def _head_dim(values: Mapping[str, Any], hidden: int, heads: int) -> int:
    if "head_dim" not in values and hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is not given."
        )
    head_dim = _size({"head_dim": hidden // heads, **values}, "head_dim")
    if head_dim % 2:
        raise ModelError(f"head_dim is {head_dim}: rotary positions need an even one.")
    return head_dim


def _rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """theta and the scaling rule, from `rope_parameters` (transformers 5) or the classic two keys."""
    rule = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = rule.pop("rope_theta", values.get("rope_theta", 10000.0))
    legacy = rule.pop("type", "default")
    kind = rule.pop("rope_type", legacy)
    if not isinstance(theta, int | float) or theta <= 0:
        raise ModelError(f"config.json sets rope_theta to {theta!r}: a number above 0 is needed.")
    if kind == "default":
        return float(theta), None
    if kind not in _ROPE_KINDS:
        raise ModelError(f"rope_scaling has type {kind!r}; known are {', '.join(_ROPE_KINDS)}.")
    if set(rule) != set(_ROPE_KINDS[kind]):
        wrong = sorted(set(rule) ^ set(_ROPE_KINDS[kind]))
        raise ModelError(f"rope_scaling of type {kind!r} needs exactly {', '.join(_ROPE_KINDS[kind])}; see {wrong}.")
    return float(theta), {"rope_type": kind, **rule}


def _sliding_window(values: Mapping[str, Any], family: Family, layers: int) -> int | None:
    if "sliding_window" not in values:
        return None
    if "use_sliding_window" not in family.extra_keys:  # Mistral: one window for all layers
        return _size(values, "sliding_window")
    if not values.get("use_sliding_window", False):
        return None
    first = values.get("max_window_layers", 28)
    kinds = values.get("layer_types") or ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    if len(set(kinds)) > 1:
        raise ModelError(
            f"{kinds.count('sliding_attention')} of {layers} layers use sliding_window: only all or none can here."
        )
    return _size(values, "sliding_window") if kinds[0] == "sliding_attention" else None


def _token(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _json_token(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differences(left: ModelConfig, right: ModelConfig) -> str:
    names = [name for name in ModelConfig.__dataclass_fields__ if getattr(left, name) != getattr(right, name)]
    return ", ".join(f"{name} = {getattr(right, name)!r}" for name in names)
