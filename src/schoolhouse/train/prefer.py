"""The stage `train.prefer`: learn from what people preferred, without a reward model between.

"dpo" learns from pairs of replies to the same messages, "kto" from single replies that were liked or not.
Sources: arXiv 2305.18290, eq. 7 (DPO); arXiv 2402.01306, eq. 8 (KTO).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.core.run import Run
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train.fit import SAVE_EVERY_S, Course, even_cuts, fit
from schoolhouse.train.layout import Laid, lay_out
from schoolhouse.train.lora import check_lora, mover
from schoolhouse.train.optimizer import Kind
from schoolhouse.train.ratings import Rated, RatedBatches, pairs_as_ids, ratings_as_ids, split_ratings
from schoolhouse.train.result import keep_model, training_bytes

Method = Literal["dpo", "kto"]


class Config(StageConfig):
    """What `train.prefer` reads: a model and a folder with ratings.jsonl."""

    model: Ref
    data: Ref
    method: Method = "dpo"  # from pairs, or `kto` from single ratings
    beta: float = Field(default=0.1, gt=0)  # how dear it is to go away from the model that the stage starts from
    epochs: float = Field(default=2.0, gt=0)
    batch: int = Field(default=16, ge=2)  # pairs, or ratings, a step
    lr: float = Field(default=1e-5, gt=0)
    floor: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Kind = "adamw"
    lora: int | None = Field(default=None, ge=1)  # rank of the differences that are learnt instead of all weights
    max_tokens: int = Field(default=1024, ge=16)  # of one conversation; longer ones are an error
    part_tokens: int = Field(default=1024, ge=64)  # computed at once; sets the memory of the activations
    save_every: Duration = SAVE_EVERY_S


def check(config: Config) -> None:
    """Raise RecipeError for keys that do not go together."""
    check_lora(config)


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated: the policy's training, and the reference."""
    params = inputs_meta.get(config.model, {}).get("num_params", 0)
    return training_bytes(params, config.part_tokens, lora=config.lora is not None) + 2 * params


@dataclass(frozen=True)
class Part(Laid):
    """Some prompts with two replies each in one row: of a pair both, or a rated one and, to compare with, another's."""

    liked: Tensor  # (P,) bool: whether the first of the two is the better one
    weights: Tensor  # (P,) float32 that sum to 1 over the batch


def dpo_loss(moved: Tensor, beta: float) -> Tensor:
    """The loss of each pair. moved: (P, 2), how far the policy has moved from the reference for the preferred reply and
    the other, in log-probability. Source: arXiv 2305.18290, eq. 7.
    """
    return -logsigmoid(beta * (moved[:, 0] - moved[:, 1]))


def kto_loss(moved: Tensor, liked: Tensor, drift: Tensor, beta: float) -> Tensor:
    """The loss of each rating. moved: (P,), as for `dpo_loss`; liked: (P,) bool; drift: how far the policy has moved on
    the whole, 0 or more, without a gradient. Source: arXiv 2402.01306, eq. 8.
    """
    gain = beta * (moved - drift)
    return 1 - torch.sigmoid(torch.where(liked, gain, -gain))


