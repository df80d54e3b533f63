"""The mean of several models' weights."""

import pytest
import torch

from school import artifact, draft, fp32_run, write_pupil
from schoolhouse.compress import average
from schoolhouse.core.errors import RecipeError
from schoolhouse.model.weights import load_model


def mean(folder, models, **settings):
    out = draft(folder / "out")
    config = average.Config(models=list(models), **settings)
    average.check(config)
    average.run(config, models, fp32_run(folder), out)
    return out


def test_it_is_the_weighted_mean_of_every_weight(tmp_path):
    models = {name: artifact(write_pupil(tmp_path / name, seed)) for seed, name in enumerate("ab")}
    out = mean(tmp_path, models, weights=[3, 1])
    states = [load_model(model.path).state_dict() for model in models.values()]
    for name, tensor in load_model(out.path).state_dict().items():
        wanted = (0.75 * states[0][name] + 0.25 * states[1][name]).bfloat16().float()
        assert torch.equal(tensor, wanted), name
    assert (out.path / "tokenizer.json").exists()


def test_what_has_no_mean_is_refused(tmp_path):
    models = {
        "a": artifact(write_pupil(tmp_path / "a")),
        "b": artifact(write_pupil(tmp_path / "b", num_hidden_layers=3)),
    }
    with pytest.raises(RecipeError, match="a and b have different shapes"):
        mean(tmp_path, models)
    with pytest.raises(RecipeError, match="one number above 0 for each of the 2"):
        mean(tmp_path, models, weights=[1])
