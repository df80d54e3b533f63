"""Training through rounding: what codes will stand for is what learns and speaks."""

import pytest
import torch
from safetensors.torch import load_file
from test_distill import learn, settings

from school import LIVELY, artifact, fp32_run, metrics, network, write_bytes, write_colours, write_pupil
from schoolhouse.compress.quantize import quantize_folder
from schoolhouse.core.errors import RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.model.codes import Scheme, quantize_rows, spread
from schoolhouse.model.quantization import schemes_of
from schoolhouse.model.weights import load_model, save_model
from schoolhouse.train import distill
from schoolhouse.train.optimizer import Optimizer
from schoolhouse.train.rounding import rounding_for

SIZES = {"hidden_size": 64, "intermediate_size": 64}
INT4 = Scheme(4, 64)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """It has learnt nothing, and is not sure of anything."""
    return artifact(write_bytes(write_pupil(tmp_path_factory.mktemp("master"), **SIZES, **LIVELY)))


def rounded(weight, scheme=INT4):
    codes, scales = quantize_rows(weight.bfloat16(), scheme=scheme)
    return codes * spread(scales, weight.shape[1]).float()


@pytest.mark.parametrize("to", ["int4", "int8"])
def test_the_network_holds_codes_and_the_master_takes_the_step(to):
    model = network(**SIZES)
    scheme = INT4 if to == "int4" else Scheme(8)
    linear, norm = model.model.layers[0].mlp.up_proj, model.model.norm
    exact = linear.weight.detach().clone()
    optimizer = Optimizer(model, rounding=rounding_for(model, to, None))
    assert torch.equal(linear.weight, rounded(exact, scheme))
    model(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    slope = linear.weight.grad.clone()
    before = norm.weight.detach().clone()
    optimizer.step(1e-4)
    master = optimizer.tensors()["master.model.layers.0.mlp.up_proj.weight"]
    moved = master - exact
    assert float(moved.abs().max()) <= 1.01e-4  # a step far smaller than a code's, which rounding would swallow
    assert bool((moved[slope != 0].sign() == -slope[slope != 0].sign()).all())
    assert torch.equal(linear.weight, rounded(master, scheme))
    assert not torch.equal(norm.weight, before)
    embedding = optimizer.tensors()["master.model.embed_tokens.weight"]
    assert torch.equal(model.model.embed_tokens.weight, rounded(embedding, scheme))
    again = network(seed=1, **SIZES)
    other = Optimizer(again, rounding=rounding_for(again, to, None))
    other.restore(optimizer.tensors())
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, linear.weight)
    optimizer.unround()
    assert torch.equal(linear.weight, master)


def divergence(model, master, ids):
    wanted, got = (m(ids).logits.log_softmax(-1) for m in (master, model))
    return (wanted.exp() * (wanted - got)).sum(-1).mean()


def in_codes(model, folder):
    save_model(model, folder / "whole")
    quantize_folder(folder / "whole", folder / "codes", Run.for_tests(folder), INT4, INT4)
    return load_model(folder / "codes")


def test_int4_recovers_and_nearest_gives_the_codes_that_were_trained(tmp_path):
    master = network(**SIZES, **LIVELY).requires_grad_(False)
    model = network(**SIZES, **LIVELY)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, master.config.vocab_size, (16, 16), generator=generator)
    with torch.no_grad():
        before = float(divergence(in_codes(model, tmp_path / "before"), master, texts))
    optimizer = Optimizer(model, rounding=rounding_for(model, "int4", None))
    for step in range(60):
        divergence(model, master, texts).backward()
        optimizer.step(1e-3 * (1.05 - step / 60))
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.unround()
    after = in_codes(model, tmp_path / "after")
    assert len(schemes_of(after)) > 10
    for name in schemes_of(after):
        assert torch.equal(after.get_submodule(name).dequantized(), trained[f"{name}.weight"])
    with torch.no_grad():
        assert float(divergence(after, master, texts)) < 0.5 * before


def test_the_stage_learns_from_the_master_through_rounding(master, task, tmp_path):
    plain, coded = (
        learn(master, master, task, tmp_path / name, steps=1, max_new_tokens=12, **keys)
        for name, keys in (("plain", {}), ("coded", {"codes": "int4"}))
    )
    losses = [metrics(out.path)[0]["loss"] for out in (plain, coded)]
    assert abs(losses[0]) < 1e-6  # it is its own master
    assert losses[1] > 1e-3  # and no longer, once it is rounded
    weights = [
        load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        for folder in (master.path, coded.path)
    ]
    assert 0 < float((weights[1].float() - weights[0].float()).abs().max()) < 0.01  # masters are kept, not codes


def test_interrupted_it_goes_on_to_the_same_bits(master, task, tmp_path):
    keys = {"codes": "int8", "code_group": 32, "steps": 4, "max_new_tokens": 12}
    whole = learn(master, master, task, tmp_path / "whole", **keys)
    run = fp32_run(tmp_path / "cut")
    say = run.log.step

    def press(done, total=None, **figures):
        say(done, total, **figures)
        if done == 2:
            run.interrupted.set()

    run.log.step = press
    with pytest.raises(Stopped, match="after step 2"):
        learn(master, master, task, tmp_path / "cut", run, **keys)
    out = learn(master, master, task, tmp_path / "cut", **keys)
    assert (out.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert (out.meta["codes"], out.meta["code_group"]) == ("int8", 32)


def test_what_does_not_fit_is_refused(task, tmp_path):
    with pytest.raises(RecipeError, match="code_group is 32"):
        distill.check(settings(task, code_group=32))
    narrow = artifact(write_bytes(write_pupil(tmp_path / "narrow", hidden_size=48, intermediate_size=48)))
    with pytest.raises(RecipeError, match="smaller group"):
        learn(narrow, narrow, task, tmp_path, codes="int4")
