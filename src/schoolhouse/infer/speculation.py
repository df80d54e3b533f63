"""Speculation: what may come next is guessed cheaply, and verified in one pass over all guesses.

With few texts a pass waits for the weights, so that several tokens cost little more than one. The engine reads a draft
behind the last token and draws the true token at each place, by the very number that draws it without a draft
(`sampler.uniforms`). The draft counts as far as it is what was drawn: it decides how soon a text comes, never what the
text says. Whether that is faster is measured as it runs, for each number of texts; what is slower is switched off.

Source: arXiv 2211.17192 (drafts that are verified together).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from schoolhouse.infer.cache import DecodeContext, SlotCache
from schoolhouse.infer.sampler import Sampling, sample, uniforms
from schoolhouse.model.transformer import Transformer

SHORTEST, LONGEST = 2, 5  # tokens of a beginning that is looked up
FIRST_REACH, LEAST_REACH, MOST_REACH = 4, 2, 12  # tokens that are looked up at once
RECENT = 16  # steps that a pace remembers
ENOUGH = 4  # plain steps before the first draft
JUDGED = 8  # steps with drafts before they are judged
REFRESH = 64  # steps with drafts, after which a plain one says anew what it takes
FIRST_WAIT, LONGEST_WAIT = 32, 1024  # steps until what was slower is tried again


class History:
    """What drafters know of one running text: its tokens, and what each drafter keeps of it."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, hidden: Tensor | None = None) -> None:
        self.ids = list(prompt)
        self.prompt_tokens, self.sampling = len(prompt), sampling
        self.unread = [] if hidden is None else [hidden]  # hidden states that prediction layers have not read for good
        self.places: dict[tuple[int, ...], int] = {}  # where what follows a beginning stands, for look-up
        self.indexed = 0
        self.guess: list[int] = []
        self.guessed_at = 0
        self.reach = FIRST_REACH

    def extend(self, ids: Sequence[int], hidden: Tensor | None) -> None:
        """New tokens of the text; hidden: (T, D), of what was read for them."""
        self.ids += ids
        if hidden is not None:
            self.unread.append(hidden)

    @property
    def behind(self) -> int:
        """Number of read tokens of which the cache of the prediction layers is not final."""
        return sum(map(len, self.unread))


class Drafter(Protocol):
    """Who guesses. Every guess is right to make: a bad one costs time."""

    name: str

    def propose(self, texts: Sequence[History], most: Sequence[int], cache: SlotCache) -> list[list[int]]:
        """What may follow each text, at most so many tokens. The texts lie in the first slots of the cache."""


