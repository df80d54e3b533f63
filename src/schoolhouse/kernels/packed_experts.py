"""A mixture's experts laid out for products without gradients, and all of them in one call.

Their matrices lie in one piece of memory, expert by expert, so that a step of decoding reads it from one end to the
other. `mix_experts` is the twin.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import library
from schoolhouse.kernels.packed_weight import FILL, Matrix, can_pack
from schoolhouse.kernels.router import Rule

PLACES = 16  # columns of the router come in such groups
ROOM = 64  # rows for which there has to be more room than there are
LANES = 16  # numbers that the C++ takes at once
TILE = 16  # rows that it reads at once
AT_ONCE = 512  # rows of a feed-forward


class Copied:
    """Which matrices a copy was made from, and whether it still holds."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._made_from = [(m.detach(), m._version) for m in matrices]

    def is_of(self, matrices: Sequence[Tensor]) -> bool:
        """True while none of these has moved or been written to since."""
        made = self._made_from
        return len(made) == len(matrices) and all(
            now.data_ptr() == then.data_ptr() and now._version == version
            for now, (then, version) in zip(matrices, made, strict=True)
        )


class PackedExperts:
    """A copy of a router (E, D) and of its experts, gate (F, D), up (F, D) and down (D, F) of each, all bf16."""

    def __init__(self, router: Tensor, bias: Tensor | None, experts: Sequence[Tensor], rule: Rule) -> None:
        """experts: gate, up and down of each."""
        self._of_router, self._of_experts = Copied(_both(router, bias)), Copied(experts)
        self.rule, (self.inner, self._width) = rule, experts[0].shape
        self._router = F.pad(router.detach().double(), (0, 0, 0, -len(router) % PLACES)).t().contiguous()  # (D, places)
        self._bias = None if bias is None else bias.detach().float().clone()
        self._packed, self._addresses = pack_together(experts)
        self._count = len(experts) // 3
        self.words = feed_words(
            self._router.data_ptr(), 0 if self._bias is None else self._bias.data_ptr(), self._addresses.data_ptr(),
            self._count, self.inner, rule,
        )  # fmt: skip

    def routes_as(self, router: Tensor, bias: Tensor | None) -> bool:
        """True while this is a copy of that router."""
        return self._of_router.is_of(_both(router, bias))

    def is_of(self, experts: Sequence[Tensor]) -> bool:
        """True while this is a copy of these experts: gate, up and down of each."""
        return self._of_experts.is_of(experts)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each row's experts (N, A) int64, their shares (N, A) and all scores (N, E) float32. x: (N, D) bf16."""
        native, (rows, width) = library(), x.shape
        assert native is not None, "nothing is packed where there are no kernels"
        x, words, choices = x.contiguous(), torch.tensor(self.words, dtype=torch.int64), self.rule.active
        chosen = torch.empty(rows, choices, dtype=torch.int64)
        shares, scores = (torch.empty(rows, columns, dtype=torch.float32) for columns in (choices, self._count))
        native.choose_rows(
            words.data_ptr(), x.data_ptr(), chosen.data_ptr(), shares.data_ptr(), scores.data_ptr(), rows, width
        )
        return chosen, shares, scores

    def mixed(self, x: Tensor, chosen: Tensor, shares: Tensor, common: Sequence[Matrix] = ()) -> Tensor:
        """Each row's sum over its experts, and what it becomes by `common` on top. x: (N, D) bf16 to (N, D).

        chosen: (N, A) int64; shares: (N, A) float32; common: packed gate, up and down that all rows meet, if any.
        """
        native, (rows, width) = library(), x.shape
        assert native is not None, "nothing is packed where there are no kernels"
        wide = common[0].shape[0] if common else 0
        x = F.pad(x, (0, 0, 0, -rows % TILE)) if common and rows % TILE else x.contiguous()
        chosen, shares, out = chosen.contiguous(), shares.contiguous(), x.new_empty(rows, width)
        words = self.words
        if common:
            words = (*words[: -len(NOTHING)], *(matrix.words[0] for matrix in common), wide)
        told = torch.tensor(words, dtype=torch.int64)
        scratch = x.new_empty(feed_room(rows, width, self.rule.active, self.inner, wide))
        native.mix_packed(
            told.data_ptr(), x.data_ptr(), chosen.data_ptr(), shares.data_ptr(), None, out.data_ptr(), rows, width,
            scratch.data_ptr(),
        )  # fmt: skip
        return out


