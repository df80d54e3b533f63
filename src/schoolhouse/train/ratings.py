"""Rated replies as ids: what a reward model and direct preference learning read, and what they are tested with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError
from schoolhouse.core.run import Run
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.preferences import RATINGS, Rating, is_held_out, pairs_of, read_ratings
from schoolhouse.text.records import Conversation
from schoolhouse.train.fit import Batch, shuffled
from schoolhouse.train.layout import Laid


@dataclass(frozen=True)
class Rated:
    """A prompt and one or more replies to it with their stop tokens; of a pair the preferred one comes first."""

    prompt: list[int]
    replies: list[list[int]]
    liked: bool = True  # of a single reply

    @property
    def tokens(self) -> int:
        """Of the prompt and all replies."""
        return len(self.prompt) + sum(map(len, self.replies))


def split_ratings(data: Artifact) -> tuple[list[Rating], list[Rating]]:
    """The ratings of an artifact to learn from, and those held out. Raises DataError for rows that cannot be read."""
    rows = read_ratings(data.file(RATINGS))
    if rows.bad:
        raise DataError(f"{data.file(RATINGS)}: {len(rows.bad)} bad rows, the first: {rows.bad[0]}")
    parts: tuple[list[Rating], list[Rating]] = [], []
    for rating in rows.good:
        parts[is_held_out(rating.asked)].append(rating)
    return parts


def pairs_as_ids(ratings: Sequence[Rating], chat: ChatFormat, max_tokens: int) -> list[Rated]:
    """The pairs among the ratings."""
    found = []
    for pair in pairs_of(ratings):
        both = [as_ids(chat, pair.asked, reply) for reply in (pair.chosen, pair.rejected)]
        found.append(_checked(Rated(both[0][0], [reply for _, reply in both]), max_tokens))
    return found


def ratings_as_ids(ratings: Sequence[Rating], chat: ChatFormat, max_tokens: int) -> list[Rated]:
    """Each rating by itself."""
    found = []
    for rating in ratings:
        prompt, reply = as_ids(chat, rating.asked, rating.reply)
        found.append(_checked(Rated(prompt, [reply], rating.liked), max_tokens))
    return found


def as_ids(chat: ChatFormat, asked: Conversation, reply: str) -> tuple[list[int], list[int]]:
    """A prompt and the reply to it, its stop token included, as the chat format has them."""
    rendered = chat.render(asked.plus("assistant", reply))
    # Of a conversation with earlier replies the mask names those, too; the last one begins behind the prompt.
    start = len(chat.render(asked).ids)
    first = next(i for i in range(start, len(rendered.ids)) if rendered.loss_mask[i])
    last = max(i for i, learnt in enumerate(rendered.loss_mask) if learnt)
    return rendered.ids[:first], rendered.ids[first : last + 1]


def _checked(rated: Rated, max_tokens: int) -> Rated:
    longest = len(rated.prompt) + max(map(len, rated.replies))
    if longest > max_tokens:
        raise DataError(f"a rated conversation has {longest} tokens, max_tokens is {max_tokens}: raise it.")
    return rated


class Rates(Protocol):
    """What the config of a stage that learns from ratings says of its batches."""

    epochs: float
    batch: int


class RatedBatches:
    """The source of batches: rated replies, shuffled anew in each epoch.

    lay: how the rows of a batch become its parts; shown: figures that the log prints.
    """

    def __init__(
        self, rows: Sequence[Rated], config: Rates, run: Run, lay: Callable[[list[Rated]], Sequence[Laid]],
        shown: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._rows, self._config, self._run, self._lay, self._shown = rows, config, run, lay, shown
        self.steps = max(1, round(config.epochs * len(rows) / config.batch))

    def batch(self, step: int) -> Batch:
        """See `Source.batch`."""
        picked = [self._rows[i] for i in shuffled(len(self._rows), self._run.seed, step, self._config.batch)]
        parts = self._lay(picked)
        return Batch([parts], sum(sum(part.texts) for part in parts), {}, self._shown)

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""
