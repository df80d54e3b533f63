"""Grouped-query attention turned into latent attention: equal while everything is kept, shorter where it is not."""

import pytest
import torch
import transformers

from school import artifact, conversation, draft, fp32_run, network, write_data, write_pupil
from schoolhouse.compress import latent
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.families import from_hf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

RAW = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that attention is not flat
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KEYS = 3 * 8
CONTEXT = 20  # tokens of the texts


def random_model(**changes):
    model = Transformer(from_hf(RAW | changes))
    model.init_weights(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    return model.eval()


def ids_of(rows=3, length=20, seed=0):
    return torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def converted(model, rank, turning):
    return latent.to_latent(model, latent.moments(model, ids_of(8).tolist()), rank, turning, CONTEXT)


def divergence(model, reference, ids):
    with torch.inference_mode():
        wanted, got = (m(ids).logits.log_softmax(-1) for m in (reference, model))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": LLAMA3, "tie_word_embeddings": False},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"attention_bias": True},
        {"model_type": "qwen2", "head_dim": 8, "use_sliding_window": False},
    ],
    ids=["llama", "llama3", "every head its own", "one for all", "biases", "qwen2"],
)
def test_it_says_the_same_while_everything_is_kept(changes):
    model = random_model(**changes)
    keys = model.config.num_key_value_heads * 8
    with torch.inference_mode():
        wanted = model(ids_of()).logits
        got = converted(model, keys + 2, keys)(ids_of()).logits
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-4 * float(wanted.std()))


def test_the_less_is_kept_the_further_it_is_and_values_alone_can_be_cut():
    model = random_model()
    few = [divergence(converted(model, rank, KEYS), model, ids_of()) for rank in (26, 20, 12, 6)]
    assert few == sorted(few)
    assert few[0] < 1e-6 < few[1]
    still = [divergence(converted(model, 2 * KEYS - t + 2, t), model, ids_of()) for t in (24, 20, 12, 6)]
    assert still == sorted(still)
    assert still[0] < 1e-6 < still[1]


def test_what_carries_most_goes_on_turning():
    """Keys that differ by a factor from head to head need one turning head only."""
    model = random_model()
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.self_attn.k_proj.weight.view(3, 8, -1)
            weight[1], weight[2] = 0.5 * weight[0], -2.0 * weight[0]
    assert divergence(converted(model, KEYS + 2, 8), model, ids_of()) < 1e-6
    assert divergence(converted(model, KEYS + 2, 4), model, ids_of()) > 1e-4


def test_pairs_that_hardly_turn_within_the_context_are_the_first_to_stop():
    model = random_model(rope_theta=1e6)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.view(3, 2, 4, -1)[:, :, 3] *= 8.0  # a whole turn takes 200,000 tokens
    everything = 2 * KEYS - 12 + 2
    near, far = (
        latent.to_latent(model, latent.moments(model, ids_of(8).tolist()), everything, 12, context)
        for context in (CONTEXT, 1_000_000)
    )
    assert 10 * divergence(near, model, ids_of()) < divergence(far, model, ids_of())


def test_the_cache_holds_latents_and_transformers_says_the_same(tmp_path):
    model = random_model(rope_scaling=LLAMA3)
    small = converted(model, 18, 12)
    assert small.config.kv_bytes_per_token() == 2 * (18 + 12) * 2
    save_model(small, tmp_path, dtype=torch.float32)
    ours = load_model(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = theirs(ids_of()).logits
        torch.testing.assert_close(ours(ids_of()).logits, wanted, rtol=1e-4, atol=1e-4)
    ((reply,),) = Engine(ours, 1).generate([[5, 6, 7]], Sampling(max_new_tokens=6, temperature=0.0))
    ids = [5, 6, 7]
    for said in reply.ids:
        with torch.inference_mode():
            assert int(ours(torch.tensor([ids])).logits[0, -1].argmax()) == said
        ids.append(said)


def test_bf16_keeps_it_as_close_as_it_keeps_the_original():
    model = random_model()
    exact, small = random_model(), converted(model, KEYS + 2, KEYS)
    both = [divergence(m.bfloat16(), exact, ids_of()) for m in (model, small)]
    assert both[1] < 4 * both[0] + 1e-5


def test_the_stage_writes_a_checkpoint_that_can_be_trained(tmp_path):
    source = write_pupil(tmp_path / "source", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    data = write_data(tmp_path / "data", [conversation(f"{i} + {i}?", f"{2 * i}", "add") for i in range(8)])
    out = draft(tmp_path / "out")
    config = latent.Config(model="base", data="traces", rank=20, turning=16, texts=2)
    latent.run(config, {"base": artifact(source), "traces": data}, fp32_run(tmp_path), out)
    model = load_model(out.path)
    assert out.meta["cache_bytes_per_token"] == model.config.kv_bytes_per_token()
    assert out.meta["cache_bytes_per_token"] < out.meta["source_cache_bytes_per_token"]
    assert (out.path / "tokenizer.json").exists()
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    assert float(model.model.layers[0].self_attn.kv_b_proj.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("rank", "turning", "said"), [(26, 26, "no more can turn"), (40, 24, "would hold nothing"), (28, 24, "nothing")]
)
def test_sizes_beyond_the_network_are_refused(rank, turning, said):
    with pytest.raises(RecipeError, match=said):
        latent.check_shape(random_model().config, rank, turning)


def test_a_network_with_norms_over_its_heads_is_refused():
    model = network(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    with pytest.raises(ModelError, match="cannot express"):
        latent.check_shape(model.config, 4, 2)
