"""The stage `train.distill`: an apprentice learns what a master would say next, at every token of a reply.

Who writes the replies decides what is learnt. The master's own show the apprentice what it could not say yet; its own
show the master's view of where it really goes wrong, and are the better school once they make sense. Several masters
become one apprentice: what each of them knows is learnt on its own task's questions.
Sources: arXiv 2306.13649 (replies of the learner), arXiv 2306.08543 (reverse divergence), arXiv 2606.19348, section
5.1.2 (several masters).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.kernels.divergence import Divergence, token_divergence
from schoolhouse.kernels.native import status
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskSpec, complaints, load_tasks
from schoolhouse.tasks.load import fingerprint as tasks_fingerprint
from schoolhouse.tasks.task import Task
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train.fit import SAVE_EVERY_S, Batch, Course, even_cuts, fit
from schoolhouse.train.grpo import SLOT_SHARE
from schoolhouse.train.layout import Laid, lay_out
from schoolhouse.train.optimizer import Kind, Optimizer
from schoolhouse.train.result import keep_model, training_bytes
from schoolhouse.train.rollout import Group, Rollouts, Sampler, check_asking, slots, training_levels
from schoolhouse.train.rounding import rounding_for

SHOWN = ("right", "length", "truncated", "rollout_tok_s")


class Config(StageConfig):
    """What `train.distill` reads: an apprentice, its master or masters, and tasks whose questions are asked."""

    model: Ref
    master: Ref | list[Ref]  # one for all tasks, or one for each of them in their order
    tasks: list[TaskSpec] = Field(min_length=1)
    speaker: Literal["apprentice", "master"] = "apprentice"  # who writes the replies
    divergence: Divergence = "reverse"  # `reverse` seeks what the master holds likely, `forward` all of it, `jsd` both
    steps: int = Field(default=1000, ge=1)  # at most; the stage's time ends it sooner
    prompts: int = Field(default=64, ge=1)  # questions a step
    group: int = Field(default=1, ge=1)  # replies to a question
    weights: list[float] | None = None  # share of the questions that each task gets; equal without it
    lr: float = Field(default=5e-5, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    hold: float = Field(default=0.5, ge=0, lt=1)
    floor: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Kind = "adamw"
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=112, ge=8)
    part_tokens: int = Field(default=1024, ge=64)  # computed at once; sets the memory of the activations
    save_every: Duration = SAVE_EVERY_S
    codes: Literal["int8", "int4"] | None = None  # weights pass their rounding; then quantize so, by method "nearest"
    code_group: Literal[32, 64, 128] | None = None  # weights that share a scale, as `group` of compress.quantize


def check(config: Config) -> None:
    """Raise TaskError or RecipeError before anything starts if tasks or numbers do not fit together."""
    check_asking(config)
    if isinstance(config.master, list) and len(config.master) != len(config.tasks):
        raise RecipeError(
            f"{len(config.master)} masters for {len(config.tasks)} tasks: give one for each, or one name."
        )
    if isinstance(config.master, list) and config.speaker == "master":
        raise RecipeError(
            "several masters do not speak: leave out speaker, and the apprentice's replies are corrected."
        )
    if config.code_group is not None and config.codes is None:
        raise RecipeError(f"code_group is {config.code_group}, and codes is not set: set it, or leave out code_group.")


def fingerprint(config: Config) -> str:
    """Hash of the question files: edited questions are another run."""
    return tasks_fingerprint(config.tasks)


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated: the apprentice's training, the masters, the replies of either."""
    own = inputs_meta.get(config.model, {}).get("num_params", 0)
    masters = sum(inputs_meta.get(name, {}).get("num_params", 0) for name in set(master_names(config)))
    speaks = masters if config.speaker == "master" else own
    return training_bytes(own, config.part_tokens) + 2 * masters + int((2 + SLOT_SHARE * slots(config)) * speaks)


def master_names(config: Config) -> list[str]:
    """The master of each task."""
    return config.master if isinstance(config.master, list) else [config.master] * len(config.tasks)


@dataclass(frozen=True)
class Part(Laid):
    """Some prompts and the replies to them in one row, all of one master's."""

    batch_tokens: int  # reply tokens of the whole batch
    master: str


