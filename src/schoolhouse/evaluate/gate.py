"""The stage `evaluate.gate`: what making a model smaller cost, measured, and a refusal where that is too much.

It asks nothing itself: it reads an exam that original and smaller model sat together, and holds every evaluation of it
(each task, with thinking and without, right answers and replies that came to an end) against the recipe's tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.table import Table
from rich.text import Text

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError, ToleranceError
from schoolhouse.core.run import Run
from schoolhouse.evaluate.compare import Difference, paired_difference
from schoolhouse.evaluate.exam import EXAM, ITEMS, with_int8_cache
from schoolhouse.evaluate.report import read_lines
from schoolhouse.model.weights import check_folder, held_type

CLOSES = True  # it takes a moment, and says whether what the time was spent on is of use
GATE = "gate.json"
LEAST_ITEMS = 500  # fewer could not tell a loss of a few points from chance


class Config(StageConfig):
    """Who is compared with whom, by which exam, and what may be lost."""

    exam: Ref  # an exam that both models sat
    original: Ref  # the model before it was made smaller
    model: Ref  # the model after that; the same one where only the cache is smaller
    int8_cache: bool = False  # the model is held to what it said with a cache of int8 codes, see the exam's key
    points: float = Field(1.0, ge=0, le=100)  # that any evaluation, and the share of finished replies, may fall


@dataclass(frozen=True)
class Change:
    """One evaluation: shares before and after, and their paired difference."""

    what: str
    before: float
    after: float
    difference: Difference

    def is_beyond(self, points: float) -> bool:
        """True if it fell by more than so many points."""
        return 100 * self.difference.value < -points - 1e-9


@dataclass(frozen=True)
class Costs:
    """What a model takes. None where the exam has no seconds of it."""

    file_bytes: int
    memory_bytes: int
    """Of the weights as they are held: codes as codes, all else in the machine's number type."""
    cache_bytes_per_token: int
    tokens_per_s: float | None
    """Written in the exam's thinking mode (else without), all slots together."""


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Print costs and changes and write them to gate.json.

    Raises ToleranceError, so that no artifact is made, if an evaluation fell by more than `points`; DataError for an
    exam of fewer than 500 questions that both answered.
    """
    source = inputs[config.exam]
    exam = json.loads(source.file(EXAM).read_text(encoding="utf-8"))
    original, model = names = config.original, with_int8_cache(config.model) if config.int8_cache else config.model
    for name in names:
        if name not in exam["models"]:
            key = "int8_cache" if name == with_int8_cache(config.model) else "models"
            raise RecipeError(f"{name!r} did not sit the exam {config.exam!r}: name it in that stage's {key}.")
    items = read_lines(source.file(ITEMS))
    changes = changes_of(items, original, model)
    seconds = source.meta.get("meter", {}).get("phases_s", {})
    costs = [
        _costs(inputs[source_name].path, run.runtime.dtype, name != source_name, _speed(items, name, seconds))
        for source_name, name in zip((config.original, config.model), names, strict=True)
    ]
    run.log.result(_table(names, config.points, changes, costs))
    beyond = [change for change in changes if change.is_beyond(config.points)]
    if beyond:
        said = "; ".join(f"{change.what} by {-100 * change.difference.value:.1f}" for change in beyond)
        raise ToleranceError(
            f"{model} lost more than the {config.points:g} points that the recipe allows: {said}. Compress less "
            "(more bits, smaller groups, a smaller cut), heal it with train.distill, or allow more points."
        )
    facts = {
        "original": original,
        "model": model,
        "points": config.points,
        "costs": {name: asdict(cost) for name, cost in zip(names, costs, strict=True)},
        "changes": [asdict(change) for change in changes],
    }
    (out.path / GATE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    out.meta |= {"bytes_share": costs[1].file_bytes / costs[0].file_bytes, "points": config.points}
    run.log.result(f"PASSED: no evaluation of {model} fell by more than {config.points:g} points.")


def changes_of(items: Sequence[Mapping[str, Any]], original: str, model: str) -> list[Change]:
    """The change of every evaluation, on the questions that both were asked."""
    changes = []
    for mode, task in dict.fromkeys((row["mode"], row["task"]) for row in items):
        before, after = (
            {row["id"]: row for row in items if (row["model"], row["mode"], row["task"]) == (name, mode, task)}
            for name in (original, model)
        )
        common = [key for key in before if key in after]
        if len(common) < LEAST_ITEMS:
            raise DataError(
                f"{task}, {mode}: {original} and {model} answered {len(common)} questions both, and a gate needs "
                f"{LEAST_ITEMS}. Set items, items_base and items_direct of the exam to {LEAST_ITEMS} or more, give it "
                "more time if it was cut short, or leave this mode out of `thinking`."
            )
        for what, right in (("right", _is_right), ("finished", _is_finished)):
            pair = [[right(rows[key]) for key in common] for rows in (before, after)]
            difference = paired_difference(pair[1], pair[0])
            shares = [sum(each) / len(common) for each in pair]
            changes.append(Change(f"{task}, {mode}, {what}", shares[0], shares[1], difference))
    return changes


def _is_right(row: Mapping[str, Any]) -> bool:
    return bool(row["correct"])


def _is_finished(row: Mapping[str, Any]) -> bool:
    return bool(row["finish_reason"] == "stop")


def _speed(items: Sequence[Mapping[str, Any]], model: str, seconds: Mapping[str, float]) -> float | None:
    for mode in ("thinking", "direct"):
        tokens = sum(row["tokens"] for row in items if (row["model"], row["mode"]) == (model, mode))
        if tokens and seconds.get(f"{model} {mode}"):
            return float(tokens / seconds[f"{model} {mode}"])
    return None


def _costs(folder: Path, dtype: torch.dtype, int8_cache: bool, tokens_per_s: float | None) -> Costs:
    model, _ = check_folder(folder)  # without memory: shapes say it all
    state = model.state_dict()
    held = sum(t.numel() * held_type(name, t, dtype).itemsize for name, t in state.items())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Costs(size, held, model.config.kv_bytes_per_token(dtype.itemsize, int8=int8_cache), tokens_per_s)


def _table(names: tuple[str, str], points: float, changes: Sequence[Change], costs: Sequence[Costs]) -> Table:
    table = Table(title=f"{names[1]} beside {names[0]}", title_justify="left", expand=False)
    for name in ("", *names, "change (95% interval)"):
        table.add_column(name, justify="left" if not name else "right")
    before, after = costs
    for what, old, new, unit in (
        ("file, MB", before.file_bytes, after.file_bytes, 1e6),
        ("weights in memory, MB", before.memory_bytes, after.memory_bytes, 1e6),
        ("cache, kB a token", before.cache_bytes_per_token, after.cache_bytes_per_token, 1e3),
        ("tokens/s in the exam", before.tokens_per_s, after.tokens_per_s, 1),
    ):
        known = old is not None and new is not None
        cells = ["-" if value is None else f"{value / unit:.1f}" for value in (old, new)]
        table.add_row(what, *cells, f"x {new / old:.3f}" if known and old and new is not None else "-")
    table.add_section()
    for change in changes:
        low, high = (100 * end for end in change.difference.interval)
        verdict = "TOO MUCH" if change.is_beyond(points) else ""
        moved = f"{100 * change.difference.value:+.1f} ({low:+.1f} to {high:+.1f}) {verdict}".rstrip()
        shares = [f"{100 * share:.1f}%" for share in (change.before, change.after)]
        table.add_row(*map(Text, (f"{change.what} of {change.difference.n}", *shares, moved)))
    return table
