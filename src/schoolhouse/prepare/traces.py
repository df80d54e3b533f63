"""The cold start's data: worked traces of easy questions, and some replies without thinking.

Only the levels that a task calls its trace levels are used, and only questions of the training split, so that harder
levels and every exam question stay unseen.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.tasks.load import TaskSpec, complaints, load_tasks, tasks_at_hand
from schoolhouse.tasks.load import fingerprint as fingerprint_of
from schoolhouse.tasks.task import Example, Task, worked_conversation
from schoolhouse.text.records import CONVERSATIONS, Conversation, write_conversations
from schoolhouse.text.reply import THINK_OPEN

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_EXAM_SAMPLE = 500  # test questions a level that the finished data are compared with


class Config(StageConfig):
    """What `prepare.traces` makes: `count` conversations of each task, spread evenly over its trace levels.

    `no_think` is the share of them that asks for the bare answer, so that the model can do both.
    """

    tasks: list[TaskSpec] = Field(min_length=1)
    count: int = Field(default=96, ge=1)
    no_think: float = Field(default=0.125, ge=0, le=1)


def check(config: Config) -> None:
    """Raise TaskError or DataError before anything starts if a task is missing or has no traces."""
    _need_traces(tasks_at_hand(config.tasks))


def _need_traces(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if not task.trace_levels:
            raise DataError(
                f'the task {task.name} has no worked traces to start from; add a "trace" to some of its easy rows, '
                "or teach the form of a reply with the traces of another task (boxes, arithmetic)"
            )


def fingerprint(config: Config) -> str:
    """Return the hash of the question files that the data are made from."""
    return fingerprint_of(config.tasks)


def run(config: Config, inputs: Mapping[str, Artifact], run: "Run", out: Draft) -> None:
    """Write conversations.jsonl and its data card."""
    conversations: list[Conversation] = []
    counts: dict[str, dict[str, int]] = {}
    tasks = load_tasks(config.tasks, inputs)
    _need_traces(tasks)
    for complaint in complaints(tasks):
        run.log.warn(complaint)
    for task in tasks:
        rows = draw_traces(task, config.count, config.no_think, run.seed)
        _assert_unseen(task, rows, run.seed)
        counts[task.name] = dict(Counter(_bin(row) for row in rows))
        if len(rows) < config.count:
            run.log.warn(f"{task.name}: {len(rows)} traces instead of {config.count}: its trace levels hold no more")
        conversations += rows
    random.Random(f"order/{run.seed}").shuffle(conversations)
    path = out.path / CONVERSATIONS
    total = write_conversations(path, conversations)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (out.path / "README.md").write_text(_card(counts, total, sha256, run.seed), encoding="utf-8")
    out.meta.update(rows=total, counts=counts, sha256=sha256)
    by_task = ", ".join(f"{name} {sum(by_bin.values())}" for name, by_bin in counts.items())
    run.log.info(f"{total} conversations to start from ({by_task})")


def draw_traces(task: Task, count: int, no_think: float, seed: int) -> list[Conversation]:
    """Draw up to `count` conversations with distinct questions, spread evenly over the task's trace levels."""
    rows: list[Conversation] = []
    levels = task.trace_levels
    for index, level in enumerate(levels):
        # What does not divide evenly goes to the harder levels.
        wanted = (count + index) // len(levels)
        drawn = _traced(task, level, wanted, seed)
        bare = round(len(drawn) * no_think)
        rows += [worked_conversation(example, thinking=i >= bare) for i, example in enumerate(drawn)]
    return rows


def _traced(task: Task, level: str, wanted: int, seed: int) -> list[Example]:
    """Draw distinct examples that have a trace; in a user's file only some rows may, so look further if need be."""
    for n in (wanted, 10 * wanted, 100 * wanted):
        drawn = {e.question: e for e in task.examples("train", level, n, seed) if e.trace is not None}
        if len(drawn) >= wanted:
            break
    return list(drawn.values())[:wanted]


def _bin(row: Conversation) -> str:
    kind = "worked" if row.messages[-1].content.startswith(THINK_OPEN) else "answer only"
    return f"{row.meta['level']} {kind}"


def _assert_unseen(task: Task, rows: list[Conversation], seed: int) -> None:
    """Make sure that no exam question is among the rows; tasks promise it, and this is where it would hurt."""
    questions = {row.messages[1].content for row in rows}
    for level in task.trace_levels:
        exam = {example.question for example in task.examples("test", level, _EXAM_SAMPLE, seed)}
        assert questions.isdisjoint(exam), f"{task.name} {level}: exam questions among the training data"


def _card(counts: Mapping[str, Mapping[str, int]], total: int, sha256: str, seed: int) -> str:
    table = [f"| {task} | {key} | {n} |" for task, by_bin in counts.items() for key, n in sorted(by_bin.items())]
    lines = [
        "# Worked traces for a cold start",
        "",
        f"{total} conversations in `{CONVERSATIONS}` (SHA-256 `{sha256}`), one JSON object a line: `messages`, `meta`.",
        "",
        "| task | level and kind | conversations |",
        "|---|---|---|",
        *table,
        "",
        f"- Drawn by Schoolhouse from the training questions of these tasks, seed {seed}; no model wrote any of it.",
        "- Levels harder than these do not occur, nor do questions of the test split (checked when this was made).",
        '- "worked" replies think step by step and then answer; "answer only" replies were asked not to think.',
        "",
    ]
    return "\n".join(lines)
