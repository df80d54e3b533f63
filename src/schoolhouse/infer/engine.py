"""The generation engine: rollouts, evaluation and chat all go through it.

The life of a request: `submit` puts a prompt with one or more samples in the queue; `step` admits samples to free
slots, reads their prompts (once for all samples of a prompt, and once for a beginning that prompts share), then gives
every running text its next token; a text that ends frees its slot for the next sample. It knows ids, no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError
from schoolhouse.infer.cache import KV, DecodeContext, PrefillContext, SlotCache
from schoolhouse.infer.latent_layers import LatentLayers
from schoolhouse.infer.layers import FusedLayers
from schoolhouse.infer.sampler import Sampling, sample, uniforms
from schoolhouse.infer.speculation import History, Speculation
from schoolhouse.kernels.grid import filler
from schoolhouse.kernels.packed_weight import rounded_as
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
    tail: Tensor | None = None  # last hidden states, where prediction layers are to go on from them


@dataclass
class _Text:
    """A running sample."""

    prompt: _Prompt
    index: int
    sampling: Sampling
    history: History | None = None
    said: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens that have been read: what was drawn last has not."""
        return len(self.prompt.ids) + max(0, len(self.said) - 1)


class Engine:
    """Continuous batching over the slots of one cache.

    model: stays the caller's, its weights may change between requests (call `forget` before). slots: texts that run at
    once. speculation: guesses tokens that are then verified, where that is faster; None for one token a step.
    int8_cache: the running texts are remembered as int8 codes, in half of the bytes; a prompt is read with exact keys
    and values, which become codes behind that.
    Raises ModelError for a prompt that is empty, does not fit into the model's context or has unknown ids.
    """

    def __init__(
        self, model: Transformer, slots: int = 64, speculation: Speculation | None = None, *, int8_cache: bool = False
    ) -> None:
        self.model = model
        self.speculation = speculation
        self._ahead = speculation.prediction_layers if speculation else 0
        weight = next(model.parameters())  # codes are none: they have no number type to compute in
        self._cache = SlotCache(model.config, slots, weight.dtype, weight.device, self._ahead, coded=int8_cache)
        self._device = weight.device
        self._slots = slots
        self._queue: deque[tuple[_Prompt, int, Sampling]] = deque()
        self._running: list[_Text] = []
        self._prefix: tuple[list[int], KV] | None = None
        self._layers: FusedLayers | LatentLayers | None = None
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
        """Admit what fits, give each running text one token or, where drafts come true, more; return the new ones."""
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
            history = History(prompt.ids, sampling, prompt.tail) if self.speculation else None
            texts.append(_Text(prompt, index, sampling, history))
        self._reserve([*texts, *self._running], 1)
        for slot, text in enumerate(texts, start=len(self._running)):
            assert text.prompt.kv is not None
            self._cache.write(slot, text.prompt.kv)
        logits = torch.stack([t.prompt.logits for t in texts if t.prompt.logits is not None])  # (B, V)
        self._running += texts
        for text in texts:
            text.prompt.waiting -= 1
            if text.prompt.waiting == 0:
                text.prompt.kv = text.prompt.logits = text.prompt.tail = None
        return self._advance(texts, logits)

    def _read(self, prompts: list[_Prompt]) -> None:
        """Prefill: keys, values and the next token's logits of each prompt."""
        self.model.pack()
        if self._layers is None or not self._layers.is_of(self.model):
            made = FusedLayers.made_for(self.model, self._cache)
            self._layers = made or LatentLayers.made_for(self.model, self._cache)
        prefix = self._shared_prefix(prompts)
        known = len(prefix[0]) if prefix else 0
        batch: list[_Prompt] = []
        for i, prompt in enumerate(prompts):
            batch.append(prompt)
            tokens = sum(len(p.ids) - known for p in batch)
            if tokens >= PREFILL_TOKENS or i == len(prompts) - 1:
                self._read_batch(batch, known, prefix[1] if prefix else None)
                batch = []

    def _read_batch(self, batch: list[_Prompt], known: int, prefix: KV | None) -> None:
        lengths = [len(p.ids) - known for p in batch]
        fill = filler(sum(lengths))
        laid = lengths + [fill] * (fill > 0)
        context = PrefillContext(laid, prefix, self.model.config.num_hidden_layers + self._ahead, self._device)
        row = [i for p in batch for i in p.ids[known:]] + [0] * fill
        ids = torch.tensor(row, device=self._device)[None]  # (1, N)
        ends = torch.tensor(lengths, device=self._device).cumsum(0) - 1
        if self._ahead:
            hidden = self.model.hidden(ids, context)  # (1, N, D)
            self.model.further(hidden, ids, context)
            tails = [text[-self._ahead :].clone() for text in hidden[0].split(laid)]  # of each (k, D)
            hidden = hidden[:, ends]  # (1, P, D)
        elif isinstance(self._layers, FusedLayers):
            hidden = self._layers.read(ids, context, ends)
        else:
            hidden = self.model.hidden(ids, context, ends)  # (1, P, D)
        logits = self.model.head(hidden[0])  # (P, V)
        for i, prompt in enumerate(batch):
            prompt.kv, prompt.logits = context.kv(i), logits[i]
            prompt.tail = tails[i] if self._ahead else None

    def _shared_prefix(self, prompts: list[_Prompt]) -> tuple[list[int], KV] | None:
        """The beginning that these prompts share, from memory or read now; each keeps a token of its own."""
        if not prompts:
            return None
        shortest = min(len(p.ids) for p in prompts) - 1
        if self._prefix:
            held, _ = self._prefix
            known = min(shortest, _same(held, *(p.ids for p in prompts)))
            # A conversation may go on from any of its tokens; a batch would lose what its own prompts share beyond it.
            if known == len(held) or (len(prompts) == 1 and known >= SHARED_PREFIX):
                return self._beginning(known)
        same = min(shortest, _same(*(p.ids for p in prompts)))
        if len(prompts) < 2 or same < SHARED_PREFIX:
            return None
        head = _Prompt(0, prompts[0].ids[:same], 0)
        self._read_batch([head], 0, None)
        assert head.kv is not None
        self._prefix = (head.ids, head.kv)
        return self._beginning(same)

    def _beginning(self, tokens: int) -> tuple[list[int], KV] | None:
        """So much of what is remembered; less the places at which prediction layers looked at what came behind it."""
        assert self._prefix is not None
        held, kv = self._prefix
        tokens -= self._ahead
        return (held[:tokens], [tuple(part[:, :tokens] for part in layer) for layer in kv]) if tokens > 0 else None

    def _decode(self) -> list[Token]:
        """One token for every running text, and more for those whose drafts come true."""
        texts = list(self._running)
        drafts = self._drafts()
        tokens = 1 + max(map(len, drafts))  # that are read of each text: shorter drafts are filled up
        self._reserve(texts, tokens)
        fill = min(filler(len(texts), DECODE_GRID), self._slots - len(texts))  # empty slots run along
        lengths = torch.tensor([t.length for t in texts] + [0] * fill, device=self._device)
        laid = [[t.said[-1], *d] + [0] * (tokens - 1 - len(d)) for t, d in zip(texts, drafts, strict=True)]
        ids = torch.tensor(laid + [[0] * tokens] * fill, device=self._device)  # (B, T)
        with rounded_as(len(laid) + fill):  # so a text's numbers do not tell whether there were drafts
            hidden = self._hidden(ids, lengths)  # (B, T, D)
            rows = hidden.flatten(0, 1)  # (B * T, D)
            if tokens > 1:
                rows = rows[[i * tokens + j for i, draft in enumerate(drafts) for j in range(1 + len(draft))]]
            logits = self.model.head(rows)[: len(texts) + sum(map(len, drafts))]
        before = [len(t.said) for t in texts]
        out = self._advance(texts, logits, drafts, hidden if self._ahead else None)
        if self.speculation:
            self.speculation.verified(drafts, [t.said[n:] for t, n in zip(texts, before, strict=True)])
        return out

    def _hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states of new tokens (B, T) of the first slots, which hold so many already: (B, T, D)."""
        if self._layers is not None:
            return self._layers.hidden(ids, lengths)
        return self.model.hidden(ids, DecodeContext(self._cache, lengths, ids.shape[1]))

    def _drafts(self) -> list[list[int]]:
        """What may follow each running text, never more than it may still say behind the next token."""
        histories = [t.history for t in self._running if t.history]
        if not self.speculation:
            return [[] for _ in self._running]
        most = [t.sampling.max_new_tokens - len(t.said) - 1 for t in self._running]
        return self.speculation.draft(histories, most, self._cache)

    def _reserve(self, texts: list[_Text], tokens: int) -> None:
        """Room for so many more tokens in each of these texts."""
        longest = max(len(t.prompt.ids) + t.sampling.max_new_tokens for t in texts)
        self._cache.reserve(max(t.length for t in texts) + tokens, longest)

    def _advance(
        self, texts: list[_Text], logits: Tensor, drafts: list[list[int]] | None = None, read: Tensor | None = None
    ) -> list[Token]:
        """Draw what each of these texts says next, and go on while it is what was drafted; retire those that end.

        logits: (R, V), for each text one row and one more for each token of its draft. read: (B, T, D), their hidden
        states, if prediction layers go on from them.
        """
        drafts = drafts or [[] for _ in texts]
        rows = [(t, len(t.said) + i) for t, draft in zip(texts, drafts, strict=True) for i in range(1 + len(draft))]
        plans = [t.sampling for t, _ in rows]
        ids, logprobs = sample(
            logits,
            torch.tensor([p.temperature for p in plans]),
            torch.tensor([p.top_p for p in plans]),
            uniforms((p.seed for p in plans), (step for _, step in rows)),
        )
        drawn = zip(ids.tolist(), logprobs.tolist(), strict=True)
        out: list[Token] = []
        ended = set()
        for i, (text, draft) in enumerate(zip(texts, drafts, strict=True)):
            tokens = _said(text, draft, list(islice(drawn, 1 + len(draft))))
            if text.history:
                text.history.extend([t.id for t in tokens], None if read is None else read[i, : len(tokens)])
            if tokens[-1].finish_reason:
                ended.add(id(text))
            out += tokens
        self._retire(ended)
        return out

    def _retire(self, ended: set[int]) -> None:
        """Take ended texts out; the last running ones move into their slots."""
        slot = 0
        while slot < len(self._running):
            text = self._running[slot]
            if id(text) not in ended:
                slot += 1
                continue
            if text.prompt.remember:  # the last token was drawn, and never read
                whole = text.length - (text.history.behind if text.history else 0)
                self._prefix = ((text.prompt.ids + text.said)[:whole], self._cache.read(slot, whole)) if whole else None
            last = self._running.pop()
            if slot < len(self._running):
                self._cache.move(len(self._running), slot)
                self._running[slot] = last


def _said(text: _Text, draft: list[int], drawn: list[tuple[int, float]]) -> list[Token]:
    """What a text says of the tokens that were drawn for it: up to its end, or to the first that was not drafted."""
    tokens = []
    for place, (token_id, logprob) in enumerate(drawn):
        text.said.append(token_id)
        reason = None
        if token_id in text.sampling.stop_ids:
            reason = "stop"
        elif len(text.said) >= text.sampling.max_new_tokens:
            reason = "length"
        tokens.append(Token(text.prompt.request, text.index, token_id, logprob, reason))
        if reason or draft[place : place + 1] != [token_id]:
            break
    return tokens


def _same(first: Sequence[int], *others: Sequence[int]) -> int:
    """Number of tokens with which all of these begin."""
    longest = min(map(len, (first, *others)))
    return next((i for i in range(longest) if any(o[i] != first[i] for o in others)), longest)
