"""The engine's memory of what it has read: one slot a running text, kept so that every product reads it in one stride.

All slots have the same capacity, which grows as the longest running text does: by half where the C++ kernel reads the
cache, so that little is copied, and by blocks elsewhere, for torch's batched product is three times slower on a cache
with room to spare at the end of each row than on one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from schoolhouse.kernels.attention import Scoring, attend, attend_one
from schoolhouse.kernels.attention_codes import Codes, attend_one_codes
from schoolhouse.kernels.heads import look_at_latents
from schoolhouse.kernels.native import takes
from schoolhouse.kernels.texts import Layout, attend_layout
from schoolhouse.model.attention import Context, Expands
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.packed import Rows

BLOCK = 32  # tokens by which the capacity grows

KV = list[tuple[Tensor, ...]]
"""What is remembered of a text, for each layer: keys and values, each (Hk, T, Dh), or latents alone (1, T, R + Dr)."""


class SlotCache:
    """What is remembered of the running texts: for each layer keys and values, or latents, (slots, Hk, capacity, Dh).

    coded: as int8 codes, each tensor of them followed by its scales (slots, Hk, capacity, 1), one or two.

    They are views of slabs that are kept from request to request: memory that was never touched before costs more than
    all that is done with it (docs/lab-log.md, 2026-11-23).
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        prediction_layers: int = 0,
        *,
        coded: bool = False,
    ) -> None:
        self.slots, self.coded, self.capacity = slots, coded, 0
        parts, self._heads, width = config.cache_shape
        self._widths, self._numbers = config.cache_widths, torch.empty(0, dtype=dtype, device=device)
        kinds = [(width, torch.int8), *((1, torch.bfloat16) for _ in self._widths)] if coded else [(width, dtype)]
        layers = config.num_hidden_layers + prediction_layers
        self._slabs = [(w, torch.empty(layers, 0, dtype=kind, device=device)) for w, kind in kinds * parts]
        self.layers: list[tuple[Tensor, ...]] = []

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Make room for texts of `tokens` tokens, which may become `most` long; what is held stays."""
        if tokens <= self.capacity:
            return
        held, kept = list(zip(*self.layers, strict=True)), self.capacity  # of each kind all layers
        grown = max(tokens, min(most, tokens * 3 // 2)) if takes(self._numbers) else tokens
        self.capacity = _blocks(grown)
        views = []
        for place, (width, slab) in enumerate(self._slabs):
            size = self.slots * self._heads * self.capacity * width
            if size > slab.shape[1]:
                # Pages beyond the capacity are not touched, so that they take no memory until the texts grow into them.
                slab = slab.new_empty(len(slab), max(size, 2 * slab.shape[1]))
                self._slabs[place] = width, slab
            views.append([row[:size].view(self.slots, self._heads, self.capacity, width) for row in slab])
            for old, new in zip(held[place] if held else (), views[-1], strict=False):
                new[:, :, :kept] = old.clone()  # old and new share their memory
            for new in views[-1]:
                new[:, :, kept:] = 0  # what is masked out must still be a number
        self.layers = list(zip(*views, strict=True))

    def release(self) -> None:
        """Begin anew with short texts; the slabs stay."""
        self.capacity = 0
        self.layers = []

    def write(self, slot: int, kv: KV) -> None:
        """Put what is remembered of one text at the start of a slot."""
        for layer, text in zip(self.layers, kv, strict=True):
            for store, part in zip(layer, self._laid(text), strict=True):
                store[slot, :, : part.shape[1]] = part

    def read(self, slot: int, tokens: int) -> KV:
        """A copy of what a slot holds of its first `tokens` tokens."""
        held = [self._told([store[slot, :, :tokens] for store in layer]) for layer in self.layers]
        return [tuple(numbers_of(part, self._numbers.dtype).clone() for part in layer) for layer in held]

    def put(self, layer: int, rows: Tensor, places: Tensor, new: Sequence[Tensor]) -> list[Tensor | Codes]:
        """Put new tokens (B, T, Hk, Dh) at their places (B, T) of the first B slots, and give what these hold."""
        stores = [store[: len(places)] for store in self.layers[layer]]
        for store, part in zip(stores, self._laid(new), strict=True):
            store[rows, :, places] = part
        return self._told(stores)

    def move(self, source: int, target: int) -> None:
        """Copy a slot, so that the running ones stay the first."""
        for layer in self.layers:
            for store in layer:
                store[target] = store[source]

    def _laid(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Numbers as the cache holds them: themselves, or of each codes and scales."""
        if not self.coded:
            return list(parts)
        codes = [Codes.of(part, self._widths) for part in parts]
        return [x for each in codes for x in (each.codes, *each.scales)]

    def _told(self, stores: list[Tensor]) -> list[Tensor | Codes]:
        """The other way round."""
        if not self.coded:
            return list(stores)
        step = 1 + len(self._widths)
        each = [stores[i : i + step] for i in range(0, len(stores), step)]
        return [Codes(codes, tuple(scales), self._widths) for codes, *scales in each]


