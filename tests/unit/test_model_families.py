"""Configs: what is read, what is named in an error, what is ignored and why."""

import pytest
from checkpoints import RAW

from schoolhouse.core.errors import ModelError
from schoolhouse.model.families import FAMILIES, INERT_KEYS, from_hf, to_hf


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt_neox"}, ["'gpt_neox'", "llama"]),
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
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["'yarn'", "llama3"]),
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
    with pytest.raises(ModelError, match="1 of 2 layers"):
        from_hf(on | {"max_window_layers": 1})


def test_mistral_without_a_window():
    mistral = {**RAW, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert from_hf(mistral).sliding_window == 4096
    assert from_hf(mistral | {"sliding_window": None}).sliding_window is None
    assert from_hf(to_hf(from_hf(mistral | {"sliding_window": None}))).sliding_window is None


def test_a_config_that_its_family_cannot_express_is_not_written():
    from dataclasses import replace

    with pytest.raises(ModelError, match="qk_norm = True"):
        to_hf(replace(from_hf(RAW), qk_norm=True))


def test_every_family_writes_what_it_reads():
    for name, family in FAMILIES.items():
        config = from_hf(RAW | {"model_type": name, "architectures": [family.architecture]})
        raw = to_hf(config)
        assert from_hf(raw) == config
        assert raw["torch_dtype"] == "bfloat16"
        assert "rope_theta" in raw
        assert "rope_parameters" not in raw
