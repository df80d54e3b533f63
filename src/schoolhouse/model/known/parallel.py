"""Families with LayerNorm and no gate, most with attention beside the feed-forward: Falcon, Phi-2, GPT-NeoX, GPT-J.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23; the published `config.json` of each family.
"""

from __future__ import annotations

from schoolhouse.model import names as tensor_names
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.family import DROPOUT, NO_GROUPS, Family, Values, partial_rotary, share_that_turns, size
from schoolhouse.model.names import Names


def _read_falcon(values: Values) -> Values:
    heads, new = size(values, "num_attention_heads"), bool(values.get("new_decoder_architecture", False))
    parallel = new or bool(values["parallel_attn"])
    norms = values.get("num_ln_in_parallel_attn", 2 if new else 1)
    kv_heads = 1 if values["multi_query"] else heads
    if new:
        kv_heads = values.get("num_key_value_heads", heads)
    block = "sequential"
    if parallel:
        block = "parallel_two_norms" if new and norms == 2 else "parallel"
    bias = bool(values.get("bias", False))
    return {
        "num_key_value_heads": kv_heads,
        "block": block,
        "attention_bias": bias,
        "mlp_bias": bias,
        "intermediate_size": values.get("intermediate_size", 4 * size(values, "hidden_size")),
    }


def _write_falcon(config: ModelConfig) -> Values:
    new = config.block == "parallel_two_norms" or config.num_key_value_heads not in (1, config.num_attention_heads)
    return {
        "num_kv_heads": config.num_key_value_heads,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": {"parallel_two_norms": 2, "parallel": 1}.get(config.block) if new else None,
        "multi_query": config.num_key_value_heads == 1,
        "parallel_attn": config.block != "sequential",
        "bias": config.attention_bias,
        "alibi": False,
    }


def _falcon_names(config: ModelConfig) -> Names:
    return tensor_names.FALCON_TWO_NORMS if config.block == "parallel_two_norms" else tensor_names.FALCON


def _read_phi(values: Values) -> Values:
    return {"rotary_dim": partial_rotary(values, 0.5)}


def _write_phi(config: ModelConfig) -> Values:
    return {"partial_rotary_factor": share_that_turns(config)}


def _read_neox(values: Values) -> Values:
    fields: Values = {"rotary_dim": partial_rotary(values, 0.25, "rotary_pct")}
    fields["block"] = "parallel_two_norms" if values.get("use_parallel_residual", True) else "sequential"
    return fields | {"rope_theta": values.get("rotary_emb_base", 10000.0)}


def _write_neox(config: ModelConfig) -> Values:
    return {
        "rotary_pct": share_that_turns(config),
        "rotary_emb_base": config.rope_theta,
        "use_parallel_residual": config.block == "parallel_two_norms",
        "attention_bias": config.attention_bias,
    }


def _read_gptj(values: Values) -> Values:
    width = size(values, "hidden_size") // size(values, "num_attention_heads")
    turning = size(values, "rotary_dim")
    inner = values.get("intermediate_size", 4 * size(values, "hidden_size"))
    return {"rotary_dim": None if turning == width else turning, "intermediate_size": inner}


def _write_gptj(config: ModelConfig) -> Values:
    return {"rotary_dim": config.rotary_dim or config.head_dim}


FAMILIES: dict[str, Family] = {
    "falcon": Family(
        "FalconForCausalLM",
        {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
            "bos_token_id": 11,
            "eos_token_id": 11,
            "multi_query": True,
            "parallel_attn": True,
        },
        keys={
            "layer_norm_epsilon": "rms_norm_eps",
            "activation": "hidden_act",
            "ffn_hidden_size": "intermediate_size",
            "num_kv_heads": "num_key_value_heads",
        },
        reads=frozenset(
            {"new_decoder_architecture", "num_ln_in_parallel_attn", "multi_query", "parallel_attn", "bias"}
        ),
        inert={"hidden_dropout": DROPOUT},
        only_at={
            "alibi": (False, "positions by ALiBi are not built here"),
            "apply_residual_connection_post_layernorm": (False, "this order of norm and stream is not built here"),
        },
        fields=("block", "mlp_bias"),
        fixed={"norm": "layer", "gated_mlp": False},
        read=_read_falcon,
        write=_write_falcon,
        unwritten=NO_GROUPS,
        names=_falcon_names,
    ),
    "phi": Family(
        "PhiForCausalLM",
        {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        keys={"layer_norm_eps": "rms_norm_eps"},
        reads=frozenset({"partial_rotary_factor"}),
        inert={"resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT},
        only_at={"qk_layernorm": (False, "LayerNorm over queries and keys is not built here")},
        fields=("rotary_dim",),
        fixed={
            "norm": "layer",
            "block": "parallel",
            "gated_mlp": False,
            "attention_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "head_bias": True,
        },
        read=_read_phi,
        write=_write_phi,
        names=tensor_names.PHI,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "attention_bias": True,
        },
        keys={"layer_norm_eps": "rms_norm_eps"},
        reads=frozenset({"rotary_pct", "rotary_emb_base", "use_parallel_residual", "attention_bias"}),
        inert={
            "hidden_dropout": DROPOUT,
            "classifier_dropout": "of a head for classes, which a language model has not",
            "is_decoder": "a mark of another program; the model is a decoder",
        },
        fields=("rotary_dim", "block"),
        fixed={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
        read=_read_neox,
        write=_write_neox,
        unwritten=NO_GROUPS,
        names=tensor_names.GPT_NEOX,
    ),
    "gptj": Family(
        "GPTJForCausalLM",
        {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "rotary_dim": 64,
        },
        keys={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_positions": "max_position_embeddings",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "rms_norm_eps",
        },
        reads=frozenset({"rotary_dim"}),
        inert={
            "resid_pdrop": DROPOUT,
            "embd_pdrop": DROPOUT,
            "attn_pdrop": DROPOUT,
            "n_ctx": "an old name of n_positions",
            "rotary": "every GPT-J has rotary positions",
            "scale_attn_weights": "every GPT-J divides its scores",
            "gradient_checkpointing": "a default of another program's training",
            "summary_type": "of a head for classes",
            "summary_use_proj": "of a head for classes",
            "summary_activation": "of a head for classes",
            "summary_proj_to_labels": "of a head for classes",
            "summary_first_dropout": "of a head for classes",
            "task_specific_params": "defaults of another program's generation",
            "tokenizer_class": "the tokenizer's own files say what it is",
        },
        fields=("rotary_dim",),
        fixed={
            "norm": "layer",
            "block": "parallel",
            "gated_mlp": False,
            "mlp_bias": True,
            "head_bias": True,
            "rope_interleave": True,
        },
        read=_read_gptj,
        write=_write_gptj,
        unwritten=NO_GROUPS,
        names=tensor_names.GPTJ,
    ),
}