def numbers_of(held: Tensor | Codes, dtype: torch.dtype) -> Tensor:
    """What the cache holds, as numbers."""
    return held.exact(dtype) if isinstance(held, Codes) else held


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


class DecodeContext(Context):
    """T new tokens in each of the first n slots. lengths: (n,) int64, tokens that each slot holds already.

    A token looks as if it came alone, so that a pass over several says what as many passes over one say. What a slot
    holds beyond its text is written over by whatever comes there next.
    """

    def __init__(self, cache: SlotCache, lengths: Tensor, tokens: int = 1) -> None:
        self.positions = lengths[:, None] + torch.arange(tokens, device=lengths.device)  # (B, T)
        self._cache = cache
        self._rows = torch.arange(len(lengths), device=lengths.device)[:, None]
        self._lasts = (self.positions + 1).t().contiguous()  # (T, B)
        self._zeros = torch.zeros_like(self._lasts)
        self._bias: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """See `Context.attend`."""
        keys, values = self._held(layer, k, v)
        return self._look(q, keys, values, scoring)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, form: Expands, scoring: Scoring) -> Tensor:
        """See `Context.attend_latent`; the latents are never expanded."""
        (held,) = self._held(layer, latent)  # (B, 1, S, R + Dr), key and value of all heads
        values = held.first() if isinstance(held, Codes) else held[..., : form.rank]
        q = form.absorb(q)
        seen = None
        if isinstance(held, Tensor):
            seen = look_at_latents(q, held, form.rank, self.positions[:, 0], scoring)
        return form.emerge(self._look(q, held, values, scoring) if seen is None else seen)

    def _held(self, layer: int, *new: Tensor) -> list[Tensor | Codes]:
        """What the running slots hold of a layer, the new tokens (B, T, Hk, Dh) put in: each (B, Hk, S, Dh)."""
        return self._cache.put(layer, self._rows, self.positions, new)

    def _look(self, q: Tensor, keys: Tensor | Codes, values: Tensor | Codes, scoring: Scoring) -> Tensor:
        lasts, tokens = self._lasts, q.shape[1]
        firsts = self._zeros if scoring.window is None else (lasts - scoring.window).clamp_(min=0)
        if len(q) == 1 < tokens:  # the kernel's texts may share their memory
            shared_keys, shared_values = (x.expand(tokens, -1, -1, -1) for x in (keys, values))
            out = _look_once(q.transpose(0, 1), shared_keys, shared_values, firsts[:, 0], lasts[:, 0], scoring)
            if out is not None:
                return out.transpose(0, 1)
        each: list[Tensor] = []
        numbers: list[Tensor] = []
        for t in range(tokens):
            own = q[:, t : t + 1]
            out = _look_once(own, keys, values, firsts[t], lasts[t], scoring)
            if out is None:
                numbers = numbers or [numbers_of(x, q.dtype) for x in (keys, values)]
                bias = self._bias_of(numbers[0], q.dtype, scoring.window)[:, t : t + 1]
                out = attend(own, numbers[0], numbers[1], bias, scoring)
            each.append(out)
        return each[0] if tokens == 1 else torch.cat(each, dim=1)

    def _bias_of(self, keys: Tensor, dtype: torch.dtype, window: int | None) -> Tensor:
        """(B, T, S): 0 for the tokens of a slot's own text up to the one that looks; made once for all layers."""
        if window not in self._bias:
            place = torch.arange(keys.shape[2], device=self.positions.device)
            looks = self.positions[..., None]  # (B, T, 1)
            hidden = place > looks
            if window is not None:
                hidden |= place <= looks - window
            shown = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._bias[window] = shown.masked_fill_(hidden, float("-inf"))
        return self._bias[window]


def _look_once(
    q: Tensor, keys: Tensor | Codes, values: Tensor | Codes, firsts: Tensor, lasts: Tensor, scoring: Scoring
) -> Tensor | None:
    if isinstance(keys, Codes):
        assert isinstance(values, Codes)
        return attend_one_codes(q, keys, values, firsts, lasts, scoring)
    assert isinstance(values, Tensor)
    return attend_one(q, keys, values, firsts, lasts, scoring)