class PreferenceObjective:
    """The loss of a part against the model that the stage starts from."""

    def __init__(self, reference: Transformer, method: Method, beta: float) -> None:
        self._reference, self._method, self._beta = reference, method, beta

    def __call__(self, model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
        """See `fit.Objective`."""
        with torch.no_grad():
            before = reply_logprobs(self._reference, part)
        moved = reply_logprobs(model, part) - before  # (P, 2)
        if self._method == "dpo":
            losses = dpo_loss(moved, self._beta)
            ahead = moved[:, 0] - moved[:, 1]
        else:
            drift = moved[:, 1].detach().mean().clamp(min=0)
            losses = kto_loss(moved[:, 0], part.liked, drift, self._beta)
            ahead = torch.where(part.liked, moved[:, 0], -moved[:, 0])
        shares = {"ahead": (ahead.detach() > 0).float(), "margin": ahead.detach(), "moved": moved[:, 0].detach()}
        return (losses * part.weights).sum(), {n: float((v * part.weights).sum()) for n, v in shares.items()}


def reply_logprobs(model: Transformer, part: Laid) -> Tensor:
    """The log-probability of each whole reply, (P, 2) fp32."""
    hidden = model.hidden(part.ids, part.context).squeeze(0).index_select(0, part.sources)  # (M, D)
    tokens, _ = model.logprobs(hidden, part.targets)
    return torch.stack([reply.sum() for reply in tokens.split(part.lengths.tolist())]).view(-1, 2)


def _beside_others(rows: Sequence[Rated]) -> list[Rated]:
    """Each rated reply with the next one's, which answers something else: KTO's estimate of how far all has moved."""
    return [
        Rated(row.prompt, [row.replies[0], other.replies[0]], row.liked)
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]


def _laid(rows: list[Rated], config: Config, device: torch.device) -> list[Part]:
    return lay_rated(_beside_others(rows) if config.method == "kto" else rows, config.part_tokens, device)


def lay_rated(rows: Sequence[Rated], part_tokens: int, device: torch.device) -> list[Part]:
    """Rows of like length together, up to `part_tokens`."""
    parts = []
    for cut in even_cuts([row.tokens for row in rows], part_tokens):
        laid = lay_out([rows[i].prompt for i in cut], [rows[i].replies for i in cut], device)
        liked = torch.tensor([rows[i].liked for i in cut], device=device)
        weights = torch.full((len(cut),), 1.0 / len(rows), device=device)
        parts.append(Part(**vars(laid), liked=liked, weights=weights))
    return parts


@torch.no_grad()
def likelier(model: Transformer, rows: Sequence[Rated], part_tokens: int, device: torch.device) -> int:
    """In how many pairs the model gives the preferred reply the higher mean log-probability a token."""
    count = 0
    for part in lay_rated(rows, part_tokens, device):
        means = reply_logprobs(model, part) / part.lengths.view(-1, 2).to(device)
        count += int((means[:, 0] > means[:, 1]).sum())
    return count


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Learn, and write a checkpoint. Raises DataError where there is nothing to learn from."""
    source, device = inputs[config.model].path, run.runtime.device
    chat = ChatFormat.load(source)
    learnt, held = split_ratings(inputs[config.data])
    rows = (pairs_as_ids if config.method == "dpo" else ratings_as_ids)(learnt, chat, config.max_tokens)
    if len(rows) < 2:
        raise DataError(
            f"the ratings hold {len(rows)} {'pairs' if config.method == 'dpo' else 'ratings'} to learn from: give more"
            + (', or take method = "kto", which needs no pairs.' if config.method == "dpo" else ".")
        )
    tests = pairs_as_ids(held, chat, config.max_tokens)
    model = load_model(source, run.runtime.dtype, device)
    reference = load_model(source, run.runtime.dtype, device).requires_grad_(False)
    before = likelier(reference, tests, config.part_tokens, device)
    optimizer = mover(model, config, run)
    batches = RatedBatches(rows, config, run, lambda picked: _laid(picked, config, device), ("ahead", "margin"))
    run.log.info(f"{len(rows)} rows to learn from, {len(tests)} pairs held out; {batches.steps} steps")
    course = Course(batches.steps, config.lr, floor=config.floor, save_every_s=config.save_every)
    objective = PreferenceObjective(reference, config.method, config.beta)
    steps = fit(model, batches, objective, optimizer, course, run)
    after = likelier(model, tests, config.part_tokens, device)
    run.log.info(
        f"of {len(tests)} held-out pairs the preferred reply is the likelier one in {after}; before in {before}"
    )
    keep_model(model, source, steps, run, out, optimizer)
    out.meta |= {"rows": len(rows), "held_out": len(tests), "held_out_before": before, "held_out_after": after}
