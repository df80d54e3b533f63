"""The stage `get.replies`: a master behind an OpenAI-compatible endpoint answers training questions of the tasks.

`train.sample` judges what it said and keeps what is right, as it does with the replies of a model that lies here. The
one other place where the network is asked, and only the address that the recipe names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.run import Run
from schoolhouse.get.endpoint import Endpoint, Said, Spent, ask_all, check_key
from schoolhouse.get.fetch import cache_folder
from schoolhouse.get.lineage import ENDPOINT_TERMS
from schoolhouse.tasks.load import TaskSpec, check_weights, complaints, load_tasks, tasks_at_hand
from schoolhouse.tasks.load import fingerprint as tasks_fingerprint
from schoolhouse.tasks.task import Example, Task
from schoolhouse.text.records import REPLIES, write_rows

_DRAWS = 20  # tries for each question that is wanted


class Config(StageConfig):
    """What `get.replies` asks, and whom."""

    endpoint: Endpoint
    tasks: list[TaskSpec] = Field(min_length=1)
    weights: list[float] | None = None  # share of the questions that each task gets; equal without it
    questions: int = Field(default=256, ge=1)  # of all levels alike
    group: int = Field(default=1, ge=1)  # replies to each
    temperature: float = Field(default=0.6, ge=0)
    max_new_tokens: int = Field(default=1024, ge=8)


def check(config: Config) -> None:
    """Raise TaskError or RecipeError before anything starts if tasks, weights or the key are not there."""
    tasks_at_hand(config.tasks)
    check_weights(config.weights, config.tasks)
    check_key(config.endpoint)


def fingerprint(config: Config) -> str:
    """Hash of the question files: edited questions are another run."""
    return tasks_fingerprint(config.tasks)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Ask, and write replies.jsonl. Raises ModelError for an endpoint that does not answer, Stopped after Ctrl-C."""
    tasks = load_tasks(config.tasks, inputs)
    for complaint in complaints(tasks):
        run.log.warn(complaint)
    asked = _questions(config, tasks, run.seed)
    requests = [_request(config, task, example, i, run.seed) for task, example in asked for i in range(config.group)]
    run.log.info(f"{len(requests)} requests to {config.endpoint.url}, model {config.endpoint.model}")

    def on_done(done: int, spent: Spent) -> bool:
        if done % max(1, len(requests) // 20) == 0 or done == len(requests):
            again = {"tried again": spent.tried_again} if spent.tried_again else {}
            run.log.step(done, len(requests), remembered=spent.remembered, cost=spent.cost(config.endpoint), **again)
        return run.should_stop() == "interrupted"

    said, spent = ask_all(config.endpoint, requests, cache_folder() / "replies", on_done)
    rows = [_row(example, said[i * config.group : (i + 1) * config.group]) for i, (_, example) in enumerate(asked)]
    write_rows(out.path / REPLIES, rows)
    _describe(config, spent, len(said), out)
    run.meter.add(tokens=spent.tokens_in + spent.tokens_out)


def _questions(config: Config, tasks: list[Task], seed: int) -> list[tuple[Task, Example]]:
    """Different questions, fewer than asked for where the tasks hold no more."""
    rng = random.Random(f"{seed}/replies")
    levels = {task.name: [x for x in task.levels if task.examples("train", x, 1, 0)] for task in tasks}
    found: dict[str, tuple[Task, Example]] = {}
    for _ in range(_DRAWS * config.questions):
        (task,) = rng.choices(tasks, config.weights or [1.0] * len(tasks))
        (example,) = task.examples("train", rng.choice(levels[task.name]), 1, rng.getrandbits(32))
        found.setdefault(example.question, (task, example))
        if len(found) == config.questions:
            break
    return list(found.values())


def _request(config: Config, task: Task, example: Example, number: int, seed: int) -> dict[str, Any]:
    """The body; its seed tells replies to one question apart, so that each is remembered by itself."""
    messages = [{"role": m.role, "content": m.content} for m in task.conversation(example).messages]
    return {
        "messages": messages, "temperature": config.temperature, "max_tokens": config.max_new_tokens,
        "seed": 1000 * seed + number,
    }  # fmt: skip


def _row(example: Example, said: list[Said]) -> dict[str, Any]:
    replies = [{"text": reply.text, "finish_reason": reply.finish_reason} for reply in said]
    return {
        "id": example.id, "task": example.task, "level": example.level, "question": example.question,
        "answer": example.answer, "replies": replies,
    }  # fmt: skip


def _describe(config: Config, spent: Spent, replies: int, out: Draft) -> None:
    endpoint = config.endpoint
    facts = {
        "endpoint": endpoint.url, "model": endpoint.model, ENDPOINT_TERMS: [endpoint.terms], "replies": replies,
        "asked": spent.asked, "remembered": spent.remembered, "tried_again": spent.tried_again,
        "tokens_in": spent.tokens_in, "tokens_out": spent.tokens_out, "cost": round(spent.cost(endpoint), 6),
        "currency": endpoint.currency,
    }  # fmt: skip
    out.meta.update(facts)
    card = [
        "# Replies of an endpoint",
        "",
        f"{replies} replies in `{REPLIES}` by {endpoint.model} at {endpoint.url}; nobody has judged them.",
        f"Its terms, as the recipe states them: {endpoint.terms}",
        f"{spent.asked} were asked for now, {spent.remembered} remembered, for {facts['cost']} {endpoint.currency}.",
        "",
    ]
    (out.path / "README.md").write_text("\n".join(card), encoding="utf-8")
