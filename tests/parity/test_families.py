"""Every dense family against transformers' own code: tiny random models, written by one side, read by the other."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from schoolhouse.infer.cache import DecodeContext, PrefillContext, SlotCache
from schoolhouse.model.families import FAMILIES, from_hf, to_hf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_config, load_model, save_model

TINY = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,  # large enough that attention is not flat
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-head-dim": ("Llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3-biases": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 16}),
}


def theirs(case: str) -> transformers.PreTrainedModel:
    """A tiny random model of transformers; norms and biases are random too, so that a lost one shows."""
    family, settings = CASES[case]
    torch.manual_seed(sorted(CASES).index(case))
    config = getattr(transformers, f"{family}Config")(**{**TINY, **settings})
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[transformers.PreTrainedModel, Transformer, Path]:
    reference = theirs(request.param)
    reference.save_pretrained(tmp_path)
    return reference, load_model(tmp_path), tmp_path


def ids(batch: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(7))


def test_logits_are_transformers_logits(pair):
    reference, ours, _ = pair
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()).logits, reference(ids()).logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_transformers_gradients(pair):
    reference, ours, _ = pair
    for model in (reference, ours):
        logits = model(ids()).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten()).backward()
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    got = {name: p.grad for name, p in ours.named_parameters()}
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_chunks_with_a_cache_equal_the_full_forward(pair):
    _, ours, _ = pair
    text = ids(batch=1, length=30)
    layers = ours.config.num_hidden_layers
    with torch.no_grad():
        full = ours(text).logits[0]
        first = PrefillContext([11], None, layers)
        parts = [ours.head(ours.hidden(text[:, :11], first))[0]]
        second = PrefillContext([9], first.kv(0), layers)
        parts.append(ours.head(ours.hidden(text[:, 11:20], second))[0])
        cache = SlotCache(ours.config, 1, torch.float32, torch.device("cpu"))
        cache.reserve(30)
        cache.write(0, second.kv(0))
        for at in range(20, 30):
            step = DecodeContext(cache, torch.tensor([at]))
            parts.append(ours.head(ours.hidden(text[:, at : at + 1], step))[0])
    torch.testing.assert_close(torch.cat(parts), full, rtol=1e-5, atol=1e-5)


def test_greedy_generation_is_transformers_generation(pair):
    reference, ours, _ = pair
    prompt = ids(batch=1, length=12)
    wanted = reference.generate(prompt, do_sample=False, max_new_tokens=16, eos_token_id=None, pad_token_id=0)
    text = prompt
    with torch.no_grad():
        for _ in range(16):
            text = torch.cat((text, ours(text).logits[:, -1:].argmax(-1)), dim=1)
    assert text.tolist() == wanted.tolist()


def test_what_we_save_loads_in_transformers_with_the_same_logits(pair, tmp_path_factory):
    reference, ours, _ = pair
    folder = tmp_path_factory.mktemp("saved")
    save_model(ours, folder, dtype=None)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(again) is type(reference)
    assert again.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, reference(ids()).logits, rtol=1e-5, atol=1e-5)


def test_config_goes_round(pair):
    _, ours, folder = pair
    raw = to_hf(ours.config, "float32")
    assert from_hf(raw) == ours.config == load_config(folder)
    assert json.loads(json.dumps(raw)) == raw
    assert ours.config.num_params() == sum(p.numel() for p in ours.parameters())


def test_every_family_is_covered():
    assert {name.partition("-")[0] for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_of_absent_keys_are_transformers_defaults(model_type: str, tmp_path: Path):
    architecture = FAMILIES[model_type].architecture
    fresh = getattr(transformers, architecture.replace("ForCausalLM", "Config"))()
    fresh.save_pretrained(tmp_path)
    sizes = {key: getattr(fresh, key) for key in TINY if key.endswith(("_size", "_layers", "attention_heads"))}
    assert from_hf({"model_type": model_type, **sizes}) == load_config(tmp_path)