def _both(router: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [router] if bias is None else [router, bias]


def can_pack_experts(router: Tensor, experts: Sequence[Tensor]) -> bool:
    """True for a router and experts that the C++ takes: gate, up and down of each, all of one shape."""
    first, (inner, width) = experts[0], experts[0].shape
    shapes = [(inner, width), (inner, width), (width, inner)]
    alike = all(m.shape == shapes[i % 3] and m.stride(1) == 1 and can_pack(m) for i, m in enumerate(experts))
    return alike and router.dtype == first.dtype and width % LANES == 0


def pack_together(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Matrices (N, K) as products read them, in one piece of memory, and the address of each, int64."""
    native = library()
    assert native is not None, "can_pack says whether there are kernels"
    sizes = torch.tensor([0, *((-(-m.shape[0] // FILL) * FILL) * m.shape[1] for m in matrices)])
    ends = sizes.cumsum(0)
    packed = torch.empty(int(ends[-1]), dtype=torch.bfloat16)
    addresses = packed.data_ptr() + 2 * ends[:-1]
    for matrix, address in zip(matrices, addresses.tolist(), strict=True):
        native.pack_weight(matrix.data_ptr(), matrix.stride(0), *matrix.shape, address)
    return packed, addresses


def feed_words(router: int, bias: int, experts: int, count: int, inner: int, rule: Rule) -> tuple[int, ...]:
    """A layer's mixture as the C++ is told of it, without what all rows meet (`common_words`)."""
    (factor,) = struct.unpack("q", struct.pack("d", rule.scale))
    return (
        router, bias, experts, count, rule.active, rule.groups, rule.kept, int(not rule.softmax),
        int(rule.normalised), inner, factor, *NOTHING,
    )  # fmt: skip


NOTHING = (0, 0, 0, 0)
"""Words of a layer whose rows have nothing that all of them meet: gate, up, down, their width."""


def feed_room(rows: int, width: int, choices: int, inner: int, common_inner: int) -> int:
    """Numbers of 16 bits that the C++ wants room for, see `FeedForward` there."""
    return (rows + ROOM) * (common_inner + width) + (rows * choices + ROOM) * (2 * width + inner + 6) + 8 * ROOM


def feed_forward(x: Tensor, gate: Matrix, up: Matrix, down: Matrix, beside: Tensor | None = None) -> Tensor:
    """down(silu(gate(x)) * up(x)), on top of `beside` if that is there, in one call for up to `AT_ONCE` rows.

    x and beside: (..., D) bf16 to the same shape; the matrices are packed from bf16. So many rows stay in the second
    cache meanwhile. The operations one by one are the twin, bit by bit.
    """
    native, (inner, width) = library(), gate.shape
    assert native is not None, "nothing is packed where there are no kernels"
    rows = x.reshape(-1, width).contiguous()
    under = None if beside is None else beside.reshape(-1, width).contiguous()
    out = torch.empty_like(rows)
    told = torch.tensor([*(0,) * 11, *(matrix.words[0] for matrix in (gate, up, down)), inner], dtype=torch.int64)
    scratch = x.new_empty(feed_room(min(len(rows), AT_ONCE), width, 0, 0, inner))
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        read = F.pad(part, (0, 0, 0, -len(part) % TILE)) if len(part) % TILE else part
        native.mix_packed(
            told.data_ptr(), read.data_ptr(), None, None, None if under is None else under[start:].data_ptr(),
            out[start:].data_ptr(), len(part), width, scratch.data_ptr(),
        )  # fmt: skip
    return out.view_as(x)
