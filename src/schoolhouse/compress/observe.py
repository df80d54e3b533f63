"""What the parts of a network do on a few texts: how far a layer moves the stream, how much each channel carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.model.attention import Causal
from schoolhouse.model.moe import MixtureOfExperts, Routing
from schoolhouse.model.transformer import DecoderLayer, Transformer


@dataclass
class Observed:
    """Sums over the tokens of the texts."""

    tokens: int = 0
    nats: float = 0.0  # of all next tokens
    influence: dict[int, float] = field(default_factory=dict)  # of each layer, 1 - cos(what goes in, what comes out)
    energy: dict[str, Tensor] = field(default_factory=dict)  # of what a linear layer reads, (width,)
    gates: dict[int, Tensor] = field(default_factory=dict)  # of each layer, the shares that each expert got, (E,)

    @property
    def nats_per_token(self) -> float:
        """How surprised the network is by the texts."""
        return self.nats / max(1, self.tokens)


@torch.no_grad()
def observe(model: Transformer, texts: Sequence[Sequence[int]], *, closely: bool = False) -> Observed:
    """Show the texts, each ids of at least two tokens, to the network and write down what its parts do.

    closely: the energy of what every linear layer reads, experts too, and every norm of the stream.
    """
    seen = Observed()
    with _listening(model, seen, closely):
        for text in texts:
            ids = torch.tensor([text], device=model.head_weight.device)
            hidden = model.hidden(ids, Causal(1, len(text), ids.device))[0]
            logprobs, _ = model.logprobs(hidden[:-1], ids[0, 1:])
            seen.nats -= float(logprobs.sum())
            seen.tokens += len(text) - 1
    return seen


@contextmanager
def _listening(model: Transformer, seen: Observed, closely: bool) -> Iterator[None]:
    handles = []
    if closely:
        handles.append(model.model.norm.register_forward_pre_hook(_energy_in(seen, "model.norm")))
    for number, layer in enumerate(model.model.layers[: model.config.num_hidden_layers]):
        assert isinstance(layer, DecoderLayer)
        handles.append(layer.register_forward_hook(_influence(seen, number)))
        for name, module in layer.named_modules():
            own = f"model.layers.{number}.{name}"
            of_the_stream = name.endswith("layernorm") and "." not in name
            near = closely and (isinstance(module, nn.Linear) or of_the_stream)
            if near or name.endswith(("o_proj", "mlp.down_proj")):
                handles.append(module.register_forward_pre_hook(_energy_in(seen, own)))
            elif isinstance(module, MixtureOfExperts):
                handles += [module.register_forward_pre_hook(ask_experts)] * closely
                handles.append(module.gate.register_forward_hook(_gates(seen, number, len(module.experts))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ask_experts(moe: MixtureOfExperts, args: tuple[Tensor, ...]) -> None:
    """Show each expert its own tokens: the grouped product that computes with their weights never calls them."""
    flat = args[0].flatten(0, -2)
    chosen = moe.gate(flat).chosen
    for number, expert in enumerate(moe.experts):
        mine = (chosen == number).any(dim=-1)
        if bool(mine.any()):
            expert(flat[mine])


Hook = Callable[..., None]


def _influence(seen: Observed, number: int) -> Hook:
    def hook(_layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        moved = 1 - F.cosine_similarity(args[0].float(), out.float(), dim=-1)
        seen.influence[number] = seen.influence.get(number, 0.0) + float(moved.sum())

    return hook


def _add(seen: Observed, name: str, x: Tensor) -> None:
    energy = x.flatten(0, -2).float().square().sum(0)
    seen.energy[name] = seen.energy[name] + energy if name in seen.energy else energy


def _energy_in(seen: Observed, name: str) -> Hook:
    return lambda _module, args: _add(seen, name, args[0])


def _gates(seen: Observed, number: int, experts: int) -> Hook:
    def hook(_gate: nn.Module, _args: tuple[Any, ...], routing: Routing) -> None:
        mass = torch.zeros(experts, device=routing.shares.device)
        mass.index_add_(0, routing.chosen.flatten(), routing.shares.flatten().float())
        seen.gates[number] = seen.gates.get(number, 0) + mass

    return hook
