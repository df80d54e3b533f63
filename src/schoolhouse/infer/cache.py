"""The engine's memory of what it has read: one slot a running text, kept so that every product reads it in one stride.

All slots have the same capacity, which grows by blocks as the longest running text does: torch's batched product is
three times slower on a cache with room to spare at the end of each row than on one without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schoolhouse.kernels.attention import attend
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.packed import Rows

BLOCK = 32  # tokens by which the capacity grows

KV = list[tuple[Tensor, Tensor]]
"""Keys and values of one text, one pair a layer, each (Hk, T, Dh)."""


class SlotCache:
    """Keys and values of the running texts: for each layer two (slots, Hk, capacity, Dh) tensors.

    They are views of one slab a layer that is kept from request to request: memory that was never touched before costs
    more than all that is done with it (docs/lab-log.md, 2026-11-23).
    """

    def __init__(self, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self.capacity = 0
        self._shape = (config.num_key_value_heads, config.head_dim)
        self._slabs = torch.empty(2 * config.num_hidden_layers, 0, dtype=dtype, device=device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, tokens: int) -> None:
        """Make room for texts of `tokens` tokens; what is held stays."""
        if tokens <= self.capacity:
            return
        held, kept, self.capacity = [*self.keys, *self.values], self.capacity, -(-tokens // BLOCK) * BLOCK
        heads, width = self._shape
        size = self.slots * heads * self.capacity * width
        if size > self._slabs.shape[1]:
            # Pages beyond the capacity are not touched, so that they take no memory until the texts grow into them.
            self._slabs = self._slabs.new_empty(len(self._slabs), max(size, 2 * self._slabs.shape[1]))
        views = [slab[:size].view(self.slots, heads, self.capacity, width) for slab in self._slabs]
        for old, new in zip(held, views, strict=False):
            new[:, :, :kept] = old.clone()  # old and new share their memory
        for new in views:
            new[:, :, kept:] = 0  # what is masked out must still be a number
        self.keys, self.values = views[: len(views) // 2], views[len(views) // 2 :]

    def release(self) -> None:
        """Begin anew with short texts; the slabs stay."""
        self.capacity = 0
        self.keys, self.values = [], []

    def write(self, slot: int, kv: KV) -> None:
        """Put one text's keys and values at the start of a slot."""
        for layer, (k, v) in enumerate(kv):
            self.keys[layer][slot, :, : k.shape[1]] = k
            self.values[layer][slot, :, : v.shape[1]] = v

    def read(self, slot: int, tokens: int) -> KV:
        """A copy of what a slot holds of its first `tokens` tokens."""
        return [
            (k[slot, :, :tokens].clone(), v[slot, :, :tokens].clone())
            for k, v in zip(self.keys, self.values, strict=True)
        ]

    def move(self, source: int, target: int) -> None:
        """Copy a slot, so that the running ones stay the first."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[target] = layer[source]


class DecodeContext:
    """One new token in each of the first n slots. lengths: (n,) int64, tokens that each slot holds already."""

    def __init__(self, cache: SlotCache, lengths: Tensor) -> None:
        self.positions = lengths[:, None]  # (B, 1)
        self._cache = cache
        self._rows = torch.arange(len(lengths), device=lengths.device)
        self._lengths = lengths
        self._bias: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Context.attend`; T is 1."""
        keys = self._cache.keys[layer][: len(q)]  # (B, Hk, S, Dh)
        values = self._cache.values[layer][: len(q)]
        keys[self._rows, :, self._lengths] = k[:, 0]
        values[self._rows, :, self._lengths] = v[:, 0]
        if self._bias is None:
            self._bias = self._make_bias(keys.shape[2], q.dtype, window)
        return attend(q, keys, values, self._bias, scale)

    def _make_bias(self, capacity: int, dtype: torch.dtype, window: int | None) -> Tensor:
        """(B, 1, S): 0 for the tokens of a slot's own text, its new one included."""
        place = torch.arange(capacity, device=self._lengths.device)[None]
        hidden = place > self.positions
        if window is not None:
            hidden |= place <= self.positions - window
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))[:, None]


class PrefillContext:
    """New texts laid end to end, all of them continuing one prefix that is already known.

    lengths: tokens of each text beyond the prefix; prefix: its keys and values, or None. `kv(i)` gives what was learnt.
    """

    def __init__(
        self, lengths: Sequence[int], prefix: KV | None, layers: int, device: torch.device | str = "cpu"
    ) -> None:
        self._rows = Rows(lengths, device)
        self._prefix = prefix
        self._known = prefix[0][0].shape[1] if prefix else 0
        self.positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device) + self._known  # (1, N)
        self._lengths = list(lengths)
        self._kv: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._bias: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Context.attend`; B is 1."""
        keys, values = (self._rows.spread(x[0]).transpose(1, 2) for x in (k, v))  # (R, Hk, T, Dh)
        if self._prefix is not None:
            keys = torch.cat((self._prefix[layer][0].expand(len(keys), -1, -1, -1), keys), dim=2)
            values = torch.cat((self._prefix[layer][1].expand(len(values), -1, -1, -1), values), dim=2)
        self._kv[layer] = (keys, values)
        if self._bias is None:
            query_at = self._known + torch.arange(self._rows.width, device=q.device)[:, None]
            key_at = torch.arange(keys.shape[2], device=q.device)[None]
            hidden = key_at > query_at
            if window is not None:
                hidden |= key_at <= query_at - window
            self._bias = torch.zeros(1, *hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(
                hidden, float("-inf")
            )
        return self._rows.join(attend(self._rows.spread(q[0]), keys, values, self._bias, scale))[None]

    def kv(self, text: int) -> KV:
        """Keys and values of one text from its very start, prefix included."""
        end = self._known + self._lengths[text]
        return [(k[text, :, :end], v[text, :, :end]) for k, v in self._kv if k is not None]  # type: ignore[misc]