class Lessons:
    """The source of batches: questions of all levels, and replies to them."""

    def __init__(
        self, config: Config, speaker: Transformer, chat: ChatFormat, tasks: Mapping[str, Task], run: Run
    ) -> None:
        self._config, self._run = config, run
        self._sampler = Sampler(config, speaker, chat, tasks, run)
        self._levels = {name: training_levels(task) for name, task in tasks.items()}
        self._masters = dict(zip(tasks, master_names(config), strict=True))

    def batch(self, step: int) -> Batch:
        """Sample and cut into parts."""
        rollouts = self._sampler.rollouts(step, self._level)
        tokens = rollouts.made + sum(len(g.prompt) for g in rollouts.groups)
        return Batch([self._parts(rollouts)], tokens, rollouts.figures(), SHOWN)

    def _level(self, task: str, rng: random.Random) -> str:
        return rng.choice(self._levels[task])

    def _parts(self, rollouts: Rollouts) -> Sequence[Part]:
        by_master: dict[str, list[Group]] = {}
        for group in rollouts.groups:
            by_master.setdefault(self._masters[group.task], []).append(group)
        parts = []
        for name, groups in by_master.items():
            sizes = [len(g.prompt) + sum(len(s.ids) for s in g.samples) for g in groups]
            for cut in even_cuts(sizes, self._config.part_tokens):
                replies = [[s.ids for s in groups[i].samples] for i in cut]
                laid = lay_out([groups[i].prompt for i in cut], replies, self._run.runtime.device)
                parts.append(Part(**vars(laid), batch_tokens=rollouts.made, master=name))
        return parts

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


class MasterObjective:
    """The mean divergence from the masters over the replies' tokens, each on its own task's."""

    def __init__(self, masters: Mapping[str, Transformer], kind: Divergence) -> None:
        self._masters, self._kind = masters, kind

    def __call__(self, model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
        """See `fit.Objective`."""
        master = self._masters[part.master]
        with torch.no_grad():
            theirs = master.hidden(part.ids, part.context)[0][part.sources]  # (M, D of the master)
        own = model.hidden(part.ids, part.context).squeeze(0).index_select(0, part.sources)  # (M, D)
        head_bias = model.lm_head.bias if model.config.head_bias else None
        losses = token_divergence(
            own, model.head_weight, head_bias, model.config.final_logit_softcapping,
            lambda rows: master.head(theirs[rows]), self._kind,
        )  # fmt: skip
        figures = (
            {f"from {part.master}": float(losses.detach().sum()) / part.batch_tokens} if len(self._masters) > 1 else {}
        )
        return losses.sum() / part.batch_tokens, figures


def same_ids(model: Path, master: Path) -> None:
    """Raise RecipeError unless both tokenizers give every piece the same id."""
    ours, theirs = (ChatFormat.load(folder).tokenizer.vocabulary() for folder in (model, master))
    if ours != theirs:
        other = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda pair: pair[1])
        raise RecipeError(
            f"master and apprentice have different vocabularies ({len(theirs)} and {len(ours)} pieces, the first "
            f"difference is {other[0][0]!r} = {other[0][1]}): an id would mean another word to each. Take an "
            "apprentice of the master's family, or let it learn from the master's replies by train.sft."
        )


def _master(folder: Path, model: Transformer, run: Run) -> Transformer:
    master = load_model(folder, run.runtime.dtype, run.runtime.device).requires_grad_(False)
    if model.config.vocab_size != master.config.vocab_size:
        raise RecipeError(
            f"The master's head has {master.config.vocab_size} rows, the apprentice's {model.config.vocab_size}, for "
            "the same vocabulary: take two checkpoints that are filled up alike."
        )
    return master


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Teach `model` to say what `master` would, until the steps or the stage's time are spent."""
    source = inputs[config.model].path
    above = {name: inputs[name].path for name in master_names(config)}
    for folder in above.values():
        same_ids(source, folder)
    chat = ChatFormat.load(source)
    tasks = {task.name: task for task in load_tasks(config.tasks, inputs)}
    for complaint in complaints(list(tasks.values())):
        run.log.warn(complaint)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    masters = {name: _master(folder, model, run) for name, folder in above.items()}
    sizes = " and ".join(f"{master.config.num_params():,}" for master in masters.values())
    run.log.info(f"{model.config.num_params():,} parameters learn from {sizes}; kernels for replies: {status()}")
    rounding = rounding_for(model, config.codes, config.code_group) if config.codes else None
    optimizer = Optimizer(model, kind=config.optimizer, weight_decay=config.weight_decay, rounding=rounding)
    speaker = next(iter(masters.values())) if config.speaker == "master" else model
    lessons = Lessons(config, speaker, chat, tasks, run)
    course = Course(config.steps, config.lr, config.warmup, config.hold, config.floor, config.save_every)
    steps = fit(model, lessons, MasterObjective(masters, config.divergence), optimizer, course, run)
    if rounding is not None:
        optimizer.unround()
        out.meta |= {"codes": config.codes, "code_group": config.code_group}
    keep_model(model, source, steps, run, out)
