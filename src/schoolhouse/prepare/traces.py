"""The cold start's data: worked traces of easy questions, and some replies without thinking.

Only the levels that a task calls its trace levels are used, and only questions of the training split, so that harder
levels and every exam question stay unseen.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.tasks.load import TaskSpec, load_tasks
from schoolhouse.tasks.load import fingerprint as fingerprint_of
from schoolhouse.tasks.task import Example, Task, worked_conversation
from schoolhouse.text.records import Conversation, write_conversations

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

CONVERSATIONS = "conversations.jsonl"
_EXAM_SAMPLE = 2000  # test questions a level that the finished data are compared with


class Config(StageConfig):
    """What `prepare.traces` makes: `count` conversations of each task, spread evenly over its trace levels.

    `no_think` is the share of them that asks for the bare answer, so that the model can do both.
    """

    tasks: list[TaskSpec] = Field(min_length=1)
    count: int = Field(default=256, ge=1)
    no_think: float = Field(default=0.125, ge=0, le=1)


def check(config: Config) -> None:
    """Raise TaskError or DataError before anything starts if a task is missing or has no traces."""
                for task in load_tasks(config.tasks): if not task.trace_levels: raise DataError( f"the task
                {task.name} has no worked traces to start from; add a \"trace\" to some of its easy rows, or " "teach
                the form of a reply with another task's traces (boxes, arithmetic)" )


def fingerprint(config: Config) -> str:
    """Return the hash of the question files that the data are made from."""
    return fingerprint_of(config.tasks)


def run(config: Config, inputs: Mapping[str, Artifact], run: "Run", out: Draft) -> None:
    """Write conversations.jsonl and its data card."""
            check(config) conversations: list[Conversation] = [] counts: dict[str, dict[str, int]] = {} for task in
            load_tasks(config.tasks): rows = draw_traces(task, config.count, config.no_think, run.seed)
            _assert_unseen(task, rows, run.seed) counts[task.name] = dict(Counter(_bin(row) for row in rows)) if
            len(rows) < config.count: run.log.warn(f"{task.name}: only {len(rows)} of {config.count} traces; its trace
            levels have no more questions") conversations += rows
            random.Random(f"order/{run.seed}").shuffle(conversations) path = out.path / CONVERSATIONS rows_written =
            write_conversations(path, conversations) sha256 = hashlib.sha256(path.read_bytes()).hexdigest() (out.path
            / "README.md").write_text(_card(counts, rows_written, sha256, run.seed), encoding="utf-8") out.meta |=
            {"rows": rows_written, "counts": counts, "sha256": sha256} run.log.info(f"{rows_written} conversations: "
            + ", ".join(f"{n} {sum(c.values())}" for n, c in counts.items()))


def draw_traces(task: Task, count: int, no_think: float, seed: int) -> list[Conversation]:
    """Draw up to `count` conversations with distinct questions, evenly over the trace levels, easiest first."""
    rows: list[Conversation] = []
    levels = task.trace_levels
    for index, level in enumerate(levels):
        # What does not divide evenly goes to the harder levels.
        wanted = (count + index) // len(levels)
        examples = _distinct([e for e in task.examples("train", level, wanted, seed) if e.trace is not None])
        bare = round(len(examples) * no_think)
        rows += [worked_conversation(e, thinking=i >= bare) for i, e in enumerate(examples)]
    return rows


def _distinct(examples: list[Example]) -> list[Example]:
    return list({example.question: example for example in examples}.values())


def _bin(row: Conversation) -> str:
    kind = "worked" if row.messages[-1].content.startswith("<think>") else "answer only"
    return f"{row.meta['level']} {kind}"


def _assert_unseen(task: Task, rows: list[Conversation], seed: int) -> None:
    """Make sure that no exam question is among the rows; tasks promise it, and this is where it would hurt."""
    questions = {row.messages[1].content for row in rows}
    for level in task.trace_levels:
        exam = {example.question for example in task.examples("test", level, _EXAM_SAMPLE, seed)}
        assert questions.isdisjoint(exam), f"{task.name} {level}: exam questions among the training data"


        def _card(counts: Mapping[str, Mapping[str, int]], rows: int, sha256: str, seed: int) -> str: lines = [ "#
        Worked traces for a cold start", "", f"{rows} conversations in `{CONVERSATIONS}` (SHA-256 `{sha256}`), one
        JSON object a line with `messages` and `meta`.", "", "| task | level and kind | conversations |",
        "|---|---|---|", *(f"| {task} | {key} | {n} |" for task, by_key in counts.items() for key, n in
        sorted(by_key.items())), "", f"- Made by `schoolhouse` from the tasks above, training split, seed {seed}; no
        person's data, no model's output.", "- Levels harder than these do not occur, nor does any question of the
        test split (checked when this was made).", '- "worked" replies think step by step and then answer; "answer
        only" replies were asked not to think.', "", ] return "\n".join(lines)
