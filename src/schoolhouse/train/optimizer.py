"""AdamW and Muon over fp32 master weights, and the learning rate's course.

The network trains and samples in bf16 where the machine multiplies it; a step of 1e-5 would vanish in bf16's rounding,
so each weight has an fp32 master that takes the steps and is rounded into the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from schoolhouse.core.errors import TrainError
from schoolhouse.kernels import adamw as kernel
from schoolhouse.kernels.products import sum_in_place
from schoolhouse.model.transformer import Transformer
from schoolhouse.train.rounding import Rounding

Kind = Literal["adamw", "muon"]

CHUNK = 1 << 24  # weights that take their step together, or one matrix


class Mover(Protocol):
    """What moves a network's weights by the slopes that it holds."""

    def step(self, lr: float) -> float:
        """Move once and return the slopes' norm."""

    def part_done(self) -> None:
        """The slope of one part has been added to those that the network holds."""

    def slopes(self) -> list[Tensor]:
        """Take the slopes out of the network, as fp32 and of what really moves; it holds none then."""

    def give(self, slopes: Sequence[Tensor]) -> None:
        """Let the next step move by these slopes, in the order of `slopes`."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave."""


class Optimizer:
    """Steps of one network.

    "muon" moves the layers' matrices by Muon (its update scaled to AdamW's root mean square, arXiv 2502.16982 eq. 4)
    and the rest by AdamW. Norms and biases never decay.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        kind: Kind = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        clip: float = 1.0,
        rounding: Rounding | None = None,
    ) -> None:
        self._clip, self._rounding = clip, rounding
        self._weights = dict(model.named_parameters())
        self._masters = {n: w.detach().float().clone() for n, w in self._weights.items()}
        # Made once, as AdamW's moments below are: blocks that live long, made between those of a training step, scatter
        # over the heap for good, and the gaps between them doubled the memory of a run (docs/lab-log.md, 2026-11-23).
        for weight in self._weights.values():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
            if weight.requires_grad:
                sum_in_place(weight)
        self._parts: list[tuple[list[str], torch.optim.Optimizer]] = []
        hidden = [n for n, m in self._masters.items() if kind == "muon" and is_hidden_matrix(n, m)]
        if hidden:
            matrices = [self._masters[n] for n in hidden]
            muon = torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append((hidden, muon))
        for names in _chunks({n: m for n, m in self._masters.items() if n not in hidden}):
            masters = [self._masters[n] for n in names]
            groups = [
                {"params": [m for m in masters if m.ndim >= 2], "weight_decay": weight_decay},
                {"params": [m for m in masters if m.ndim < 2], "weight_decay": 0.0},
            ]
            adamw = torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, eps=1e-8, fused=True)
            self._parts.append((names, adamw))
            for master in masters:
                adamw.state[master] = _first_state(master)
        if rounding is not None:
            for name in self._weights:
                self._hold(name)

    @torch.no_grad()
    def _hold(self, name: str) -> None:
        """Let the network hold a master in its own type; where it trains through rounding, as codes stand for it."""
        master = self._masters[name]
        self._weights[name].copy_(master if self._rounding is None else self._rounding(name, master))

    @torch.no_grad()
    def unround(self) -> None:
        """Let the network hold the masters as they are: what becomes the same codes when it is quantized."""
        for name, master in self._masters.items():
            self._weights[name].copy_(master)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Take one step with the gradients that the network holds, zero them, and return their norm before clipping.

        Raises TrainError, with the weights untouched, if the norm is not a number.
        """
        grads = {n: w.grad for n, w in self._weights.items() if w.grad is not None}
        if not grads:
            raise TrainError("No parameter has a gradient: all of the network is frozen.")
        norm = kernel.norm(list(grads.values()))
        if not math.isfinite(norm):
            raise TrainError(
                f"The gradient's norm is {norm}: the step was not taken. "
                "Lower the learning rate (lr) or look at the data."
            )
        factor = min(1.0, self._clip / (norm + 1e-6))
        for names, part in self._parts:
            moved = {n: grads[n] for n in names if n in grads}
            fused = self._rounding is None and all(kernel.can_step(self._weights[n], g) for n, g in moved.items())
            if fused and isinstance(part, torch.optim.AdamW):
                self._step_fused(part, moved, lr, factor)
            else:
                self._step_plain(part, moved, lr, factor)
        return norm

    def part_done(self) -> None:
        """Nothing to do: slopes add up where the network holds them."""

    def slopes(self) -> list[Tensor]:
        """See `Mover.slopes`: one for each weight that moves."""
        taken = [grad.to(torch.float32, copy=True) for w in self._weights.values() if (grad := w.grad) is not None]
        for weight in self._weights.values():
            if weight.grad is not None:
                weight.grad.zero_()
        return taken

    def give(self, slopes: Sequence[Tensor]) -> None:
        """See `Mover.give`."""
        moving = [grad for w in self._weights.values() if (grad := w.grad) is not None]
        for grad, slope in zip(moving, slopes, strict=True):
            grad.copy_(slope)

    def _step_fused(self, part: torch.optim.AdamW, grads: Mapping[str, Tensor], lr: float, factor: float) -> None:
        """AdamW in one pass over memory, of weights and gradients in bf16."""
        names = {id(self._masters[n]): n for n in grads}
        for group in part.param_groups:
            pace = kernel.Pace(lr, group["weight_decay"], group["betas"], factor, group["eps"])
            moves = [
                kernel.Move(self._weights[name], grads[name], master, part.state[master])
                for master in group["params"]
                if (name := names.get(id(master))) is not None
            ]
            kernel.step(moves, pace)

    def _step_plain(self, part: torch.optim.Optimizer, grads: Mapping[str, Tensor], lr: float, factor: float) -> None:
        """torch's own step, with the gradients in fp32 for as long as it takes."""
        for name, grad in grads.items():
            self._masters[name].grad = grad.to(torch.float32, copy=True).mul_(factor)
            grad.zero_()
        for group in part.param_groups:
            group["lr"] = lr
        part.step()
        for name in grads:
            self._masters[name].grad = None
            self._hold(name)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs: masters and moments, by name."""
        names = {id(m): n for n, m in self._masters.items()}
        out = {f"master.{n}": m for n, m in self._masters.items()}
        for _, part in self._parts:
            for weight, state in part.state.items():
                out |= {f"{key}.{names[id(weight)]}": value for key, value in state.items()}
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave, to the last bit, the network's own weights included."""
        for name, master in self._masters.items():
            master.copy_(tensors[f"master.{name}"])
            self._hold(name)
        by_id = {id(m): n for n, m in self._masters.items()}
        for _, part in self._parts:
            for weight in (w for g in part.param_groups for w in g["params"]):
                suffix = f".{by_id[id(weight)]}"
                held = {k.removesuffix(suffix): v for k, v in tensors.items() if k.endswith(suffix)}
                held = {k: v.clone() for k, v in held.items() if k != "master" and "." not in k}
                if held.keys() == part.state[weight].keys():
                    for key, value in held.items():
                        part.state[weight][key].copy_(value)
                elif held:
                    part.state[weight] = held


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon moves a weight: a layer's matrices, but not a router's, whose rows are one vector an expert."""
    return weight.ndim == 2 and ".layers." in name and not name.endswith(".mlp.gate.weight")


def _chunks(masters: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of weights that take their step together: only their gradients lie in memory in fp32 at one time."""
    chunks: list[list[str]] = []
    held = CHUNK
    for name, master in masters.items():
        if held + master.numel() > CHUNK:
            chunks.append([])
            held = 0
        chunks[-1].append(name)
        held += master.numel()
    return chunks


def _first_state(weight: Tensor) -> dict[str, Tensor]:
    """AdamW's memory as torch would make it in the first step."""
    step = torch.zeros((), dtype=torch.float32, device=weight.device)
    return {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}


def learning_rate(
    peak: float, progress: float, *, warmup: float = 0.05, hold: float = 0.0, floor: float = 0.1
) -> float:
    """Linear rise over the first `warmup` of the course, at the peak until `hold`, then a cosine down to `floor` of it.

    progress: share of the course that is done, 0 to 1; by steps or by time, as the stage is limited.
    """
    if progress < warmup:
        return peak * max(progress / warmup, 0.02)
    start = max(warmup, hold)
    along = min(1.0, max(0.0, progress - start) / (1.0 - start))
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * along)))
