"""The stage `compress.upcycle`: a dense network as a mixture of experts that says the same and can learn more.

Each feed-forward is copied, and every copy cut into slices of neighbouring neurons, which are the experts. A router of
random rows, one row for all slices of a copy, sends a token to whole copies at first; their shares add up to one, so
that the mixture says what the dense network said, and experts grow apart as they train (`train.sft`, `train.distill`).

Sources: arXiv 2212.05055 (copies); arXiv 2410.07524 (virtual groups: slices that begin as one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.compress.calibrate import unquantized
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.config import ModelConfig, MoE
from schoolhouse.model.families import to_hf
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

_MIXTURES = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe", "deepseek_v3": "deepseek_v3"}


class Config(StageConfig):
    """Which dense network, and into how many experts."""

    model: Ref  # a Llama, Mistral or Qwen3 checkpoint, or one after `compress.latent`
    experts: int = Field(8, ge=1)  # of each layer, slices of all copies together
    active: int = Field(2, ge=1)  # experts that a token meets; a multiple of `slices`
    slices: int = Field(1, ge=1)  # that a feed-forward is cut into; the experts are that much narrower


def check(config: Config) -> None:
    """Raise RecipeError for numbers that do not go together."""
    if config.experts % config.slices or config.active % config.slices or config.active > config.experts:
        raise RecipeError(
            f"experts {config.experts}, active {config.active}, slices {config.slices}: a token begins with whole "
            "copies of the feed-forward: experts and active have to be multiples of slices, and active at most experts."
        )


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the mixture. Raises ModelError for a network that is none of the kinds that have one."""
    source = inputs[config.model].path
    unquantized(source)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    mixture = to_mixture(model, config, torch.Generator().manual_seed(run.seed))
    save_model(mixture, out.path, like=source)
    before, after = model.config.num_params(), mixture.config.num_params()
    out.meta |= {"num_params": after, "source_params": before, "runtime": run.runtime.describe()}
    run.log.info(
        f"{after:,} parameters instead of {before:,}, of which {mixture.config.active_params():,} work on each token"
    )


@torch.no_grad()
def to_mixture(model: Transformer, config: Config, generator: torch.Generator) -> Transformer:
    """The mixture, which says what the network said up to rounding."""
    shape = mixture_shape(model.config, config)
    with torch.device("meta"):
        mixture = Transformer(shape)
    state, width = model.state_dict(), model.config.intermediate_size // config.slices
    new = {name: tensor for name, tensor in state.items() if ".mlp." not in name}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp."
        new[f"{prefix}gate.weight"] = _router(model, config, generator)
        for expert in range(config.experts):
            rows = slice(expert % config.slices * width, (expert % config.slices + 1) * width)
            own = f"{prefix}experts.{expert}."
            for name in ("gate_proj", "up_proj"):
                new[f"{own}{name}.weight"] = state[f"{prefix}{name}.weight"][rows].clone()
            # A copy's share is divided among its slices, whose sum is the copy's output.
            new[f"{own}down_proj.weight"] = state[f"{prefix}down_proj.weight"][:, rows] * config.slices
        if shape.moe is not None and shape.moe.scoring_func == "sigmoid":
            new[f"{prefix}gate.e_score_correction_bias"] = torch.zeros(config.experts)
    mixture.load_state_dict(new, assign=True)
    return mixture.eval()


def _router(model: Transformer, config: Config, generator: torch.Generator) -> Tensor:
    """(E, D): a random row for each copy, the same for all of its slices."""
    copies, like = config.experts // config.slices, model.head_weight
    rows = torch.randn(copies, model.config.hidden_size, generator=generator) * model.config.initializer_range
    return rows.repeat_interleave(config.slices, dim=0).to(like)


def mixture_shape(shape: ModelConfig, config: Config) -> ModelConfig:
    """The config of the mixture. Raises ModelError where no family here expresses it."""
    kind = _MIXTURES.get(shape.model_type)
    is_dense = shape.moe is None or len(shape.moe.dense_layers) == shape.num_hidden_layers
    if kind is None or not is_dense or shape.hidden_act != "silu" or shape.mlp_bias or shape.num_nextn_predict_layers:
        raise ModelError(
            f"This {shape.model_type} has no twin with experts here: take a dense {', '.join(_MIXTURES)} (the last "
            "after compress.latent) with SwiGLU, without biases or prediction layers."
        )
    if shape.intermediate_size % config.slices:
        raise RecipeError(f"slices is {config.slices}, the feed-forward has {shape.intermediate_size} neurons.")
    width = shape.intermediate_size // config.slices
    moe = MoE(
        n_routed_experts=config.experts,
        num_experts_per_tok=config.active,
        moe_intermediate_size=width,
        scoring_func="sigmoid" if kind == "deepseek_v3" else "softmax",
    )
    made = replace(shape, model_type=kind, moe=moe)
    if kind == "mixtral":
        made = replace(made, intermediate_size=width)
    to_hf(made)  # an error if that family has no words for the rest of it
    return made
