"""What one part of a recipe brought: a model beside one that was taught without it, on the same questions.

A gain is one only if its interval lies above 0. What does not show is called no gain, with the interval that says how
much may have been missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from schoolhouse.core.config import Ref, Strict
from schoolhouse.core.errors import RecipeError
from schoolhouse.evaluate.compare import Interval, paired_difference
from schoolhouse.evaluate.probing.card import Table

MEAN = "mean over tasks"
Outcome = Literal["a gain", "no gain", "a loss", "not tested"]


class Ablation(Strict):
    """Two models of the exam that differ in one part of the recipe."""

    what: str = Field(min_length=1, max_length=60)  # the part, as the page calls it: "synthesis"
    model: Ref  # the model that was taught with it
    without: Ref  # the model that was taught without it, and otherwise alike


@dataclass(frozen=True)
class Effect:
    """What a part brought in one task, or on the mean over tasks. Shares of right answers, with it and without it."""

    task: str
    with_it: float
    without: float
    value: float
    interval: Interval
    n: int

    @property
    def outcome(self) -> Outcome:
        """What the interval says: it must not even touch 0."""
        return "a gain" if self.interval.low > 0 else "a loss" if self.interval.high < 0 else "no gain"


@dataclass(frozen=True)
class Found:
    """One ablation: its effect in every task of both models, and on the mean over them, which the sentence is about."""

    ablation: Ablation
    mode: str
    tasks: tuple[Effect, ...]

    @property
    def overall(self) -> Effect | None:
        """The mean over tasks, or the only task's effect; None where both were asked nothing together."""
        return (self.tasks[0] if len(self.tasks) == 1 else _mean(self.tasks)) if self.tasks else None

    @property
    def outcome(self) -> Outcome:
        """What the overall effect comes to."""
        return self.overall.outcome if self.overall else "not tested"

    @property
    def sentence(self) -> str:
        """The outcome with its numbers, in points."""
        what, found = self.ablation.what, self.overall
        if found is None:
            return f"{what}: not tested, for both models answered no question together"
        low, high = (_points(end) for end in found.interval)
        if found.outcome == "no gain":
            return f"{what}: no gain ({_points(found.value, signed=True)} points, {low} to {high})"
        return f"{what}: {_points(found.value, signed=True)} points ({low} to {high}): {found.outcome}"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = [*self.tasks] if self.overall is None or len(self.tasks) == 1 else [*self.tasks, self.overall]
        effects = [asdict(row) | {"outcome": row.outcome} for row in rows]
        head = {**self.ablation.model_dump(), "mode": self.mode, "outcome": self.outcome, "sentence": self.sentence}
        return head | {"effects": effects}


def check(ablations: Sequence[Ablation]) -> None:
    """Raise RecipeError for a model that is compared with itself, and for a name that stands twice."""
    names = [one.what for one in ablations]
    for one in ablations:
        if one.model == one.without:
            raise RecipeError(f"ablation {one.what!r}: model and without are both {one.model!r}; name two models.")
        if names.count(one.what) > 1:
            raise RecipeError(f"two ablations are called {one.what!r}: the page could not tell them apart.")


def check_names(ablations: Sequence[Ablation], exam: Mapping[str, Any], stage: str) -> None:
    """Raise RecipeError for a model that did not sit the exam, with those that did; stage: what the exam is called."""
    for one in ablations:
        for name in (one.model, one.without):
            if name not in exam["models"]:
                raise RecipeError(
                    f"ablation {one.what!r}: {name!r} did not sit the exam {stage!r}; models there: "
                    f"{', '.join(exam['models'])}. Add it to that stage's models, or name another."
                )


def weigh(ablation: Ablation, items: Sequence[Mapping[str, Any]]) -> Found:
    """Compare both models on the questions that both were asked: after thinking, or if there were none without."""
    modes = [row["mode"] for row in items if row["model"] == ablation.model]
    mode = "thinking" if "thinking" in modes or not modes else modes[0]
    right: dict[str, dict[str, dict[str, bool]]] = {}
    for row in items:
        if row["mode"] == mode and row["model"] in (ablation.model, ablation.without):
            right.setdefault(row["task"], {}).setdefault(row["model"], {})[row["id"]] = bool(row["correct"])
    effects = []
    for task, by_model in right.items():
        with_it, without = (by_model.get(name, {}) for name in (ablation.model, ablation.without))
        common = [key for key in with_it if key in without]
        if common:
            effects.append(_effect(task, [with_it[k] for k in common], [without[k] for k in common]))
    return Found(ablation, mode, tuple(effects))


def _effect(task: str, with_it: Sequence[bool], without: Sequence[bool]) -> Effect:
    found = paired_difference(with_it, without)
    n = len(with_it)
    return Effect(task, sum(with_it) / n, sum(without) / n, found.value, found.interval, n)


def _mean(effects: Sequence[Effect]) -> Effect:
    """The mean over tasks, each counting the same whatever its questions.

    Source: square-and-add over the tasks' paired limits, Zou and Donner 2008 (MOVER); tasks share no question.
    """
    count = len(effects)
    value, with_it, without = (sum(getattr(e, key) for e in effects) / count for key in ("value", "with_it", "without"))
    below = math.sqrt(sum((e.value - e.interval.low) ** 2 for e in effects)) / count
    above = math.sqrt(sum((e.interval.high - e.value) ** 2 for e in effects)) / count
    interval = Interval(max(-1.0, value - below), min(1.0, value + above))
    return Effect(MEAN, with_it, without, value, interval, sum(e.n for e in effects))


def table(found: Sequence[Found]) -> Table:
    """A line for each task of each ablation, and for the mean over tasks where there are several."""
    rows = []
    for one in found:
        effects = [*one.tasks] + ([one.overall] if one.overall and len(one.tasks) > 1 else [])
        for effect in effects:
            shares = f"{100 * effect.without:.1f}%", f"{100 * effect.with_it:.1f}%"
            low, high = (_points(end, signed=True) for end in effect.interval)
            points = f"{_points(effect.value, signed=True)} ({low} to {high})"
            rows.append((one.ablation.what, effect.task, *shares, points, f"{effect.n:,}", effect.outcome))
    return Table(
        "Task by task",
        "Right answers of a model beside one that was taught without this part, on the same questions. Intervals are "
        "Newcombe's for pairs, for the mean over tasks by square-and-add; each is one by itself, and of twenty tasks "
        "without any effect one shows some by chance. No gain means that none was seen: the interval's upper end says "
        "how large one may be all the same.",
        ("part", "task", "without", "with", "points (95% interval)", "questions", ""), tuple(rows),
    )  # fmt: skip


def _points(value: float, *, signed: bool = False) -> str:
    """A difference in points; an end that is not 0 is never written as 0."""
    points = 100 * value
    digits = 1 if not points or abs(points) >= 0.05 else 3
    text = f"{points:+.{digits}f}" if signed else f"{points:.{digits}f}"
    return text.lstrip("+-") if not points else text