class PrefillContext(Context):
    """New texts laid end to end, all of them continuing one prefix that is already known.

    lengths: tokens of each text beyond the prefix; prefix: what is remembered of it, or None. `kv(i)` gives what was
    learnt.
    """

    def __init__(
        self, lengths: Sequence[int], prefix: KV | None, layers: int, device: torch.device | str = "cpu"
    ) -> None:
        self._rows = Rows(lengths, device)
        self._prefix = prefix
        self._known = prefix[0][0].shape[1] if prefix else 0
        self.positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device) + self._known  # (1, N)
        self._ends = list(accumulate(lengths))
        self.layout = Layout([self._known], [lengths], self._known) if prefix else Layout(lengths)
        self._kv: list[tuple[Tensor, ...]] = [()] * layers
        self._bias: dict[int | None, Tensor] = {}

    def room(self, heads: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, each (layers, S0 + N, Hk, Dh), those of the prefix filled in.

        What is written behind these is what `kv` gives.
        """
        layers, tokens = len(self._kv), self._known + self.positions.shape[1]
        keys, values = (like.new_empty(layers, tokens, heads, size) for _ in range(2))
        for layer, known in enumerate(self._prefix or ()):
            for own, old in zip((keys[layer], values[layer]), known, strict=True):
                own[: self._known] = old.transpose(0, 1)
        self._kv = list(zip(keys[:, self._known :], values[:, self._known :], strict=True))
        return keys, values

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """See `Context.attend`; B is 1."""
        self._kv[layer] = k[0], v[0]
        return self._look(q, self._prefix[layer] if self._prefix else (), (k[0], v[0]), scoring)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, form: Expands, scoring: Scoring) -> Tensor:
        """See `Context.attend_latent`; the latents are remembered, their expansion is not."""
        self._kv[layer] = (latent[0],)
        known: tuple[Tensor, ...] = self._prefix[layer] if self._prefix else ()
        if known:
            known = tuple(x[0].transpose(0, 1) for x in form.expand(known[0].transpose(0, 1)[None]))
        k, v = form.expand(latent)
        return self._look(q, known, (k[0], v[0]), scoring)

    def _look(self, q: Tensor, known: Sequence[Tensor], new: Sequence[Tensor], scoring: Scoring) -> Tensor:
        """Attention over the prefix (Hk, S0, Dh), if any, and the texts (N, Hk, Dh): keys and values of each."""
        keys, values = new
        if known:
            keys, values = (torch.cat((old.transpose(0, 1), own)) for old, own in zip(known, new, strict=True))
        out = attend_layout(q[0], keys, values, self.layout, scoring)
        if out is None:
            keys, values = (self._behind(x) for x in (keys, values))
            bias = self._bias_of(q, scoring.window)
            out = self._rows.join(attend(self._rows.spread(q[0]), keys, values, bias, scoring))
        return out[None]

    def _behind(self, x: Tensor) -> Tensor:
        """The prefix and all texts, end to end (S0 + N, Hk, Dh), to each text behind it (texts, Hk, S, Dh)."""
        known, own = x[: self._known].transpose(0, 1), self._rows.spread(x[self._known :]).transpose(1, 2)
        return torch.cat((known[None].expand(len(own), -1, -1, -1), own), dim=2) if self._known else own

    def _bias_of(self, q: Tensor, window: int | None) -> Tensor:
        """(1, T, S): 0 for a text's tokens up to the query's own, -inf elsewhere; made once for all layers."""
        if window not in self._bias:
            query_at = self._known + torch.arange(self._rows.width, device=q.device)[:, None]
            key_at = torch.arange(self._known + self._rows.width, device=q.device)[None]
            hidden = key_at > query_at
            if window is not None:
                hidden |= key_at <= query_at - window
            shown = torch.zeros(1, *hidden.shape, dtype=q.dtype, device=q.device)
            self._bias[window] = shown.masked_fill_(hidden, float("-inf"))
        return self._bias[window]

    def kv(self, text: int) -> KV:
        """What is remembered of one text from its very start, prefix included."""
        own = slice(self._ends[text - 1] if text else 0, self._ends[text])
        new = [tuple(part[own].transpose(0, 1) for part in layer) for layer in self._kv]
        if not self._prefix:
            return new
        return [
            tuple(torch.cat(pair, dim=1) for pair in zip(*both, strict=True))
            for both in zip(self._prefix, new, strict=True)
        ]
