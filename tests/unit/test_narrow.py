"""Channels of the stream that go, and two of every four weights."""

import pytest
import torch
from checkpoints import deepseek
from torch import nn

from school import LIVELY, artifact, conversation, draft, fp32_run, network, write_data, write_pupil
from schoolhouse.compress import prune
from schoolhouse.compress.narrow import narrow, norms_of, two_of_four, widest
from schoolhouse.compress.observe import observe
from schoolhouse.core.errors import RecipeError
from schoolhouse.model.codes import Scheme, quantize_rows
from schoolhouse.model.weights import load_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def texts_for(model, count=4):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, model.config.vocab_size, (16,), generator=generator).tolist() for _ in range(count)]


def logits(model, texts):
    with torch.inference_mode():
        return model(torch.tensor(texts)).logits


def silence(model, channels):
    """Channels of the stream that nothing writes to."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, channels] = 0
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[channels] = 0


@pytest.mark.parametrize("kind", ["llama", "untied", "deepseek"])
def test_channels_that_are_silent_go_and_nothing_changes(kind):
    if kind == "deepseek":
        model = deepseek(hidden_size=64, num_nextn_predict_layers=1)
    else:
        model = network(**SIZES, **LIVELY, tie_word_embeddings=kind == "llama")
    channels = [*range(1, 64, 4), 0, 2]
    silence(model, channels)
    texts = texts_for(model)
    seen = observe(model, texts, closely=True)
    kept = widest(model, seen, 64 - len(channels))
    assert kept.tolist() == [i for i in range(64) if i not in channels]
    smaller = narrow(model, kept, seen)
    assert smaller.config.hidden_size == 46
    assert smaller.config.num_params() == sum(t.numel() for t in smaller.state_dict().values())
    torch.testing.assert_close(logits(smaller, texts), logits(model, texts), rtol=1e-3, atol=1e-4)


def test_norms_make_up_for_what_went():
    model = network(**SIZES, **LIVELY)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :16] *= 0.1  # quiet, so that the mean over the rest is larger
    texts = texts_for(model)
    seen = observe(model, texts, closely=True)
    kept = widest(model, seen, 48)
    smaller = narrow(model, kept, seen)
    uncorrected = narrow(model, kept, seen)
    with torch.no_grad():
        for name, norm in norms_of(uncorrected).items():
            norm.weight.copy_(model.get_submodule(name).weight[kept])
    with torch.no_grad():
        ids = torch.tensor(texts)
        wanted = model.model.layers[0].input_layernorm(model.embed(ids))[..., kept]
        got = [m.model.layers[0].input_layernorm(m.embed(ids)) for m in (smaller, uncorrected)]
    errors = [float((each - wanted).norm() / wanted.norm()) for each in got]
    assert errors[0] < 0.7 * errors[1]


def test_two_of_every_four_go_those_that_matter_least():
    model = network(**SIZES, **LIVELY)
    texts = texts_for(model)
    seen = observe(model, texts, closely=True)
    linear = model.model.layers[0].mlp.up_proj
    before, energy = linear.weight.detach().clone(), seen.energy["model.layers.0.mlp.up_proj"]
    assert two_of_four(model, seen) == 0.5
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            assert bool(((module.weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all())
    worth = (before.abs() * energy.sqrt()).unflatten(1, (-1, 4))
    stayed = (linear.weight != 0).unflatten(1, (-1, 4))
    least = torch.where(stayed, worth, float("inf")).amin(-1)
    assert bool((torch.where(stayed, 0.0, worth).amax(-1) <= least).all())
    assert torch.equal(linear.weight[linear.weight != 0], before[linear.weight != 0])
    codes, _ = quantize_rows(linear.weight, scheme=Scheme(4, 32))
    assert not codes[linear.weight == 0].any()  # rounding to nearest keeps zeros


def test_what_a_channel_carries_counts_beside_the_weight():
    models = [network(**SIZES, **LIVELY) for _ in range(3)]
    for model in models:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.input_layernorm.weight[::4] *= 10
                layer.post_attention_layernorm.weight[::4] *= 10
    reference, by_both, by_size = models
    texts = texts_for(reference)
    seen = observe(reference, texts, closely=True)
    two_of_four(by_both, seen)
    seen.energy.clear()
    two_of_four(by_size, seen)
    wanted = logits(reference, texts)
    assert float((logits(by_both, texts) - wanted).norm()) < float((logits(by_size, texts) - wanted).norm())


def test_experts_are_seen_by_their_own_tokens():
    model = deepseek(hidden_size=64)
    seen = observe(model, texts_for(model), closely=True)
    asked = [name for name in seen.energy if ".experts." in name and name.endswith("down_proj")]
    assert len(asked) > 2
    assert 0.4 < two_of_four(model, seen) <= 0.5


def stage(tmp_path, **keys):
    source = write_pupil(tmp_path / "source", **SIZES)
    data = write_data(tmp_path / "data", [conversation(f"{i} + {i}?", f"{2 * i}", "add") for i in range(8)])
    out = draft(tmp_path / "out")
    config = prune.Config(model="base", data="traces", texts=4, **keys)
    prune.check(config)
    prune.run(config, {"base": artifact(source), "traces": data}, fp32_run(tmp_path), out)
    return out, source


def test_the_stage_writes_a_narrower_file_and_says_that_zeros_save_no_bytes(tmp_path, capsys):
    out, source = stage(tmp_path / "narrow", width=0.5, layers=1)
    size = [(folder / "model.safetensors").stat().st_size for folder in (source, out.path)]
    assert load_model(out.path).config.hidden_size == 32
    assert size[1] < 0.6 * size[0]
    zeros, source = stage(tmp_path / "zeros", pattern="2:4")
    assert zeros.meta["zeros"] == 0.5
    assert "as large as before" in capsys.readouterr().err
    model = load_model(zeros.path)
    assert int((model.model.layers[0].mlp.up_proj.weight == 0).sum()) == 96 * 64 // 2


def test_widths_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="fewer than 32"):
        stage(tmp_path, width=0.9)
    gemma = network(model_type="gemma2", architectures=["Gemma2ForCausalLM"], **SIZES)
    with pytest.raises(RecipeError, match="plain RMSNorm"):
        prune.check_cut(prune.Config(model="m", data="d", width=0.2), gemma.config)
