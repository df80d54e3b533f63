"""The stage `compress.prune`: a smaller network cut out of a larger one, by what its parts do on the user's own texts.

What goes are whole rows and columns, so that the file shrinks and every program reads it: decoder layers that hardly
move the stream, neurons of the feed-forward and groups of heads that carry little, experts that are hardly asked,
channels of the stream itself. What is left has forgotten some of what it knew until `train.distill` lets it learn from
the original. Two of every four weights may be set to 0, too, which no file is the smaller for.

Sources: arXiv 2403.03853, section 3.1 (layers by their influence); arXiv 2407.14679, section 2.2 (width by what
activations carry).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.compress.calibrate import read_texts, unquantized
from schoolhouse.compress.narrow import narrow, two_of_four, widest
from schoolhouse.compress.observe import Observed, observe
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

STEP = 32  # neurons that are left come in multiples of this: fast products, and groups of int4


class Config(StageConfig):
    """What to cut: the checkpoint that a stage made, by what it does on the conversations of another."""

    model: Ref
    data: Ref
    texts: int = Field(128, ge=1)  # how many of its conversations
    layers: int = Field(0, ge=0)  # decoder layers to drop, those that change the stream least
    neurons: float = Field(0.0, ge=0, lt=1)  # share of the feed-forward's neurons to drop
    head_groups: int = Field(0, ge=0)  # key heads to drop in each layer, with the query heads that share them
    experts: float = Field(0.0, ge=0, lt=1)  # share of the routed experts to drop, those with the least gate mass
    width: float = Field(0.0, ge=0, lt=1)  # share of the stream's channels to drop, in all layers the same
    pattern: Literal["2:4"] | None = None  # two of every four weights to 0: for hardware that skips them


def check(config: Config) -> None:
    """Raise RecipeError if nothing is to be cut."""
    if not (config.layers or config.neurons or config.head_groups or config.experts or config.width or config.pattern):
        raise RecipeError("nothing is to be cut: set layers, neurons, head_groups, experts, width or pattern.")


@dataclass(frozen=True)
class Plan:
    """What stays: numbers of layers, and for each of them of neurons, key heads and experts, in their old order."""

    layers: list[int]
    neurons: dict[int, Tensor]
    heads: dict[int, Tensor]
    experts: dict[int, Tensor]


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the smaller checkpoint, and what it cost on the texts that it was chosen by.

    Raises RecipeError for a cut that leaves nothing, or that this network has nothing of.
    """
    source = inputs[config.model].path
    unquantized(source)
    texts = read_texts(inputs[config.data], source, config.texts)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    check_cut(config, model.config)
    run.log.info(f"looking at {sum(map(len, texts)):,} tokens of {len(texts)} conversations")
    seen = observe(model, texts, closely=config.width > 0)
    plan = choose(config, model, seen)
    narrower = narrow(model, widest(model, seen, _channels_left(config, model.config)), seen) if config.width else model
    smaller = cut(narrower, plan)
    after = observe(smaller, texts, closely=config.pattern is not None)
    if config.pattern is not None:
        out.meta["zeros"] = two_of_four(smaller, after)
        after = observe(smaller, texts)
        run.log.warn(
            f"{out.meta['zeros']:.0%} of the layers' weights are 0 now, and the file is as large as before: this saves "
            "time on hardware that skips them, bytes only with codes (format 'int4', method 'nearest' keeps zeros). "
            "Training fills them again: cut this pattern last."
        )
    save_model(smaller, out.path, like=source)
    before, left = model.config.num_params(), smaller.config.num_params()
    out.meta |= {
        "num_params": left,
        "source_params": before,
        "nats_per_token": after.nats_per_token,
        "source_nats_per_token": seen.nats_per_token,
        "runtime": run.runtime.describe(),
    }
    run.log.info(
        f"{left:,} of {before:,} parameters left ({left / before:.0%}); on these texts {after.nats_per_token:.3f} nats "
        f"a token instead of {seen.nats_per_token:.3f}: let train.distill heal it"
    )


