"""Embedding and head in codes: what they say, what the file holds, what it weighs."""

import json

import pytest
import torch
from checkpoints import deepseek
from safetensors.torch import load_file
from torch import nn

from school import LIVELY, artifact, conversation, draft, fp32_run, network, write_data, write_pupil
from schoolhouse.compress import quantize
from schoolhouse.compress.calibrate import Schemes, quantize_calibrated, schemes_to_make
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.attention import Causal
from schoolhouse.model.codes import INT8, SHAPE, Scheme, quantize_rows, spread
from schoolhouse.model.families import from_hf
from schoolhouse.model.quantization import quantization_config, replace_linears, schemes_of
from schoolhouse.model.quantized import QuantEmbedding, QuantLinear
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

INT4 = Scheme(4, 32)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def stage(tmp_path, source=None, **keys):
    source = source or write_pupil(tmp_path / "source", **SIZES)
    out = draft(tmp_path / "out")
    config = quantize.Config(model="base", **keys)
    quantize.check(config)
    data = write_data(tmp_path / "data", [conversation(f"{i} + {i}?", f"{2 * i}", "add") for i in range(8)])
    quantize.run(config, {"base": artifact(source), "traces": data}, fp32_run(tmp_path), out)
    return out


@pytest.mark.parametrize("scheme", [INT8, Scheme(8, 32), INT4, Scheme(4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_up_gives_the_rows_that_the_product_multiplies(scheme, dtype):
    plain = nn.Embedding(40, 64, dtype=dtype).requires_grad_(False)
    coded = QuantEmbedding.from_codes(plain, *quantize_rows(plain.weight, dtype, scheme), scheme)
    whole = coded.dequantized()
    ids = torch.tensor([[0, 39, 7], [7, 7, 1]])
    assert torch.equal(coded(ids), whole[ids])
    assert coded(ids[:, :0]).shape == (2, 0, 64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        got, exact = coded.product(x).double(), x.double() @ whole.double().t()
    # In bf16 each of 64 weights and the sum are rounded by at most 2^-9 of themselves.
    atol = 1e-5 if dtype == torch.float32 else float((x.abs().double() @ whole.abs().double().t()).max()) * 2**-8
    torch.testing.assert_close(got, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_embedding_and_head_become_codes_that_are_read_again_bit_by_bit(tmp_path, tied, form):
    source = write_pupil(tmp_path / "source", **SIZES, tie_word_embeddings=tied)
    out = stage(tmp_path, source, format=form, embedding=form, group=32)
    held, original = (load_file(folder / "model.safetensors") for folder in (out.path, source))
    ends = ["model.embed_tokens", *([] if tied else ["lm_head"])]
    model, reference = load_model(out.path), load_model(source)
    assert {n for n in schemes_of(model) if not n.startswith("model.layers")} == set(ends)
    for name in ends:
        scheme = schemes_of(model)[name]
        codes, scales = quantize_rows(original[f"{name}.weight"], scheme=scheme)
        assert torch.equal(model.get_submodule(name).codes(), codes)
        whole = codes * spread(scales.float(), 64)
        assert torch.equal(model.get_submodule(name).dequantized(), whole)
        reference.get_submodule(name).weight.data = whole
    save_model(model, tmp_path / "again", dtype=None)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == held.keys()
    assert all(torch.equal(again[name].to(tensor.dtype), tensor) for name, tensor in held.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (out.path, tmp_path / "again")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            reference.get_submodule(name).weight.data = layer.dequantized()
    ids = torch.randint(0, reference.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.head_weight, reference.head_weight)


@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_says_what_the_forward_pass_does(tmp_path, tied):
    source = write_pupil(tmp_path / "source", **SIZES, tie_word_embeddings=tied)
    model = load_model(stage(tmp_path, source, format="int4", embedding="int4", group=32).path)
    ((reply,),) = Engine(model, 1).generate([[5, 6, 7]], Sampling(max_new_tokens=6, temperature=0.0))
    ids = [5, 6, 7]
    with torch.inference_mode():
        for said in reply.ids:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == said
            ids.append(said)


def test_what_stays_whole_stays_so_and_two_kinds_of_codes_are_read_and_said(tmp_path, capsys):
    whole = stage(tmp_path / "whole", format="int8")
    assert "model.embed_tokens.weight" in load_file(whole.path / "model.safetensors")
    assert "dequantize" not in json.loads((whole.path / "config.json").read_text())["quantization_config"]
    assert "two kinds" not in capsys.readouterr().err
    source = write_pupil(tmp_path / "source", **SIZES, tie_word_embeddings=False)
    mixed = stage(tmp_path / "mixed", source, format="int8", embedding="int4", group=32)
    assert "two kinds" in capsys.readouterr().err
    schemes = schemes_of(load_model(mixed.path))
    assert schemes["model.embed_tokens"] == schemes["lm_head"] == INT4
    assert schemes["model.layers.0.mlp.up_proj"] == Scheme(8, 32)
    save_model(load_model(mixed.path), tmp_path / "again")
    assert schemes_of(load_model(tmp_path / "again")) == schemes
    with pytest.raises(RecipeError, match="leave out group"):
        quantize.check(quantize.Config(model="base", format="fp8", embedding="int4"))


@pytest.mark.parametrize("odd", ["model.layers.1.mlp.up_proj", "model.embed_tokens"])
def test_a_layer_in_other_codes_than_the_rest_keeps_them_when_saved(tmp_path, odd):
    model = network(**SIZES)
    schemes = schemes_to_make(model, Schemes(INT8, INT8)) | {odd: INT4}
    config = quantization_config(model, schemes)
    replace_linears(model, config)
    assert schemes_of(model) == schemes
    assert quantization_config(model, schemes_of(model)) == config


def test_a_kind_of_layer_that_is_not_read_is_named():
    model = network(**SIZES)
    config = quantization_config(model, schemes_to_make(model, Schemes(INT8)))
    config["config_groups"]["group_0"]["targets"] = ["Conv1d"]
    with pytest.raises(ModelError, match="targets = 'Conv1d'"):
        replace_linears(model, config)


def weight_bytes(scheme, ends):
    """Of a safetensors file of SmolLM2-135M's shape: tensors, notes of shapes, and a header."""
    config = from_hf(SMOLLM2)
    with torch.device("meta"):
        model = Transformer(config)
    if scheme is not None:
        replace_linears(model, quantization_config(model, schemes_to_make(model, Schemes(scheme, ends))))
    state = model.state_dict()
    notes = [name for name in state if name.endswith("_packed")]
    header = sum(len(name) + 80 for name in [*state, *notes])
    return header + 16 * len(notes) + sum(t.numel() * (2 if t.is_floating_point() else 4) for t in state.values())


def test_of_smollm2_int4_is_less_than_a_part_in_three_and_a_half_and_int8_about_a_half():
    whole = weight_bytes(None, None)
    assert 2 * 134_515_008 < whole < 2 * 134_515_008 + 50_000
    assert weight_bytes(Scheme(4, 64), Scheme(4, 64)) < whole / 3.7
    assert weight_bytes(Scheme(4, 32), Scheme(4, 32)) < whole / 3.5
    assert weight_bytes(Scheme(4, 64), None) > whole / 2.5  # what the embedding costs where it stays whole
    # A scale a row is what int8 takes beyond a half, and an embedding in 4 bits far less than that.
    assert weight_bytes(INT8, INT8) < 0.503 * whole
    assert weight_bytes(INT8, Scheme(4, 64)) < 0.46 * whole


def test_the_bytes_counted_are_those_of_a_file(tmp_path):
    source = write_pupil(tmp_path / "source", **SIZES)
    out = stage(tmp_path, source, format="int4", embedding="int4", group=32)
    held = load_file(out.path / "model.safetensors")
    model = load_model(out.path, torch.bfloat16)
    size = sum(t.numel() * t.itemsize for t in model.state_dict().values())
    size += sum(t.numel() * t.itemsize for name, t in held.items() if name.endswith(SHAPE))
    assert 0 < out.meta["weight_bytes"] - size < 150 * len(held)


@pytest.mark.parametrize(("tied", "share"), [(True, 0.95), (False, 0.75)])
def test_gptq_makes_up_for_the_rounding_of_the_head(tmp_path, tied, share):
    reference, by_gptq, nearest = (network(**SIZES, **LIVELY, tie_word_embeddings=tied) for _ in range(3))
    for model in (reference, by_gptq, nearest):
        with torch.no_grad():
            model.model.norm.weight[:4] *= 10  # channels that the head has to get right
    generator = torch.Generator().manual_seed(3)
    texts = torch.randint(0, reference.config.vocab_size, (8, 24), generator=generator)
    for model, method in ((by_gptq, "gptq"), (nearest, "awq")):  # awq leaves embedding and head to nearest
        done = quantize_calibrated(model, texts.tolist(), Schemes(INT4, INT4), method, Run.for_tests(tmp_path))
        assert all(0 < noise < signal for signal, noise in done)
    with torch.inference_mode():
        hidden = reference.hidden(texts, Causal(8, 24))
        of_logits = [float((hidden @ (m.head_weight - reference.head_weight).t()).norm()) for m in (by_gptq, nearest)]
        rows = reference.model.embed_tokens.weight
        of_rows = [float((m.model.embed_tokens.dequantized() - rows).norm()) for m in (by_gptq, nearest)]
    assert of_logits[0] < share * of_logits[1]
    assert of_rows[0] < 1.2 * of_rows[1]  # what is looked up is not sacrificed to it


@pytest.mark.parametrize("tied", [True, False])
def test_copies_of_embedding_and_head_are_left_out_where_those_are_codes(tmp_path, tied):
    model = deepseek(hidden_size=32, num_nextn_predict_layers=1, tie_word_embeddings=tied)
    save_model(model, tmp_path / "source")
    first = model.config.num_hidden_layers
    copied = {f"model.layers.{first}.embed_tokens.weight", f"model.layers.{first}.shared_head.head.weight"}
    assert copied <= load_file(tmp_path / "source" / "model.safetensors").keys()
    run = Run.for_tests(tmp_path)
    quantize.quantize_folder(tmp_path / "source", tmp_path / "codes", run, INT8, INT8)
    coded = load_model(tmp_path / "codes")
    assert coded.config.num_nextn_predict_layers == 1
    save_model(coded, tmp_path / "again")
    for folder in ("codes", "again"):
        assert not copied & load_file(tmp_path / folder / "model.safetensors").keys()
    ids = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = model(ids, further=True)
        for folder in ("codes", "again"):
            got = load_model(tmp_path / folder)(ids, further=True)
            assert float((got.logits - want.logits).norm() / want.logits.norm()) < 0.15
            assert float((got.mtp_logits[0] - want.mtp_logits[0]).norm() / want.mtp_logits[0].norm()) < 0.3
