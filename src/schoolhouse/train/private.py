"""Training that can tell little of any one conversation: each one's slope is clipped, and noise is added to their sum.

Which conversations a step takes is drawn by chance, each by itself, and neither that nor the noise follows from the
recipe's seed: who knew them could take the noise away. So a private stage is the one that is not the same when it is
run again. Source: arXiv 1607.00133, algorithm 1; the numbers are `privacy`'s.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.core.config import Strict
from schoolhouse.core.errors import RecipeError
from schoolhouse.text.chat import Rendered
from schoolhouse.train.fit import Batch, Part
from schoolhouse.train.optimizer import Mover
from schoolhouse.train.privacy import epsilon, noise_for

PRIVACY = "privacy"  # under which key of an artifact's facts it stands, a line a stage


class Privacy(Strict):
    """How much a model may tell of one conversation that it learnt from."""

    epsilon: float = Field(gt=0)  # the most that it may tell; below 1 is strong, above 10 says little
    delta: float | None = Field(default=None, gt=0, lt=1)  # the chance that it tells more; 0.1 over the conversations
    clip: float = Field(default=0.1, gt=0)  # norm to which each conversation's slope is cut


@dataclass(frozen=True)
class Plan:
    """What a privacy means for so many conversations and steps."""

    rate: float  # chance of a conversation to be part of a step
    noise: float  # standard deviation over the clipping norm
    delta: float

    def spent(self, steps: int) -> float:
        """The epsilon of so many steps."""
        return epsilon(steps, self.rate, self.noise, self.delta)


def plan(privacy: Privacy, conversations: int, batch: int, steps: int) -> Plan:
    """The noise that keeps `steps` within the privacy. Raises RecipeError where none does, or a batch is everything."""
    if batch >= conversations:
        raise RecipeError(f"privacy needs chance: a step takes {batch} of {conversations} conversations; take fewer.")
    delta = 0.1 / conversations if privacy.delta is None else privacy.delta
    rate = batch / conversations
    return Plan(rate, noise_for(privacy.epsilon, steps, rate, delta), delta)


class Chance:
    """The source of batches: each conversation with the same chance, in a part of its own."""

    def __init__(self, rows: Sequence[Rendered], rate: float, part_of: Callable[[Rendered], Part]) -> None:
        self._rows, self._rate, self._part_of = rows, rate, part_of
        self._random = secrets.SystemRandom()

    def batch(self, step: int) -> Batch:
        """See `Source.batch`; it may be empty, and noise is added all the same."""
        picked = [row for row in self._rows if self._random.random() < self._rate]
        parts = [self._part_of(row) for row in picked]
        return Batch([parts], sum(len(row.ids) for row in picked), {"conversations": len(picked)})

    def state(self) -> dict[str, Any]:
        """Nothing: no step is drawn as another one was."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


class PrivateMover:
    """Moves by the sum of clipped slopes and noise. Same face as the mover within it."""

    def __init__(self, mover: Mover, clip: float, noise: float, expected: float) -> None:
        """clip: norm of each part's slope at most; expected: parts of a step, by whose number losses are divided."""
        self._mover, self._clip, self._noise = mover, clip / expected, noise
        self._sum: list[Tensor] | None = None
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))

    @torch.no_grad()
    def part_done(self) -> None:
        """Cut the slope of what was computed last, and add it to those before it."""
        slopes = self._mover.slopes()
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        # A slope that is no number would tell that this conversation made it so: it counts as none.
        factor = min(1.0, self._clip / (norm + 1e-12)) if math.isfinite(norm) else 0.0
        self._sum = self._sum or [torch.zeros_like(slope) for slope in slopes]
        for total, slope in zip(self._sum, slopes, strict=True) if factor else ():
            total.add_(slope, alpha=factor)

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Add the noise and move."""
        total = self._sum or [torch.zeros_like(slope) for slope in self._mover.slopes()]
        for slope in total:
            noise = torch.empty(slope.shape).normal_(0.0, self._noise * self._clip, generator=self._generator)
            slope.add_(noise.to(slope.device))
        self._mover.give(total)
        self._sum = None
        return self._mover.step(lr)

    def slopes(self) -> list[Tensor]:
        """See `Mover.slopes`."""
        return self._mover.slopes()

    def give(self, slopes: Sequence[Tensor]) -> None:
        """See `Mover.give`."""
        self._mover.give(slopes)

    def tensors(self) -> dict[str, Tensor]:
        """See `Mover.tensors`: no noise is kept."""
        return self._mover.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Mover.restore`."""
        self._mover.restore(tensors)


def told(spent: float, found: Plan, conversations: int, most: int) -> str:
    """What the model's card says of it. most: conversations of the person who has the most."""
    whose = f"one, and up to {most} times that for a person with {most} of them," if most > 1 else "one"
    return (
        f"epsilon {spent:.3g} at delta {found.delta:.1e}, of {whose} among {conversations}; "
        f"noise {found.noise:.3g}, chance {found.rate:.3g} a step (modelled: Renyi accountant, arXiv 1908.10530)"
    )
