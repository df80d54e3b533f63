import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from schoolhouse.compress import quantize
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.errors import ModelError
from schoolhouse.core.run import Run
from schoolhouse.model.codes import INT8, Scheme, pack, quantize_rows, unpack
from schoolhouse.model.config import MLA, ModelConfig, MoE
from schoolhouse.model.quantization import quantization_config, replace_linears
from schoolhouse.model.quantized import FEW_ROWS, KEEP_AFTER, QuantLinear
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model


def tiny_config(**changes) -> ModelConfig:
    return ModelConfig(
        **{
            "model_type": "llama",
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | changes
    )


def make_checkpoint(folder: Path, dtype=torch.bfloat16, **changes) -> Path:
    model = Transformer(tiny_config(**changes))
    model.init_weights(torch.Generator().manual_seed(1))
    save_model(model, folder, dtype=dtype)
    return folder


def artifact(path: Path) -> Artifact:
    return Artifact("0" * 16, path, {"kind": "get", "parents": [], "meta": {}, "files": {}})


def run_stage(source: Path, tmp_path: Path) -> Draft:
    out = Draft(tmp_path / "out", {})
    out.path.mkdir()
    quantize.run(quantize.Config(model="base"), {"base": artifact(source)}, Run.for_tests(tmp_path), out)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_weight_is_within_half_a_step(dtype):
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    weight[4, :] = torch.linspace(-7, 7, 64)
    codes, scale = quantize_rows(weight)
    assert codes.abs().max() <= 127
    error = (weight.float() - codes.float() * scale.float()).abs()
    assert bool((error <= scale.float() / 2).all())
    assert not codes[3].any()


def test_rounding_is_unbiased():
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_rows(weight, torch.float32)
    errors = (weight - codes * scale) / scale  # uniform in +-1/2, so that the mean of n has deviation 1 / sqrt(12 n)
    assert abs(float(errors.mean())) < 5 / (12 * errors.numel()) ** 0.5


def test_pack_is_undone_exactly_and_puts_the_first_code_lowest():
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).view(8, 32)
    assert torch.equal(unpack(pack(codes)), codes)
    word = int(pack(torch.tensor([[-127, 0, 1, 127]], dtype=torch.int8))) & 0xFFFFFFFF
    assert [word >> shift & 255 for shift in (0, 8, 16, 24)] == [1, 128, 129, 255]


def test_4_bits_are_packed_two_a_byte_and_their_scale_is_the_best_of_a_few():
    codes = torch.arange(-8, 8, dtype=torch.int8).view(2, 8)
    assert torch.equal(unpack(pack(codes, 4), 4), codes)
    assert int(pack(codes, 4)[0, 0]) & 0xFFFFFFFF == 0x76543210
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 100.0  # spoils its own group, and no other
    codes, scales = quantize_rows(weight, torch.float32, Scheme(4, 32))
    assert scales.shape == (16, 4)
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7
    errors = (codes * scales.repeat_interleave(32, dim=1) - weight).square().unflatten(1, (4, 32)).mean(-1)
    plain = weight.unflatten(1, (4, 32))
    widest = plain.abs().amax(-1, keepdim=True) / 7
    assert bool((errors <= ((plain / widest).round() * widest - plain).square().mean(-1) + 1e-9).all())
    assert float(errors[0, 0]) > 10 * float(errors[0, 1:].max())


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="not finite"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))


def test_the_file_holds_the_codes_bit_by_bit_and_loads_to_the_same_layer(tmp_path):
    source = make_checkpoint(tmp_path / "source")
    out = run_stage(source, tmp_path)
    model = load_model(out.path)
    stored = load_file(out.path / "model.safetensors")
    original = load_file(source / "model.safetensors")
    quantized = {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert len(quantized) == 14
    for name, layer in quantized.items():
        codes, scale = quantize_rows(original[f"{name}.weight"])
        assert torch.equal(layer.weight, codes)
        assert torch.equal(layer.weight_scale, scale.float())
        assert torch.equal(stored[f"{name}.weight_packed"], pack(codes))
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_the_stage_notes_sizes_and_keeps_embedding_and_norms(tmp_path):
    source = make_checkpoint(tmp_path / "source", intermediate_size=512)
    out = run_stage(source, tmp_path)
    assert out.meta["layers"] == 14
    assert out.meta["weight_bytes"] < 0.65 * out.meta["source_weight_bytes"]
    assert 0 < out.meta["relative_error"] < 0.02
    stored, original = load_file(out.path / "model.safetensors"), load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(stored[name], original[name])


def test_int8_logits_stay_close_and_untied_heads_stay_whole(tmp_path):
    source = make_checkpoint(tmp_path / "source", tie_word_embeddings=False)
    out = run_stage(source, tmp_path)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = load_model(source)(ids).logits.log_softmax(-1)
        after = load_model(out.path)(ids).logits.log_softmax(-1)
    assert float((before.exp() * (before - after)).sum(-1).max()) < 1e-3  # nats
    assert "lm_head.weight" in load_file(out.path / "model.safetensors")


def test_quantizing_twice_is_refused(tmp_path):
    out = run_stage(make_checkpoint(tmp_path / "source"), tmp_path)
    with pytest.raises(ModelError, match="quantized already"):
        quantize.quantize_folder(out.path, tmp_path / "twice", Run.for_tests(tmp_path))


def layer_pair(dtype, bias=False, scheme=INT8) -> tuple[QuantLinear, nn.Linear]:
    linear = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)
    layer = QuantLinear.from_linear(linear, scheme)
    linear.weight.copy_(layer.dequantized())
    return layer, linear


