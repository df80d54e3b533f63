"""Model families as data: how each one's `config.json` maps to a `ModelConfig`, and back.

All families here are the same decoder with other switches, so a family is a row of a table (`model/known/`), not a
class. Nothing in a config is skipped in silence: a key is read, or stands in a list of inert keys with the reason, or
is an error.

Source: `configuration_*.py` of transformers 5.23 (defaults of absent keys), the published `config.json` of each family.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.family import PLAIN, SIZES, TOKENS, Family, size
from schoolhouse.model.known import FAMILIES
from schoolhouse.model.names import Names
from schoolhouse.model.rope_rules import KEYS as ROPE
from schoolhouse.model.rope_rules import read_rope, usable_context, write_rope

_COMMON = {*SIZES, *PLAIN, *TOKENS, *ROPE, "model_type", "architectures", "num_key_value_heads", "head_dim"}

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
"""Keys of `config.json` that change nothing here in any family, each with the reason."""

_INERT_ONLY_AT: dict[str, tuple[Any, str]] = {
    "rope_interleaved": (False, "rotary pairs side by side are not built here for this family"),
    "use_mrope": (False, "rotary positions in several dimensions are not built here"),
}


def from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a `config.json`, classic keys or those of transformers 5.

    Raises ModelError that names an unknown family, an unknown or missing key, or a value that cannot be built.
    """
    family = _family(raw)
    _refuse_unknown_keys(raw, family)
    # null says "none", an absent key says "the family's default".
    given = {family.keys.get(key, key): value for key, value in raw.items()}
    values = {key: value for key, value in {**family.defaults, **given}.items() if value is not None}
    if family.read is not None:
        values |= family.read(values)
    sizes: dict[str, Any] = {key: size(values, key) for key in SIZES}
    heads = sizes["num_attention_heads"]
    kv_heads = size({"num_key_value_heads": heads, **values}, "num_key_value_heads")
    if heads % kv_heads:
        raise ModelError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
    if values.get("sliding_window") is not None:
        size(values, "sliding_window")
    bias = bool(values.get("attention_bias", False))
    theta, scaling = read_rope(values, family.rope_theta)
    fields: dict[str, Any] = dict(
        model_type=raw["model_type"],
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=_head_dim(values, sizes["hidden_size"], heads),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=bias,
        attention_out_bias=bias,
        **{key: values[key] for key in (*PLAIN, *family.fields) if key in values},
        **{key: _token(values.get(key)) for key in TOKENS},
    )
    fields["max_position_embeddings"] = usable_context(fields["max_position_embeddings"], scaling)
    return ModelConfig(**fields | dict(family.fixed))


def to_hf(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The `config.json` that transformers reads for this config, in the classic keys.

    Raises ModelError if the config has a switch that its family cannot express.
    """
    family = FAMILIES[config.model_type]
    theirs = {ours: key for key, ours in family.keys.items()}
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.model_type}
    plain = {key: getattr(config, key) for key in (*SIZES, *PLAIN) if key not in family.unwritten}
    if "num_key_value_heads" not in family.unwritten:
        plain["num_key_value_heads"] = config.num_key_value_heads
    if family.writes_head_dim or _has_odd_heads(config):
        plain["head_dim"] = config.head_dim
    plain |= {key: getattr(config, key) for key in family.written}
    raw |= {theirs.get(key, key): value for key, value in plain.items()}
    raw |= write_rope(config.rope_theta, config.rope_scaling) | {"torch_dtype": dtype, "use_cache": True}
    raw |= {key: _json_token(getattr(config, key)) for key in TOKENS}
    if family.write is not None:
        raw |= family.write(config)
    if from_hf(raw) != config:
        raise ModelError(
            f"A {config.model_type} config.json cannot express this model: {_differences(from_hf(raw), config)}. "
            "Choose another model_type for it."
        )
    return raw


def names_of(config: ModelConfig) -> Names:
    """How this model's checkpoint calls its tensors."""
    names = FAMILIES[config.model_type].names
    return names if isinstance(names, Names) else names(config)


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
    common = _COMMON - (set(family.keys.values()) - family.keys.keys())
    known = common | family.reads | family.keys.keys() | INERT_KEYS.keys() | family.inert.keys()
    only_at = _INERT_ONLY_AT | dict(family.only_at)
    for key, value in raw.items():
        if key == "auto_map":
            raise ModelError("config.json has auto_map, which asks for the checkpoint's own code to be run: refused.")
        if key in only_at:
            allowed, reason = only_at[key]
            if value not in (allowed, None):
                raise ModelError(f"config.json sets {key} to {value!r}: {reason}.")
        elif key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ModelError(
                f"config.json has the key {key!r} (value {value!r}), unknown for {family.architecture}.{hint}"
            )


def _head_dim(values: Mapping[str, Any], hidden: int, heads: int) -> int:
    if "head_dim" not in values and hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is not given."
        )
    head_dim = size({"head_dim": hidden // heads, **values}, "head_dim")
    if head_dim % 2:
        raise ModelError(f"head_dim is {head_dim}: rotary positions need an even one.")
    return head_dim


def _has_odd_heads(config: ModelConfig) -> bool:
    """The heads' width does not follow from the hidden size."""
    return config.mla is None and config.head_dim * config.num_attention_heads != config.hidden_size


def _token(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _json_token(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differences(left: ModelConfig, right: ModelConfig) -> str:
    names = [name for name in ModelConfig.__dataclass_fields__ if getattr(left, name) != getattr(right, name)]
    return ", ".join(f"{name} = {getattr(right, name)!r}" for name in names)
