"""A model's shape in GGUF's metadata, in both directions: `config.json` out of it, and a `ModelConfig` into it.

What the format cannot say is an error with the reason, never left out.

Source: the GGUF specification (ggml-org/ggml: docs/gguf.md); llama.cpp's converter and what its models read
(ggml-org/llama.cpp: conversion/, src/models/).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.gguf import GgufFile
from schoolhouse.model.gguf_names import ARCHITECTURES, Architecture, known, written
from schoolhouse.model.known import FAMILIES

ROPE_DIVISORS = "rope_freqs.weight"
"""The one tensor that is no weight: what a scaling rule divides each rotary frequency by."""

Meta = dict[str, int | float | bool | str]

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_MOE_FIELDS = {
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_LITE_LAYERS = (26, 27)  # by which llama.cpp knows a DeepSeek V2 Lite, whose queries have no latent
_SOFTMAX, _SIGMOID = 1, 2  # values of expert_gating_func
# Frequency divisors are stored as a tensor, Hugging Face stores the rule. Only rules that are in use are looked for.
_LLAMA3_RULES = [
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
]


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The Hugging Face config.json that the file's metadata amounts to. ModelError names a missing or unknown entry."""
    model_type = _model_type(file)
    heads, hidden = _whole(file, "attention.head_count"), _whole(file, "embedding_length")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: the tensor token_embd.weight is missing.")
    config: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        **{theirs: _whole(file, key) for key, theirs in _SIZES.items()},
        "num_key_value_heads": _whole(file, "attention.head_count_kv", heads),
        "head_dim": _whole(file, "attention.key_length", max(1, hidden // heads)),
        "hidden_act": "silu",
        "rms_norm_eps": _fraction(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _fraction(file, "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.meta.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }
    if model_type in _READ:
        config |= _READ[model_type](file, config)
    width = config.get("qk_rope_head_dim") or config["head_dim"]
    config["rope_scaling"] = _read_scaling(file, width, config["rope_theta"])
    theirs = {ours: key for key, ours in FAMILIES[model_type].keys.items()}
    return {theirs.get(key, key): value for key, value in config.items()}


def _model_type(file: GgufFile) -> str:
    """Hugging Face's name of the family; an architecture of GGUF may stand for several."""
    rows = [model_type for model_type, row in ARCHITECTURES.items() if row.name == file.architecture]
    if not rows:
        raise ModelError(f"{file.path}: architecture {file.architecture!r} is not known; known are {known()}.")
    if file.architecture == "llama":
        return "mixtral" if _get(file, "expert_count", 0) else "llama"
    if file.architecture == "deepseek2":
        return "deepseek_v3" if _get(file, "expert_gating_func", _SOFTMAX) == _SIGMOID else "deepseek_v2"
    return rows[0]


def _get(file: GgufFile, key: str, default: Any = None) -> Any:
    return file.meta.get(f"{file.architecture}.{key}", default)


def _whole(file: GgufFile, key: str, default: int | None = None, least: int = 1) -> int:
    value = _get(file, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(
            f"{file.path}: {file.architecture}.{key} is {value!r}: a whole number of at least {least} is needed."
        )
    return value


def _fraction(file: GgufFile, key: str, default: float | None = None) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    value = _get(file, key, default)
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise ModelError(f"{file.path}: {file.architecture}.{key} is {value!r}: a number above 0 is needed.")
    return float(str(np.float32(value)))


def _read_llama(file: GgufFile, _config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _read_mixtral(file: GgufFile, _config: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_local_experts": _whole(file, "expert_count"),
        "num_experts_per_tok": _whole(file, "expert_used_count"),
    }


def _read_qwen3_moe(file: GgufFile, _config: dict[str, Any]) -> dict[str, Any]:
    return {
        **{theirs: _whole(file, key) for key, theirs in _EXPERTS.items()},
        "moe_intermediate_size": _whole(file, "expert_feed_forward_length"),
        "norm_topk_prob": True,  # llama.cpp knows no other for this architecture
    }


def _read_deepseek(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Files of today say the heads' widths in the keys with `_mla`: the others are those of the latent."""
    turning = _whole(file, "rope.dimension_count")
    still = _whole(file, "attention.key_length_mla", _whole(file, "attention.key_length")) - turning
    values = _whole(file, "attention.value_length_mla", _whole(file, "attention.value_length"))
    groups = _whole(file, "expert_group_count", 0, least=0) or 1
    shape: dict[str, Any] = {
        "head_dim": None,
        "num_key_value_heads": config["num_attention_heads"],
        "kv_lora_rank": _whole(file, "attention.kv_lora_rank"),
        "q_lora_rank": _get(file, "attention.q_lora_rank"),
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": still,
        "v_head_dim": values,
        "n_routed_experts": _whole(file, "expert_count"),
        "num_experts_per_tok": _whole(file, "expert_used_count"),
        "moe_intermediate_size": _whole(file, "expert_feed_forward_length"),
        "n_shared_experts": _whole(file, "expert_shared_count", 0, least=0),
        "first_k_dense_replace": _whole(file, "leading_dense_block_count", 0, least=0),
        "n_group": groups,
        "topk_group": _whole(file, "expert_group_used_count", 0, least=0) or 1,
        "norm_topk_prob": bool(_get(file, "expert_weights_norm", False)),
        "routed_scaling_factor": _fraction(file, "expert_weights_scale", 1.0),
    }
    if config["model_type"] == "deepseek_v3":
        return shape | {"num_nextn_predict_layers": 0}
    return shape | {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}


def _read_gemma(file: GgufFile, config: dict[str, Any], deep: int) -> dict[str, Any]:
    """deep: how many layers the largest model has, the one whose scores are divided otherwise."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    largest = config["num_hidden_layers"] == deep
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": hidden / heads if largest else float(config["head_dim"]),
    }


def _read_gemma2(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    return _read_gemma(file, config, 46) | {
        "sliding_window": _whole(file, "attention.sliding_window", 4096),
        "attn_logit_softcapping": _fraction(file, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": _fraction(file, "final_logit_softcapping", 30.0),
    }


def _read_gemma3(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    layers, window = config["num_hidden_layers"], _get(file, "attention.sliding_window")
    pattern = _get(file, "attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        slides = [bool(value) for value in pattern]
    else:
        every = _whole(file, "attention.sliding_window_pattern", 6)
        slides = [(i + 1) % every != 0 for i in range(layers)]
    if len(slides) != layers:
        raise ModelError(f"{file.path}: sliding_window_pattern is said for {len(slides)} layers of {layers}.")
    fields: dict[str, Any] = {
        "sliding_window": window,
        "layer_types": ["sliding_attention" if window and one else "full_attention" for one in slides],
        "rope_local_base_freq": _fraction(file, "rope.freq_base_swa", 10000.0),
    }
    if _get(file, "final_logit_softcapping") is not None:
        fields["final_logit_softcapping"] = _fraction(file, "final_logit_softcapping")
    return _read_gemma(file, config, 62) | fields


def _read_phi3(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    turning = _whole(file, "rope.dimension_count", config["head_dim"])
    return {
        "sliding_window": _get(file, "attention.sliding_window") or None,
        "partial_rotary_factor": turning / config["head_dim"],
        "head_dim": None,
    }


_READ: dict[str, Callable[[GgufFile, dict[str, Any]], dict[str, Any]]] = {
    "llama": _read_llama,
    "mixtral": _read_mixtral,
    "qwen3_moe": _read_qwen3_moe,
    "deepseek_v2": _read_deepseek,
    "deepseek_v3": _read_deepseek,
    "gemma2": _read_gemma2,
    "gemma3_text": _read_gemma3,
    "phi3": _read_phi3,
}


def _read_scaling(file: GgufFile, width: int, theta: float) -> dict[str, Any] | None:
    kind = _get(file, "rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": _fraction(file, "rope.scaling.factor")}
    if kind == "yarn":
        return _read_yarn(file)
    if kind != "none":
        raise ModelError(f"{file.path}: rope scaling {kind!r} is not read from GGUF. Take the safetensors checkpoint.")
    if ROPE_DIVISORS not in file.tensors:
        return None
    divisors = file.load(ROPE_DIVISORS)
    for rule in _LLAMA3_RULES:
        if torch.allclose(divisors, llama3_divisors(rule, width, theta), rtol=1e-4):
            return dict(rule)
    raise ModelError(
        f"{file.path}: {ROPE_DIVISORS} follows none of the known scaling rules. Take the safetensors checkpoint."
    )


def _read_yarn(file: GgufFile) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": _fraction(file, "rope.scaling.factor"),
        "original_max_position_embeddings": _whole(file, "rope.scaling.original_context_length"),
    }
    for key in ("beta_fast", "beta_slow"):
        if _get(file, f"rope.scaling.yarn_{key}") is not None:
            rule[key] = _fraction(file, f"rope.scaling.yarn_{key}")
    if _get(file, "rope.scaling.yarn_log_multiplier"):
        # A tenth of mscale_all_dim; mscale is the same in every model that llama.cpp runs rightly.
        over_all = round(10 * _fraction(file, "rope.scaling.yarn_log_multiplier"), 6)
        rule |= {"mscale": over_all, "mscale_all_dim": over_all}
    return rule


def llama3_divisors(rule: dict[str, Any], width: int, theta: float) -> torch.Tensor:
    """What Llama 3.1 divides each rotary frequency by, shape (width / 2,).

    Source: `LlamaModel.generate_extra_tensors` of llama.cpp's converter.
    """
    wavelength = 2 * math.pi * theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high = float(rule["low_freq_factor"]), float(rule["high_freq_factor"])
    factor, context = float(rule["factor"]), float(rule["original_max_position_embeddings"])
    smooth = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def metadata(config: ModelConfig) -> Meta:
    """The metadata that says this model's shape, without the vocabulary's.

    Raises ModelError for a family that is not exported, and for what llama.cpp would compute otherwise than we do.
    """
    row = ARCHITECTURES.get(config.model_type)
    if row is None or not row.written:
        raise ModelError(f"GGUF is not written for {config.model_type}; it is for {written()}.")
    for reason, is_so in _refused(config, row).items():
        if is_so:
            raise ModelError(f"This {config.model_type} cannot be written as GGUF: llama.cpp {reason}.")
    values: Meta = {key: getattr(config, ours) for key, ours in _SIZES.items()}
    values |= {
        "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
    }
    values |= _write_heads(config) | _write_experts(config) | _write_scaling(config)
    return {f"{row.name}.{key}": value for key, value in values.items()}


def _refused(config: ModelConfig, row: Architecture) -> dict[str, bool]:
    """What llama.cpp does not do for this architecture, and whether this model needs it."""
    moe, scaling = config.moe, config.rope_scaling or {}
    yarn, qwen, deepseek = scaling.get("rope_type") == "yarn", row.name == "qwen3moe", row.name == "deepseek2"
    sharp = (scaling.get("mscale"), scaling.get("mscale_all_dim"))
    refused = {
        f"has no {config.hidden_act!r} in it": config.hidden_act != "silu",
        "looks at the whole text, and this model at a window of it": config.sliding_window is not None,
        "has no biases in it": bool(config.attention_bias and row.name not in ("llama", "qwen2")),
        "has no longrope in it": scaling.get("rope_type") == "longrope",
        "scales rotary positions by llama3's rule in Llama only, by 8 or 32": scaling.get("rope_type") == "llama3"
        and (row.name != "llama" or scaling not in _LLAMA3_RULES),
        "computes YaRN's attention factor itself": yarn
        and (scaling.get("attention_factor") is not None or not scaling.get("truncate", True)),
        "knows YaRN's mscale for DeepSeek only, and there the same as mscale_all_dim": yarn
        and (not sharp[0] or sharp[0] != sharp[1] if deepseek else any(sharp)),
    }
    if moe is None:
        return refused
    limited = moe.topk_group < moe.n_group
    return refused | {
        "has experts in all of its layers": qwen and bool(moe.dense_layers),
        "makes the experts' shares sum to one": qwen and not moe.norm_topk_prob,
        f"wants q_lora_rank for all but models of {_LITE_LAYERS[0]} or {_LITE_LAYERS[1]} layers": config.mla is not None
        and config.mla.q_lora_rank is None
        and config.num_hidden_layers not in _LITE_LAYERS,
        "has a shared expert in it": deepseek and moe.n_shared_experts == 0,
        "turns pairs that lie side by side (rope_interleave)": deepseek and not config.rope_interleave,
        "ranks groups of experts by their two best": limited
        and (moe.scoring_func == "softmax" or moe.n_group == moe.n_routed_experts),
    }


def _write_heads(config: ModelConfig) -> Meta:
    """With MLA, llama.cpp attends in the space of the latents: one key for all heads, as wide as latent and rotary."""
    mla = config.mla
    if mla is None:
        width = config.head_dim
        return {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": width,
            "attention.value_length": width,
            "rope.dimension_count": width,
        }
    values: Meta = {
        "attention.head_count_kv": 1,
        "attention.key_length": mla.kv_lora_rank + mla.qk_rope_head_dim,
        "attention.value_length": mla.kv_lora_rank,
        "attention.key_length_mla": mla.qk_head_dim,
        "attention.value_length_mla": mla.v_head_dim,
        "attention.kv_lora_rank": mla.kv_lora_rank,
        "rope.dimension_count": mla.qk_rope_head_dim,
    }
    return values if mla.q_lora_rank is None else values | {"attention.q_lora_rank": mla.q_lora_rank}


def _write_experts(config: ModelConfig) -> Meta:
    moe = config.moe
    if moe is None:
        return {}
    values: Meta = {key: getattr(moe, ours) for key, ours in _MOE_FIELDS.items()}
    if config.mla is None:
        return values
    values |= {
        "expert_shared_count": moe.n_shared_experts,
        "leading_dense_block_count": len(moe.dense_layers),
        "expert_weights_scale": float(moe.routed_scaling_factor),
        "expert_weights_norm": moe.norm_topk_prob,
        "expert_gating_func": _SIGMOID if moe.scoring_func == "sigmoid" else _SOFTMAX,
    }
    if moe.topk_group < moe.n_group:
        values |= {"expert_group_count": moe.n_group, "expert_group_used_count": moe.topk_group}
    return values


def _write_scaling(config: ModelConfig) -> Meta:
    rule: dict[str, Any] = dict(config.rope_scaling or {})
    kind = rule.get("rope_type", "none")
    if kind in ("none", "llama3"):  # llama3's rule is a tensor
        return {}
    values: Meta = {"rope.scaling.type": kind, "rope.scaling.factor": float(rule["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = int(rule["original_max_position_embeddings"])
        betas = {f"rope.scaling.yarn_{key}": rule[key] for key in ("beta_fast", "beta_slow") if key in rule}
        values |= {key: float(value) for key, value in betas.items()}
        if rule.get("mscale_all_dim"):
            values["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rule["mscale_all_dim"])
    return values
