"""Reasoning Gym's tasks by an adapter: a hundred sources of questions with their own judges and their own difficulty.

Written `gym:NAME` in a recipe, for example `gym:chain_sum`. Its curriculum's steps are the levels, "1" the easiest. Its
judges give partial credit to wrong answers; here right is what they give all of it.
Source: arXiv 2505.24760; the library `reasoning-gym`, an extra (`pip install 'schoolhouse[gym]'`).
"""

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import TaskError
from schoolhouse.tasks.task import (
    PLAIN_FORM,
    Example,
    Form,
    Split,
    Verdict,
    check_request,
    judge_reply,
    question_conversation,
    rng_for,
    take_distinct,
)
from schoolhouse.text.records import Conversation

PREFIX = "gym:"
MOST_LEVELS = 10
BATCH = 64  # questions that one seed of the library makes


@dataclass(frozen=True)
class GymTask:
    """One of the library's datasets."""

    dataset: str
    levels: tuple[str, ...]
    form: Form = PLAIN_FORM
    trace_levels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a recipe writes it."""
        return PREFIX + self.dataset

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n questions of a step of the curriculum."""
        check_request(self.name, self.levels, split, level, n)
        return take_distinct(self._stream(split, level, seed), split, n)

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score a reply by the dataset's own judge."""
        return judge_reply(reply_text, functools.partial(self._is_right, example), thinking=thinking, form=self.form)

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the question to a model."""
        return question_conversation(example, thinking, self.form)

    def _stream(self, split: Split, level: str, seed: int) -> Iterator[Example]:
        rng = rng_for(self.name, split, level, seed)
        while True:
            batch = rng.getrandbits(31)
            made = _made(self.dataset, int(level), batch)
            for place in range(BATCH):
                entry = made[place]
                id = f"{self.name}/{level}/{batch}.{place}"  # enough to make it again
                yield Example(id, self.name, level, entry["question"].strip(), str(entry["answer"]))

    def _is_right(self, example: Example, answer: str) -> bool:
        batch, place = map(int, example.id.rsplit("/", 1)[1].split("."))
        made = _made(self.dataset, int(example.level), batch)
        try:
            return bool(made.score_answer(answer, made[place]) == 1.0)
        except Exception:  # a judge of the library that falls over an answer: it is not right
            return False


def load_gym(name: str, form: Form) -> GymTask:
    """Return the task `gym:NAME`; raise TaskError where the library or the dataset is not there."""
    dataset = name.removeprefix(PREFIX)
    curricula = _library().CURRICULA
    if dataset not in curricula:
        known = [PREFIX + other for other in curricula]
        raise TaskError(f"Reasoning Gym has no dataset with levels {dataset!r}{did_you_mean(name, known)}")
    return GymTask(dataset, tuple(str(i + 1) for i in range(_num_levels(dataset))), form)


@functools.cache
def _library() -> Any:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise TaskError("tasks gym:... need the library reasoning-gym: pip install 'schoolhouse[gym]'")
    from reasoning_gym import factory

    return factory


def _num_levels(dataset: str) -> int:
    """As many as its longest scale has steps."""
    scales = _library().CURRICULA[dataset]().attributes.values()
    return max(1, min(MOST_LEVELS, max((len(scale.levels) for scale in scales), default=1)))


@functools.lru_cache(maxsize=256)
def _made(dataset: str, level: int, seed: int) -> Any:
    """The library's dataset at a step of its curriculum."""
    curriculum = _library().CURRICULA[dataset]()
    for _ in range(level - 1):
        curriculum.increment_global_level()
    return _library().create_dataset(dataset, **_settings(curriculum, seed))


def _settings(curriculum: Any, seed: int) -> dict[str, Any]:
    made = vars(curriculum.generate_configuration())
    return {**made, "seed": seed, "size": BATCH}
