"""Tasks by name or by file: what recipes write in `tasks = [...]`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from pydantic import Field

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.config import Ref, Strict, did_you_mean
from schoolhouse.core.errors import RecipeError, TaskError
from schoolhouse.tasks.arithmetic import ArithmeticTask
from schoolhouse.tasks.boxes import BoxTask
from schoolhouse.tasks.gym import PREFIX, load_gym
from schoolhouse.tasks.jsonl import load_jsonl, question_files
from schoolhouse.tasks.task import PLAIN_FORM, Example, Form, Task
from schoolhouse.tasks.verify import OPEN, VERIFIERS, load_verifier
from schoolhouse.text.records import BadRow

BUILT_IN: dict[str, Callable[..., Task]] = {"boxes": BoxTask, "arithmetic": ArithmeticTask}


class TaskTable(Strict):
    """A task as a table of a recipe: `{ task = "questions.jsonl", verifier = "number" }`.

    With `of`, the name of an earlier stage, the file is one that it made. `name` is how reports call the task (default:
    the file's name); `format_reward` is what a well-formed wrong reply is worth; `untaught` is for a model that never
    saw the form: it is spelt out, and replies that begin in it earn a part.
    """

    task: str
    of: Ref | None = None
    verifier: str | None = None
    name: str | None = None
    format_reward: float = Field(default=PLAIN_FORM.reward, ge=0, lt=1)
    untaught: bool = False


_NOTHING: Mapping[str, Artifact] = MappingProxyType({})
_DRAWN = 4  # examples of a level that stand for all of them

TaskSpec = str | TaskTable
"""What a recipe may write for a task: a name, or a table."""


def load_task(spec: TaskSpec, inputs: Mapping[str, Artifact] = _NOTHING) -> Task:
    """Return the task that a recipe means; raise TaskError, with a suggestion, for one that does not exist.

    inputs: the artifacts of the stages that the recipe names, for files that a stage made.
    """
    table = _table(spec)
    form = Form(table.format_reward, table.untaught)
    if table.of is None and (table.task in BUILT_IN or table.task.startswith(PREFIX)):
        if table.verifier is not None or table.name is not None:
            raise TaskError(f"the task {table.task} has its own verifier and name; leave both out")
        return BUILT_IN[table.task](form=form) if table.task in BUILT_IN else load_gym(table.task, form)
    path = Path(table.task) if table.of is None else inputs[table.of].path / table.task
    if table.of is not None and not path.exists():
        made = ", ".join(sorted(file.name for file in inputs[table.of].path.glob("*.jsonl"))) or "none"
        raise TaskError(f"the stage {table.of!r} made no file {table.task!r}; its .jsonl files: {made}")
    if not path.exists():
        raise TaskError(f"there is no task and no file {table.task!r}{did_you_mean(table.task, BUILT_IN)}")
    return load_jsonl(path, _verifier(table), name=table.name, form=form)


def load_tasks(specs: Sequence[TaskSpec], inputs: Mapping[str, Artifact] = _NOTHING) -> list[Task]:
    """Return several tasks; raise TaskError if two share a name, since results are kept by it."""
    tasks = [load_task(spec, inputs) for spec in specs]
    _refuse_twice([task.name for task in tasks])
    return tasks


def tasks_at_hand(specs: Sequence[TaskSpec]) -> list[Task]:
    """The tasks that exist before any stage has run; raise TaskError for what is wrong with one of them.

    The others are looked at as far as the recipe speaks of them.
    """
    tables = [_table(spec) for spec in specs]
    for table in tables:
        if table.of is not None:
            load_verifier(_verifier(table))
    tasks = [load_task(spec) for spec, table in zip(specs, tables, strict=True) if table.of is None]
    _refuse_twice([task.name for task in tasks] + [name_of(table) for table in tables if table.of is not None])
    return tasks


def name_of(spec: TaskSpec) -> str:
    """What results call a task, as far as the recipe says it."""
    table = _table(spec)
    return table.name or Path(table.task).stem if table.verifier is not None else table.task


def is_open(spec: TaskSpec) -> bool:
    """Whether a task is one of open questions."""
    return not isinstance(spec, str) and spec.verifier == OPEN


def _table(spec: TaskSpec) -> TaskTable:
    return TaskTable(task=spec) if isinstance(spec, str) else spec


def _verifier(table: TaskTable) -> str:
    if table.verifier is None:
        raise TaskError(
            f'the questions in {table.task} need a verifier: {{ task = "{table.task}", verifier = "exact" }}'
            f" ({', '.join(VERIFIERS)})"
        )
    return table.verifier


def _refuse_twice(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"two tasks are called {twice[0]!r}; give one of them another name")


def check_weights(weights: Sequence[float] | None, specs: Sequence[TaskSpec]) -> None:
    """Raise RecipeError unless there is a weight above 0 for each task, or none at all."""
    if weights is not None and (len(weights) != len(specs) or min(weights) <= 0):
        raise RecipeError(f"weights is {list(weights)}: give one number above 0 for each of the {len(specs)} tasks.")


def complaints(tasks: Sequence[Task]) -> list[str]:
    """Return a sentence for each task whose file has rows that could not be used, with their number and the first."""
    found = []
    for task in tasks:
        bad: tuple[BadRow, ...] = getattr(task, "set_aside", ())
        if bad:
            found.append(f"{task.name}: {len(bad)} rows were set aside, the first: {bad[0]}")
    return found


def fingerprint(specs: Sequence[TaskSpec]) -> str:
    """Return a hash of what tasks ask: a result depends on it beside its recipe.

    Of question files it is their bytes; of a built-in task some examples of each level, traces included, so that a
    later version that asks otherwise makes its artifacts anew.
    """
    digest = hashlib.sha256()
    for spec in specs:
        name = _table(spec).task
        if _table(spec).of is not None:
            continue  # what a stage made is known by that stage
        if name in BUILT_IN or name.startswith(PREFIX):
            task = load_task(name)
            drawn = [_asked(e) for level in task.levels for e in task.examples("train", level, _DRAWN, 0)]
            digest.update(json.dumps(drawn, sort_keys=True).encode())
            continue
        for file in question_files(Path(name)):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _asked(example: Example) -> dict[str, object]:
    return {key: value for key, value in asdict(example).items() if key != "meta"}
