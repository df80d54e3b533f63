"""Cutting a network: what stays computes what it computed, and the file says what it is."""

from dataclasses import replace

import pytest
import torch

from school import LIVELY, artifact, conversation, draft, fp32_run, network, write_data, write_pupil
from schoolhouse.compress import prune
from schoolhouse.compress.observe import observe
from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.errors import DataError, ModelError, RecipeError
from schoolhouse.model.config import MLA, ModelConfig, MoE
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 3, "head_dim": 8}  # fmt: skip


def texts_for(model, count=4):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, model.config.vocab_size, (16,), generator=generator).tolist() for _ in range(count)]


def logits(model, texts):
    with torch.inference_mode():
        return model(torch.tensor(texts)).logits


def pruned(model, texts, **keys):
    config = prune.Config(model="m", data="d", **keys)
    prune.check_cut(config, model.config)
    return prune.cut(model, prune.choose(config, model, observe(model, texts)))


def test_parts_that_do_nothing_are_the_ones_that_go_and_nothing_changes():
    model = network(**SIZES, **LIVELY)
    with torch.no_grad():
        idle = model.model.layers[2]
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 1::4] = 0  # a quarter of the neurons says nothing
            layer.self_attn.o_proj.weight[:, 16:32] = 0  # nor do the queries of the second key head
    texts = texts_for(model)
    smaller = pruned(model, texts, layers=1, neurons=0.25, head_groups=1)
    shape = smaller.config
    assert (shape.num_hidden_layers, shape.intermediate_size) == (3, 96)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (4, 2, 8)
    assert shape.num_params() == sum(p.numel() for p in smaller.parameters())
    torch.testing.assert_close(logits(smaller, texts), logits(model, texts), rtol=1e-4, atol=1e-5)


def mixture(**changes):
    mla = MLA(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
    moe = MoE(8, 2, 32, 1, n_group=2, topk_group=1, scoring_func="sigmoid", dense_layers=(0,))
    shape = ModelConfig(
        "deepseek_v3", 96, 64, 64, 3, 4, 4, 8, mla=mla, moe=replace(moe, **changes), num_nextn_predict_layers=1
    )
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def test_experts_that_nobody_asks_go_group_by_group():
    model = mixture()
    with torch.no_grad():
        for layer in model.model.layers[1:3]:
            layer.mlp.gate.e_score_correction_bias[[1, 3, 4, 7]] = -9.0  # two of each group are never chosen
    texts = texts_for(model)
    smaller = pruned(model, texts, experts=0.5)
    assert smaller.config.moe.n_routed_experts == 4
    assert smaller.config.num_nextn_predict_layers == 0
    assert smaller.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    torch.testing.assert_close(logits(smaller, texts), logits(model, texts), rtol=1e-4, atol=1e-5)
    shorter = pruned(model, texts, layers=2)
    assert shorter.config.moe.dense_layers == tuple(i for i in range(1) if shorter.config.moe.dense_layers)
    assert torch.isfinite(logits(shorter, texts)).all()


def data_of(folder):
    return write_data(folder, [conversation(f"{i} + {i}?", f"{2 * i}", "add") for i in range(8)])


def stage(tmp_path, **keys):
    source = artifact(write_pupil(tmp_path / "source", **SIZES))
    config, out = prune.Config(model="base", data="traces", **keys), draft(tmp_path / "out")
    prune.check(config)
    prune.run(config, {"base": source, "traces": data_of(tmp_path / "data")}, fp32_run(tmp_path), out)
    return out


def test_the_stage_writes_a_checkpoint_that_loads_and_says_what_it_cost(tmp_path):
    out = stage(tmp_path, layers=1, neurons=0.5, head_groups=1)
    model = load_model(out.path)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (3, 64)
    assert out.meta["num_params"] == model.config.num_params() < out.meta["source_params"]
    assert out.meta["nats_per_token"] > 0
    assert (out.path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "nothing is to be cut"),
        ({"layers": 4}, "the network has 4: leave one"),
        ({"head_groups": 3}, "a layer has 3: leave one"),
        ({"neurons": 0.9}, "fewer than 32 would be left"),
        ({"experts": 0.5}, "this network has none"),
    ],
)
def test_a_cut_that_leaves_nothing_is_refused(tmp_path, keys, said):
    with pytest.raises(RecipeError, match=said):
        stage(tmp_path, **keys)


def test_cuts_that_a_mixture_cannot_bear_are_refused():
    for keys, said in (({"experts": 0.9}, "each token is sent to"), ({"head_groups": 1}, "share latents")):
        with pytest.raises(RecipeError, match=said):
            prune.check_cut(prune.Config(model="m", data="d", **keys), mixture().config)


def test_conversations_have_to_be_there(tmp_path):
    source = artifact(write_pupil(tmp_path / "source", **SIZES))
    config = prune.Config(model="base", data="traces", layers=1)
    with pytest.raises(DataError, match="no conversation to look at"):
        prune.run(
            config,
            {"base": source, "traces": write_data(tmp_path / "d", [])},
            fp32_run(tmp_path),
            draft(tmp_path / "o"),
        )


def test_codes_cannot_be_cut(tmp_path):
    source = write_pupil(tmp_path / "source", **SIZES)
    quantize_folder(source, tmp_path / "int8", fp32_run(tmp_path))
    inputs = {"base": artifact(tmp_path / "int8"), "traces": data_of(tmp_path / "data")}
    with pytest.raises(ModelError, match="quantized already; take the one that it was made from"):
        prune.run(
            prune.Config(model="base", data="traces", layers=1), inputs, fp32_run(tmp_path), draft(tmp_path / "o")
        )
