"""Tasks by name or by file: what recipes write in `tasks = [...]`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from schoolhouse.core.config import Strict, did_you_mean
from schoolhouse.core.errors import RecipeError, TaskError
from schoolhouse.tasks.arithmetic import ArithmeticTask
from schoolhouse.tasks.boxes import BoxTask
from schoolhouse.tasks.gym import PREFIX, load_gym
from schoolhouse.tasks.jsonl import load_jsonl, question_files
from schoolhouse.tasks.task import PLAIN_FORM, Form, Task
from schoolhouse.tasks.verify import VERIFIERS
from schoolhouse.text.records import BadRow

BUILT_IN: dict[str, Callable[..., Task]] = {"boxes": BoxTask, "arithmetic": ArithmeticTask}


class TaskTable(Strict):
    """A task as a table of a recipe: `{ task = "questions.jsonl", verifier = "number" }`.

    `name` is how reports call it (default: the file's name); `format_reward` is what a well-formed wrong reply is
    worth; `untaught` is for a model that never saw the form: it is spelt out, and replies that begin in it earn a part.
    """

    task: str
    verifier: str | None = None
    name: str | None = None
    format_reward: float = Field(default=PLAIN_FORM.reward, ge=0, lt=1)
    untaught: bool = False


_DRAWN = 4  # examples of a level that stand for all of them

TaskSpec = str | TaskTable
"""What a recipe may write for a task: a name, or a table."""


def load_task(spec: TaskSpec) -> Task:
    """Return the task that a recipe means; raise TaskError, with a suggestion, for one that does not exist."""
    table = TaskTable(task=spec) if isinstance(spec, str) else spec
    form = Form(table.format_reward, table.untaught)
    if table.task in BUILT_IN or table.task.startswith(PREFIX):
        if table.verifier is not None or table.name is not None:
            raise TaskError(f"the task {table.task} has its own verifier and name; leave both out")
        return BUILT_IN[table.task](form=form) if table.task in BUILT_IN else load_gym(table.task, form)
    path = Path(table.task)
    if not path.exists():
        raise TaskError(f"there is no task and no file {table.task!r}{did_you_mean(table.task, BUILT_IN)}")
    if table.verifier is None:
        raise TaskError(
            f'the questions in {path} need a verifier: {{ task = "{path}", verifier = "exact" }}'
            f" ({', '.join(VERIFIERS)})"
        )
    return load_jsonl(path, table.verifier, name=table.name, form=form)


def load_tasks(specs: Sequence[TaskSpec]) -> list[Task]:
    """Return several tasks; raise TaskError if two share a name, since results are kept by it."""
    tasks = [load_task(spec) for spec in specs]
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"two tasks are called {twice[0]!r}; give one of them another name")
    return tasks


def is_checked(task: Task) -> bool:
    """Whether a task can tell right answers from wrong ones: all but files of open questions can."""
    return bool(getattr(task, "checked", True))


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
        name = spec if isinstance(spec, str) else spec.task
        if name in BUILT_IN or name.startswith(PREFIX):
            task = load_task(name)
            drawn = [asdict(e) for level in task.levels for e in task.examples("train", level, _DRAWN, 0)]
            digest.update(json.dumps(drawn, sort_keys=True).encode())
            continue
        for file in question_files(Path(name)):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
