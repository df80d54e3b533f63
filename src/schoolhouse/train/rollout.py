"""Rollouts: questions put to the policy, its replies and their verdicts, kept on disk between sampling and learning.

Either half can be replayed alone: with the file of a step there, nothing is sampled again.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from schoolhouse.core.errors import DataError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.infer.engine import Completion, Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.transformer import Transformer
from schoolhouse.tasks.load import TaskSpec, check_weights, tasks_at_hand
from schoolhouse.tasks.task import Example, Task
from schoolhouse.text.chat import ChatFormat

KEPT = 50  # steps whose replies stay on disk
MOST_SLOTS = 128


@dataclass(frozen=True)
class Sample:
    """One reply: its ids with the stop token, the sampler's log-probabilities, and what the judge said."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    text: str
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Group:
    """All replies to one prompt."""

    task: str
    level: str
    question: str
    answer: str
    prompt: list[int]
    samples: list[Sample]

    @property
    def rewards(self) -> list[float]:
        """The judge's scores."""
        return [s.score for s in self.samples]

    @property
    def is_checked(self) -> bool:
        """Whether the task can tell right answers from wrong ones."""
        return "answer" in self.samples[0].parts

    def only(self, picked: Sequence[int]) -> Group:
        """The same group with some of its replies."""
        return replace(self, samples=[self.samples[i] for i in picked])


@dataclass(frozen=True)
class Rollouts:
    """The groups of one step, and how long it took to sample them."""

    groups: list[Group]
    seconds: float

    @property
    def samples(self) -> list[Sample]:
        """All replies."""
        return [s for g in self.groups for s in g.samples]

    @property
    def made(self) -> int:
        """Tokens of all replies."""
        return sum(len(s.ids) for s in self.samples)

    def figures(self) -> dict[str, Any]:
        """What the metrics say of them, whatever is learnt."""
        samples = self.samples
        count = len(samples)
        checked = [s.parts["answer"] for s in samples if "answer" in s.parts]
        right = sum(checked) / max(len(checked), 1)
        return {
            "reward": sum(s.score for s in samples) / count,
            "accuracy": right,
            "format": sum(s.parts.get("format", 0.0) for s in samples) / count,
            "length": self.made / count,
            "truncated": sum(s.finish_reason == "length" for s in samples) / count,
            "right": f"{right:.0%}",
            "rollout_s": self.seconds,
            "rollout_tok_s": self.made / max(self.seconds, 1e-9),
        }

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Rollouts:
        """Read what `save` wrote. Raises DataError for a file that was damaged."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            groups = [Group(**{**g, "samples": [Sample(**s) for s in g["samples"]]}) for g in held["groups"]]
            return cls(groups, held["seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"The rollouts in {path} cannot be read ({error}): delete the file, "
                "and the same command samples them anew."
            ) from None


class Asking(Protocol):
    """What the config of a stage that samples says of its questions and replies."""

    tasks: list[TaskSpec]
    weights: list[float] | None  # of the tasks; equal without it
    prompts: int
    group: int
    max_new_tokens: int
    temperature: float


def check_asking(config: Asking) -> None:
    """Raise TaskError or RecipeError if tasks or their weights do not fit together."""
    tasks_at_hand(config.tasks)
    check_weights(config.weights, config.tasks)


def slots(config: Asking) -> int:
    """Replies that are sampled at once."""
    return min(MOST_SLOTS, config.prompts * config.group)


def training_levels(task: Task) -> list[str]:
    """The levels of a task that have a question to train on, the easiest first."""
    return [level for level in task.levels if task.examples("train", level, 1, 0)]


@dataclass(frozen=True)
class Questions:
    """What one step asks: examples, for each the samplings of its replies, and the file in which those will lie."""

    path: Path
    examples: Sequence[Example]
    samplings: Sequence[Sequence[Sampling]]


class Sampler:
    """Asks a model for the replies of a step, once: a resumed run learns from the same ones."""

    def __init__(
        self, config: Asking, model: Transformer, chat: ChatFormat, tasks: Mapping[str, Task], run: Run,
        kept: int = KEPT,
    ) -> None:  # fmt: skip
        """kept: how many steps' replies stay on disk."""
        self._config, self._chat, self._tasks, self._run = config, chat, tasks, run
        self._engine, self._kept = Engine(model, slots(config)), kept
        self._folder = run.scratch / "rollouts"

    def rollouts(self, step: int, level_of: Callable[[str, random.Random], str], attempt: int = 0) -> Rollouts:
        """From disk where they lie there already, else from the model. level_of: draws a level of a task; attempt: how
        often the step has asked before.
        """
        questions = self.questions(step, level_of, attempt)
        is_new = not questions.path.exists()
        with self.waiting():
            found = self.replies(questions)
        if is_new:
            self.count(found)
        return found

    def questions(self, step: int, level_of: Callable[[str, random.Random], str], attempt: int = 0) -> Questions:
        """What a step asks; nothing is drawn where the replies lie on disk already."""
        again = f"-{attempt}" if attempt else ""
        path = self._folder / f"{step:06d}{again}.json"
        if path.exists():
            return Questions(path, [], [])
        rng = random.Random(f"{self._run.seed}/grpo/{step}{again}")
        examples = [self._draw(rng, level_of) for _ in range(self._config.prompts)]
        samplings = [[self._sampling(rng) for _ in range(self._config.group)] for _ in examples]
        for old in self._folder.glob(f"{step - self._kept:06d}*.json"):
            old.unlink()
        return Questions(path, examples, samplings)

    def replies(self, questions: Questions, leave: threading.Event | None = None) -> Rollouts:
        """From disk or the model; then they lie on disk. leave: once set, what is not whole is dropped."""
        if questions.path.exists():
            return Rollouts.load(questions.path)
        asked = questions.examples, questions.samplings
        rollouts = roll_out(self._engine, self._chat, self._tasks, *asked, leave)
        self._engine.forget()
        rollouts.save(questions.path)
        return rollouts

    def waiting(self) -> AbstractContextManager[None]:
        """A phase of the meter: within, nothing but replies is waited for."""
        return self._run.meter.phase("rollout")

    def count(self, rollouts: Rollouts) -> None:
        """Tell the meter of tokens that the model has read and written."""
        tokens = rollouts.made + sum(len(g.prompt) for g in rollouts.groups)
        self._run.meter.add(tokens=tokens, flops=tokens * self._engine.model.config.flops_per_token(0))

    def settle(self) -> None:
        """All that was asked for is there."""

    def close(self) -> None:
        """Nothing goes on."""

    def _draw(self, rng: random.Random, level_of: Callable[[str, random.Random], str]) -> Example:
        """A training question of a task by its weight."""
        names = list(self._tasks)
        name = rng.choices(names, self._config.weights or [1.0] * len(names))[0]
        level = level_of(name, rng)
        return self._tasks[name].examples("train", level, 1, rng.getrandbits(32))[0]

    def _sampling(self, rng: random.Random) -> Sampling:
        config = self._config
        return Sampling(config.max_new_tokens, config.temperature, 1.0, self._chat.stop_ids, rng.getrandbits(40))


