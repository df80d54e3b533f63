"""Latent attention and experts: the two forms, the router's rules, what is kept in which type."""

import pytest
import torch
import transformers
from checkpoints import deepseek
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

from schoolhouse.core.errors import ModelError
from schoolhouse.infer.cache import SlotCache
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.attention import Causal
from schoolhouse.model.config import MoE
from schoolhouse.model.moe import route
from schoolhouse.model.weights import load_model, save_model


def experts(**changes):
    sizes = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "n_group": 4, "topk_group": 2}
    return MoE(**{**sizes, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, **changes})


def logits(tokens=50, seed=0):
    return 2 * torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_absorbed_and_expanded_attention_agree():
    layer = deepseek().model.layers[0].self_attn
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 5, 4, 12, generator=generator)
    latent = torch.randn(2, 5, 1, 20, generator=generator)
    expanded = Causal(2, 5).attend_latent(0, q, latent, layer, layer.scoring)
    with torch.no_grad():
        sums = Causal(2, 5).attend(0, layer.absorb(q), latent, latent[..., :16], layer.scoring)
        torch.testing.assert_close(layer.emerge(sums), expanded, rtol=1e-5, atol=1e-6)


def test_the_cache_holds_latents_and_nothing_else():
    config = deepseek().config
    cache = SlotCache(config, slots=3, dtype=torch.float32, device=torch.device("cpu"))
    cache.reserve(32)
    held = sum(store.numel() for layer in cache.layers for store in layer)
    assert held == 3 * 32 * config.num_hidden_layers * (16 + 4)
    assert config.kv_bytes_per_token(4) * 3 * 32 == 4 * held


def test_the_engine_says_what_the_forward_pass_says():
    model = deepseek()
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, n] for n in (20, 21, 22)]  # a beginning that is shared
    out = Engine(model, slots=4).generate(prompts, Sampling(max_new_tokens=8, temperature=0.0))
    for prompt, (completion,) in zip(prompts, out, strict=True):
        text = list(prompt)
        for token, logprob in zip(completion.ids, completion.logprobs, strict=True):
            with torch.no_grad():
                last = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
            assert token == int(last.argmax())
            assert logprob == pytest.approx(float(last[token]), abs=1e-4)
            text.append(token)


def test_the_bias_chooses_and_does_not_count():
    bias = torch.zeros(8)
    bias[3] = 10.0
    plain, pushed = route(logits(), torch.zeros(8), experts()), route(logits(), bias, experts())
    assert (pushed.chosen == 3).any(-1).all()
    assert not (plain.chosen == 3).any(-1).all()
    of_three = logits().sigmoid()[:, 3]
    others = pushed.scores.gather(1, pushed.chosen).sum(-1)
    shares = pushed.shares[pushed.chosen == 3]
    torch.testing.assert_close(shares, 2.5 * of_three / others)


def test_shares_add_up_to_the_scaling_factor_where_they_are_normalised():
    torch.testing.assert_close(route(logits(), torch.zeros(8), experts()).shares.sum(-1), torch.full((50,), 2.5))
    raw = route(logits(), torch.zeros(8), experts(norm_topk_prob=False))
    torch.testing.assert_close(raw.shares, 2.5 * raw.scores.gather(1, raw.chosen))


def test_experts_come_from_the_kept_groups_even_where_scores_are_low():
    bias = torch.full((8,), -5.0)
    chosen = route(logits(), bias, experts()).chosen
    scores = logits().sigmoid() + bias
    best = scores.view(50, 4, 2).sum(-1).topk(2).indices
    assert all(set((c // 2).tolist()) <= set(b.tolist()) for c, b in zip(chosen, best, strict=True))


def test_softmax_groups_are_ranked_by_their_best():
    config = experts(scoring_func="softmax", topk_group=1)
    chosen = route(logits(), None, config).chosen
    assert (chosen // 2 == logits().argmax(-1, keepdim=True) // 2).all()


def test_the_balancing_bias_stays_in_fp32_and_has_no_gradient(tmp_path):
    model = deepseek()
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    bias += 0.001 * torch.arange(8)
    assert "e_score_correction_bias" not in dict(model.named_parameters())
    save_model(model, tmp_path)
    again = load_model(tmp_path, torch.bfloat16)
    kept = again.model.layers[1].mlp.gate.e_score_correction_bias
    assert kept.dtype == torch.float32
    assert torch.equal(kept, bias)
    assert again.model.layers[1].mlp.gate.weight.dtype == torch.bfloat16


def test_prediction_layers_go_round_with_the_copies_that_others_expect(tmp_path):
    model = deepseek(num_nextn_predict_layers=2)
    save_model(model, tmp_path, dtype=None)
    stored = load_file(tmp_path / "model.safetensors")
    for layer in (2, 3):
        assert torch.equal(stored[f"model.layers.{layer}.embed_tokens.weight"], model.model.embed_tokens.weight)
        assert torch.equal(stored[f"model.layers.{layer}.shared_head.head.weight"], model.lm_head.weight)
        assert stored[f"model.layers.{layer}.eh_proj.weight"].shape == (32, 64)
    again = load_model(tmp_path)
    assert again.config == model.config
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for got, wanted in zip(again(ids, further=True).mtp_logits, model(ids, further=True).mtp_logits, strict=True):
            torch.testing.assert_close(got, wanted)
    stored["model.layers.2.shared_head.head.weight"] += 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="A prediction layer"):
        load_model(tmp_path)


def test_a_checkpoint_that_left_the_prediction_layers_out_loads_without_them(tmp_path):
    save_model(deepseek(num_nextn_predict_layers=1), tmp_path, dtype=None)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in stored.items() if ".layers.2." not in k}, tmp_path / "model.safetensors")
    assert load_model(tmp_path).config.num_nextn_predict_layers == 0


def test_a_prediction_is_transformers_prediction(tmp_path):
    """Their prediction layer, filled with our weights, on their main model's last hidden states."""
    model = deepseek(num_nextn_predict_layers=1)
    save_model(model, tmp_path, dtype=None)
    main = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    main._keys_to_ignore_on_load_unexpected = [r"model\.layers\.2\..*"]  # by it they find the layer; theirs says 61
    theirs = MtpModel.from_pretrained(main)
    ids = torch.randint(0, 300, (1, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = main.model(ids).last_hidden_state[:, :-1]
        layer, embedded = theirs.layers[0], main.get_input_embeddings()(ids[:, 1:])
        places = torch.arange(9)[None]
        mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
        rope = main.model.rotary_emb(embedded, places)
        hidden = layer(embedded, wanted, rope, mask, places, None)
        got = model(ids, further=True).mtp_logits[0][:, :-1]
        torch.testing.assert_close(got, main.lm_head(hidden), rtol=1e-5, atol=1e-5)


def test_what_is_predicted_further_depends_on_no_later_token():
    model = deepseek(num_nextn_predict_layers=2)
    ids = torch.randint(0, 300, (1, 10), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 7] = (other[0, 7] + 1) % 300
    with torch.no_grad():
        first, second = model(ids, further=True).mtp_logits, model(other, further=True).mtp_logits
    for depth in (1, 2):
        same = torch.isclose(first[depth - 1], second[depth - 1], rtol=1e-4, atol=1e-5).all(-1)[0]
        assert same[: 7 - depth].all()
        assert not same[7 - depth]
