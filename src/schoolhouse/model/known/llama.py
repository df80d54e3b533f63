"""Llama and those built like it: Mistral, Qwen, Phi-3, and with experts Mixtral and Qwen3-MoE.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23; the published `config.json` of each family.
"""

from __future__ import annotations

from schoolhouse.model import names as tensor_names
from schoolhouse.model.config import FULL, SLIDING, ModelConfig, MoE
from schoolhouse.model.family import (
    DROPOUT,
    EXPERT_LOSS,
    Family,
    Values,
    layer_windows,
    partial_rotary,
    share_that_turns,
    size,
)
from schoolhouse.model.rope_rules import ORIGINAL


def _read_qwen_window(values: Values) -> Values:
    layers = size(values, "num_hidden_layers")
    if not values.get("use_sliding_window", False):
        return {"sliding_window": None, "layer_types": None}
    first = values.get("max_window_layers", 28)
    kinds = values.get("layer_types") or [FULL if i < first else SLIDING for i in range(layers)]
    return layer_windows(kinds, size(values, "sliding_window"))


def _write_qwen_window(config: ModelConfig) -> Values:
    slides = config.sliding_window is not None
    raw: Values = {
        "sliding_window": config.sliding_window,
        "use_sliding_window": slides,
        "max_window_layers": 0 if slides else config.num_hidden_layers,
    }
    return raw if config.layer_types is None else raw | {"layer_types": list(config.layer_types)}


_QWEN_DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096}
_QWEN_WINDOW = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})


def _read_mixtral(values: Values) -> Values:
    experts = MoE(
        n_routed_experts=size(values, "num_local_experts"),
        num_experts_per_tok=size(values, "num_experts_per_tok"),
        moe_intermediate_size=size(values, "intermediate_size"),
    )
    return {"moe": experts}


def _write_mixtral(config: ModelConfig) -> Values:
    assert config.moe is not None
    return {
        "num_local_experts": config.moe.n_routed_experts,
        "num_experts_per_tok": config.moe.num_experts_per_tok,
        "sliding_window": config.sliding_window,
    }


def _read_qwen3_moe(values: Values) -> Values:
    step, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers", [])
    layers = range(size(values, "num_hidden_layers"))
    moe = MoE(
        n_routed_experts=size(values, "num_experts"),
        num_experts_per_tok=size(values, "num_experts_per_tok"),
        moe_intermediate_size=size(values, "moe_intermediate_size"),
        norm_topk_prob=bool(values["norm_topk_prob"]),
        dense_layers=tuple(i for i in layers if i in dense or (i + 1) % step),
    )
    return {"moe": moe} | _read_qwen_window(values)


def _write_qwen3_moe(config: ModelConfig) -> Values:
    moe = config.moe
    assert moe is not None
    return _write_qwen_window(config) | {
        "num_experts": moe.n_routed_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(moe.dense_layers),
    }


def _write_phi3(config: ModelConfig) -> Values:
    raw: Values = {"partial_rotary_factor": share_that_turns(config)}
    original = (config.rope_scaling or {}).get(ORIGINAL)
    return raw if original is None else raw | {ORIGINAL: original}


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
        reads=frozenset({"attention_bias", "mlp_bias"}),
        fields=("mlp_bias",),
        written=("attention_bias", "mlp_bias"),
        writes_head_dim=True,
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
        reads=frozenset({"sliding_window"}),
        fields=("sliding_window",),
        written=("sliding_window",),
        writes_head_dim=True,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32},
        reads=_QWEN_WINDOW,
        fields=("sliding_window", "layer_types"),
        fixed={"attention_bias": True, "attention_out_bias": False},
        read=_read_qwen_window,
        write=_write_qwen_window,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
        reads=_QWEN_WINDOW | {"attention_bias"},
        fields=("sliding_window", "layer_types"),
        fixed={"qk_norm": True},
        read=_read_qwen_window,
        write=_write_qwen_window,
        written=("attention_bias",),
        writes_head_dim=True,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {
            **_QWEN_DEFAULTS,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        reads=_QWEN_WINDOW
        | {"attention_bias", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
        | {"decoder_sparse_step", "mlp_only_layers"},
        keys={"num_local_experts": "num_experts"},
        inert=EXPERT_LOSS,
        fields=("sliding_window", "layer_types", "moe"),
        fixed={"qk_norm": True},
        read=_read_qwen3_moe,
        write=_write_qwen3_moe,
        written=("attention_bias",),
        writes_head_dim=True,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        reads=frozenset({"sliding_window", "num_local_experts", "num_experts_per_tok"}),
        inert=EXPERT_LOSS | {"router_jitter_noise": "noise of its makers' training"},
        fields=("sliding_window", "moe"),
        rope_theta=1000000.0,
        read=_read_mixtral,
        write=_write_mixtral,
        writes_head_dim=True,
        names=tensor_names.MIXTRAL,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 32000,
            "pad_token_id": 32000,
        },
        reads=frozenset({"sliding_window", "partial_rotary_factor", ORIGINAL}),
        inert={"resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT},
        fields=("sliding_window", "rotary_dim"),
        read=lambda values: {"rotary_dim": partial_rotary(values, 1.0)},
        write=_write_phi3,
        written=("sliding_window",),
        names=tensor_names.PHI3,
    ),
}
