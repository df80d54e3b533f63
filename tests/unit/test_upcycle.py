"""A dense network as a mixture: it says the same at first, and its experts can grow apart."""

import pytest
import torch
import transformers
from test_latent import converted, ids_of, random_model

from school import artifact, draft, fp32_run, network, write_pupil
from schoolhouse.compress import upcycle
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.model.weights import load_model, save_model

SIZES = [(8, 2, 1), (1, 1, 1), (4, 4, 4), (8, 4, 4), (8, 8, 2)]


def mixture(model, experts, active, slices, seed=0):
    config = upcycle.Config(model="base", experts=experts, active=active, slices=slices)
    upcycle.check(config)
    return upcycle.to_mixture(model, config, torch.Generator().manual_seed(seed))


def same(model, other):
    with torch.inference_mode():
        torch.testing.assert_close(other(ids_of()).logits, model(ids_of()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("experts", "active", "slices"), SIZES, ids=str)
def test_it_says_the_same_whatever_it_is_cut_into(experts, active, slices):
    model = random_model()
    made = mixture(model, experts, active, slices)
    same(model, made)
    assert made.model.layers[0].mlp.experts[0].up_proj.weight.shape == (64 // slices, 48)
    assert (made.config.num_params() > model.config.num_params()) or experts == slices


def test_latent_attention_becomes_a_deepseek_with_experts_and_qwen3_its_mixture():
    latent = converted(random_model(), 20, 12)
    same(latent, mixture(latent, 8, 4, 2))
    qwen = network(model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=96)
    same(qwen, mixture(qwen, 4, 2, 2))


def test_transformers_reads_it(tmp_path):
    model = random_model()
    save_model(mixture(model, 8, 4, 4), tmp_path, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids_of()).logits, model(ids_of()).logits, rtol=1e-3, atol=1e-3)


def test_tokens_go_to_different_copies_and_experts_learn_different_things():
    made = mixture(random_model(), 8, 2, 1)
    layer = made.model.layers[0].mlp
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    routing = layer.gate(x)
    assert len(routing.chosen.unique()) > 4
    made(ids_of()).logits.square().mean().backward()
    gradients = [expert.up_proj.weight.grad for expert in layer.experts if expert.up_proj.weight.grad is not None]
    assert not torch.allclose(gradients[0], gradients[1])
    whole = mixture(random_model(), 8, 4, 4).model.layers[0].mlp.gate(x).chosen.sort(dim=-1).values
    assert all(row in ([0, 1, 2, 3], [4, 5, 6, 7]) for row in whole.tolist())


def test_the_stage_keeps_the_words_of_the_network_and_says_what_it_grew_to(tmp_path):
    source = write_pupil(tmp_path / "source")
    out = draft(tmp_path / "out")
    config = upcycle.Config(model="base", experts=4, active=2, slices=2)
    upcycle.run(config, {"base": artifact(source)}, fp32_run(tmp_path), out)
    model, made = load_model(source), load_model(out.path)
    assert made.config.model_type == "mixtral"
    assert out.meta["num_params"] == made.config.num_params() > out.meta["source_params"]
    ids = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(ids).logits
        assert float((made(ids).logits - wanted).norm() / wanted.norm()) < 0.02  # written in bf16
    other = draft(tmp_path / "other")
    upcycle.run(config, {"base": artifact(source)}, fp32_run(tmp_path / "b", seed=5), other)
    gates = [load_model(o.path).model.layers[0].mlp.gate.weight for o in (out, other)]
    assert not torch.equal(*gates)


@pytest.mark.parametrize(("experts", "active", "slices"), [(8, 3, 2), (6, 4, 4), (2, 4, 1)])
def test_numbers_that_do_not_go_together_are_refused(experts, active, slices):
    with pytest.raises(RecipeError, match="multiples of slices"):
        mixture(random_model(), experts, active, slices)


def test_what_has_no_twin_is_refused():
    with pytest.raises(RecipeError, match="64 neurons"):
        mixture(random_model(), 3, 3, 3)
    with pytest.raises(ModelError, match="no twin"):
        mixture(random_model(model_type="qwen2", use_sliding_window=False), 2, 1, 1)
    with pytest.raises(ModelError, match="no twin"):
        mixture(mixture(random_model(), 2, 1, 1), 2, 1, 1)
