"""What a task is: questions by level, and a judge for replies, written once for training and for evaluation."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from schoolhouse.core.errors import TaskError
from schoolhouse.text.records import Conversation, Message
from schoolhouse.text.reply import formed_share, parse_reply, render_reply

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TEST_SHARE = 0.2

# One short sentence, the same for every task: a shared prefix is computed once for all prompts of a batch.
SYSTEM_THINKING = "Think in <think></think>, then give only the result in <answer></answer>."
# It names no filler between the tags: a model that never saw the form copies that, and is then well-formed.
SYSTEM_UNTAUGHT = (
    "Use these tags in this order: <think> </think> <answer> </answer>. "
    "Write how you think between the first two, and the result between the last two."
)
SYSTEM_DIRECT = "Give only the result in <answer></answer>."


@dataclass(frozen=True)
class Example:
    """One question with its right answer; `trace` is a worked solution, only ever given on a task's trace levels.

    meta: travels with it for whoever counts by group; no model sees it.
    """

    id: str
    task: str
    level: str
    question: str
    answer: str
    trace: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Verdict:
    """What a reply is worth: a score in [0, 1], its parts, and what was wrong in words."""

    score: float
    parts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Form:
    """What the form of a reply alone is worth: `reward` to a well-formed one.

    untaught: the model has never seen the form. Then the system message spells it out, and a reply that begins in it
    earns a part of the reward, for of what never occurs nothing is learnt.
    """

    reward: float = 0.1
    untaught: bool = False


PLAIN_FORM = Form()


@runtime_checkable
class Task(Protocol):
    """A source of questions and their judge. Levels are ordered, the easiest first."""

    @property
    def name(self) -> str:
        """The task's name, as recipes and reports write it."""

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels, the easiest first."""

    @property
    def trace_levels(self) -> tuple[str, ...]:
        """The levels whose examples carry a worked trace."""

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n questions of a level; the same arguments give the same ones, and the splits never meet.

        Test questions never repeat: a level that has fewer gives fewer. Training questions repeat once all were used.
        """

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score any reply whatever; never raise."""

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the question to a model."""


def question_conversation(example: Example, thinking: bool = True, form: Form = PLAIN_FORM) -> Conversation:
    """Put a question: one system sentence on the form of the reply, then the question as it stands."""
    system = (SYSTEM_UNTAUGHT if form.untaught else SYSTEM_THINKING) if thinking else SYSTEM_DIRECT
    meta = {"task": example.task, "level": example.level, "id": example.id}
    return Conversation((Message("system", system), Message("user", example.question)), meta)


def worked_conversation(example: Example, thinking: bool = True) -> Conversation:
    """Return a question with its right reply, worked or bare; raise TaskError for an example without a trace."""
    if example.trace is None:
        raise TaskError(f"example {example.id} of level {example.level} has no worked trace to learn from")
    reply = render_reply(example.trace if thinking else None, example.answer)
    return question_conversation(example, thinking).plus("assistant", reply)


def judge_reply(
    reply_text: str, right: Callable[[str], bool], *, thinking: bool = True, form: Form = PLAIN_FORM
) -> Verdict:
    """Score a reply: 1 if well-formed and its answer `right`, what its `form` is worth if only that, else 0."""
    of_form = judge_form(reply_text, thinking=thinking, form=form)
    answer = parse_reply(reply_text, thinking=thinking).answer
    if of_form.problem is not None or answer is None:
        return Verdict(of_form.score, {"answer": 0.0, **of_form.parts}, of_form.problem)
    if right(answer):
        return Verdict(1.0, {"answer": 1.0, "format": 1.0})
    return Verdict(form.reward, {"answer": 0.0, "format": 1.0}, f"wrong answer: {answer[:60]!r}")


def judge_form(reply_text: str, *, thinking: bool = True, form: Form = PLAIN_FORM) -> Verdict:
    """Score the form of a reply alone; the verdict has no part that says whether its answer is right."""
    reply = parse_reply(reply_text, thinking=thinking)
    if reply.well_formed:
        return Verdict(form.reward, {"format": 1.0})
    part = form.reward * formed_share(reply_text, thinking=thinking) if form.untaught else 0.0
    return Verdict(part, {"format": 0.0}, reply.problem)


def split_of(question: str) -> Split:
    """Return the split that a question belongs to for ever: a fifth of all texts, by their hash, are test."""
    share = int.from_bytes(hashlib.sha256(question.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
    return "test" if share < TEST_SHARE else "train"


def example_id(task: str, level: str, question: str) -> str:
    """Return a short id that depends on nothing but the task, the level and the question."""
    return f"{task}/{level}/{hashlib.sha256(question.encode('utf-8', 'replace')).hexdigest()[:12]}"


def rng_for(task: str, split: str, level: str, seed: int) -> random.Random:
    """Return the random numbers of one list of examples, the same on every machine."""
    return random.Random(f"{task}/{split}/{level}/{seed}")


def check_request(task: str, levels: Sequence[str], split: str, level: str, n: int) -> None:
    """Raise TaskError for a level or split that does not exist, or a count below zero."""
    if level not in levels:
        raise TaskError(f"task {task} has no level {level!r}; its levels are {', '.join(levels)}")
    if split not in SPLITS:
        raise TaskError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
    if n < 0:
        raise TaskError(f"{n} examples asked for; ask for 0 or more")


def take_distinct(stream: Iterator[Example], split: Split, n: int) -> list[Example]:
    """Take n examples of a split from an endless stream, distinct while the level has enough questions.

    After a long run of repeats the level counts as used up. Then training gets repeats as they come, and a test gets
    fewer questions than asked for: one that is asked twice would be counted twice.
    """
    chosen: list[Example] = []
    seen: set[str] = set()
    stale = 0
    while len(chosen) < n:
        example = next(stream)
        if split_of(example.question) != split:
            continue
        if example.question in seen:
            stale += 1
            if stale < 200 + len(seen):
                continue
            if split == "test":
                break
        else:
            stale = 0
        seen.add(example.question)
        chosen.append(example)
    return chosen
