"""Keeping a mixture's experts at work: who was sent how many tokens, and the bias that evens it out.

After each step an expert that got less than its even share becomes a little easier to choose, one that got more a
little harder; the bias never enters a token's sum, so that nothing pulls at the gradient. Seen from outside, by hooks
on the routers: the network knows nothing of it.

Source: arXiv 2412.19437, section 2.1.2; arXiv 2408.15664, algorithm 1 (the bias) and section 2.2 (MaxVio).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from schoolhouse.model.moe import Router, Routing

STARVED = 0.1  # of its even share: an expert with less learns next to nothing
WINDOW = 20  # steps that the alarm looks back
_BIAS = "balance."


@dataclass(frozen=True)
class Balancing:
    """How experts are kept even.

    bias_speed: what each step adds to or takes from an expert's bias (sigmoid routers have one); sequence_loss: weight
    of the loss against a single text that leans on few experts. Source: arXiv 2412.19437, section 4.2.
    """

    bias_speed: float = 1e-3
    sequence_loss: float = 0.0


class Balance:
    """Watches the routers of a network while it trains. Does nothing for a network without experts."""

    def __init__(self, model: nn.Module, balancing: Balancing) -> None:
        self._routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self._settings = balancing
        self._loads = {name: torch.zeros(len(r.weight), dtype=torch.int64) for name, r in self._routers.items()}
        self._seen: dict[str, Routing] = {}
        self._recent: deque[dict[str, Tensor]] = deque(maxlen=WINDOW)
        self._hungry: set[str] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs, keep what the routers decide. The engine's own passes lie outside of such blocks."""
        self._seen.clear()
        hooks = [router.register_forward_hook(self._keeper(name)) for name, router in self._routers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keeper(self, name: str) -> Any:
        def keep(_router: nn.Module, _inputs: object, routing: Routing) -> None:
            self._seen[name] = routing

        return keep

    def count(self, lengths: Sequence[int], texts_in_update: int) -> Tensor | None:
        """Add what was just seen to the step's loads; returns its share of the sequence-wise loss, None without one.

        lengths: tokens of the texts in the order in which they lie; what lies behind them is filler and not counted.
        texts_in_update: texts of all parts of this update, over which the loss is a mean.
        """
        total = sum(lengths)
        for name, routing in self._seen.items():
            load = routing.chosen[:total].flatten().bincount(minlength=len(self._loads[name]))
            self._loads[name] += load.cpu()
        if not self._seen or not self._settings.sequence_loss:
            return None
        sizes = torch.tensor(lengths, device=next(iter(self._seen.values())).scores.device)
        losses = [sequence_loss(r.scores[:total], r.chosen[:total], sizes).sum() for r in self._seen.values()]
        return self._settings.sequence_loss * torch.stack(losses).sum() / texts_in_update

    @torch.no_grad()
    def step(self) -> dict[str, Any]:
        """Move the biases by the loads of the whole step and start to count anew; returns the loads and MaxVio.

        With several ranks the loads of all are counted. Figures: `max_vio` is the mean over the layers, `expert_load`
        each expert's load beside the even one, layer by layer.
        """
        if not self._routers:
            return {}
        self._add_other_ranks()
        for name, router in self._routers.items():
            bias, load = router.e_score_correction_bias, self._loads[name].float()
            if bias is not None:
                bias += self._settings.bias_speed * torch.sign(load.mean() - load).to(bias.device)
        figures = {
            "max_vio": sum(max_violation(load) for load in self._loads.values()) / len(self._loads),
            "expert_load": [even_shares(load) for load in self._loads.values()],
        }
        self._recent.append({name: load.clone() for name, load in self._loads.items()})
        for load in self._loads.values():
            load.zero_()
        return figures

    def _add_other_ranks(self) -> None:
        if distributed.is_available() and distributed.is_initialized():
            for load in self._loads.values():
                distributed.all_reduce(load)

    def alarm(self) -> str | None:
        """A sentence when half of a layer's experts came to starve over the last steps; once, until they recover."""
        if len(self._recent) < WINDOW:
            return None
        hungry = {}
        for name in self._routers:
            load = torch.stack([loads[name] for loads in self._recent]).sum(0).float()
            starved = int((load < STARVED * load.mean()).sum())
            if 2 * starved >= len(load):
                hungry[name] = starved
        new = hungry.keys() - self._hungry
        self._hungry = set(hungry)
        if not new:
            return None
        worst = max(new, key=lambda name: hungry[name])
        return (
            f"The experts collapse: in {len(hungry)} of {len(self._routers)} layers half of them or more get less than "
            f"{STARVED:.0%} of their even share over {WINDOW} steps; worst is {worst.removesuffix('.gate')} with "
            f"{hungry[worst]} of {len(self._loads[worst])}. "
            "Lower lr, start from other weights, or raise bias_speed (train.pretrain)."
        )

    def tensors(self) -> dict[str, Tensor]:
        """The biases, by name: what a resumed run needs beside the optimizer's."""
        return {_BIAS + n: b for n, r in self._routers.items() if (b := r.e_score_correction_bias) is not None}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave."""
        for name, bias in self.tensors().items():
            bias.copy_(tensors[name])


def sequence_loss(scores: Tensor, chosen: Tensor, lengths: Tensor) -> Tensor:
    """How much each text leans on few experts: 1 where all get the same, up to E / A.

    scores: (N, E) float32, chosen: (N, A) int64, of texts laid end to end; lengths: (texts,) int64. Returns (texts,),
    with a gradient by the scores alone. Source: arXiv 2412.19437, eq. 17 to 20.
    """
    texts, experts = len(lengths), scores.shape[1]
    text = torch.arange(texts, device=scores.device).repeat_interleave(lengths)  # (N,)
    shares = scores / scores.sum(dim=-1, keepdim=True)
    mean = scores.new_zeros(texts, experts).index_add(0, text, shares) / lengths[:, None]  # P, (texts, E)
    counts = (text[:, None] * experts + chosen).flatten().bincount(minlength=texts * experts).view(texts, experts)
    load = counts * (experts / chosen.shape[1]) / lengths[:, None]  # f, (texts, E)
    return (load * mean).sum(dim=-1)


def max_violation(load: Tensor) -> float:
    """How far the busiest expert lies above the even load, in even loads; 0 without tokens. load: (E,)."""
    mean = float(load.float().mean())
    return (float(load.max()) - mean) / mean if mean else 0.0


def even_shares(load: Tensor) -> list[float]:
    """Each expert's load in even loads, to two decimals."""
    mean = max(float(load.float().mean()), 1e-9)
    return [round(x / mean, 2) for x in load.tolist()]
