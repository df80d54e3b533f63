"""The stage `train.sample`: a model's own replies, of which those that are right become conversations to learn from.

Rejection sampling, as R1 does it between its two rounds of reinforcement: many replies to each question, and of those
that the judge calls right the ones that can be read. `train.sft` learns from them, from the base again.
Source: arXiv 2501.12948 (v1), section 2.3.3.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.kernels.native import status
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskSpec, complaints, load_tasks
from schoolhouse.tasks.load import fingerprint as tasks_fingerprint
from schoolhouse.tasks.task import Example, Task, example_id
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.language import check_language, share_in
from schoolhouse.text.preferences import RATINGS, Rating, write_ratings
from schoolhouse.text.records import (
    CONVERSATIONS,
    ENDPOINT_TERMS,
    REPLIES,
    Conversation,
    read_conversations,
    read_rows,
    write_conversations,
)
from schoolhouse.text.reply import reasoning_of
from schoolhouse.train.fit import is_over
from schoolhouse.train.grpo import SLOT_SHARE
from schoolhouse.train.rollout import Group, Rollouts, Sample, Sampler, check_asking, slots, training_levels

RUN = 4  # words of a run that should not come again


class Config(StageConfig):
    """What `train.sample` reads: a model that is often right, or its replies, and tasks that can judge them."""

    model: Ref | None = None  # that is asked, or else
    replies: Ref | None = None  # a stage `get.replies`, where somebody else was asked: these are judged
    tasks: list[TaskSpec] = Field(min_length=1)
    weights: list[float] | None = None  # share of the questions that each task gets; equal without it
    rounds: int = Field(default=8, ge=1)  # at most; the stage's time ends them sooner
    prompts: int = Field(default=64, ge=1)  # questions a round, of all levels alike
    group: int = Field(default=4, ge=1)  # replies to a question
    keep: int = Field(default=1, ge=1)  # of the right ones to a question, the first to come
    repeats: float = Field(default=0.3, ge=0, le=1)  # share of a reply's runs of four words that may have come before
    language: str | None = None  # two letters; replies with a sentence that is surely of another one are left out
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=112, ge=8)
    beside: Ref | None = None  # the stage whose conversations stand among them, for example `prepare.traces`


def check(config: Config) -> None:
    """Raise TaskError or RecipeError before anything starts if tasks or numbers do not fit together."""
    check_asking(config)
    if (config.model is None) == (config.replies is None):
        raise RecipeError("give a model that is asked, or replies of a stage get.replies, and not both.")
    idle = sorted(config.model_fields_set & {"weights", "rounds", "prompts", "group", "temperature", "max_new_tokens"})
    if config.replies is not None and idle:
        raise RecipeError(f"{idle[0]} is set, and nobody is asked here: set it in get.replies, or leave it out.")
    if config.language is not None:
        check_language(config.language)


def fingerprint(config: Config) -> str:
    """Hash of the question files: edited questions are another run."""
    return tasks_fingerprint(config.tasks)


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated: the model, the copy of it that is laid out, and the replies."""
    params = inputs_meta.get(config.model or "", {}).get("num_params", 0)
    return int((4 + SLOT_SHARE * slots(config)) * params)


def repeated(text: str) -> float:
    """Which share of a text's runs of four words came before in it, 0 to 1.

    >>> repeated("take one and two"), repeated("one two one two one two one")
    (0.0, 0.5)
    """
    words = text.split()
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass
class Harvest:
    """What was kept, and of all replies how many were left out and why."""

    keep: int
    repeats: float
    language: str | None = None
    kept: list[Conversation] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)  # what was kept and what was wrong, question by question
    replies: Counter[str] = field(default_factory=Counter)  # "kept", and why the others were not
    _of: Counter[str] = field(default_factory=Counter)  # replies kept of each question
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, groups: Sequence[Group], tasks: Mapping[str, Task]) -> None:
        """Sort the replies of some questions."""
        for group in groups:
            for sample in group.samples:
                word = self._word(group.question, sample)
                self.replies[word] += 1
                asked = _asked(group, tasks[group.task])
                if word in ("wrong", "malformed"):
                    self.ratings.append(Rating(asked, sample.text, liked=False))
                if word != "kept":
                    continue
                self._of[group.question] += 1
                self._seen.add((group.question, sample.text))
                self.kept.append(asked.plus("assistant", sample.text))
                self.ratings.append(Rating(asked, sample.text, liked=True))

    def _word(self, question: str, sample: Sample) -> str:
        if sample.finish_reason != "stop":
            return "cut off"
        if sample.parts.get("answer", 0.0) < 1:
            return "wrong" if sample.parts.get("format", 0.0) else "malformed"
        if repeated(sample.text) > self.repeats:
            return "rambling"
        if self.language is not None and share_in(reasoning_of(sample.text), self.language) < 1:
            return "mixed languages"
        if (question, sample.text) in self._seen or self._of[question] >= self.keep:
            return "one more"
        return "kept"


