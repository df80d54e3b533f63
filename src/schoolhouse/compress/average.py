"""The stage `compress.average`: models that were taught different things from one beginning, as their weights' mean.

The cheapest way to make one of several, and what learning from several masters (`train.distill`) has to beat.
Source: arXiv 2203.05482, section 2 (model soups).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field

from schoolhouse.compress.calibrate import unquantized
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.weights import load_model, save_model


class Config(StageConfig):
    """Which models."""

    models: list[Ref] = Field(min_length=2)  # of one shape, taught from one beginning
    weights: list[float] | None = None  # of each, in proportion; equal without it


def check(config: Config) -> None:
    """Raise RecipeError for weights that do not belong to the models."""
    weights = config.weights
    if weights is not None and (len(weights) != len(config.models) or min(weights) <= 0):
        raise RecipeError(f"weights is {weights}: give one number above 0 for each of the {len(config.models)} models.")


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes that the stage takes at most, estimated: the sum in fp32, and one model beside it."""
    return 8 * max(inputs_meta.get(name, {}).get("num_params", 0) for name in config.models)


@torch.no_grad()
def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the mean. Raises RecipeError for models of different shapes."""
    weights = config.weights or [1.0] * len(config.models)
    first, *others = config.models
    for name in config.models:
        unquantized(inputs[name].path)
    mean = load_model(inputs[first].path, torch.float32, run.runtime.device)
    sums = mean.state_dict()
    for tensor in sums.values():
        tensor *= weights[0] / sum(weights)
    for name, weight in zip(others, weights[1:], strict=True):
        model = load_model(inputs[name].path, torch.float32, run.runtime.device)
        if model.config != mean.config:
            raise RecipeError(f"{first} and {name} have different shapes: only weights at the same place have a mean.")
        for key, tensor in model.state_dict().items():
            sums[key].add_(tensor, alpha=weight / sum(weights))
    save_model(mean, out.path, like=inputs[first].path)
    out.meta |= {"num_params": mean.config.num_params()}
    run.log.info(f"the mean of {', '.join(config.models)}")
