"""GGUF files in, Hugging Face folders out: what the format stores comes back, damage is found in the header."""

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints import RAW, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import FULL
from schoolhouse.model.families import from_hf
from schoolhouse.model.gguf import read_gguf
from schoolhouse.model.gguf_in import gguf_to_hf, hf_tensors
from schoolhouse.model.gguf_meta import hf_config
from schoolhouse.model.layers import Rotary
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(key: str) -> str:
    stem, _, last = key.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{last}"
    return f"{NAMES[stem]}.{last}"


def as_llama_cpp_orders(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp's converter writes them (its `LlamaModel.permute`)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, model: Transformer, architecture: str, *, kind: str = "F32", **extra: np.ndarray) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_token_list(["a", "b", "\u2581\u00e9"])
    writer.add_token_types([1, 1, 1])
    writer.add_eos_token_id(2)
    quant = gguf.GGMLQuantizationType[kind]
    for key, tensor in model.state_dict().items():
        values = tensor.numpy()
        if architecture == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            values = as_llama_cpp_orders(values, heads)
        if values.ndim == 2 and kind != "F32":
            writer.add_tensor(gguf_name(key), gguf.quants.quantize(values, quant), raw_dtype=quant)
        else:
            writer.add_tensor(gguf_name(key), values)
    for key, values in extra.items():
        writer.add_tensor(key.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shape(model_type: str, **changes: object) -> dict[str, object]:
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "rms_norm_eps": 1e-5, "initializer_range": 0.02}
    return (
        {"model_type": model_type, "architectures": [f"{name}ForCausalLM"], "bos_token_id": None, "eos_token_id": 2}
        | sizes
        | changes
    )


CASES = {
    "llama": shape("llama"),
    "llama-untied-biases": shape("llama", tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "qwen2": shape("qwen2", head_dim=16),
    "qwen3": shape("qwen3", head_dim=24),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_config_come_back(tmp_path: Path, case: str):
    changes = CASES[case]
    model = tiny_model(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    write_gguf(tmp_path / "m.gguf", model, str(changes["model_type"]))
    file = read_gguf(tmp_path / "m.gguf")
    got = dict(hf_tensors(file, torch.float32))
    wanted = model.state_dict()
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name
    assert from_hf(hf_config(file)) == model.config


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_0"])
def test_quantized_blocks_are_unpacked(tmp_path: Path, kind: str):
    model = tiny_model(**CASES["llama"])
    write_gguf(tmp_path / "m.gguf", model, "llama", kind=kind)
    got = dict(hf_tensors(read_gguf(tmp_path / "m.gguf"), torch.float32))
    tolerance = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2}.get(kind, 0.12)  # of the largest weight in a block
    for name, wanted in model.state_dict().items():
        assert (got[name] - wanted).abs().max() <= tolerance * wanted.abs().max(), name


def test_the_folder_loads_as_a_model(tmp_path: Path):
    model = tiny_model(**CASES["llama"])
    write_gguf(tmp_path / "m.gguf", model, "llama")
    header = gguf_to_hf(tmp_path / "m.gguf", tmp_path / "out")
    assert header.meta["general.license"] == "apache-2.0"
    assert header.meta["tokenizer.ggml.tokens"] == ["a", "b", "\u2581\u00e9"]
    got = load_model(tmp_path / "out").state_dict()
    for name, wanted in model.state_dict().items():
        assert torch.equal(got[name], wanted.bfloat16().float()), name


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_recognised_by_its_divisors(tmp_path: Path, factor: float):
    rule = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rule["original_max_position_embeddings"] = 8192
    sizes = CASES["llama"] | {"rope_theta": 500000.0, "num_attention_heads": 1, "num_key_value_heads": 1}
    plain, scaled = from_hf(RAW | sizes), from_hf(RAW | sizes | {"rope_scaling": rule})
    divisors = (Rotary(plain).frequencies[FULL] / Rotary(scaled).frequencies[FULL]).numpy()
    write_gguf(tmp_path / "m.gguf", tiny_model(**sizes), "llama", rope_freqs__weight=divisors)
    assert from_hf(hf_config(read_gguf(tmp_path / "m.gguf"))).rope_scaling == scaled.rope_scaling
    write_gguf(tmp_path / "n.gguf", tiny_model(**sizes), "llama", rope_freqs__weight=divisors * 1.5)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        hf_config(read_gguf(tmp_path / "n.gguf"))


def test_an_unknown_architecture_and_an_unknown_tensor_are_named(tmp_path: Path):
    write_gguf(tmp_path / "m.gguf", tiny_model(**CASES["llama"]), "mamba")
    with pytest.raises(ModelError, match=r"'mamba'.*llama, phi3, qwen2, qwen3"):
        hf_config(read_gguf(tmp_path / "m.gguf"))
    extra = {"blk__0__ssm__weight": np.zeros((4, 4), np.float32)}
    write_gguf(tmp_path / "n.gguf", tiny_model(**CASES["llama"]), "llama", **extra)
    for read in (lambda path: list(hf_tensors(read_gguf(path))), lambda path: gguf_to_hf(path, tmp_path / "out")):
        with pytest.raises(ModelError, match=r"blk\.0\.ssm\.weight"):
            read(tmp_path / "n.gguf")


def test_a_missing_and_a_misshapen_tensor_are_named(tmp_path: Path):
    model = tiny_model(**CASES["llama"])
    model.config = dataclasses.replace(model.config, num_hidden_layers=3)
    write_gguf(tmp_path / "m.gguf", model, "llama")
    with pytest.raises(ModelError, match=r"missing: model\.layers\.2\.input_layernorm\.weight"):
        gguf_to_hf(tmp_path / "m.gguf", tmp_path / "out")
    model.config = dataclasses.replace(model.config, num_hidden_layers=2, intermediate_size=100)
    write_gguf(tmp_path / "n.gguf", model, "llama")
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight is \(96, 64\), the config asks for \(100, 64\)"):
        gguf_to_hf(tmp_path / "n.gguf", tmp_path / "out")


def test_what_is_no_gguf_is_said(tmp_path: Path):
    path = tmp_path / "x.gguf"
    with pytest.raises(ModelError, match="no such file"):
        read_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="empty"):
        read_gguf(path)
    path.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ModelError, match="not a GGUF file"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + bytes([0, 0, 0, 3]) + bytes(100))  # big-endian
    with pytest.raises(ModelError, match="version 50331648"):
        read_gguf(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, tiny_model(num_hidden_layers=1, vocab_size=32), "llama")
    return path


@given(part=st.floats(0, 0.9999))
def test_a_truncated_file_is_found(tmp_path_factory, whole: Path, part: float):
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    content = whole.read_bytes()
    path.write_bytes(content[: int(part * len(content)) - 31])  # the last tensor may end in padding
    with pytest.raises(ModelError):
        read_gguf(path)


@given(at=st.integers(0, 1800), value=st.integers(0, 255))
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path_factory, whole: Path, at: int, value: int):
    path = tmp_path_factory.mktemp("bad") / "m.gguf"
    content = bytearray(whole.read_bytes())
    content[at] = value
    path.write_bytes(content)
    said = str(path)  # a changed letter of a name nobody reads is no damage that shows
    try:
        gguf_to_hf(path, path.parent / "out")
    except ModelError as error:
        said = str(error)
    assert str(path) in said or "config.json" in said
