"""LoRA: of each matrix of the layers a difference of low rank is learnt, and nothing else moves.

The network itself knows nothing of it: it computes with the sum, and the slope of the sum gives those of both factors.
So every kernel works as ever, and what is saved is memory: no fp32 copy and no moments of the weights. The checkpoint
that is left is the sum; the difference alone is written beside it, as PEFT reads it.
Source: arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from schoolhouse.core.errors import RecipeError, TrainError
from schoolhouse.core.run import Run
from schoolhouse.kernels.products import sum_in_place
from schoolhouse.model.families import names_of
from schoolhouse.model.transformer import Transformer
from schoolhouse.train.optimizer import Kind, Optimizer, is_hidden_matrix

ADAPTER = "adapter"  # the folder with the difference, in a checkpoint's folder
SCALE = 2.0  # of the product of both factors: PEFT's lora_alpha over the rank


class Learning(Protocol):
    """What the config of a stage says of what moves."""

    optimizer: Kind
    weight_decay: float
    lora: int | None


def check_lora(config: Learning) -> None:
    """Raise RecipeError for an optimizer that is not there for differences."""
    if config.lora is not None and config.optimizer != "adamw":
        raise RecipeError(f"lora learns factors, and only by AdamW: leave out optimizer {config.optimizer!r}, or lora.")


def mover(model: Transformer, config: Learning, run: Run) -> Optimizer | LoraOptimizer:
    """The optimizer that a stage's config asks for: of differences of rank `lora`, or of all weights."""
    if config.lora is not None:
        return LoraOptimizer(model, config.lora, run.seed, weight_decay=config.weight_decay)
    return Optimizer(model, kind=config.optimizer, weight_decay=config.weight_decay)


class LoraOptimizer:
    """AdamW over both factors of each difference. Same face as `Optimizer`."""

    def __init__(
        self,
        model: Transformer,
        rank: int,
        seed: int,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        clip: float = 1.0,
    ) -> None:
        self.rank, self._clip, self._model = rank, clip, model
        self._weights = {n: w for n, w in model.named_parameters() if is_hidden_matrix(n, w)}
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in self._weights)
        generator = torch.Generator().manual_seed(seed)
        self._begun = {n: w.detach().clone() for n, w in self._weights.items()}
        self._down = {n: _first(w, rank, generator) for n, w in self._weights.items()}  # (rank, in)
        self._up = {n: w.new_zeros(w.shape[0], rank, dtype=torch.float32) for n, w in self._weights.items()}
        for weight in self._weights.values():
            weight.grad = torch.zeros_like(weight)
            sum_in_place(weight)
        self._given: list[Tensor] | None = None
        factors = [*self._down.values(), *self._up.values()]
        self._adamw = torch.optim.AdamW(factors, betas=betas, eps=1e-8, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Move the factors by the slopes that the network holds, and zero those; returns the factors' norm before
        clipping. Raises TrainError, with the weights untouched, if it is not a number.
        """
        slopes = self._given or self.slopes()
        self._given = None
        square = 0.0
        for factor, slope in zip((*self._down.values(), *self._up.values()), slopes, strict=True):
            factor.grad = slope
            square += float(slope.square().sum())
        norm = math.sqrt(square) if math.isfinite(square) else math.nan
        if not math.isfinite(norm):
            raise TrainError(
                f"The gradient's norm is {norm}: the step was not taken. "
                "Lower the learning rate (lr) or look at the data."
            )
        shrink = min(1.0, self._clip / (norm + 1e-6))
        for slope in slopes:
            slope.mul_(shrink)
        self._adamw.param_groups[0]["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._hold()
        return norm

    def part_done(self) -> None:
        """Nothing to do: slopes add up where the network holds them."""

    @torch.no_grad()
    def slopes(self) -> list[Tensor]:
        """See `Mover.slopes`: those of all first factors, then those of the others."""
        down, up = [], []
        for name, weight in self._weights.items():
            assert weight.grad is not None, "made with the optimizer"
            slope = SCALE * weight.grad.float()  # (out, in)
            down.append(self._up[name].t() @ slope)
            up.append(slope @ self._down[name].t())
            weight.grad.zero_()
        return [*down, *up]

    def give(self, slopes: Sequence[Tensor]) -> None:
        """See `Mover.give`."""
        self._given = list(slopes)

    @torch.no_grad()
    def _hold(self) -> None:
        """Let the network hold the sum."""
        for name, weight in self._weights.items():
            weight.copy_(torch.addmm(self._begun[name].float(), self._up[name], self._down[name], alpha=SCALE))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beside the model that the stage starts from."""
        out: dict[str, Tensor] = {}
        for side, factors in (("down", self._down), ("up", self._up)):
            for name, factor in factors.items():
                held = {"factor": factor, **self._adamw.state.get(factor, {})}
                out |= {f"lora.{side}.{key}.{name}": value for key, value in held.items()}
        return out

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors()` gave, the network's own weights included."""
        for side, factors in (("down", self._down), ("up", self._up)):
            for name, factor in factors.items():
                factor.copy_(tensors[f"lora.{side}.factor.{name}"])
                held = {key: tensors.get(f"lora.{side}.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                state = {key: value.clone() for key, value in held.items() if value is not None}
                if state:
                    self._adamw.state[factor] = state
        self._hold()

    def save(self, folder: Path, source: str) -> bool:
        """Write the differences as PEFT reads them; source: what they are differences to.

        Returns False, and writes nothing, for a family whose checkpoints name or join the matrices otherwise than this
        network does.
        """
        names = names_of(self._model.config)
        if any(names.stored(name) != name for name in self._weights):
            return False
        folder.mkdir()
        stored = {}
        for name in self._weights:
            place = "base_model.model." + name.removesuffix(".weight")
            stored[f"{place}.lora_A.weight"] = self._down[name].cpu().contiguous()
            stored[f"{place}.lora_B.weight"] = self._up[name].cpu().contiguous()
        save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_model.safetensors").chmod(0o644)
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": source, "r": self.rank,
            "lora_alpha": SCALE * self.rank, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
            "target_modules": sorted({name.split(".")[-2] for name in self._weights}),
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return True


def _first(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The first factor as PEFT begins it, evenly within a bound by the width; the other begins with zeros."""
    bound = 1.0 / math.sqrt(weight.shape[1])
    drawn = torch.rand(rank, weight.shape[1], generator=generator)
    return ((2 * drawn - 1) * bound).to(weight.device)
