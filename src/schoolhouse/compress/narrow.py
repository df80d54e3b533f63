"""Fewer channels in the stream, and two of every four weights: cuts that go through all layers of a network alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from schoolhouse.compress.observe import Observed
from schoolhouse.model.transformer import DecoderLayer, Transformer

_COLUMNS = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa", "gate_proj",
            "up_proj", "gate")  # fmt: skip
_ROWS = ("o_proj", "down_proj")


def norms_of(model: Transformer) -> dict[str, nn.Module]:
    """The norms that read the stream, by name."""
    norms = {"model.norm": model.model.norm}
    for number, layer in enumerate(model.model.layers[: model.config.num_hidden_layers]):
        assert isinstance(layer, DecoderLayer)
        own = {name: module for name, module in layer.named_children() if name.endswith("layernorm")}
        norms |= {f"model.layers.{number}.{name}": module for name, module in own.items()}
    return norms


def widest(model: Transformer, seen: Observed, count: int) -> Tensor:
    """The channels of the stream that carry most behind the norms, in their old order. Source: arXiv 2407.14679."""
    worth = torch.zeros(model.config.hidden_size)
    for name, norm in norms_of(model).items():
        energy, weight = seen.energy[name].cpu(), norm.weight
        assert isinstance(weight, Tensor)
        worth += weight.detach().float().square().cpu() * energy / energy.mean().clamp(min=1e-20)
    return worth.topk(count).indices.sort().values


@torch.no_grad()
def narrow(model: Transformer, kept: Tensor, seen: Observed) -> Transformer:
    """The network with these channels (C,) of its stream alone. Layers that predict further tokens are dropped.

    A norm divides by the root of the mean over channels, which is another over those that are left: its weight makes up
    for what that is on average over the texts, exactly where the channels that went were silent.
    """
    with torch.device("meta"):
        smaller = Transformer(replace(model.config, hidden_size=len(kept), num_nextn_predict_layers=0))
    factors = {f"{name}.weight": _louder(seen.energy[name], kept) for name in norms_of(model)}
    old, kept = model.state_dict(), kept.to(model.head_weight.device)
    smaller.load_state_dict({name: _left(name, old, kept, factors) for name in smaller.state_dict()}, assign=True)
    return smaller


def _louder(energy: Tensor, kept: Tensor) -> float:
    """The mean square over the channels that stay by that over all, as a root."""
    energy = energy.cpu()
    return float((energy[kept].mean() / energy.mean().clamp(min=1e-20)).sqrt())


def _left(name: str, old: Mapping[str, Tensor], kept: Tensor, factors: Mapping[str, float]) -> Tensor:
    tensor, (part, leaf) = old[name], name.rsplit(".", 2)[-2:]
    if name in factors:
        return (tensor[kept].float() * factors[name]).to(tensor.dtype)
    if part in _ROWS:
        return tensor.index_select(0, kept)
    if part in _COLUMNS and leaf == "weight":
        return tensor.index_select(1, kept)
    return tensor.clone()


@torch.no_grad()
def two_of_four(model: Transformer, seen: Observed) -> float:
    """Set two of every four neighbouring weights of the layers' matrices to 0, where they matter least.

    What matters is a weight's size times that of the channel it reads (arXiv 2306.11695); where nothing was seen, its
    size. Matrices whose rows are no multiple of four stay whole. Returns the share of the layers' weights set to 0.
    """
    cut = whole = 0
    for name, module in model.model.layers.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight, energy = module.weight, seen.energy.get(f"model.layers.{name}")
        whole += weight.numel()
        if weight.shape[1] % 4:
            continue
        loud = 1.0 if energy is None else energy.sqrt().to(weight.device)
        worth = (weight.float().abs() * loud).unflatten(1, (-1, 4))  # (N, K / 4, 4)
        least = worth.topk(2, dim=-1, largest=False).indices
        weight.unflatten(1, (-1, 4)).scatter_(2, least, 0.0)
        cut += weight.numel() // 2
    return cut / whole if whole else 0.0
