"""The stage `get.replies`: a model here, or one behind an OpenAI-compatible endpoint, answers training questions.

`train.sample` judges what it said and keeps what is right, as it does with the replies of its own model;
`prepare.synthesize` takes it as other words for documents. The one other place where the network is asked, and only the
address that the recipe names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.get.endpoint import Endpoint, Said, Spent, ask_all, check_key
from schoolhouse.get.fetch import cache_folder
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskSpec, check_weights, complaints, load_tasks, tasks_at_hand
from schoolhouse.tasks.load import fingerprint as tasks_fingerprint
from schoolhouse.tasks.task import Example, Task
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import ENDPOINT_TERMS, REPLIES, read_rows, write_rows

TOGETHER = 64  # questions to a model that lies here, between two files
_DRAWS = 20  # tries for each question that is wanted


class Config(StageConfig):
    """What `get.replies` asks, and whom."""

    endpoint: Endpoint | None = None  # where it is asked, or else
    model: Ref | None = None  # a model that lies here
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
    if (config.endpoint is None) == (config.model is None):
        raise RecipeError("give an endpoint, or the model of an earlier stage, and not both: who is to answer?")
    if config.endpoint is not None:
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
    if config.model is not None:
        said = _ask_here(config, inputs[config.model].path, asked, run)
        out.meta.update(model=config.model, replies=len(said))
        _card(f"{len(said)} replies in `{REPLIES}` by the model of the stage {config.model!r}", [], out)
    else:
        assert config.endpoint is not None, "checked before the start"
        said = _ask_there(config, config.endpoint, asked, run, out)
    rows = [_row(example, said[i * config.group : (i + 1) * config.group]) for i, (_, example) in enumerate(asked)]
    write_rows(out.path / REPLIES, rows)


def _ask_there(
    config: Config, endpoint: Endpoint, asked: Sequence[tuple[Task, Example]], run: Run, out: Draft
) -> list[Said]:
    requests = [_request(config, task, example, i, run.seed) for task, example in asked for i in range(config.group)]
    run.log.info(f"{len(requests)} requests to {endpoint.url}, model {endpoint.model}")

    def on_done(done: int, spent: Spent) -> bool:
        if done % max(1, len(requests) // 20) == 0 or done == len(requests):
            again = {"tried again": spent.tried_again} if spent.tried_again else {}
            run.log.step(done, len(requests), remembered=spent.remembered, cost=spent.cost(endpoint), **again)
        return run.should_stop() == "interrupted"

    said, spent = ask_all(endpoint, requests, cache_folder() / "replies", on_done)
    _describe(endpoint, spent, len(said), out)
    run.meter.add(tokens=spent.tokens_in + spent.tokens_out)
    return said


def _ask_here(config: Config, source: Path, asked: Sequence[tuple[Task, Example]], run: Run) -> list[Said]:
    """Some questions after the other; those that were answered before a stop lie in the scratch folder."""
    chat = ChatFormat.load(source)
    engine: Engine | None = None
    said: list[Said] = []
    for first in range(0, len(asked), TOGETHER):
        part = asked[first : first + TOGETHER]
        kept = run.scratch / f"replies-{first:06d}.json"
        if not kept.exists():
            if run.should_stop() == "interrupted":
                raise Stopped(f"Stopped after {first} of {len(asked)} questions; the same command goes on from there.")
            if engine is None:
                engine = Engine(load_model(source, run.runtime.dtype, run.runtime.device).requires_grad_(False))
            with run.meter.phase("replies"):
                fresh = _generate(config, engine, chat, part, first, run)
            write_rows(kept.with_suffix(".part"), map(asdict, fresh))
            kept.with_suffix(".part").replace(kept)
        said += [Said(**row) for row in read_rows(kept).good]
        run.log.step(first + len(part), len(asked))
    return said


def _generate(
    config: Config, engine: Engine, chat: ChatFormat, asked: Sequence[tuple[Task, Example]], first: int, run: Run
) -> list[Said]:
    prompts = [chat.prompt(task.conversation(example)) for task, example in asked]
    seeds = [[(1000 * run.seed + first + i) * 1000 + j for j in range(config.group)] for i in range(len(asked))]
    plans = [
        [Sampling(config.max_new_tokens, config.temperature, 1.0, chat.stop_ids, seed) for seed in row] for row in seeds
    ]
    out = []
    for prompt, replies in zip(prompts, engine.generate(prompts, plans), strict=True):
        out += [Said(chat.reply_text(r.ids), r.finish_reason, len(prompt), len(r.ids)) for r in replies]
    tokens = sum(s.tokens_out for s in out) + sum(map(len, prompts))
    run.meter.add(tokens=tokens, flops=tokens * engine.model.config.flops_per_token(0))
    return out


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
        "answer": example.answer, "replies": replies, "meta": dict(example.meta),
    }  # fmt: skip


def _describe(endpoint: Endpoint, spent: Spent, replies: int, out: Draft) -> None:
    facts = {
        "endpoint": endpoint.url, "model": endpoint.model, ENDPOINT_TERMS: [endpoint.terms], "replies": replies,
        "asked": spent.asked, "remembered": spent.remembered, "tried_again": spent.tried_again,
        "tokens_in": spent.tokens_in, "tokens_out": spent.tokens_out, "cost": round(spent.cost(endpoint), 6),
        "currency": endpoint.currency,
    }  # fmt: skip
    out.meta.update(facts)
    more = [
        f"Its terms, as the recipe states them: {endpoint.terms}",
        f"{spent.asked} were asked for now, {spent.remembered} remembered, for {facts['cost']} {endpoint.currency}.",
    ]
    _card(f"{replies} replies in `{REPLIES}` by {endpoint.model} at {endpoint.url}", more, out)


def _card(what: str, more: list[str], out: Draft) -> None:
    lines = ["# Replies", "", f"{what}; nobody has judged them.", *more, ""]
    (out.path / "README.md").write_text("\n".join(lines), encoding="utf-8")