def check_cut(config: Config, shape: ModelConfig) -> None:
    """Raise RecipeError for a cut that the network cannot bear."""
    if config.layers >= shape.num_hidden_layers:
        raise RecipeError(f"layers is {config.layers}, the network has {shape.num_hidden_layers}: leave one.")
    if config.head_groups and shape.mla is not None:
        raise RecipeError("head_groups: heads that share latents have no key heads of their own; leave it out.")
    if config.head_groups >= shape.num_key_value_heads:
        raise RecipeError(f"head_groups is {config.head_groups}, a layer has {shape.num_key_value_heads}: leave one.")
    if config.neurons and _neurons_left(config, shape) < STEP:
        raise RecipeError(f"neurons is {config.neurons}: of {shape.intermediate_size} fewer than {STEP} would be left.")
    if config.width and (shape.norm != "rms" or shape.scale_embeddings):
        raise RecipeError("width: channels are cut of networks with plain RMSNorm alone; leave it out.")
    if config.width and _channels_left(config, shape) < STEP:
        raise RecipeError(f"width is {config.width}: of {shape.hidden_size} channels fewer than {STEP} would be left.")
    if config.experts and shape.moe is None:
        raise RecipeError("experts: this network has none; leave it out.")
    if shape.moe is not None and _experts_left(config, shape) < shape.moe.num_experts_per_tok:
        raise RecipeError(
            f"experts is {config.experts}: fewer would be left than the {shape.moe.num_experts_per_tok} that each "
            "token is sent to."
        )


def choose(config: Config, model: Transformer, seen: Observed) -> Plan:
    """What stays, by what was seen."""
    shape = model.config
    depth = shape.num_hidden_layers
    dropped = sorted(seen.influence, key=lambda layer: seen.influence[layer])[: config.layers]
    layers = [layer for layer in range(depth) if layer not in dropped]
    state = model.state_dict()
    neurons, heads, experts = {}, {}, {}
    for layer in layers:
        prefix = f"model.layers.{layer}."
        if f"{prefix}mlp.down_proj" in seen.energy:
            neurons[layer] = _largest(_carried(seen, state, f"{prefix}mlp.down_proj"), _neurons_left(config, shape))
        if shape.mla is None:
            carried = _carried(seen, state, f"{prefix}self_attn.o_proj").unflatten(0, (shape.num_key_value_heads, -1))
            heads[layer] = _largest(carried.sum(-1), shape.num_key_value_heads - config.head_groups)
        if shape.moe is not None and layer in seen.gates:
            by_group = seen.gates[layer].unflatten(0, (shape.moe.n_group, -1))
            kept = _experts_left(config, shape) // shape.moe.n_group
            first = torch.arange(shape.moe.n_group)[:, None] * by_group.shape[1]
            experts[layer] = (torch.stack([_largest(g, kept) for g in by_group]) + first).flatten()
    return Plan(layers, neurons, heads, experts)


def _neurons_left(config: Config, shape: ModelConfig) -> int:
    if not config.neurons:
        return shape.intermediate_size
    return round(shape.intermediate_size * (1 - config.neurons) / STEP) * STEP


def _channels_left(config: Config, shape: ModelConfig) -> int:
    return round(shape.hidden_size * (1 - config.width) / STEP) * STEP


def _experts_left(config: Config, shape: ModelConfig) -> int:
    assert shape.moe is not None, "check_cut refuses it"
    return round(shape.moe.n_routed_experts * (1 - config.experts) / shape.moe.n_group) * shape.moe.n_group


def _carried(seen: Observed, state: Mapping[str, Tensor], layer: str) -> Tensor:
    """How much of what the layer adds to the stream comes through each of its inputs: energy times its column's."""
    return seen.energy[layer].cpu() * state[f"{layer}.weight"].float().square().sum(0).cpu()


