"""The one training loop. A method is an objective and a source of batches; pretraining, SFT and GRPO share the rest."""

from __future__ import annotations

import functools
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from schoolhouse.core.errors import BudgetError, Stopped, TrainError
from schoolhouse.core.run import Run
from schoolhouse.core.runtime import release_memory
from schoolhouse.model.transformer import Transformer
from schoolhouse.train.balance import Balance, Balancing
from schoolhouse.train.checkpoint import load_checkpoint, save_checkpoint
from schoolhouse.train.optimizer import Mover, learning_rate

SAVE_EVERY_S = 240.0
METRICS = "metrics.jsonl"
TIDY_EVERY = 10  # steps; gaps between blocks of unequal sizes add up to 0.1 GiB a step (docs/lab-log.md, 2026-11-23)


class Part(Protocol):
    """What is computed at once."""

    @property
    def texts(self) -> Sequence[int]:
        """Tokens of each text in the part, in the order in which they lie; filler behind them is left out."""


@dataclass
class Batch:
    """What one step learns from: the parts of each of its updates, small enough for memory with their activations.

    tokens: how many tokens all parts hold, for the meter; figures: what the source adds to the metrics; shown: the
    names of those that the log prints, too. Without updates the batch teaches nothing, and the weights stay.
    """

    updates: Sequence[Sequence[Part]]
    tokens: int
    figures: dict[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()


def even_cuts(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices of things of these sizes in as few parts of at most `most` (or one thing) as even shares allow.

    Neighbours in size lie together, since attention pads them to one width.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    count = -(-sum(sizes) // most)
    share = sum(sizes) / max(count, 1)
    cuts: list[list[int]] = []
    held = 0
    for i in order:
        if not cuts or held + sizes[i] > most or held + sizes[i] / 2 > share:
            cuts.append([])
            held = 0
        cuts[-1].append(i)
        held += sizes[i]
    return cuts


def shuffled(count: int, seed: int, step: int, size: int) -> list[int]:
    """Indices of the `size` things of a step out of `count`, each once an epoch, shuffled anew in each: a function of
    seed and step alone. The last step of an epoch reaches into the next.
    """
    picked = []
    for index in range(step * size, (step + 1) * size):
        epoch, place = divmod(index, count)
        picked.append(_order(count, seed, epoch)[place])
    return picked


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class Source(Protocol):
    """Where batches come from. Its state travels with the checkpoint."""

    def batch(self, step: int) -> Batch | None:
        """The batch of a step; None when there are no more."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on as if nothing had happened; JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""


Objective = Callable[[Transformer, Any], tuple[Tensor, dict[str, float]]]
"""Loss of one part (the parts' losses add up to the batch's) and figures, which add up too."""


@dataclass(frozen=True)
class Course:
    """How long and how fast: `steps` at most, `lr` at its peak; the course also ends when the stage's time is spent.

    save_every_s: seconds between two checkpoints; balancing: how experts are kept even, where there are some.
    """

    steps: int
    lr: float
    warmup: float = 0.05
    hold: float = 0.0
    floor: float = 0.1
    save_every_s: float = SAVE_EVERY_S
    balancing: Balancing = field(default_factory=Balancing)


@dataclass(frozen=True)
class _Learner:
    """What a step moves."""

    model: Transformer
    objective: Objective
    optimizer: Mover
    balance: Balance

    def save(self, folder: Path, done: int, source: Source) -> None:
        tensors = self.optimizer.tensors() | self.balance.tensors()
        save_checkpoint(folder, tensors, {"step": done, "source": source.state()})

    def resume(self, folder: Path, source: Source) -> int:
        """Go back to the last checkpoint and return its step; 0 where there is none."""
        found = load_checkpoint(folder)
        if found is None:
            return 0
        tensors, facts = found
        self.optimizer.restore(tensors)
        self.balance.restore(tensors)
        source.restore(facts["source"])
        return int(facts["step"])


def fit(model: Transformer, source: Source, objective: Objective, optimizer: Mover, course: Course, run: Run) -> int:
    """Train until the course, the source or the stage's time ends; returns the number of steps.

    Resumes from the checkpoint in `run.scratch` and writes one every `course.save_every_s`, on an interrupt and at the
    end. Each step is a line in `metrics.jsonl` there. Raises Stopped after an interrupt, BudgetError when the recipe's
    time is spent in a stage without a share, TrainError when the loss is not a number.
    """
    folder, metrics = run.scratch / "checkpoint", run.scratch / METRICS
    learner = _Learner(model, objective, optimizer, Balance(model, course.balancing))
    done = learner.resume(folder, source)
    _forget_after(done, metrics)
    saved_at = time.monotonic()
    while done < course.steps:
        try:
            if is_over(run, f"step {done}"):
                break
        except (Stopped, BudgetError):
            learner.save(folder, done, source)
            raise
        batch = source.batch(done)
        if batch is None:
            break
        figures = _step(learner, batch, _lr(course, done, run), run)
        done += 1
        figures = {"step": done, **batch.figures, **figures}
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        shown = {name: figures[name] for name in (*batch.shown, "max_vio", "loss", "tok_s") if name in figures}
        run.log.step(done, None if run.has_share and run.seconds_left() is not None else course.steps, **shown)
        if done % TIDY_EVERY == 0:
            release_memory()
        if time.monotonic() - saved_at >= course.save_every_s:
            learner.save(folder, done, source)
            saved_at = time.monotonic()
    learner.save(folder, done, source)
    return done


def is_over(run: Run, done: str) -> bool:
    """Whether the stage's own share of the time is spent after what was done last.

    Raises Stopped after an interrupt, BudgetError when the recipe's time is spent in a stage without a share.
    """
    reason = run.should_stop()
    if reason == "interrupted":
        raise Stopped(f"Stopped after {done} of {run.stage}; the same command goes on from there.")
    if reason == "budget" and not run.has_share:
        raise BudgetError(
            f"The time of the recipe ran out after {done} of {run.stage}, which has no share of its own. "
            "Grant more (--set budget.time=...): the same command goes on from there."
        )
    return reason is not None


def _step(learner: _Learner, batch: Batch, lr: float, run: Run) -> dict[str, Any]:
    """The updates of one batch; returns its figures, their mean over the updates."""
    started = time.monotonic()
    count = max(len(batch.updates), 1)
    sums = {"loss": 0.0, "grad_norm": 0.0}
    with run.meter.phase("train"):
        for parts in batch.updates:
            for name, value in _update(learner, parts, lr, run).items():
                sums[name] = sums.get(name, 0.0) + value / count
        load = learner.balance.step()
    alarm = learner.balance.alarm()
    if alarm is not None:
        run.log.warn(alarm)
    run.meter.add(tokens=batch.tokens, flops=3 * batch.tokens * learner.model.config.flops_per_token(0))
    seconds = time.monotonic() - started
    return {
        **sums, **load, "lr": lr, "tokens": batch.tokens,
        "train_s": seconds, "seconds": run.meter.seconds, "tok_s": batch.tokens / max(seconds, 1e-9),
    }  # fmt: skip


def _update(learner: _Learner, parts: Sequence[Part], lr: float, run: Run) -> dict[str, float]:
    """Move the weights once, by the gradient over all parts; returns the parts' figures, added up."""
    sums = {"loss": 0.0}
    texts = sum(len(part.texts) for part in parts)
    for part in parts:
        with learner.balance.watching():
            loss, figures = learner.objective(learner.model, part)
        leaning = learner.balance.count(part.texts, texts)
        sums["loss"] += float(loss.detach())
        if leaning is not None:
            loss = loss + leaning
            figures = figures | {"sequence_loss": float(leaning.detach())}
        loss.backward()
        learner.optimizer.part_done()
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value
    if not math.isfinite(sums["loss"]):
        raise TrainError(
            f"The loss is {sums['loss']}: no step was taken. Lower lr (now {lr:.2g}) "
            f"or look at the last batch in {run.scratch}."
        )
    return {**sums, "grad_norm": learner.optimizer.step(lr)}


def share_done(steps: int, done: int, run: Run) -> float:
    """Share of a course that is behind, by steps or by time, whichever brings the end sooner."""
    progress = done / steps
    left = run.seconds_left() if run.has_share else None
    if left is not None:
        progress = max(progress, run.meter.seconds / max(run.meter.seconds + left, 1e-9))
    return progress


def _lr(course: Course, done: int, run: Run) -> float:
    progress = share_done(course.steps, done, run)
    return learning_rate(course.lr, progress, warmup=course.warmup, hold=course.hold, floor=course.floor)


def _forget_after(step: int, metrics: Path) -> None:
    """Forget the lines of steps that came after the checkpoint."""
    if metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines()
        part = metrics.with_name(metrics.name + ".part")
        part.write_text("".join(line + "\n" for line in lines[:step]), encoding="utf-8")
        part.replace(metrics)
