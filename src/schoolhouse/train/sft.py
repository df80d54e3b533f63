"""Supervised fine-tuning: learn a conversation's replies, their stop tokens included, and nothing else of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.kernels.grid import filler
from schoolhouse.model.packed import Packed
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import SYSTEM_FILE, ChatFormat, Rendered
from schoolhouse.text.records import CONVERSATIONS, read_conversations
from schoolhouse.train.fit import SAVE_EVERY_S, Batch, Course, even_cuts, fit, shuffled
from schoolhouse.train.lora import check_lora, mover
from schoolhouse.train.optimizer import Kind, Mover
from schoolhouse.train.private import PRIVACY, Chance, Privacy, PrivateMover, plan, told
from schoolhouse.train.recorded import read_record, recorded_loss
from schoolhouse.train.result import keep_model, training_bytes


class Config(StageConfig):
    """What `train.sft` reads: a model and a folder with conversations.jsonl."""

    model: Ref
    data: Ref | list[Ref]  # a stage that made `conversations.jsonl`, or several, whose conversations are mixed
    record: Ref | None = None  # a stage `train.record` of the same data: what a master holds likely is learnt instead
    epochs: float = Field(default=2.0, gt=0)
    batch: int = Field(default=16, ge=1)  # conversations a step
    lr: float = Field(default=1e-4, gt=0)  # right for 0.1-0.5B parameters; a tenth of it for 7B
    floor: float = Field(default=0.1, ge=0, le=1)  # share of lr at the end of its cosine
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Kind = "adamw"
    lora: int | None = Field(default=None, ge=1)  # rank of the differences that are learnt instead of all weights
    privacy: Privacy | None = None  # how much may be told of one conversation, see below
    max_tokens: int = Field(default=1024, ge=16)  # of one conversation; longer ones are an error
    part_tokens: int = Field(default=768, ge=64)  # computed at once; sets the memory of the activations
    save_every: Duration = SAVE_EVERY_S  # what a killed run loses at most


def check(config: Config) -> None:
    """Raise RecipeError for keys that do not go together."""
    check_lora(config)
    if not config.data:
        raise RecipeError("data is empty: name a stage that made conversations, or several.")
    if config.record is not None and not isinstance(config.data, str):
        raise RecipeError("a record is of one stage's conversations, and data names several: name that one.")
    if config.privacy is not None and config.record is not None:
        raise RecipeError("privacy is set, and a record tells of every conversation by itself: leave one of them out.")


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated."""
    params = inputs_meta.get(config.model, {}).get("num_params", 0)
    return training_bytes(params, config.part_tokens, lora=config.lora is not None)


@dataclass(frozen=True)
class Part:
    """Whole conversations in one row: ids (1, N), where a learnt token is predicted from, and which one it is."""

    ids: Tensor
    context: Packed
    sources: Tensor
    targets: Tensor
    share: float  # of one over the batch's learnt tokens
    texts: Sequence[int]
    says: tuple[Tensor, Tensor] | None = None  # what a master holds likely at each, where that is learnt


def check_mask(rendered: Rendered, where: str) -> None:
    """Raise DataError unless something, but not everything, of a conversation is learnt."""
    learnt = sum(rendered.loss_mask)
    if learnt == 0:
        raise DataError(
            f"{where}: 0% of its {len(rendered.ids)} tokens would be learnt. Give it a reply by the assistant."
        )
    if learnt == len(rendered.ids):
        raise DataError(
            f"{where}: 100% of its {learnt} tokens would be learnt, the question too. The chat template marks no turns."
        )


def render_all(data: Artifact, chat: ChatFormat, max_tokens: int) -> list[Rendered]:
    """The conversations of an artifact as ids and masks; raises DataError for those that cannot be learnt from."""
    rows = read_conversations(data.file(CONVERSATIONS))
    if rows.bad:
        raise DataError(f"{data.file(CONVERSATIONS)}: {len(rows.bad)} bad rows, the first: {rows.bad[0]}")
    out = []
    for number, conversation in enumerate(rows.good, start=1):
        rendered = chat.render(conversation)
        check_mask(rendered, f"conversation {number}")
        if len(rendered.ids) > max_tokens:
            raise DataError(
                f"conversation {number} has {len(rendered.ids)} tokens, max_tokens is {max_tokens}: "
                "raise it or cut the text."
            )
        out.append(rendered)
    if not out:
        raise DataError(f"{data.file(CONVERSATIONS)} holds no conversation.")
    return out


def usual_system(data: Sequence[Artifact]) -> str | None:
    """The system message that most conversations open with, or None where most have none."""
    rows = [row for one in data for row in read_conversations(one.file(CONVERSATIONS)).good]
    first = [row.messages[0] for row in rows if row.messages]
    said = Counter(message.content for message in first if message.role == "system")
    return said.most_common(1)[0][0] if said.total() > len(rows) / 2 else None


def places_of(row: Rendered) -> list[int]:
    """Where the learnt tokens of a conversation stand."""
    return [i for i, learn in enumerate(row.loss_mask) if learn and i > 0]


