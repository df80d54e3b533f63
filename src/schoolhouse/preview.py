"""`schoolhouse prepare`: the stages of a recipe that make data, without those that learn from it; or a first look.

The look reads some documents of each source and takes them all the way in a folder that is gone afterwards. It says
what became of them and shows the first of them, but none that may still name somebody.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.config import load_recipe
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.log import Log
from schoolhouse.pipeline import Plan, PlannedStage, plan_recipe, run_plan

READS, REDACTS = "prepare.read", "prepare.redact"
_SHOWN = 3  # samples of each file
_LONGEST = 600  # characters of one


def prepare_recipe(path: Path, overrides: Sequence[str], home: Path, look: int | None = None) -> Mapping[str, Artifact]:
    """Run the stages `prepare.*` of a recipe and what they read; returns the artifacts by stage name.

    look: read only so many documents of each source, keep nothing, and print what became of them. Raises RecipeError
    for a recipe that prepares nothing.
    """
    if look is None:
        return run_plan(_preparing(plan_recipe(load_recipe(path, overrides))), home)
    reads = [entry.name for entry in load_recipe(path, overrides).recipe.stages if entry.run == READS]
    plan = _preparing(plan_recipe(load_recipe(path, [*overrides, *(f"{name}.most={look}" for name in reads)])))
    home.mkdir(parents=True, exist_ok=True)
    # Below the home, not in the system's folder for temporary files: what is read may name people.
    with tempfile.TemporaryDirectory(prefix="look-", dir=home) as folder:
        done = run_plan(plan, Path(folder))
        log, raw = Log(), _raw(plan)
        for stage in plan.stages:
            log.result("\n".join(_told(stage, done[stage.name], names_nobody=stage.name not in raw)))
        log.result(f"this was a look at {look} documents of each source at most; nothing of it was kept")
    return {}


def _preparing(plan: Plan) -> Plan:
    """The plan of the stages that prepare, and of those that they read."""
    wanted = {stage.name for stage in plan.stages if stage.kind.startswith("prepare.")}
    if not wanted:
        raise RecipeError(f'{plan.source.path}: no stage of this recipe prepares data (run = "prepare....").')
    for stage in reversed(plan.stages):
        if stage.name in wanted:
            wanted |= set(stage.inputs)
    return Plan(plan.source, tuple(stage for stage in plan.stages if stage.name in wanted))


def _raw(plan: Plan) -> set[str]:
    """The stages whose documents were read from a source and not redacted since."""
    raw: set[str] = set()
    for stage in plan.stages:
        if stage.kind == READS or (stage.kind != REDACTS and raw & set(stage.inputs)):
            raw.add(stage.name)
    return raw


_NOT_TOLD = {"stage", "recipe", "seed", "config", "inputs", "schoolhouse", "made_at", "meter", "runtime"}


def _told(stage: PlannedStage, artifact: Artifact, *, names_nobody: bool) -> Iterator[str]:
    yield f"\n{stage.name} ({stage.kind})"
    for name, value in artifact.meta.items():
        if name not in _NOT_TOLD:
            yield f"  {name}: {_short(value)}"
    if not names_nobody:
        yield f"  samples are shown behind the stage {REDACTS}: these documents may name people"
    elif stage.kind.startswith("prepare."):
        for file in sorted(artifact.path.glob("*.jsonl")):
            yield f"  {file.name}:"
            with file.open(encoding="utf-8") as lines:
                yield from (f"    {_sample(line)}" for line, _ in zip(lines, range(_SHOWN), strict=False))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _sample(line: str) -> str:
    """The text of a document, the last turn of a conversation, or the row as it is."""
    row = json.loads(line)
    if "messages" in row:
        row = {message["role"]: message["content"] for message in row["messages"][-2:]}
    elif "text" in row:
        row = {key: row[key] for key in ("kind", "person", "text") if row.get(key) is not None}
    return _short({key: value for key, value in row.items() if key not in ("meta", "source")})
