"""Rounding by what the layers read: GPTQ, AWQ, and the stage with both."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from school import LIVELY, artifact, conversation, draft, fp32_run, network, write_data, write_pupil
from schoolhouse.compress import quantize
from schoolhouse.compress.awq import best_factors, scale_channels, shared_inputs
from schoolhouse.compress.calibrate import Schemes, quantize_calibrated
from schoolhouse.compress.gptq import gptq
from schoolhouse.core.errors import DataError, ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.codes import Scheme, quantize_rows, spread
from schoolhouse.model.config import MLA, ModelConfig, MoE
from schoolhouse.model.layers import RMSNormPlusOne
from schoolhouse.model.quantization import linears_to_quantize
from schoolhouse.model.quantized import QuantLinear
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_config, load_model, save_model

INT4 = Scheme(4, 32)


def inputs(count=512, width=64, seed=0):
    """Rows whose channels hang together and differ in size, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width // 2, generator=generator) @ torch.randn(width // 2, width, generator=generator)
    return mixed * torch.logspace(-1, 1, width)[torch.randperm(width, generator=generator)]


def output_error(x, weight, codes, scales):
    return float((x @ (codes * spread(scales, weight.shape[1]).float() - weight).t()).square().mean())


@pytest.mark.parametrize("scheme", [INT4, Scheme(4), Scheme(8)], ids=str)
def test_gptq_keeps_the_output_closer_than_rounding_to_nearest(scheme):
    x, weight = inputs(), torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    nearest = output_error(x, weight, *quantize_rows(weight, scheme=scheme))
    codes, scales = gptq(weight, x.t() @ x, scheme)
    assert codes.shape == weight.shape
    assert scales.shape == (48, scheme.groups(64))
    assert output_error(x, weight, codes, scales) < 0.6 * nearest


def test_gptq_of_inputs_that_do_not_hang_together_is_rounding_to_nearest():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    codes, scales = gptq(weight, torch.eye(64), INT4)
    nearest, same = quantize_rows(weight, scheme=INT4)
    assert torch.equal(codes, nearest)
    assert torch.equal(scales, same)


def test_gptq_bears_channels_that_are_never_used_and_refuses_what_is_no_number():
    x, weight = inputs(), torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    x[:, 5] = 0
    codes, scales = gptq(weight, x.t() @ x, INT4)
    assert bool(scales.isfinite().all())
    assert output_error(x, weight, codes, scales) < output_error(x, weight, *quantize_rows(weight, scheme=INT4))
    weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        gptq(weight, x.t() @ x, INT4)


def test_awq_finds_factors_that_lower_the_error_and_never_does_worse_than_none():
    x, layer = inputs(), nn.Linear(64, 48, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(48, 64, generator=torch.Generator().manual_seed(1)))
    x[:, :3] *= 30  # a few channels are far louder than the others
    factors = best_factors([layer], x.t() @ x, x.abs().mean(0), INT4)
    scaled = layer.weight * factors
    codes, scales = quantize_rows(scaled, scheme=INT4)
    plain = output_error(x, layer.weight, *quantize_rows(layer.weight, scheme=INT4))
    assert output_error(x / factors, scaled, codes, scales) < 0.7 * plain
    assert torch.equal(best_factors([layer], torch.eye(64), torch.ones(64), INT4), torch.ones(64))


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_handing_factors_on_changes_nothing_that_the_network_says():
    model = network(**SIZES)
    ids = torch.randint(0, model.config.vocab_size, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
        layer = model.model.layers[0]
        pairs = shared_inputs(layer, [m for m in layer.modules() if isinstance(m, nn.Linear)])
        assert [len(behind) for _, behind in pairs] == [3, 2, 1]
        for feeder, behind in pairs:
            scale_channels(feeder, behind, torch.logspace(-0.5, 0.5, behind[0].in_features))
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_a_norm_that_scales_by_one_more_than_its_weight_hands_factors_on():
    norm, linear, x = RMSNormPlusOne(16, 1e-6), nn.Linear(16, 8), torch.randn(4, 16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 0.5, 16))
        before = linear(norm(x))
        scale_channels(norm, [linear], torch.logspace(-0.5, 0.5, 16))
        torch.testing.assert_close(linear(norm(x)), before, rtol=1e-5, atol=1e-6)


def texts_for(model, count=6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, model.config.vocab_size, (24,), generator=generator).tolist() for _ in range(count)]


