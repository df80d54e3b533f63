"""The stage `train.reward`: a model that says how good a reply is, learnt from pairs of a better and a worse one.

It judges what a user is shown, the answer, and not what led to it; `train.grpo` takes it as a reward where no task can
check an answer. Source: arXiv 2203.02155, eq. 1 (Bradley-Terry); arXiv 2501.12948 (v2), supplement B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.core.run import Run
from schoolhouse.model.reward import RewardModel, save_reward_model
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.preferences import Rating
from schoolhouse.text.records import Conversation
from schoolhouse.text.reply import answer_of
from schoolhouse.train.fit import SAVE_EVERY_S, Course, even_cuts, fit
from schoolhouse.train.layout import Laid, lay_out
from schoolhouse.train.optimizer import Kind, Optimizer
from schoolhouse.train.ratings import Rated, RatedBatches, as_ids, pairs_as_ids, split_ratings
from schoolhouse.train.result import keep_curve, training_bytes


class Config(StageConfig):
    """What `train.reward` reads: a model to start from and a folder with ratings.jsonl."""

    model: Ref
    data: Ref
    epochs: float = Field(default=2.0, gt=0)
    batch: int = Field(default=16, ge=1)  # pairs a step
    lr: float = Field(default=2e-5, gt=0)
    floor: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Kind = "adamw"
    max_tokens: int = Field(default=1024, ge=16)  # of one conversation; longer ones are an error
    part_tokens: int = Field(default=1024, ge=64)  # computed at once; sets the memory of the activations
    save_every: Duration = SAVE_EVERY_S


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated."""
    return training_bytes(inputs_meta.get(config.model, {}).get("num_params", 0), config.part_tokens)


@dataclass(frozen=True)
class Part(Laid):
    """Some pairs in one row."""

    batch_pairs: int


def shown_only(asked: Conversation) -> Conversation:
    """A conversation without its system message, which asks for a form that the user does not see."""
    return Conversation(tuple(m for m in asked.messages if m.role != "system"), asked.meta)


def margins(model: RewardModel, part: Laid) -> Tensor:
    """How much better the first reply of each pair is than the second. (pairs,) fp32."""
    rewards = model.rewards(part.ids, part.context, part.ends)
    return rewards[0::2] - rewards[1::2]


def pair_loss(model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
    """The negative log-likelihood that the better reply wins: the objective of `fit`."""
    assert isinstance(model, RewardModel)
    margin = margins(model, part)
    won = float((margin.detach() > 0).sum()) / part.batch_pairs
    return -torch.nn.functional.logsigmoid(margin).sum() / part.batch_pairs, {"won": won}


def lay_pairs(rows: Sequence[Rated], part_tokens: int, device: torch.device) -> list[Part]:
    """Pairs of like length together, up to `part_tokens`."""
    parts = []
    for cut in even_cuts([row.tokens for row in rows], part_tokens):
        laid = lay_out([rows[i].prompt for i in cut], [rows[i].replies for i in cut], device)
        parts.append(Part(**vars(laid), batch_pairs=len(rows)))
    return parts


@torch.no_grad()
def won(model: RewardModel, rows: Sequence[Rated], part_tokens: int, device: torch.device) -> int:
    """In how many pairs the model prefers what people preferred."""
    return sum(int((margins(model, part) > 0).sum()) for part in lay_pairs(rows, part_tokens, device))


@torch.no_grad()
def judged(
    model: RewardModel, chat: ChatFormat, asked: Conversation, replies: Sequence[str], device: torch.device
) -> list[float]:
    """The rewards of replies to one conversation, by their answers; what has none is worth less than all that have."""
    answers = [answer_of(reply) for reply in replies]
    given = [as_ids(chat, shown_only(asked), answer) for answer in answers if answer]
    if not given:
        return [0.0] * len(replies)
    laid = lay_out([given[0][0]], [[reply for _, reply in given]], device)
    return empty_is_worst(answers, model.rewards(laid.ids, laid.context, laid.ends).tolist())


def empty_is_worst(answers: Sequence[str], found: Sequence[float]) -> list[float]:
    """What each answer is worth, from what those that are not empty are worth."""
    left = iter(found)
    least = min(found) - 1.0
    return [next(left) if answer else least for answer in answers]


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Train and write the reward model. Raises DataError where there is no pair to learn from."""
    source = inputs[config.model].path
    chat = ChatFormat.load(source)
    learnt, held = (
        pairs_as_ids(_answers(part), chat, config.max_tokens) for part in split_ratings(inputs[config.data])
    )
    if not learnt:
        raise DataError("the ratings hold no pair: give an up and a down to two replies to the same messages.")
    device = run.runtime.device
    model = RewardModel.of(load_model(source, run.runtime.dtype, device))
    optimizer = Optimizer(model, kind=config.optimizer, weight_decay=config.weight_decay)
    pairs = RatedBatches(learnt, config, run, lambda rows: lay_pairs(rows, config.part_tokens, device), ("won",))
    run.log.info(f"{len(learnt)} pairs to learn from, {len(held)} held out; {pairs.steps} steps of {config.batch}")
    course = Course(pairs.steps, config.lr, floor=config.floor, save_every_s=config.save_every)
    steps = fit(model, pairs, pair_loss, optimizer, course, run)
    right = won(model, held, config.part_tokens, device)
    run.log.info(f"of {len(held)} held-out pairs it prefers the better reply in {right}")
    save_reward_model(model, out.path, like=source)
    keep_curve(model, steps, run, out)
    out.meta |= {"pairs": len(learnt), "held_out": len(held), "held_out_won": right}


def _answers(ratings: Sequence[Rating]) -> list[Rating]:
    """What users were shown of rated conversations."""
    return [Rating(shown_only(r.asked), answer_of(r.reply) or r.reply, r.liked) for r in ratings]
