"""All layers in one call beside the layers one by one: the same bits."""

from dataclasses import replace

import pytest
import torch

from school import network
from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels import native
from schoolhouse.model.layers import Linear
from schoolhouse.model.quantized import INT8, QuantLinear, Scheme
from schoolhouse.model.transformer import Transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())

SIZES = {
    "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 160,
    "num_hidden_layers": 3,
}  # fmt: skip


def coded(model, scheme):
    """The same network with its layers' matrices in codes."""
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, QuantLinear.from_linear(child, scheme))
    return model


def replies(model, texts, tokens=40):
    engine = Engine(model, texts)
    prompts = [[(5 * i + j) % 60 + 1 for j in range(3 + i % 7)] for i in range(texts)]
    plan = [[Sampling(max_new_tokens=tokens - i % 5, temperature=float(i % 2), seed=i)] for i in range(texts)]
    out = engine.generate(prompts, plan)
    return engine, [(c.ids, c.logprobs) for (c,) in out]


@pytest.mark.parametrize("texts", [1, 3, 17, 40])
@pytest.mark.parametrize("scheme", [None, INT8, Scheme(4, 32)], ids=["bf16", "int8", "int4"])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_a_reply_has_the_same_bits(monkeypatch, kernels_anew, texts, scheme, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = network(**SIZES).bfloat16()
    model = model if scheme is None else coded(model, scheme)
    engine, first = replies(model, texts)
    assert engine._layers is not None
    monkeypatch.setattr(FusedLayers, "made_for", lambda *_: None)
    engine, second = replies(model, texts)
    assert engine._layers is None
    assert first == second


@pytest.mark.parametrize("lengths", [(2048,), (1023, 1024, 1500), (2100,) * 9])
@pytest.mark.parametrize("level", [None, "avx2"])
def test_long_texts_have_the_same_bits_however_threads_share_them(monkeypatch, kernels_anew, lengths, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = network(**SIZES | {"max_position_embeddings": 4096}).bfloat16()
    model.pack()
    cache = SlotCache(model.config, len(lengths), torch.bfloat16, torch.device("cpu"))
    cache.reserve(max(lengths) + 1)
    for i, stores in enumerate(cache.layers):
        for j, store in enumerate(stores):
            store.copy_(torch.randn(store.shape, generator=torch.Generator().manual_seed(2 * i + j)))
    ids, held = torch.arange(1, 1 + len(lengths))[:, None], torch.tensor(lengths)
    layers = FusedLayers.made_for(model, cache)
    assert layers is not None
    with torch.inference_mode():
        twin = model.hidden(ids, DecodeContext(cache, held))
        assert torch.equal(layers.hidden(ids, held), twin)


@pytest.mark.parametrize("lengths", [[1], [3], [2, 1], [130, 380, 7], [700, 700]], ids=str)
@pytest.mark.parametrize("scheme", [None, INT8, Scheme(4, 32)], ids=["bf16", "int8", "int4"])
@pytest.mark.parametrize("known", [0, 1, 45])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_prompts_are_read_to_the_same_bits(monkeypatch, kernels_anew, lengths, scheme, known, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = network(**SIZES | {"max_position_embeddings": 1024}).bfloat16()
    model = model if scheme is None else coded(model, scheme)
    model.pack()
    layers = FusedLayers.made_for(model, SlotCache(model.config, 4, torch.bfloat16, torch.device("cpu")))
    assert layers is not None
    draw = torch.Generator().manual_seed(0)
    prefix = [tuple(torch.randn(2, known, 32, generator=draw).bfloat16() for _ in range(2)) for _ in model.model.layers]
    tokens = torch.randint(1, 60, (1, sum(lengths)), generator=draw)
    ends = torch.tensor(lengths).cumsum(0) - 1
    contexts = [PrefillContext(lengths, prefix if known else None, len(prefix)) for _ in range(2)]
    with torch.inference_mode():
        twin = model.hidden(tokens, contexts[0], ends)
        assert torch.equal(layers.read(tokens, contexts[1], ends), twin)
    for text in range(len(lengths)):
        for expected, found in zip(contexts[0].kv(text), contexts[1].kv(text), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        {"qk_norm": True}, {"sliding_window": 8}, {"attention_bias": True}, {"mlp_bias": True}, {"norm": "layer"},
        {"hidden_act": "gelu"}, {"block": "parallel"}, {"rotary_dim": 16}, {"rope_interleave": True},
        {"intermediate_size": 152}, {"attn_logit_softcapping": 5.0},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_network_with_other_operations_goes_layer_by_layer(other):
    model = Transformer(replace(network(**SIZES).config, **other))
    model.init_weights(torch.Generator().manual_seed(0))
    engine, out = replies(model.bfloat16(), 2, tokens=12)
    assert engine._layers is None
    assert all(len(ids) >= 11 for ids, _ in out)


@pytest.mark.parametrize(("name", "taken"), [("k_proj", False), ("up_proj", False), ("o_proj", True)])
def test_codes_of_two_kinds_that_read_the_same_rows_go_layer_by_layer(name, taken):
    model = coded(network(**SIZES).bfloat16(), INT8)
    layer = model.model.layers[1]
    part = layer.mlp if name == "up_proj" else layer.self_attn
    weight = torch.nn.Linear(getattr(part, name).in_features, getattr(part, name).out_features, bias=False)
    setattr(part, name, QuantLinear.from_linear(weight.bfloat16(), Scheme(4, 32)))
    engine, out = replies(model, 3)
    assert (engine._layers is not None) is taken
    assert all(ids for ids, _ in out)


def test_changed_weights_are_packed_and_used_anew():
    model = network(**SIZES).bfloat16()
    engine, before = replies(model, 2)
    engine.forget()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-3)
    again = engine.generate([[1, 2, 3]], Sampling(max_new_tokens=8, temperature=0.0))
    fresh = Engine(model, 2).generate([[1, 2, 3]], Sampling(max_new_tokens=8, temperature=0.0))
    assert again[0][0].logprobs == fresh[0][0].logprobs
    assert again[0][0].logprobs[0] != before[0][1][0]


def test_fp32_goes_layer_by_layer():
    assert replies(network(**SIZES), 2, tokens=4)[0]._layers is None
