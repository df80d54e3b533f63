"""GRPO: learn to reason from answers alone. Rollout, judge, advantages, fit.

The policy samples a group of replies to each question; those better than their group's mean become likelier. No trace
is ever shown. Questions come from ladders of levels that the policy climbs by its success (`ladder`), the formulas are
in `policy`, sampling and judging in `rollout`. Source: arXiv 2402.03300; arXiv 2501.12948; DAPO, arXiv 2503.14476.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.kernels.native import status
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskSpec, complaints, is_open, load_tasks
from schoolhouse.tasks.load import fingerprint as tasks_fingerprint
from schoolhouse.tasks.task import Example, Task
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.language import check_language, share_in
from schoolhouse.text.reply import reasoning_of
from schoolhouse.train.ahead import Ahead
from schoolhouse.train.fit import SAVE_EVERY_S, Batch, Course, even_cuts, fit, share_done
from schoolhouse.train.judge import Judge, load_judge
from schoolhouse.train.ladder import Ladder
from schoolhouse.train.layout import Laid, lay_out
from schoolhouse.train.lora import check_lora, mover
from schoolhouse.train.optimizer import Kind
from schoolhouse.train.policy import (
    METHODS,
    Advantage,
    Averaging,
    Distance,
    Ratio,
    aggregate,
    clipped_share,
    group_advantages,
    has_signal,
    kl_penalty,
    mismatch_weight,
    most_telling,
    overlong_penalty,
    policy_loss,
    reply_means,
    win_rates,
)
from schoolhouse.train.result import keep_model, training_bytes
from schoolhouse.train.rollout import Group, Rollouts, Sampler, check_asking, slots, training_levels

SAMPLES = "samples.jsonl"
SLOT_SHARE = 0.064  # bytes a reply and parameter: 1.1 GB more than the cold start with 128 replies of 135M, measured
SHOWN = ("reward", "right", "signal", "length", "entropy", "top", "rollout_tok_s")


class Config(StageConfig):
    """What `train.grpo` reads: a model that sometimes succeeds, and tasks that can judge it."""

    model: Ref
    tasks: list[TaskSpec] = Field(min_length=1)
    steps: int = Field(default=1000, ge=1)  # at most; the stage's time ends it sooner
    prompts: int = Field(default=16, ge=1)  # questions a step
    group: int = Field(default=8, ge=2)  # replies to a question
    learn: Annotated[int, Field(ge=2)] | Literal["all"] = 4  # of them learnt from, the best and the worst
    updates: int = Field(default=2, ge=1)  # moves of the weights a step, each by its share of the questions
    weights: list[float] | None = None  # share of the questions that each task gets; equal without it
    lr: float = Field(default=3e-5, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    hold: float = Field(default=0.5, ge=0, lt=1)
    floor: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Kind = "adamw"
    lora: int | None = Field(default=None, ge=1)  # rank of the differences that are learnt instead of all weights
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=112, ge=8)
    level_up: float = Field(default=0.7, gt=0, le=1)
    start: Literal["taught", "easiest"] = "taught"  # of the ladder: the hardest level with traces, or the easiest
    method: Literal["grpo", "dapo", "dr-grpo", "rloo", "gspo", "cispo"] | None = None  # sets what is not set below
    advantage: Advantage = "centred"  # beside the group's mean, the same `scaled` by its deviation, or the others' mean
    ratio: Ratio = "token"  # to what sampled, clipped: of each token, of a whole `reply`, or a token's `weight` alone
    averaging: Averaging = "token"  # every token weighs the same, every `reply` does, or a sum over a `constant`
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.28, gt=0)
    kl: float = Field(default=0.0, ge=0)  # weight of the distance to the model that the stage starts from
    distance: Distance = "k3"  # how that is estimated
    correction: Literal["none", "truncate", "mask"] = "none"  # of what sampler and learner differ by, token by token
    bounds: tuple[float, float] = (0.5, 2.0)  # of it: how many times as likely a token may be to the learner
    language: str | None = None  # of the reasoning, two letters; sentences surely of another one earn less
    language_reward: float = Field(default=0.1, ge=0)  # what reasoning wholly in that language is worth
    preference: Ref | None = None  # a reward model, or a model that is asked, where no task can check (verifier "open")
    preference_reward: float = Field(default=1.0, gt=0)  # what an answer is worth that is surely the best of its group
    preference_from: float = Field(default=0.0, ge=0, lt=1)  # share of the course after which it counts
    overlong: float = Field(default=0.0, ge=0, le=1)  # last share of max_new_tokens, where reward falls by up to 1
    refill: int = Field(default=0, ge=0)  # times that questions are asked anew until all groups of a step can teach
    ahead: int = Field(default=0, ge=0, le=8)  # steps that sampling runs ahead of learning, beside it
    learn_truncated: bool = False  # learn from replies that were cut off, too
    part_tokens: int = Field(default=2304, ge=64)  # computed at once; sets the memory of the activations
    save_every: Duration = SAVE_EVERY_S  # what a killed run loses at most

    @model_validator(mode="before")
    @classmethod
    def _by_method(cls, given: Any) -> Any:
        return METHODS.get(str(given.get("method")), {}) | given if isinstance(given, dict) else given


def check(config: Config) -> None:
    """Raise TaskError or RecipeError before anything starts if tasks or numbers do not fit together."""
    check_asking(config)
    check_lora(config)
    if config.language is not None:
        check_language(config.language)
    if config.preference is not None and not any(map(is_open, config.tasks)):
        raise RecipeError('preference is set, and every task checks its answers: add one with verifier = "open".')
    for key, switch, off in (
        ("distance", "kl", 0),
        ("bounds", "correction", "none"),
        ("language_reward", "language", None),
        ("preference_reward", "preference", None),
        ("preference_from", "preference", None),
    ):
        if key in config.model_fields_set and getattr(config, switch) == off:
            raise RecipeError(f"{key} is set, and {switch} is not: set it, or leave out {key}.")
    if config.ahead and config.refill:
        raise RecipeError(
            f"ahead is {config.ahead} and refill {config.refill}: what a step asks anew would wait behind what later "
            "steps have asked. Set one of them to 0."
        )
    if not 0 <= config.bounds[0] < 1 < config.bounds[1]:
        raise RecipeError(
            f"bounds is {list(config.bounds)}: the lower is below 1, where both agree, the upper above it."
        )


def fingerprint(config: Config) -> str:
    """Hash of the question files: edited questions are another run."""
    return tasks_fingerprint(config.tasks)


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated: the policy's training, its replies with the copy of the weights
    that is laid out for them, those that are ahead and, with KL, the reference.
    """
    params = inputs_meta.get(config.model, {}).get("num_params", 0)
    copies = 2 + config.ahead if config.ahead else 1  # laid out, the sampler's own, and one for each step ahead
    replies = 2 * params * copies + int(SLOT_SHARE * params * slots(config))
    judge = 2 * inputs_meta.get(config.preference or "", {}).get("num_params", 0)
    training = training_bytes(params, config.part_tokens, lora=config.lora is not None)
    return training + replies + judge + (2 * params if config.kl > 0 else 0)