def make_part(
    rows: Sequence[Rendered], learnt: float, device: torch.device, says: Sequence[tuple[Tensor, Tensor]] = ()
) -> Part:
    """Lay conversations end to end. learnt: number of learnt tokens in the whole batch; says: of each conversation what
    a master holds likely there.
    """
    sources, targets, start = [], [], 0
    for row in rows:
        places = places_of(row)
        sources += [start + i - 1 for i in places]
        targets += [row.ids[i] for i in places]
        start += len(row.ids)
    fill = filler(start)
    ids = torch.tensor([i for row in rows for i in row.ids] + [0] * fill, device=device)[None]  # (1, N)
    context = Packed([len(row.ids) for row in rows] + [fill] * (fill > 0), device=device)
    texts = [len(row.ids) for row in rows]
    joined = (torch.cat([s[0] for s in says]).to(device), torch.cat([s[1] for s in says]).to(device)) if says else None
    at, wanted = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
    return Part(ids, context, at, wanted, 1.0 / learnt, texts, joined)


def cross_entropy(model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
    """Mean negative log-probability of the learnt tokens: the objective of `fit`."""
    hidden = model.hidden(part.ids, part.context).squeeze(0)  # (N, D)
    logprobs, _ = model.logprobs(hidden.index_select(0, part.sources), part.targets)
    return -logprobs.sum() * part.share, {}


class Conversations:
    """Batches of conversations, shuffled anew in each epoch; a function of the seed and the step alone."""

    def __init__(
        self, rows: Sequence[Rendered], config: Config, run: Run,
        says: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        """says: of a conversation by its number what a master holds likely."""
        self._rows, self._config, self._run, self._says = rows, config, run, says
        self.steps = max(1, round(config.epochs * len(rows) / config.batch))

    def batch(self, step: int) -> Batch:
        """See `Source.batch`."""
        numbers = shuffled(len(self._rows), self._run.seed, step, self._config.batch)
        picked = [self._rows[i] for i in numbers]
        learnt = sum(sum(row.loss_mask[1:]) for row in picked)
        cuts = even_cuts([len(row.ids) for row in picked], self._config.part_tokens)
        device = self._run.runtime.device
        said = [[self._says(numbers[i]) for i in cut] if self._says else [] for cut in cuts]
        parts = [make_part([picked[i] for i in cut], learnt, device, s) for cut, s in zip(cuts, said, strict=True)]
        return Batch([parts], sum(len(row.ids) for row in picked), {"learnt_tokens": learnt})

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Fine-tune `model` on `data` and write a Hugging Face checkpoint with its learning curve."""
    source = inputs[config.model].path
    data = [inputs[name] for name in ([config.data] if isinstance(config.data, str) else config.data)]
    rows = [row for one in data for row in render_all(one, ChatFormat.load(source), config.max_tokens)]
    system = usual_system(data)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    longest, room = max(len(r.ids) for r in rows), model.config.max_position_embeddings
    if longest > room:
        raise DataError(
            f"The longest conversation has {longest} tokens, the model's context holds {room}: cut the text."
        )
    optimizer = mover(model, config, run)
    says, objective = None, cross_entropy
    if config.record is not None:
        targets = [[row.ids[i] for i in places_of(row)] for row in rows]
        says, objective = read_record(inputs[config.record], ChatFormat.load(source), targets).of, recorded_loss
    batches = Conversations(rows, config, run, says)
    share = sum(sum(r.loss_mask) for r in rows) / sum(len(r.ids) for r in rows)
    run.log.info(
        f"{len(rows)} conversations, {share:.0%} of the tokens are learnt, {batches.steps} steps of {config.batch}"
    )
    course = Course(batches.steps, config.lr, floor=config.floor, save_every_s=config.save_every)
    if config.privacy is not None:
        steps = _fit_private(config, config.privacy, model, rows, optimizer, course, data, run, out)
    else:
        steps = fit(model, batches, objective, optimizer, course, run)
    keep_model(model, source, steps, run, out, optimizer)
    if system is not None:
        (out.path / SYSTEM_FILE).write_text(system + "\n", encoding="utf-8")


def _fit_private(
    config: Config, privacy: Privacy, model: Transformer, rows: Sequence[Rendered], optimizer: Mover, course: Course,
    data: Sequence[Artifact], run: Run, out: Draft,
) -> int:  # fmt: skip
    """As `fit`, but each conversation by itself and with noise; the artifact's facts say what that is worth."""
    if model.config.moe is not None:
        raise RecipeError("privacy is set, and a mixture's balance counts tokens without noise: take a dense model.")
    found = plan(privacy, len(rows), config.batch, course.steps)
    device = run.runtime.device

    def part_of(row: Rendered) -> Part:
        return make_part([row], config.batch * sum(row.loss_mask[1:]), device)

    run.log.info(
        f"each conversation by itself: noise {found.noise:.3g} times the norm {privacy.clip:g} that is left of it"
    )
    private = PrivateMover(optimizer, privacy.clip, found.noise, config.batch)
    steps = fit(model, Chance(rows, found.rate, part_of), cross_entropy, private, course, run)
    told_of = [row for one in data for row in read_conversations(one.file(CONVERSATIONS)).good]
    persons = Counter(row.meta.get("person") for row in told_of)
    most = max((count for person, count in persons.items() if person is not None), default=1)
    out.meta[PRIVACY] = [f"{run.stage}: {told(found.spent(steps), found, len(rows), most)}"]
    run.log.info(out.meta[PRIVACY][0])
    return steps
