"""The generation engine: rollouts, evaluation and chat all go through it.

The life of a request: `submit` puts a prompt with one or more samples in the queue; `step` admits samples to free
slots, reads their prompts (once for all samples of a prompt, and once for a beginning that prompts share), then gives
every running text its next token; a text that ends frees its slot for the next sample. It knows ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError
from schoolhouse.infer.cache import KV, DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling, sample, uniforms
from schoolhouse.kernels.grid import filler
from schoolhouse.model.transformer import Transformer

PREFILL_TOKENS = 2048  # read at once: enough to keep the products busy, and the others wait only briefly
ADMIT_TOGETHER = 8  # prompts read together cost half of what they cost alone
DECODE_GRID = 8  # texts that run together come in multiples of this (`kernels/grid.py`)
SHARED_PREFIX = 8  # tokens from which a common beginning is worth a pass of its own


@dataclass(frozen=True)
class Token:
    """One new token of a request; `finish_reason` is "stop" or "length" on its last one."""

    request: int
    sample: int
    id: int
    logprob: float
    finish_reason: str | None


@dataclass
class Completion:
    """A finished reply: its ids with the stop token, their log-probabilities, and why it ended."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass
class _Prompt:
    """A prompt that waits for, or has, its keys and values."""

    request: int
    ids: list[int]
    waiting: int
    remember: bool = False
    kv: KV | None = None
    logits: Tensor | None = None


@dataclass
class _Text:
    """A running sample."""

    prompt: _Prompt
    index: int
    sampling: Sampling
    length: int
    said: list[int] = field(default_factory=list)