def roll_out(
    engine: Engine,
    chat: ChatFormat,
    tasks: Mapping[str, Task],
    examples: Sequence[Example],
    samplings: Sequence[Sequence[Sampling]],
    leave: threading.Event | None = None,
) -> Rollouts:
    """Sample replies to the examples, one for each of its samplings, and judge them. leave: see `Sampler.replies`.

    Raises Stopped once `leave` is set.
    """

    def watch(finished: int, total: int) -> None:
        if leave is not None and leave.is_set():
            raise Stopped(f"Left after {finished} of {total} replies.")

    started = time.monotonic()
    prompts = [chat.prompt(tasks[e.task].conversation(e)) for e in examples]
    replies = engine.generate(prompts, samplings, watch)
    groups = []
    for example, prompt, completions in zip(examples, prompts, replies, strict=True):
        samples = [_judged(tasks[example.task], example, chat, c) for c in completions]
        groups.append(Group(example.task, example.level, example.question, example.answer, prompt, samples))
    return Rollouts(groups, time.monotonic() - started)


def _judged(task: Task, example: Example, chat: ChatFormat, completion: Completion) -> Sample:
    """A reply that was cut off is judged as it stands: it has no end, so it is not well-formed."""
    ended = completion.finish_reason == "stop"
    text = chat.reply_text(completion.ids)
    verdict = task.judge(example, text)
    return Sample(
        completion.ids, completion.logprobs, completion.finish_reason, text,
        verdict.score if ended else 0.0, verdict.parts if ended else dict.fromkeys(verdict.parts, 0.0),
    )  # fmt: skip