def _largest(worth: Tensor, count: int) -> Tensor:
    """Places of the largest, in their old order."""
    return worth.topk(count).indices.sort().values


@torch.no_grad()
def cut(model: Transformer, plan: Plan) -> Transformer:
    """The network that is left. Layers that predict further tokens are dropped: they spoke for the whole one."""
    with torch.device("meta"):
        smaller = Transformer(shape_left(model.config, plan))
    old = model.state_dict()
    parts = {name: _part(name, old, model.config, plan) for name in smaller.state_dict()}
    smaller.load_state_dict(parts, assign=True)
    return smaller.to(model.head_weight.device)


def shape_left(shape: ModelConfig, plan: Plan) -> ModelConfig:
    """The config of what is left."""
    first = plan.layers[0]
    kept_heads = len(plan.heads[first]) if plan.heads else shape.num_key_value_heads
    share = shape.num_attention_heads // shape.num_key_value_heads
    moe = shape.moe
    if moe is not None:
        dense = tuple(i for i, layer in enumerate(plan.layers) if not shape.has_experts(layer))
        experts = next((len(kept) for kept in plan.experts.values()), moe.n_routed_experts)
        moe = replace(moe, n_routed_experts=experts, dense_layers=dense)
    return replace(
        shape,
        num_hidden_layers=len(plan.layers),
        intermediate_size=next((len(kept) for kept in plan.neurons.values()), shape.intermediate_size),
        num_attention_heads=kept_heads * share,
        num_key_value_heads=kept_heads,
        layer_types=None if shape.layer_types is None else tuple(shape.layer_types[layer] for layer in plan.layers),
        moe=moe,
        num_nextn_predict_layers=0,
    )


def _part(name: str, old: Mapping[str, Tensor], shape: ModelConfig, plan: Plan) -> Tensor:
    """What is left of the tensor that has this name in the smaller network."""
    if not name.startswith("model.layers."):
        return old[name]
    _, _, number, inner = name.split(".", 3)
    layer = plan.layers[int(number)]
    if inner.startswith("mlp.experts."):
        _, _, expert, rest = inner.split(".", 3)
        return old[f"model.layers.{layer}.mlp.experts.{int(plan.experts[layer][int(expert)])}.{rest}"]
    tensor = old[f"model.layers.{layer}.{inner}"]
    for ending, dimension, kept in _cuts(layer, shape, plan):
        if inner.startswith(ending) and tensor.ndim > dimension:
            tensor = tensor.index_select(dimension, kept.to(tensor.device))
    return tensor.clone()


def _cuts(layer: int, shape: ModelConfig, plan: Plan) -> list[tuple[str, int, Tensor]]:
    """Beginnings of names, and which rows (0) or columns (1) of such tensors stay."""
    cuts: list[tuple[str, int, Tensor]] = []
    if layer in plan.neurons:
        neurons = plan.neurons[layer]
        cuts += [("mlp.gate_proj.", 0, neurons), ("mlp.up_proj.", 0, neurons), ("mlp.down_proj.weight", 1, neurons)]
    if layer in plan.heads:
        groups, width = plan.heads[layer], shape.head_dim
        share = shape.num_attention_heads // shape.num_key_value_heads
        keys, queries = _spread(groups, width), _spread(groups, width * share)
        cuts += [("self_attn.q_proj.", 0, queries), ("self_attn.o_proj.weight", 1, queries)]
        cuts += [("self_attn.k_proj.", 0, keys), ("self_attn.v_proj.", 0, keys)]
    if layer in plan.experts:
        cuts += [("mlp.gate.", 0, plan.experts[layer])]
    return cuts


def _spread(groups: Tensor, width: int) -> Tensor:
    """Numbers of groups to the places of all that they hold."""
    return (groups[:, None] * width + torch.arange(width)).flatten()
