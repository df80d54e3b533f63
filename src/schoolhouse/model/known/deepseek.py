"""DeepSeek V2 and V3, and what is built like them (R1, Moonlight): latent attention and many small experts.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23; the published `config.json` of each family.
"""

from __future__ import annotations

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import MLA, ModelConfig, MoE
from schoolhouse.model.family import NO_GROUPS, Family, Values, size


def _read_deepseek(values: Values, scoring: str) -> Values:
    mla = MLA(
        kv_lora_rank=size(values, "kv_lora_rank"),
        qk_nope_head_dim=size(values, "qk_nope_head_dim"),
        qk_rope_head_dim=size(values, "qk_rope_head_dim"),
        v_head_dim=size(values, "v_head_dim"),
        q_lora_rank=size(values, "q_lora_rank") if "q_lora_rank" in values else None,
    )
    heads = size(values, "num_attention_heads")
    follows = {"head_dim": mla.qk_rope_head_dim, "qk_head_dim": mla.qk_head_dim, "num_key_value_heads": heads}
    for key, value in follows.items():
        if values.get(key, value) != value:
            raise ModelError(f"config.json sets {key} to {values[key]}: with its other sizes it can only be {value}.")
    grouped = scoring == "sigmoid" or values["topk_method"] == "group_limited_greedy"
    experts = size(values, "n_routed_experts")
    groups = size({"n_group": 1, **values}, "n_group") if grouped else 1
    if experts % groups:
        raise ModelError(f"n_routed_experts {experts} is no multiple of n_group {groups}.")
    moe = MoE(
        n_routed_experts=experts,
        num_experts_per_tok=size(values, "num_experts_per_tok"),
        moe_intermediate_size=size(values, "moe_intermediate_size"),
        n_shared_experts=int(values.get("n_shared_experts", 0)),
        n_group=groups,
        topk_group=size({"topk_group": 1, **values}, "topk_group") if grouped else 1,
        scoring_func="sigmoid" if scoring == "sigmoid" else "softmax",
        norm_topk_prob=bool(values.get("norm_topk_prob", False)),
        routed_scaling_factor=float(values["routed_scaling_factor"]),
        dense_layers=tuple(range(min(values["first_k_dense_replace"], size(values, "num_hidden_layers")))),
    )
    return {"mla": mla, "moe": moe, "head_dim": mla.qk_rope_head_dim}


def _write_deepseek(config: ModelConfig) -> Values:
    mla, moe = config.mla, config.moe
    assert mla is not None
    assert moe is not None
    return {
        "num_key_value_heads": config.num_attention_heads,
        "attention_bias": config.attention_bias,
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.qk_nope_head_dim,
        "qk_rope_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "n_routed_experts": moe.n_routed_experts,
        "n_shared_experts": moe.n_shared_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "n_group": moe.n_group,
        "topk_group": moe.topk_group,
        "scoring_func": moe.scoring_func,
        "norm_topk_prob": moe.norm_topk_prob,
        "routed_scaling_factor": moe.routed_scaling_factor,
        "first_k_dense_replace": len(moe.dense_layers),
        "moe_layer_freq": 1,
    }


def _read_v3(values: Values) -> Values:
    predicted = values.get("num_nextn_predict_layers", 0)
    return _read_deepseek(values, "sigmoid") | {"num_nextn_predict_layers": int(predicted)}


def _write_v3(config: ModelConfig) -> Values:
    return _write_deepseek(config) | {
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": config.num_nextn_predict_layers,
        "rope_interleave": config.rope_interleave,
    }


def _read_v2(values: Values) -> Values:
    if values["topk_method"] not in ("greedy", "group_limited_greedy"):
        raise ModelError(f"config.json sets topk_method to {values['topk_method']!r}: greedy or group_limited_greedy.")
    return _read_deepseek(values, "softmax")


def _write_v2(config: ModelConfig) -> Values:
    assert config.moe is not None
    return _write_deepseek(config) | {"topk_method": "group_limited_greedy" if config.moe.n_group > 1 else "greedy"}


_DEEPSEEK_KEYS = frozenset(
    {"attention_bias", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim"}
    | {"v_head_dim"}
    | {"n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group"}
    | {"norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace", "topk_method"}
)
_DEEPSEEK_INERT = {
    "aux_loss_alpha": "the weight of a loss in its makers' training",
    "seq_aux": "the kind of a loss in its makers' training",
    "ep_size": "over how many processes its makers spread the experts",
    "output_router_logits": "what another program's forward pass returns",
    "router_aux_loss_coef": "the weight of a loss in another program's training",
}
_EXPERTS_EVERYWHERE = {"moe_layer_freq": (1, "experts in every n-th layer are not built here")}


FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        {
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
            "topk_method": "greedy",
        },
        reads=_DEEPSEEK_KEYS,
        inert=_DEEPSEEK_INERT,
        only_at=_EXPERTS_EVERYWHERE
        | {
            "scoring_func": ("softmax", "DeepSeek V2 scores its experts by softmax"),
            "norm_topk_prob": (False, "DeepSeek V2 does not normalise its experts' shares"),
            "mlp_bias": (False, "a bias in the experts is not built here"),
        },
        fields=("mla", "moe"),
        fixed={"rope_interleave": True},
        read=_read_v2,
        write=_write_v2,
        unwritten=NO_GROUPS,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 3,
            "topk_method": "noaux_tc",
            "num_nextn_predict_layers": 1,
            "rope_interleave": True,
        },
        reads=_DEEPSEEK_KEYS | {"num_nextn_predict_layers", "rope_interleave"},
        inert=_DEEPSEEK_INERT,
        only_at=_EXPERTS_EVERYWHERE
        | {
            "scoring_func": ("sigmoid", "DeepSeek V3 scores its experts by sigmoid"),
            "topk_method": ("noaux_tc", "DeepSeek V3 chooses by score and bias"),
        },
        fields=("mla", "moe", "rope_interleave", "num_nextn_predict_layers"),
        read=_read_v3,
        write=_write_v3,
        unwritten=NO_GROUPS,
    ),
}