def _asked(group: Group, task: Task) -> Conversation:
    id = example_id(group.task, group.level, group.question)
    asked = task.conversation(Example(id, group.task, group.level, group.question, group.answer))
    return Conversation(asked.messages, {**asked.meta, "sampled": True})


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Ask the model, and write what it got right as conversations.jsonl, with what it got wrong as ratings.jsonl.

    Raises DataError if nothing was right, Stopped after an interrupt, BudgetError when the recipe's time is spent.
    """
    tasks = {task.name: task for task in load_tasks(config.tasks, inputs)}
    for complaint in complaints(list(tasks.values())):
        run.log.warn(complaint)
    harvest = Harvest(config.keep, config.repeats, config.language)
    if config.replies is not None:
        harvest.add(_judged(inputs[config.replies], tasks), tasks)
    elif config.model is not None:
        out.meta |= _ask(config, inputs[config.model].path, tasks, harvest, run)
    _write(config, inputs, harvest, run, out)


def _ask(config: Config, source: Path, tasks: Mapping[str, Task], harvest: Harvest, run: Run) -> dict[str, Any]:
    """Round after round, for as long as the rounds or the time last."""
    chat = ChatFormat.load(source)
    run.log.info(f"kernels for replies: {status()}")
    model = load_model(source, run.runtime.dtype, run.runtime.device).requires_grad_(False)
    sampler = Sampler(config, model, chat, tasks, run, kept=config.rounds)
    levels = {name: training_levels(task) for name, task in tasks.items()}
    seconds, done = 0.0, 0
    while done < config.rounds and not is_over(run, f"round {done}"):
        found = sampler.rollouts(done, lambda task, rng: rng.choice(levels[task]))
        harvest.add(found.groups, tasks)
        seconds, done = seconds + found.seconds, done + 1
        run.log.step(done, config.rounds, kept=len(harvest.kept), **_shown(found))
    return {"rounds": done, "sampling_seconds": seconds}


def _judged(replies: Artifact, tasks: Mapping[str, Task]) -> list[Group]:
    """What somebody else said, as if it had been sampled here. Raises DataError for another task's questions."""
    groups = []
    rows = read_rows(replies.file(REPLIES))
    if rows.bad:
        raise DataError(f"{replies.file(REPLIES)}: {len(rows.bad)} bad rows, the first: {rows.bad[0]}")
    for row in rows.good:
        task = tasks.get(row["task"])
        if task is None:
            named = ", ".join(tasks)
            raise DataError(f"the replies answer the task {row['task']!r}, and tasks are {named}: name it, too.")
        example = Example(row["id"], row["task"], row["level"], row["question"], row["answer"])
        samples = []
        for said in row["replies"]:
            verdict = task.judge(example, said["text"])
            samples.append(Sample([], [], said["finish_reason"], said["text"], verdict.score, verdict.parts))
        groups.append(Group(example.task, example.level, example.question, example.answer, [], samples))
    return groups


def _shown(found: Rollouts) -> dict[str, Any]:
    figures = found.figures()
    return {name: figures[name] for name in ("right", "length", "truncated", "rollout_tok_s")}


def _write(config: Config, inputs: Mapping[str, Artifact], harvest: Harvest, run: Run, out: Draft) -> None:
    total, counts = harvest.replies.total(), dict(harvest.replies.most_common())
    if not harvest.kept:
        raise DataError(
            f"Of {total} replies none was right and readable ({counts}): nothing to learn from. Take a model that is "
            "right now and then, easier tasks, or a higher `repeats`."
        )
    beside = [] if config.beside is None else read_conversations(inputs[config.beside].file(CONVERSATIONS)).good
    rows = [*harvest.kept, *beside]
    random.Random(f"order/{run.seed}").shuffle(rows)
    write_conversations(out.path / CONVERSATIONS, rows)
    write_ratings(out.path / RATINGS, harvest.ratings)
    share = harvest.replies["kept"] / total
    out.meta |= {"rows": len(rows), "beside": len(beside), "replies": counts, "kept_share": share}
    speaker = inputs[config.model or config.replies or ""]
    (out.path / "README.md").write_text(_card(harvest, len(beside), speaker), encoding="utf-8")
    others = ", ".join(f"{n} {word}" for word, n in counts.items() if word != "kept")
    run.log.info(f"kept {len(harvest.kept)} of {total} replies ({share:.0%}; {others}); {len(beside)} rows beside them")


def _speaker(speaker: Artifact) -> str:
    if "endpoint" in speaker.meta:
        return f"{speaker.meta['model']} at {speaker.meta['endpoint']} (artifact {speaker.id})"
    return f"the model of artifact {speaker.id}"


def _card(harvest: Harvest, beside: int, speaker: Artifact) -> str:
    table = [f"| {word} | {n} |" for word, n in harvest.replies.most_common()]
    lines = [
        "# Replies of a model, the right ones",
        "",
        f"{len(harvest.kept)} conversations in `{CONVERSATIONS}`, one JSON object a line: `messages`, `meta`;",
        f"and {beside} of another stage among them. `{RATINGS}`: {len(harvest.ratings)} ratings for `train.prefer`,",
        "what was kept and what was wrong.",
        "",
        "| replies | number |",
        "|---|---|",
        *table,
        "",
        f"- Every reply was written by {_speaker(speaker)} and judged by the question's task; nobody",
        "  read it.",
        *(
            f"- Terms of the endpoint, as the recipe stated them: {term}"
            for term in speaker.meta.get(ENDPOINT_TERMS, ())
        ),
        '- "rambling" replies repeat themselves; "one more" are right, too, but more than were asked for.',
        "- Questions are of the training split.",
        "",
    ]
    return "\n".join(lines)