def divergence(model, reference, texts):
    """Mean KL divergence of a model from the reference, nats a token."""
    with torch.inference_mode():
        wanted, got = (m(torch.tensor(texts)).logits.log_softmax(-1) for m in (reference, model))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def loud_network():
    """A network some of whose channels are far louder than others, as those of trained ones are."""
    model = network(**SIZES, **LIVELY)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[torch.randperm(64, generator=torch.Generator().manual_seed(5))[:6]] *= 12
    return model


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibrated_network_stays_closer_than_one_rounded_to_nearest(method, tmp_path):
    reference, model, nearest = (loud_network() for _ in range(3))
    texts = texts_for(model)
    list(quantize_calibrated(model, texts, Schemes(INT4), method, Run.for_tests(tmp_path)))
    assert not [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")]
    for name, linear in list(linears_to_quantize(nearest, INT4)):
        parent, _, own = name.rpartition(".")
        setattr(nearest.get_submodule(parent), own, QuantLinear.from_linear(linear, INT4))
    assert 0 < divergence(model, reference, texts) < divergence(nearest, reference, texts)


def deepseek_like():
    mla = MLA(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, q_lora_rank=32)
    moe = MoE(4, 2, 32, n_shared_experts=1, scoring_func="sigmoid", dense_layers=(0,))
    config = ModelConfig(
        "deepseek_v3", 96, 64, 64, 2, 4, 4, 16, mla=mla, moe=moe, num_nextn_predict_layers=1, tie_word_embeddings=False
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_experts_learn_from_their_own_tokens_and_prediction_layers_are_rounded_too(method, tmp_path):
    model, reference = deepseek_like(), deepseek_like()
    texts = texts_for(model)
    layers = len(list(linears_to_quantize(model, INT4)))
    assert len(list(quantize_calibrated(model, texts, Schemes(INT4), method, Run.for_tests(tmp_path)))) == layers
    assert sum(isinstance(m, QuantLinear) for m in model.modules()) == layers
    assert 0 < divergence(model, reference, texts) < 0.05


def test_awq_says_where_it_has_no_way(tmp_path):
    model = network(model_type="gemma2", architectures=["Gemma2ForCausalLM"], **SIZES)
    with pytest.raises(ModelError, match="take method 'gptq'"):
        list(quantize_calibrated(model, texts_for(model), Schemes(INT4), "awq", Run.for_tests(tmp_path)))


def data_of(folder):
    return write_data(folder, [conversation(f"{i} + {i}?", f"{2 * i}", "add") for i in range(8)])


def stage(tmp_path, **keys):
    source = artifact(write_pupil(tmp_path / "source", **SIZES))
    out = draft(tmp_path / "out")
    config = quantize.Config(model="base", **keys)
    quantize.check(config)
    quantize.run(config, {"base": source, "traces": data_of(tmp_path / "data")}, fp32_run(tmp_path), out)
    return out


@pytest.mark.parametrize("method", ["nearest", "gptq", "awq"])
def test_the_stage_writes_int4_that_is_read_again_bit_by_bit(tmp_path, method):
    keys = {} if method == "nearest" else {"data": "traces", "texts": 4}
    out = stage(tmp_path, format="int4", group=32, method=method, **keys)
    assert out.meta["left"] == 0
    assert out.meta["method"] == method
    assert 0.02 < out.meta["relative_error"] < 0.2
    weights = json.loads((out.path / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert (weights["weights"]["num_bits"], weights["weights"]["group_size"]) == (4, 32)
    model = load_model(out.path)
    save_model(model, tmp_path / "again", dtype=None)
    before, after = (load_file(folder / "model.safetensors") for folder in (out.path, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name].to(tensor.dtype), tensor)


def test_layers_that_do_not_fit_stay_whole_and_are_counted(tmp_path):
    out = stage(tmp_path, format="int4", group=64)  # rows of 96 are no multiple of 64
    assert out.meta["left"] == load_config(out.path).num_hidden_layers
    with pytest.raises(ModelError, match="smaller group"):
        stage(tmp_path / "none", format="int4", group=128)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "gptq"}, "need the conversations of a stage"),
        ({"data": "traces"}, "'nearest' looks at none"),
        ({"format": "fp8", "group": 64}, "leave out group"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, keys, said):
    with pytest.raises(RecipeError, match=said):
        stage(tmp_path, **keys)


def test_texts_longer_than_the_context_are_refused(tmp_path):
    source = artifact(write_pupil(tmp_path / "source", **SIZES, max_position_embeddings=8))
    config = quantize.Config(model="base", format="int4", group=32, method="gptq", data="traces")
    inputs = {"base": source, "traces": data_of(tmp_path / "data")}
    with pytest.raises(DataError, match="context holds 8"):
        quantize.run(config, inputs, fp32_run(tmp_path), draft(tmp_path / "out"))