@dataclass(frozen=True)
class Part(Laid):
    """Some groups in one row."""

    old_logprobs: Tensor  # (M,) float32, the sampler's; the learner's own before it moves where they are corrected
    advantages: Tensor  # (M,) float32, 0 for replies that are not learnt from
    batch_tokens: int  # reply tokens of the whole batch
    batch_replies: int
    gap: Tensor | None = None  # (M,) float32, where they are corrected: what the sampler's were less likely by


def make_part(
    groups: Sequence[Group], advantages: Tensor, batch_tokens: int, batch_replies: int, device: torch.device
) -> Part:
    """Lay groups out so that each prompt is computed once. advantages: (groups, G)."""
    laid = lay_out([g.prompt for g in groups], [[s.ids for s in g.samples] for g in groups], device)
    return Part(
        **vars(laid),
        old_logprobs=torch.tensor([p for g in groups for s in g.samples for p in s.logprobs], device=device),
        advantages=advantages.flatten().repeat_interleave(laid.lengths).to(device),
        batch_tokens=batch_tokens,
        batch_replies=batch_replies,
    )


class GroupObjective:
    """The loss of a part; holds the reference policy where a distance to it is asked for."""

    def __init__(self, config: Config, reference: Transformer | None) -> None:
        self._config, self._reference = config, reference

    def __call__(self, model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
        """See `fit.Objective`."""
        config = self._config
        logprobs, entropy = self._logprobs(model, part)
        own_ratio = logprobs - part.old_logprobs  # of each token
        ratio = reply_means(own_ratio, part.lengths) if config.ratio == "reply" else own_ratio
        how: Any = {"kind": config.ratio, "clip_low": config.clip_low, "clip_high": config.clip_high}
        losses = policy_loss(logprobs, ratio, part.advantages, **how)
        clipped = clipped_share(ratio.detach(), part.advantages, **how)
        gap = own_ratio.detach() if part.gap is None else part.gap
        figures = {"entropy": float(entropy.sum()), "clipped": float(clipped), "sampler_gap": float(gap.abs().sum())}
        if config.correction != "none" and part.gap is not None:
            losses = losses * mismatch_weight(part.gap, config.correction, config.bounds)
        if self._reference is not None:
            with torch.no_grad():
                reference, _ = self._logprobs(self._reference, part)
            penalty = kl_penalty(logprobs, reference, own_ratio, config.distance)
            losses = losses + config.kl * penalty
            figures["kl"] = float(penalty.detach().sum())
        figures = {name: value / part.batch_tokens for name, value in figures.items()}
        loss = aggregate(
            losses, part.lengths, total_tokens=part.batch_tokens, replies=part.batch_replies,
            longest=config.max_new_tokens, by=config.averaging,
        )  # fmt: skip
        return loss, figures

    def corrected(self, model: Transformer, part: Part) -> Part:
        """The part with the learner's log-probabilities before it moves and what the sampler differs by."""
        if self._config.correction == "none":
            return part
        with torch.no_grad():
            own, _ = self._logprobs(model, part)
        return replace(part, old_logprobs=own, gap=own - part.old_logprobs)

    def _logprobs(self, model: Transformer, part: Part) -> tuple[Tensor, Tensor]:
        hidden = model.hidden(part.ids, part.context).squeeze(0).index_select(0, part.sources)  # (M, D)
        return model.logprobs(hidden, part.targets, self._config.temperature)


class Preference:
    """What a judge makes of the replies to one question: how surely each is the best of its group."""

    def __init__(self, judge: Judge, tasks: Mapping[str, Task]) -> None:
        self._judge, self._tasks = judge, tasks

    def __call__(self, group: Group) -> Tensor:
        """(G,), each in [0, 1]: the mean probability to be preferred to another reply of the group."""
        example = Example("", group.task, group.level, group.question, group.answer)
        asked = self._tasks[group.task].conversation(example)
        return win_rates(torch.tensor(self._judge(asked, [s.text for s in group.samples])))


class Rehearsal:
    """The source of batches: asks the policy, and keeps the ladders."""

    def __init__(
        self, config: Config, model: Transformer, chat: ChatFormat, tasks: Mapping[str, Task], run: Run,
        correct: Callable[[Part], Part] = lambda part: part, preferred: Callable[[Group], Tensor] | None = None,
        copy: Transformer | None = None,
    ) -> None:  # fmt: skip
        """correct: see `GroupObjective.corrected`; preferred: see `Preference`; copy: of the model, which answers
        `ahead` steps before; without it the model itself does when it is asked.
        """
        self._config, self._run, self._correct, self._preferred = config, run, correct, preferred
        self._sampler: Sampler | Ahead = Sampler(config, copy or model, chat, tasks, run)
        if copy is not None:
            self._sampler = Ahead(self._sampler, copy, model, config.ahead, config.steps)
        self.ladders = {name: _ladder(task, config) for name, task in tasks.items()}
        self._has_trimmed_samples = False

    def batch(self, step: int) -> Batch:
        """Sample, judge, and cut the groups that can teach into parts."""
        rollouts, rewards = self._asked(step)
        self._keep_samples(step, rollouts.groups)
        signal = has_signal(rewards)
        lessons: list[Group] = []
        worth: list[Tensor] = []
        for group, row, keep, teaches in zip(rollouts.groups, rewards, self._picked(rewards), signal, strict=True):
            if teaches and len(lessons) < self._config.prompts:
                lessons.append(group.only(keep))
                worth.append(row[keep])
        updates = []
        for first in range(min(self._config.updates, len(lessons))):
            share = slice(first, None, self._config.updates)
            parts = self.parts(lessons[share], torch.stack(worth[share]))
            updates.append([self._correct(part) for part in parts])
        tokens = sum(len(g.prompt) + sum(len(s.ids) for s in g.samples) for g in lessons)
        return Batch(updates, tokens, self._figures(rollouts, rewards), SHOWN)

    def _asked(self, step: int) -> tuple[Rollouts, Tensor]:
        """Groups of one step and their rewards (P, G); those that cannot teach are made up for by others. The ladders
        hear of all.
        """
        groups: list[Group] = []
        rewards = torch.empty(0, self._config.group)
        seconds = 0.0
        for attempt in range(1 + self._config.refill):
            found = self._sampler.rollouts(step, self._level, attempt)
            for group in found.groups:
                if group.is_checked:
                    self.ladders[group.task].record(group.level, [s.parts["answer"] for s in group.samples])
            groups, seconds = groups + found.groups, seconds + found.seconds
            rewards = torch.cat((rewards, self.rewards(found.groups, step)))
            if int(has_signal(rewards).sum()) >= self._config.prompts:
                break
        return Rollouts(groups, seconds), rewards

    def rewards(self, groups: Sequence[Group], step: int) -> Tensor:
        """(P, G): what the judge said, what language and preference are worth, less what long replies cost."""
        rewards = torch.tensor([g.rewards for g in groups])
        if self._config.language is not None:
            rewards += self._config.language_reward * torch.tensor(self._language(groups))
        if self._preferred is not None and self._prefers(step):
            for row, group in enumerate(groups):
                if not group.is_checked:
                    rewards[row] += self._config.preference_reward * self._preferred(group)
        most = self._config.max_new_tokens
        margin = int(self._config.overlong * most)
        if not margin:
            return rewards
        return rewards - overlong_penalty(torch.tensor([[len(s.ids) for s in g.samples] for g in groups]), most, margin)

    def _prefers(self, step: int) -> bool:
        return share_done(self._config.steps, step, self._run) >= self._config.preference_from

    def _language(self, groups: Sequence[Group]) -> list[list[float]]:
        """Of each reply the share of its reasoning that is in the wanted language."""
        wanted = self._config.language or ""
        return [[share_in(reasoning_of(s.text), wanted) for s in g.samples] for g in groups]

    def _level(self, task: str, rng: random.Random) -> str:
        return self.ladders[task].draw(rng)

    def _picked(self, rewards: Tensor) -> list[list[int]]:
        """Indices of the replies of each group that are learnt from."""
        group, learn = self._config.group, self._config.learn
        keep = group if learn == "all" else min(learn, group)
        picked: list[list[int]] = most_telling(rewards, keep).tolist()
        return picked

    def parts(self, groups: Sequence[Group], rewards: Tensor) -> list[Part]:
        """Groups of like length together, up to `part_tokens`. rewards: (groups, G)."""
        advantages = group_advantages(rewards, self._config.advantage)
        if not self._config.learn_truncated:
            advantages *= torch.tensor([[s.finish_reason == "stop" for s in g.samples] for g in groups])
        sizes = [len(g.prompt) + sum(len(s.ids) for s in g.samples) for g in groups]
        batch_tokens = sum(len(s.ids) for g in groups for s in g.samples)
        replies = sum(len(g.samples) for g in groups)
        cuts = even_cuts(sizes, self._config.part_tokens)
        device = self._run.runtime.device
        return [make_part([groups[i] for i in cut], advantages[cut], batch_tokens, replies, device) for cut in cuts]

    def _figures(self, rollouts: Rollouts, rewards: Tensor) -> dict[str, Any]:
        signal = int(has_signal(rewards).sum())
        own = self._language(rollouts.groups) if self._config.language is not None else []
        spoken = {"language": sum(map(sum, own)) / sum(map(len, own))} if own else {}
        return (
            rollouts.figures()
            | spoken
            | {
                "signal_groups": signal,
                "groups": len(rollouts.groups),
                "signal": f"{signal}/{len(rollouts.groups)}",
                "top": " ".join(f"{name}:{ladder.top}" for name, ladder in self.ladders.items()),
                "level": {name: ladder.top for name, ladder in self.ladders.items()},
                "levels": {name: ladder.rates() for name, ladder in self.ladders.items()},
            }
        )

    def _keep_samples(self, step: int, groups: Sequence[Group]) -> None:
        """One reply of every fourth group, for the report's transcripts; a resumed run does not write a step twice."""
        path = self._run.scratch / SAMPLES
        if path.exists() and not self._has_trimmed_samples:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            part = path.with_name(path.name + ".part")
            part.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")
            part.replace(path)
        self._has_trimmed_samples = True
        with path.open("a", encoding="utf-8") as file:
            for group in groups[::4]:
                s = group.samples[0]
                row = {
                    "step": step + 1, "task": group.task, "level": group.level, "question": group.question,
                    "answer": group.answer, "reply": s.text, "score": s.score,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")

    def state(self) -> dict[str, Any]:
        """How far the ladders were climbed. All replies that were asked for lie on disk then."""
        self._sampler.settle()
        return {name: ladder.state() for name, ladder in self.ladders.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to those rungs."""
        for name, held in state.items():
            self.ladders[name].restore(held)

    def close(self) -> None:
        """Nothing is asked any more."""
        self._sampler.close()


def _ladder(task: Task, config: Config) -> Ladder:
    """Start where the config says, at the easiest without traces; leave out levels without training questions."""
    levels = training_levels(task)
    taught = [level for level in levels if level in task.trace_levels]
    first = (taught or levels[:1])[-1] if config.start == "taught" else levels[0]
    return Ladder(levels, first, config.level_up, config.group)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Teach `model` by its own answers on the tasks' ladders, until the steps or the stage's time are spent."""
    source: Path = inputs[config.model].path
    chat = ChatFormat.load(source)
    tasks = {task.name: task for task in load_tasks(config.tasks, inputs)}
    for complaint in complaints(list(tasks.values())):
        run.log.warn(complaint)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    reference = load_model(source, run.runtime.dtype, run.runtime.device) if config.kl > 0 else None
    run.log.info(f"kernels for replies: {status()}")
    optimizer = mover(model, config, run)
    objective = GroupObjective(config, reference)
    preferred = None
    if config.preference is not None:
        preferred = Preference(load_judge(inputs[config.preference].path, run), tasks)
    copy = load_model(source, run.runtime.dtype, run.runtime.device).requires_grad_(False) if config.ahead else None
    correct = functools.partial(objective.corrected, model)
    course = Course(config.steps, config.lr, config.warmup, config.hold, config.floor, config.save_every)
    with contextlib.closing(Rehearsal(config, model, chat, tasks, run, correct, preferred, copy)) as rehearsal:
        steps = fit(model, rehearsal, objective, optimizer, course, run)
    keep_model(model, source, steps, run, out, optimizer)
    if (run.scratch / SAMPLES).exists():
        shutil.copyfile(run.scratch / SAMPLES, out.path / SAMPLES)
