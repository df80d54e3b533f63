"""Latent attention and experts in one call beside the layers one by one, and their products beside torch's."""

import pytest
import torch
from checkpoints import DEEPSEEK
from exactness import draw, near

from schoolhouse.infer.cache import DecodeContext, SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.latent_layers import LatentLayers
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels import native
from schoolhouse.kernels.attention import Scoring, attend
from schoolhouse.kernels.experts import mix_experts_plain
from schoolhouse.kernels.heads import HeadProducts, look_at_latents
from schoolhouse.kernels.packed_experts import PackedExperts
from schoolhouse.kernels.router import Rule
from schoolhouse.model import transformer
from schoolhouse.model.families import from_hf
from schoolhouse.model.layers import Linear
from schoolhouse.model.quantized import QuantLinear
from schoolhouse.model.transformer import Transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())

SIZES = {
    "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 3, "q_lora_rank": 48, "kv_lora_rank": 32,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "moe_intermediate_size": 40,
    "num_experts_per_tok": 3, "initializer_range": 0.1,
}  # fmt: skip
V2 = {"model_type": "deepseek_v2", "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.5}
KINDS = {
    "as it is": {},
    "queries without latents": {"q_lora_rank": None},
    "no groups": {"n_group": 1, "topk_group": 1},
    "two shared experts": {"n_shared_experts": 2},
    "none shared": {"n_shared_experts": 0, "first_k_dense_replace": 2},
    "dense": {"first_k_dense_replace": 3},
    "biases": {"attention_bias": True},
    "biases, queries without latents": {"attention_bias": True, "q_lora_rank": None},
    "halves turn": {"rope_interleave": False},
    "softmax": V2,
    "softmax in groups": {**V2, "topk_method": "group_limited_greedy", "n_routed_experts": 12},
    "many heads of odd widths": {
        "num_attention_heads": 20, "num_key_value_heads": 20, "kv_lora_rank": 48, "qk_nope_head_dim": 18,
        "v_head_dim": 16, "moe_intermediate_size": 34,
    },
}  # fmt: skip


def network(changes):
    """A small DeepSeek of random weights."""
    keys = {**DEEPSEEK, **SIZES, **changes}
    if keys["model_type"] == "deepseek_v2":
        del keys["num_nextn_predict_layers"]
    model = Transformer(from_hf(keys))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def latent(**changes):
    """In bf16, with a bias of the experts that matters."""
    model = network(changes)
    for layer in model.model.layers:
        bias = getattr(getattr(layer.mlp, "gate", None), "e_score_correction_bias", None)
        if bias is not None:
            bias.normal_(std=0.2, generator=torch.Generator().manual_seed(7))
        for projection in layer.self_attn.children():
            if getattr(projection, "bias", None) is not None:
                projection.bias.data.normal_(generator=torch.Generator().manual_seed(8))
    return model.bfloat16()


def replies(model, texts, tokens=30):
    engine = Engine(model, texts)
    prompts = [[(5 * i + j) % 60 + 1 for j in range(3 + i % 7)] for i in range(texts)]
    plan = [[Sampling(max_new_tokens=tokens - i % 5, temperature=float(i % 2), seed=i)] for i in range(texts)]
    out = engine.generate(prompts, plan)
    return engine, [(c.ids, c.logprobs) for (c,) in out]


def filled(model, texts, capacity=48):
    """A cache of which every place holds some latent."""
    cache = SlotCache(model.config, texts, torch.bfloat16, torch.device("cpu"))
    cache.reserve(capacity)
    for layer in cache.layers:
        for store in layer:
            store.normal_(generator=torch.Generator().manual_seed(1))
    return cache


@pytest.mark.parametrize("texts", [1, 3, 40])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_a_reply_has_the_same_bits(monkeypatch, kernels_anew, texts, changes, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = latent(**changes)
    engine, first = replies(model, texts)
    assert isinstance(engine._layers, LatentLayers)
    monkeypatch.setattr(LatentLayers, "made_for", lambda *_: None)
    engine, second = replies(model, texts)
    assert engine._layers is None
    assert first == second


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_several_tokens_are_read_as_one_by_one_and_as_plain_torch_reads_them(monkeypatch, kernels_anew, changes, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = latent(**changes)
    exact = network(changes)
    exact.load_state_dict(model.state_dict())
    exact.double()
    model.pack()
    ids = torch.randint(0, 300, (3, 5), generator=torch.Generator().manual_seed(0))
    lengths, found, held = torch.tensor([30, 7, 0]), [], []
    with torch.inference_mode():
        for tokens in (1, 5):
            cache = filled(model, 4)
            layers = LatentLayers.made_for(model, cache)
            found.append(
                torch.cat([layers.hidden(ids[:, t : t + tokens], lengths + t) for t in range(0, 5, tokens)], 1)
            )
            held.append(torch.stack([store for layer in cache.layers for store in layer]))
        model.unpack()
        kernels_anew()
        monkeypatch.setenv(native.LEVEL, "plain")
        plain = model.hidden(ids, DecodeContext(filled(model, 4), lengths, 5))
        cache = filled(model, 4)
        cache.layers = [tuple(store.double() for store in layer) for layer in cache.layers]
        truth = exact.hidden(ids, DecodeContext(cache, lengths, 5))
    assert torch.equal(*found)
    assert torch.equal(*held)
    # Where two experts are nearly as good as one another a rounding decides, and the text goes another way from there
    # on: what is compared are the tokens that no such choice has reached.
    errors = [(x.double() - truth).abs().mean(-1).flatten().quantile(0.25) for x in (found[0], plain)]
    assert errors[0] < 1.25 * errors[1] < 0.05


@pytest.mark.parametrize(
    "other",
    [
        {"qk_rope_head_dim": 8}, {"v_head_dim": 24}, {"hidden_size": 88}, {"q_lora_rank": 40},
        {"first_k_dense_replace": 3, "hidden_act": "gelu"},
    ],
    ids=str,
)  # fmt: skip
def test_a_network_with_other_operations_goes_layer_by_layer(other):
    engine, out = replies(latent(**other), 2, tokens=12)
    assert engine._layers is None
    assert all(len(ids) >= 11 for ids, _ in out)


def test_experts_in_codes_go_layer_by_layer():
    model = latent(moe_intermediate_size=64)
    for expert in model.model.layers[1].mlp.experts:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(expert, name, QuantLinear.from_linear(getattr(expert, name)))
    assert replies(model, 2, tokens=4)[0]._layers is None


def test_fp32_goes_layer_by_layer():
    assert replies(latent().float(), 2, tokens=4)[0]._layers is None


def test_a_machine_with_room_for_the_common_part_alone_packs_that(monkeypatch):
    model = latent()
    parts = ("experts", "kv_b_proj")
    rest = sum(m.weight.nbytes for n, m in model.named_modules() if isinstance(m, Linear) and ".experts." not in n)
    room = 4 * (rest + sum(p.nbytes for n, p in model.named_parameters() if set(parts) & set(n.split("."))))
    for memory, experts in ((room, True), (room - 16, False)):
        model.unpack()
        monkeypatch.setattr(transformer, "memory_bytes", lambda memory=memory: memory)
        engine, _ = replies(model, 2, tokens=4)
        assert (engine._layers is not None) == experts
        assert model.model.layers[0].mlp.up_proj.packed is not None
        assert all((layer.mlp.packed is not None) == experts for layer in model.model.layers[1:])
        assert all((layer.self_attn.packed is not None) == experts for layer in model.model.layers)


@pytest.mark.parametrize(
    "name",
    [
        "self_attn.kv_b_proj.weight", "self_attn.q_b_proj.weight", "mlp.experts.5.down_proj.weight", "mlp.gate.weight",
        "mlp.shared_experts.up_proj.weight", "mlp.gate.e_score_correction_bias",
    ],
)  # fmt: skip
def test_changed_weights_are_packed_and_used_anew(name):
    model = latent(num_experts_per_tok=8, n_group=1, topk_group=1)
    engine, _ = replies(model, 2, tokens=4)
    assert engine._layers.is_of(model)
    with torch.no_grad():
        tensor = (
            model.model.layers[1].get_parameter(name) if "bias" not in name else model.model.layers[1].get_buffer(name)
        )
        tensor.mul_(-3)
    assert not engine._layers.is_of(model)
    plan = Sampling(max_new_tokens=8, temperature=0.0)
    again = engine.generate([[1, 2, 3]], plan)  # the layers are not those of before, though nobody said `forget`
    fresh = Engine(model, 2).generate([[1, 2, 3]], plan)
    assert again == fresh
    engine.forget()
    assert all(getattr(m, "packed", None) is None for m in model.modules())


@pytest.mark.parametrize("rows", [1, 5, 33, 300])
@pytest.mark.parametrize(("width", "inner"), [(64, 96), (48, 34)])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_packed_experts_give_what_experts_give(monkeypatch, kernels_anew, threads_back, rows, width, inner, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    gates, ups = ([draw(inner, width, seed=10 * kind + e) for e in range(6)] for kind in (1, 2))
    downs = [draw(width, inner, seed=30 + e) for e in range(6)]
    router, x = draw(6, width), draw(rows, width, seed=2)
    experts = [matrix for three in zip(gates, ups, downs, strict=True) for matrix in three]
    packed = PackedExperts(router, None, experts, Rule(len(router), 2, 1, 1, True, False, 1.0))
    chosen = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:2] for i in range(rows)])
    shares = torch.rand(rows, 2, generator=torch.Generator().manual_seed(1))
    got = packed.mixed(x, chosen, shares)
    wide = [[m.double() for m in each] for each in (gates, ups, downs)]
    exact = mix_experts_plain(x.double(), chosen, shares.double(), *wide)
    near(got, exact, mix_experts_plain(x, chosen, shares, gates, ups, downs))
    torch.set_num_threads(3)
    assert torch.equal(packed.mixed(x, chosen, shares), got)
    assert torch.equal(packed.mixed(x[-1:], chosen[-1:], shares[-1:]), got[-1:]), "a row does not hang on its company"


@pytest.mark.parametrize(("columns", "inner"), [(32, 64), (48, 18), (16, 32)])
def test_each_head_has_a_product_of_its_own(columns, inner):
    x, matrices = draw(21, 3, inner + 5)[..., :inner], draw(3, columns, inner, seed=1)
    out = torch.zeros(21, 3, columns + 7).bfloat16()
    HeadProducts(matrices).into(out[..., :columns], x)
    exact = torch.einsum("mhk,hnk->mhn", x.double(), matrices.double())
    near(out[..., :columns], exact, torch.einsum("mhk,hnk->mhn", x, matrices))
    assert not out[..., columns:].any()


@pytest.mark.parametrize(("heads", "width", "rank"), [(8, 80, 64), (20, 48, 32), (3, 32, 16), (16, 96, 96)])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_heads_see_what_they_would_see_one_by_one(monkeypatch, kernels_anew, heads, width, rank, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    q, held = draw(3, 2, heads, width), draw(3, 1, 320, width, seed=1)
    lengths, scoring = torch.tensor([317, 0, 30]), Scoring(0.3)
    got = look_at_latents(q, held, rank, lengths, scoring)
    hidden = torch.arange(320)[None, None] > (lengths[:, None] + torch.arange(2))[..., None]
    bias = torch.zeros(3, 2, 320).masked_fill(hidden, float("-inf"))
    exact = attend(q.double(), held.double(), held[..., :rank].double(), bias.double(), scoring)
    near(got, exact, attend(q, held, held[..., :rank], bias.bfloat16(), scoring))
    held[0, :, 319:], held[1, :, 2:], held[2, :, 32:] = float("nan"), float("nan"), float("nan")
    assert torch.equal(look_at_latents(q, held, rank, lengths, scoring), got), "nobody sees what comes later"
    for text in range(3):
        for token in range(2):
            one = look_at_latents(
                q[text, None, token, None], held[text, None], rank, lengths[text, None] + token, scoring
            )
            assert torch.equal(one[0, 0], got[text, token])


@pytest.mark.parametrize(("heads", "width", "rank"), [(8, 80, 64), (20, 48, 32)])
@pytest.mark.parametrize("level", [None, "avx2"])
def test_long_memories_are_seen_alike_however_threads_share_them(monkeypatch, kernels_anew, heads, width, rank, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    q, held = draw(3, 2, heads, width), draw(3, 1, 2560, width, seed=1)
    lengths, scoring = torch.tensor([2500, 1023, 1024]), Scoring(0.3)
    unshared = look_at_latents(q, held, rank, lengths, scoring)  # two tokens a text
    hidden = torch.arange(2560)[None, None] > (lengths[:, None] + torch.arange(2))[..., None]
    bias = torch.zeros(3, 2, 2560).masked_fill(hidden, float("-inf"))
    exact = attend(q.double(), held.double(), held[..., :rank].double(), bias.double(), scoring)
    near(unshared, exact, attend(q, held, held[..., :rank], bias.bfloat16(), scoring))
    for token in range(2):
        shared = look_at_latents(q[:, token, None], held, rank, lengths + token, scoring)
        assert torch.equal(shared[:, 0], unshared[:, token])


@pytest.mark.parametrize("tokens", [40, 2100])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_what_is_no_number_is_not_hidden(monkeypatch, kernels_anew, tokens, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    q, held = draw(1, 1, 8, 80), draw(1, 1, 2112, 80, seed=1)
    q[0, 0, 5, 3] = float("nan")
    out = look_at_latents(q, held, 64, torch.tensor([tokens]), Scoring(0.3))
    assert out[0, 0, 5].isnan().all()
    assert not out[0, 0, :5].isnan().any()


@pytest.mark.parametrize("changes", [kind for name, kind in KINDS.items() if name != "dense"])
@pytest.mark.parametrize("level", [None, "avx512", "avx2"])
def test_a_mixture_in_one_call_chooses_and_gives_what_it_does_step_by_step(monkeypatch, kernels_anew, changes, level):
    if level:
        monkeypatch.setenv(native.LEVEL, level)
    model = latent(**changes)
    mixture, x = model.model.layers[-1].mlp, draw(1, 37, 96)
    exact = network(changes)
    exact.load_state_dict(model.state_dict())
    exact.double()
    with torch.no_grad():
        truth, plain, wanted = exact.model.layers[-1].mlp(x.double()), mixture(x), mixture.gate(x[0])
        model.pack()
        got, chosen = mixture(x), mixture.gate(x[0])
    assert mixture.packed_experts is not None
    assert torch.equal(chosen.chosen, wanted.chosen)
    torch.testing.assert_close(chosen.shares, wanted.shares, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(chosen.scores, wanted.scores, rtol=1e-6, atol=1e-7)
    near(got, truth, plain)