class PromptLookup(Drafter):
    """What followed when the text's last few tokens stood there before. Source: arXiv 2304.04487."""

    name = "look-up"

    def propose(self, texts: Sequence[History], most: Sequence[int], cache: SlotCache) -> list[list[int]]:
        """See `Drafter.propose`."""
        return [self._following(text, room) for text, room in zip(texts, most, strict=True)]

    def _following(self, text: History, most: int) -> list[int]:
        ids, places = text.ids, text.places
        self._stretch(text)
        for end in range(text.indexed, len(ids)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                places[tuple(ids[end - size : end])] = end
        text.indexed = len(ids)
        for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
            place = places.get(tuple(ids[-size:]))
            if place is not None:
                around = len(ids) - place  # what comes in turns goes on in turns
                text.guess = [ids[place + i % around] for i in range(min(most, text.reach))]
                text.guessed_at = len(ids)
                return text.guess
        return []

    def _stretch(self, text: History) -> None:
        """Guess further after what came true whole, and less far after what did not."""
        right = _right(text.guess, text.ids[text.guessed_at :])
        if text.guess:
            whole = right == len(text.guess)
            text.reach = min(2 * text.reach, MOST_REACH) if whole else max(right + 1, LEAST_REACH)
        text.guess = []


class Predictions(Drafter):
    """What the model's own prediction layers expect, one token a layer. Source: arXiv 2412.19437, section 2.2.

    At depth k a layer reads, at each place, the hidden state of the depth before and the token k places on. The last
    k - 1 of those tokens are drafts themselves: their places are read again once they are known.
    """

    name = "prediction layers"

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self.depth = model.config.num_nextn_predict_layers

    def propose(self, texts: Sequence[History], most: Sequence[int], cache: SlotCache) -> list[list[int]]:
        """See `Drafter.propose`."""
        if not any(most):
            return [[] for _ in texts]
        rows = [torch.cat(text.unread) for text in texts]  # of each (T, D), different T
        counts = [len(row) for row in rows]
        starts = [len(text.ids) - 1 - count for text, count in zip(texts, counts, strict=True)]
        ahead = [text.ids[start + 1 :] for text, start in zip(texts, starts, strict=True)]
        cache.reserve(max(starts) + max(counts))
        hidden = pad_sequence(rows, batch_first=True)  # (B, T, D)
        context = DecodeContext(cache, torch.tensor(starts, device=hidden.device), hidden.shape[1])
        ends = torch.tensor(counts, device=hidden.device) - 1
        for depth in range(1, self.depth + 1):
            known = [torch.tensor(ids[depth - 1 :]) for ids in ahead]
            following = pad_sequence(known, batch_first=True).to(hidden.device)  # (B, T)
            hidden = self._model.predict(depth, hidden, following, context)
            last = hidden[torch.arange(len(ends), device=ends.device), ends]  # (B, D)
            for ids, drafted in zip(ahead, self._drawn(texts, self._model.head(last), depth), strict=True):
                ids.append(drafted)
        for text, row, count in zip(texts, rows, counts, strict=True):
            text.unread = [row[max(0, count - self.depth + 1) :]]
        return [ids[count : count + room] for ids, count, room in zip(ahead, counts, most, strict=True)]

    def _drawn(self, texts: Sequence[History], logits: Tensor, depth: int) -> list[int]:
        """A token of each text from its logits (B, V), by the number that will draw the true one, too."""
        plans = [text.sampling for text in texts]
        ids, _ = sample(
            logits,
            torch.tensor([p.temperature for p in plans]),
            torch.tensor([p.top_p for p in plans]),
            uniforms((p.seed for p in plans), (len(t.ids) - t.prompt_tokens + depth - 1 for t in texts)),
        )
        return ids.tolist()


class Pace:
    """How long a token takes, by the last steps. A step that the machine interrupted does not count for more."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, seconds: float, tokens: float) -> None:
        """One more step, which gave each text so many tokens on average."""
        self._steps.append((seconds, tokens))

    @property
    def token_s(self) -> float:
        """Seconds a token of each text; 0 before the first step."""
        if not self._steps:
            return 0.0
        seconds, tokens = zip(*self._steps, strict=True)
        return statistics.median(seconds) / statistics.fmean(tokens)


@dataclass
class _Trial:
    """A drafter, as it does with some number of texts."""

    drafter: Drafter
    pace: Pace = field(default_factory=Pace)
    wait: int = 0  # steps until it is tried again
    patience: int = FIRST_WAIT

    def judge(self, plain_s: float) -> None:
        """Switch off what is slower than plain steps; each time in a row for longer."""
        if len(self.pace) < JUDGED:
            return
        if self.pace.token_s < plain_s:
            self.patience = FIRST_WAIT
            return
        self.wait, self.patience = self.patience, min(2 * self.patience, LONGEST_WAIT)
        self.pace = Pace()


@dataclass
class _Regime:
    """What is known of steps with some number of texts."""

    trials: list[_Trial]
    plain: Pace = field(default_factory=Pace)
    since_plain: int = 0


class Speculation:
    """Who guesses for an engine, when, and what came of it.

    drafted, accepted: tokens so far; steps: of the engine, and of these drafted_steps had a draft.
    """

    def __init__(self, drafters: Sequence[Drafter], clock: Callable[[], float] = time.perf_counter) -> None:
        self._drafters, self._clock = list(drafters), clock
        self._regimes: dict[int, _Regime] = {}
        self._started, self._took_s, self._plain_s = 0.0, 0.0, 0.0
        self._by: _Trial | None = None
        self.drafted = self.accepted = self.steps = self.drafted_steps = 0

    @classmethod
    def of(cls, model: Transformer) -> Speculation:
        """Look-up, and the prediction layers of a model that has some."""
        return cls([PromptLookup(), *([Predictions(model)] if model.config.num_nextn_predict_layers else [])])

    @property
    def prediction_layers(self) -> int:
        """How many layers of the model, beyond those that every pass needs, the cache has to serve."""
        return max((d.depth for d in self._drafters if isinstance(d, Predictions)), default=0)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that came true; 0 before the first."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def speedup(self) -> float:
        """What all steps would have taken without drafts, by the plain steps among them, over what they took."""
        return self._plain_s / self._took_s if self._took_s else 1.0

    def summary(self) -> str:
        """One line for people."""
        if not self.drafted:
            return "speculation: nothing was drafted"
        return (
            f"speculation: {self.accepted} of {self.drafted} drafted tokens accepted ({self.acceptance:.0%}), "
            f"{self.speedup:.2f} times as fast as plain steps"
        )

    def draft(self, texts: Sequence[History], most: Sequence[int], cache: SlotCache) -> list[list[int]]:
        """A step begins: drafts for these texts, at most so many tokens each, or none for any."""
        self._started, self._by = self._clock(), None
        regime = self._regime(len(texts))
        if len(regime.plain) >= ENOUGH and regime.since_plain < REFRESH:
            for trial in sorted((t for t in regime.trials if not t.wait), key=lambda t: t.pace.token_s):
                drafts = trial.drafter.propose(texts, most, cache)
                if any(drafts):
                    self._by = trial
                    return drafts
        return [[] for _ in texts]

    def verified(self, drafts: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> None:
        """The step is over: what was drafted for each text, and what it said."""
        seconds, tokens = self._clock() - self._started, statistics.fmean(map(len, said))
        regime = self._regime(len(said))
        for trial in regime.trials:
            trial.wait = max(0, trial.wait - 1)
        self.steps += 1
        self._took_s += seconds
        if self._by is None:
            regime.plain.add(seconds, tokens)
            regime.since_plain = 0
            self._plain_s += seconds
            return
        regime.since_plain += 1
        self.drafted_steps += 1
        self._plain_s += tokens * regime.plain.token_s
        self.drafted += sum(map(len, drafts))
        self.accepted += sum(_right(draft, own) for draft, own in zip(drafts, said, strict=True))
        self._by.pace.add(seconds, tokens)
        self._by.judge(regime.plain.token_s)

    def _regime(self, texts: int) -> _Regime:
        """Numbers of texts within a factor of two share one: a step takes about as long."""
        return self._regimes.setdefault(texts.bit_length(), _Regime([_Trial(d) for d in self._drafters]))


def _right(draft: Sequence[int], said: Sequence[int]) -> int:
    """Number of tokens with which a draft came true."""
    return next(
        (i for i, pair in enumerate(zip(draft, said, strict=False)) if pair[0] != pair[1]), min(len(draft), len(said))
    )
