"""Configs: what is read, what is named in an error, what is ignored and why."""

import pytest
from checkpoints import RAW

from schoolhouse.core.errors import ModelError
from schoolhouse.model.families import _COMMON, FAMILIES, INERT_KEYS, from_hf, to_hf


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bloom"}, ["'bloom'", "llama"]),
        ({"model_type": None}, ["None", "llama"]),
        ({"architectures": ["LlamaForTokenClassification"]}, ["LlamaForTokenClassification", "LlamaForCausalLM"]),
        ({"hidden_sise": 32}, ["'hidden_sise'", "Did you mean hidden_size?"]),
        ({"final_logit_softcapping": 30.0}, ["'final_logit_softcapping'", "30.0"]),
        ({"sliding_window": 16}, ["'sliding_window'", "LlamaForCausalLM"]),
        ({"auto_map": {"AutoModel": "x.Y"}}, ["auto_map", "refused"]),
        ({"rope_interleaved": True}, ["rope_interleaved"]),
        ({"hidden_size": "32"}, ["hidden_size", "'32'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"vocab_size": True}, ["vocab_size"]),
        ({"hidden_size": 30}, ["hidden_size 30", "4"]),
        ({"head_dim": 7}, ["head_dim is 7"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3"]),
        ({"rope_theta": -1}, ["rope_theta", "-1"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ["'dynamic'", "llama3"]),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, ["'longrope'", "short_factor", "original_max"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["yarn", "original_max_position_embeddings"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["llama3", "low_freq_factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0, "beta": 1}}, ["linear", "beta"]),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, object], words: list[str]):
    with pytest.raises(ModelError) as error:
        from_hf(RAW | changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_named(key: str):
    with pytest.raises(ModelError, match=f"no {key}"):
        from_hf({name: value for name, value in RAW.items() if name != key})


def test_inert_keys_change_nothing_and_have_reasons():
    noise = dict.fromkeys(INERT_KEYS, 1) | {"rope_interleaved": False, "use_mrope": False}
    assert from_hf(RAW | noise) == from_hf(RAW)
    assert all(len(reason) > 10 for reason in INERT_KEYS.values())


def test_under_longrope_a_text_ends_with_the_original_context():
    rule = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi = RAW | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "rope_scaling": rule}
    phi |= {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    config = from_hf(phi)
    assert config.max_position_embeddings == 4096
    assert config.rope_scaling == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
    }
    written = to_hf(config)
    assert (written["max_position_embeddings"], written["original_max_position_embeddings"]) == (131072, 4096)
    assert from_hf(phi | {"rope_scaling": rule | {"type": "su"}}) == config


def test_both_spellings_of_rope_mean_the_same():
    classic = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    modern = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert from_hf(RAW | classic) == from_hf(RAW | modern)
    assert from_hf(RAW | classic).rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert from_hf(RAW | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).rope_scaling is None


def test_null_is_none_and_absent_is_the_default():
    mistral = {**RAW, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_attention_heads": 8}
    del mistral["num_key_value_heads"]
    assert from_hf(mistral).num_key_value_heads == 8
    nulls = {"num_key_value_heads": None, "bos_token_id": None, "head_dim": None}
    config = from_hf(mistral | nulls | {"num_attention_heads": 4})
    assert (config.num_key_value_heads, config.head_dim, config.bos_token_id, config.eos_token_id) == (4, 8, None, 2)


def test_several_stop_tokens_go_round():
    config = from_hf(RAW | {"eos_token_id": [1, 2]})
    assert config.eos_token_id == (1, 2)
    assert to_hf(config)["eos_token_id"] == [1, 2]


def test_sliding_windows_of_qwen():
    qwen = {**RAW, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}
    assert from_hf(qwen).sliding_window is None  # off unless use_sliding_window says so
    on = qwen | {"use_sliding_window": True}
    assert from_hf(on | {"max_window_layers": 0}).sliding_window == 16
    assert from_hf(on | {"max_window_layers": 2}).sliding_window is None
    assert from_hf(on | {"layer_types": ["sliding_attention"] * 2}).sliding_window == 16
    mixed = from_hf(on | {"max_window_layers": 1})
    assert [mixed.window(layer) for layer in range(2)] == [None, 16]
    assert from_hf(to_hf(mixed)) == mixed
    with pytest.raises(ModelError, match="chunked_attention"):
        from_hf(on | {"layer_types": ["chunked_attention", "full_attention"]})


def test_mistral_without_a_window():
    mistral = {**RAW, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert from_hf(mistral).sliding_window == 4096
    assert from_hf(mistral | {"sliding_window": None}).sliding_window is None
    assert from_hf(to_hf(from_hf(mistral | {"sliding_window": None}))).sliding_window is None


def test_a_config_that_its_family_cannot_express_is_not_written():
    from dataclasses import replace

    with pytest.raises(ModelError, match="qk_norm = True"):
        to_hf(replace(from_hf(RAW), qk_norm=True))


OF_THEIR_OWN = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "gptj": {"rotary_dim": 4},
}


def raw_of(model_type):
    """A small config.json of any family, in its own keys."""
    family = FAMILIES[model_type]
    theirs = {ours: key for key, ours in family.keys.items()}
    raw = {theirs.get(key, key): value for key, value in RAW.items() if key not in (family.unwritten | {"num_experts"})}
    allowed = family.reads | _COMMON
    raw = {key: value for key, value in raw.items() if key in allowed or key in family.keys or key in INERT_KEYS}
    return raw | {"model_type": model_type, "architectures": [family.architecture]} | OF_THEIR_OWN.get(model_type, {})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_writes_what_it_reads(model_type):
    config = from_hf(raw_of(model_type))
    raw = to_hf(config)
    assert from_hf(raw) == config
    assert raw["torch_dtype"] == "bfloat16"
    assert "rope_theta" in raw
    assert "rope_parameters" not in raw


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("falcon", {"alibi": True}, ["alibi", "ALiBi"]),
        ("phi", {"qk_layernorm": True}, ["qk_layernorm"]),
        ("phi", {"partial_rotary_factor": 0.1}, ["0.1", "even"]),
        ("gptj", {"hidden_size": 32}, ["'hidden_size'"]),
        ("gptj", {"rotary_dim": 0}, ["rotary_dim", "0"]),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0"]),
        ("gemma3_text", {"use_bidirectional_attention": True}, ["ahead"]),
        ("deepseek_v3", {"n_group": 3}, ["n_routed_experts 256", "n_group 3"]),
        ("deepseek_v3", {"scoring_func": "softmax"}, ["scoring_func", "sigmoid"]),
        ("deepseek_v3", {"head_dim": 96}, ["head_dim", "96", "64"]),
        ("deepseek_v3", {"moe_layer_freq": 2}, ["moe_layer_freq"]),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, ["topk_method", "noaux_tc"]),
        ("deepseek_v2", {"kv_lora_rank": 0}, ["kv_lora_rank"]),
    ],
)
def test_what_a_family_cannot_be_is_named(model_type, changes, words):
    with pytest.raises(ModelError) as error:
        from_hf(raw_of(model_type) | changes)
    for word in words:
        assert word in str(error.value)


_SMALL = (  # V2-Lite and Moonlight share these
    {"hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None}
    | {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1408, "num_experts_per_tok": 6}
    | {"first_k_dense_replace": 1, "num_key_value_heads": 16}
)
PUBLISHED = {
    "v3": {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61}
    | {"num_attention_heads": 128, "num_key_value_heads": 128},
    "v2": {"vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60}
    | {"num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 160, "n_shared_experts": 2}
    | {"moe_intermediate_size": 1536, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3}
    | {"first_k_dense_replace": 1, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    "v2-lite": _SMALL | {"vocab_size": 102400, "intermediate_size": 10944},
    "moonlight": _SMALL
    | {"vocab_size": 163840, "intermediate_size": 11264, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446},
}


@pytest.mark.parametrize(
    ("name", "attention", "experts", "total", "cached"),
    [
        ("v3", 187_107_328, 11_320_164_608, 671_026_419_200, 35_136),
        ("v2", 149_227_520, 3_822_878_720, 235_741_434_880, 34_560),
        ("v2-lite", 13_763_072, 571_080_704, 15_706_484_224, 15_552),
        ("moonlight", 13_763_072, 571_080_768, 15_960_110_208, 15_552),
    ],
)
def test_counts_are_those_of_the_published_models(name, attention, experts, total, cached):
    model_type = "deepseek_v2" if name.startswith("v2") else "deepseek_v3"
    config = from_hf({"model_type": model_type, **PUBLISHED[name]})
    last = config.num_hidden_layers - 1
    assert config._attention_params() == attention
    assert config._feed_forward_params(last, active=False) == experts
    assert config.num_params() == total
    assert config.kv_bytes_per_token(1) == cached


def test_active_parameters_of_v3_are_the_official_37_billion():
    config = from_hf({"model_type": "deepseek_v3", **PUBLISHED["v3"]})
    assert round(config.active_params() / 1e9, 2) == 37.55
    assert round((config.active_params() - 129280 * 7168) / 1e9, 1) == 36.6
    assert config.flops_per_token(0) == 2 * (config.active_params() - 129280 * 7168 - 7168)