@pytest.mark.parametrize("scheme", [INT8, Scheme(8, 32), Scheme(4, 32), Scheme(4)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 70])
def test_the_product_is_that_of_the_dequantized_weights(rows, bias, scheme):
    torch.manual_seed(0)
    x = torch.randn(1, rows, 64)
    with torch.inference_mode():
        layer, linear = layer_pair(torch.float32, bias, scheme)
        assert torch.allclose(layer(x), linear(x), atol=1e-5)
        layer, linear = layer_pair(torch.bfloat16, bias, scheme)
        exact = linear.float()(x.bfloat16().float())
        for _ in range(KEEP_AFTER + 2):  # past the call from which the copy is kept
            # bf16 weights: 2^-9 of each factor and of the result, over a sum of 64
            assert torch.allclose(layer(x.bfloat16()).float(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("scheme", [INT8, Scheme(8, 32), Scheme(4, 32)], ids=str)
def test_without_kernels_it_is_the_same_product(plain_kernels, scheme):
    test_the_product_is_that_of_the_dequantized_weights(FEW_ROWS + 1, True, scheme)


def test_the_copy_for_large_batches_comes_late_and_goes_with_the_batch(plain_kernels):
    layer, _ = layer_pair(torch.bfloat16)
    many, few = torch.randn(32, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    with torch.inference_mode():
        for _ in range(KEEP_AFTER):
            layer(many)
        assert layer._copy is None
        layer(many)
        assert layer._copy is not None
        layer(few)
        assert layer._copy is None


def test_training_int8_is_refused_in_words():
    layer, _ = layer_pair(torch.float32)
    with pytest.raises(ModelError, match="cannot be trained"):
        layer(torch.randn(2, 64, requires_grad=True))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("quant_method",), "gptq", "quant_method = 'gptq'"),
        (("format",), "int-quantized", "format = 'int-quantized'"),
        (("config_groups", "group_0", "weights", "num_bits"), 2, "num_bits = 2"),
        (("config_groups", "group_0", "weights", "symmetric"), False, "symmetric = False"),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}, "input_activations"),
    ],
)
def test_another_quantization_is_named_and_refused(path, value, named):
    model = Transformer(tiny_config())
    config = json.loads(json.dumps(quantization_config(model, {"model.layers.0.mlp.up_proj": INT8})))
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ModelError, match=named):
        replace_linears(model, config)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path):
    out = run_stage(make_checkpoint(tmp_path / "source"), tmp_path)
    raw = json.loads((out.path / "config.json").read_text())
    (out.path / "config.json").write_text(json.dumps(raw | {"intermediate_size": 128}))
    with pytest.raises(ModelError, match="mlp"):
        load_model(out.path)


def test_layers_left_in_bf16_by_another_program_stay_so_when_saved(tmp_path):
    source = make_checkpoint(tmp_path / "source")
    folder = run_stage(source, tmp_path).path
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"]["ignore"].append(LAYER := "model.layers.1.mlp.up_proj")
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = load_file(folder / "model.safetensors")
    for part in ("packed", "scale", "shape"):
        del tensors[f"{LAYER}.weight_{part}"]
    tensors[f"{LAYER}.weight"] = load_file(source / "model.safetensors")[f"{LAYER}.weight"]
    save_file(tensors, folder / "model.safetensors")
    save_model(load_model(folder, torch.bfloat16), tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["quantization_config"] == raw["quantization_config"]
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_experts_and_latent_attention_in_int8_say_nearly_the_same(tmp_path):
    mla = MLA(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, q_lora_rank=16)
    moe = MoE(8, 2, 16, n_shared_experts=1, scoring_func="sigmoid", dense_layers=(0,))
    changes = {"model_type": "deepseek_v3", "mla": mla, "moe": moe, "head_dim": 4, "num_key_value_heads": 4}
    source = make_checkpoint(
        tmp_path / "v3",
        torch.float32,
        **changes,
        rope_interleave=True,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    run_stage(source, tmp_path)
    exact, small = load_model(source), load_model(tmp_path / "out")
    layer = small.model.layers[1]
    assert isinstance(layer.mlp.experts[3].down_proj, QuantLinear)
    assert isinstance(layer.self_attn.kv_b_proj, nn.Linear)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = exact(ids).logits, small(ids).logits
    assert float((got - wanted).norm() / wanted.norm()) < 0.05