class Engine:
    """Continuous batching over the slots of one cache.

    model: stays the caller's, its weights may change between requests (call `forget` before). slots: texts that run at
    once. Raises ModelError for a prompt that is empty, does not fit into the model's context or has unknown ids.
    """

    def __init__(self, model: Transformer, slots: int = 64) -> None:
        self.model = model
        weight = next(model.parameters())  # codes are none: they have no number type to compute in
        self._cache = SlotCache(model.config, slots, weight.dtype, weight.device)
        self._device = weight.device
        self._slots = slots
        self._queue: deque[tuple[_Prompt, int, Sampling]] = deque()
        self._running: list[_Text] = []
        self._prefix: tuple[list[int], KV] | None = None
        self._layers: FusedLayers | None = None
        self._requests = 0

    def forget(self) -> None:
        """Drop what follows from the weights: a beginning that was read, copies. Call it before they change."""
        self._prefix = self._layers = None
        self.model.unpack()

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._queue

    @property
    def waiting(self) -> int:
        """Samples that have not begun."""
        return len(self._queue)

    def submit(self, ids: Sequence[int], samplings: Sampling | Sequence[Sampling], *, remember: bool = False) -> int:
        """Queue one prompt with one or more samples; returns the request's number.

        remember: keep what was read and said, so that a next prompt which begins with it is not read anew.
        """
        each = [samplings] if isinstance(samplings, Sampling) else list(samplings)
        room, vocabulary = self.model.config.max_position_embeddings, self.model.config.vocab_size
        longest = max(s.max_new_tokens for s in each)
        if not ids:
            raise ModelError("The prompt has no tokens: give the model at least one to continue.")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ModelError(
                f"The prompt's ids run from {min(ids)} to {max(ids)}, the vocabulary has {vocabulary}: "
                "the tokenizer belongs to another model."
            )
        if len(ids) + longest > room:
            raise ModelError(
                f"The prompt has {len(ids)} tokens and {longest} may follow, the model's context holds {room}: "
                "shorten the prompt or lower max_new_tokens."
            )
        self._requests += 1
        prompt = _Prompt(self._requests, list(ids), len(each), remember)
        self._queue.extend((prompt, i, s) for i, s in enumerate(each))
        return prompt.request

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Admit what fits, give each running text one token, and return the new tokens."""
        tokens = self._admit()
        if self._running:
            tokens += self._decode()
        if self.idle:
            self._cache.release()
        return tokens

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sampling | Sequence[Sequence[Sampling]],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Replies to all prompts: one list a prompt, one completion a sampling.

        samplings: one for all, or for each prompt a list, one a sample. progress: called with finished and all samples.
        """
        assert self.idle, "generate would mix its tokens with those of requests that still run"
        plans = [[samplings]] * len(prompts) if isinstance(samplings, Sampling) else [list(s) for s in samplings]
        try:
            return self._finish(prompts, plans, progress)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Drop every request, running or waiting: what remains to be done after an interrupt."""
        self._queue.clear()
        self._running.clear()
        self._cache.release()

    def _finish(
        self, prompts: Sequence[Sequence[int]], plans: list[list[Sampling]], progress: Callable[[int, int], None] | None
    ) -> list[list[Completion]]:
        first = self._requests + 1
        for ids, plan in zip(prompts, plans, strict=True):
            self.submit(ids, plan)
        out = [[Completion() for _ in plan] for plan in plans]
        total, finished = sum(map(len, plans)), 0
        while not self.idle:
            for token in self.step():
                completion = out[token.request - first][token.sample]
                completion.ids.append(token.id)
                completion.logprobs.append(token.logprob)
                if token.finish_reason:
                    completion.finish_reason = token.finish_reason
                    finished += 1
            if progress:
                progress(finished, total)
        return out

    def _admit(self) -> list[Token]:
        """Fill free slots from the queue, reading prompts that have not been read; returns their first tokens."""
        free = self._slots - len(self._running)
        if not self._queue or free < min(ADMIT_TOGETHER, len(self._queue), max(1, self._slots // ADMIT_TOGETHER)):
            return []
        chosen = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        unread = list({id(p): p for p, _, _ in chosen if p.kv is None}.values())
        self._read(unread)
        texts = []
        for prompt, index, sampling in chosen:
            texts.append(_Text(prompt, index, sampling, len(prompt.ids)))
        self._reserve([*texts, *self._running])
        for slot, text in enumerate(texts, start=len(self._running)):
            assert text.prompt.kv is not None
            self._cache.write(slot, text.prompt.kv)
        logits = torch.stack([t.prompt.logits for t in texts if t.prompt.logits is not None])  # (B, V)
        self._running += texts
        for text in texts:
            text.prompt.waiting -= 1
            if text.prompt.waiting == 0:
                text.prompt.kv = text.prompt.logits = None
        return self._advance(texts, logits)

    def _read(self, prompts: list[_Prompt]) -> None:
        """Prefill: keys, values and the next token's logits of each prompt."""
        self.model.pack()
        prefix = self._shared_prefix(prompts)
        known = len(prefix[0]) if prefix else 0
        batch: list[_Prompt] = []
        for i, prompt in enumerate(prompts):
            batch.append(prompt)
            tokens = sum(len(p.ids) - known for p in batch)
            if tokens >= PREFILL_TOKENS or i == len(prompts) - 1:
                self._read_batch(batch, known, prefix[1] if prefix else None)
                batch = []
        if self._layers is None or not self._layers.is_of(self.model):
            self._layers = FusedLayers.made_for(self.model, self._cache)

    def _read_batch(self, batch: list[_Prompt], known: int, prefix: KV | None) -> None:
        lengths = [len(p.ids) - known for p in batch]
        fill = filler(sum(lengths))
        laid = lengths + [fill] * (fill > 0)
        context = PrefillContext(laid, prefix, self.model.config.num_hidden_layers, self._device)
        row = [i for p in batch for i in p.ids[known:]] + [0] * fill
        ids = torch.tensor(row, device=self._device)[None]  # (1, N)
        hidden = self.model.hidden(ids, context)[0]  # (N, D)
        ends = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        logits = self.model.head(hidden[ends])  # (P, V)
        for i, prompt in enumerate(batch):
            prompt.kv, prompt.logits = context.kv(i), logits[i]

    def _shared_prefix(self, prompts: list[_Prompt]) -> tuple[list[int], KV] | None:
        """The beginning that these prompts share, from memory or read now; each keeps a token of its own."""
        if not prompts:
            return None
        shortest = min(len(p.ids) for p in prompts) - 1
        if self._prefix:
            held, kv = self._prefix
            known = min(shortest, _same(held, *(p.ids for p in prompts)))
            # A conversation may go on from any of its tokens; a batch would lose what its own prompts share beyond it.
            if known == len(held) or (len(prompts) == 1 and known >= SHARED_PREFIX):
                return held[:known], [tuple(part[:, :known] for part in layer) for layer in kv]
        same = min(shortest, _same(*(p.ids for p in prompts)))
        if len(prompts) < 2 or same < SHARED_PREFIX:
            return None
        head = _Prompt(0, prompts[0].ids[:same], 0)
        self._read_batch([head], 0, None)
        assert head.kv is not None
        self._prefix = (head.ids, head.kv)
        return self._prefix

    def _decode(self) -> list[Token]:
        """One token for every running text."""
        self._reserve(self._running)
        count = len(self._running)
        fill = min(filler(count, DECODE_GRID), self._slots - count)  # empty slots run along
        lengths = torch.tensor([t.length for t in self._running] + [0] * fill, device=self._device)
        ids = torch.tensor([[t.said[-1]] for t in self._running] + [[0]] * fill, device=self._device)  # (B, 1)
        if self._layers is not None:
            hidden = self._layers.hidden(ids, lengths)
        else:
            hidden = self.model.hidden(ids, DecodeContext(self._cache, lengths))
        for text in self._running:
            text.length += 1
        return self._advance(list(self._running), self.model.head(hidden[:, 0])[:count])

    def _reserve(self, texts: list[_Text]) -> None:
        """Room for one more token in each of these texts."""
        longest = max(len(t.prompt.ids) + t.sampling.max_new_tokens for t in texts)
        self._cache.reserve(max(t.length for t in texts) + 1, longest)

    def _advance(self, texts: list[_Text], logits: Tensor) -> list[Token]:
        """Draw a token for each of these texts from its logits (B, V); retire those that end."""
        plans = [t.sampling for t in texts]
        ids, logprobs = sample(
            logits,
            torch.tensor([p.temperature for p in plans]),
            torch.tensor([p.top_p for p in plans]),
            uniforms((p.seed for p in plans), (len(t.said) for t in texts)),
        )
        tokens = []
        for text, token_id, logprob in zip(texts, ids.tolist(), logprobs.tolist(), strict=True):
            text.said.append(token_id)
            reason = None
            if token_id in text.sampling.stop_ids:
                reason = "stop"
            elif len(text.said) >= text.sampling.max_new_tokens:
                reason = "length"
            tokens.append(Token(text.prompt.request, text.index, token_id, logprob, reason))
        ended = {id(t) for t, token in zip(texts, tokens, strict=True) if token.finish_reason}
        self._retire(ended)
        return tokens

    def _retire(self, ended: set[int]) -> None:
        """Take ended texts out; the last running ones move into their slots."""
        slot = 0
        while slot < len(self._running):
            text = self._running[slot]
            if id(text) not in ended:
                slot += 1
                continue
            if text.prompt.remember:  # the last token was drawn, and never read
                self._prefix = (text.prompt.ids + text.said[:-1], self._cache.read(slot, text.length))
            last = self._running.pop()
            if slot < len(self._running):
                self._cache.move(len(self._running), slot)
                self._running[slot] = last


def _same(first: Sequence[int], *others: Sequence[int]) -> int:
    """Number of tokens with which all of these begin."""
    longest = min(map(len, (first, *others)))
    return next((i for i in range(longest) if any(o[i] != first[i] for o in others)), longest)
