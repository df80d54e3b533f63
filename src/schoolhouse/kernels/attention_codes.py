"""Attention over keys and values that are held as int8 codes with scales: half of the bytes of bf16.

A row is cut into parts, each with a scale of its own: its largest number becomes 127, and the others are rounded to the
nearest code. Scales are bf16, whatever the numbers were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schoolhouse.kernels.attention import LANES, Scoring
from schoolhouse.kernels.native import library, takes

MOST = 127
_LEAST = 1e-30  # largest number of a part that is told from zeros


class Codes(NamedTuple):
    """Rows of codes (..., W), int8, and for each part of a row its scales (..., 1), bf16; widths: of the parts."""

    codes: Tensor
    scales: tuple[Tensor, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, widths: Sequence[int]) -> Codes:
        """The rows of x (..., W) as codes. A part with a number that is none or infinite has none as its scale."""
        parts, scales = [], []
        for part in x.split(list(widths), dim=-1):
            wide = part.float()
            highest = wide.abs().amax(-1, keepdim=True)
            scale = (highest.clamp(min=_LEAST) / MOST + 0 * highest).to(torch.bfloat16)
            parts.append((wide / scale.float()).round_().to(torch.int8))
            scales.append(scale)
        return cls(parts[0] if len(parts) == 1 else torch.cat(parts, -1), tuple(scales), tuple(widths))

    def exact(self, dtype: torch.dtype) -> Tensor:
        """What the codes say, in numbers (..., W)."""
        parts = self.codes.split(list(self.widths), dim=-1)
        return torch.cat([part.to(dtype) * scale.to(dtype) for part, scale in zip(parts, self.scales, strict=True)], -1)

    def first(self) -> Codes:
        """The first part alone, which lies where it lay."""
        return Codes(self.codes[..., : self.widths[0]], self.scales[:1], self.widths[:1])

    def expand(self, *sizes: int) -> Codes:
        """As torch's `expand`, of codes and scales."""
        return Codes(self.codes.expand(*sizes), tuple(scale.expand(*sizes) for scale in self.scales), self.widths)


def attend_one_codes(
    q: Tensor, keys: Codes, values: Codes, firsts: Tensor, lasts: Tensor, scoring: Scoring
) -> Tensor | None:
    """Attention of one new token in each text over codes; None where no kernel does it.

    q: (B, 1, H, Dh); keys: (B, Hk, S, Dh) of one part or two; values: (B, Hk, S, Dv) of one; firsts, lasts: (B,) int64,
    the tokens that a text sees, from the first to before the last. Returns (B, 1, H, Dv). The twin is `attend` over
    `Codes.exact`: here queries and shares are rounded to 16 bits, far below the rounding of the codes.
    """
    native, (texts, _, heads, width), depth = library(), q.shape, values.codes.shape[3]
    rows = keys.codes.stride(3) == values.codes.stride(3) == 1
    scales = (*keys.scales, *values.scales)
    apart = all(scale.stride()[:3] == (*keys.scales[0].stride()[:2], 1) for scale in keys.scales)
    fits = all(size % LANES == 0 for size in (*keys.widths, depth)) and len(keys.widths) <= 2
    if native is None or not takes(q, *scales) or not (rows and apart and fits and values.scales[0].stride(2) == 1):
        return None
    q, out = q.contiguous(), q.new_empty(texts, 1, heads, depth)
    kv_heads = keys.codes.shape[1]
    strides = torch.tensor(
        [
            *(*keys.codes.stride()[:3], *keys.scales[0].stride()[:2]),
            *(*values.codes.stride()[:3], *values.scales[0].stride()[:2]),
        ]
    )
    native.attend_one_codes(
        q.data_ptr(), keys.codes.data_ptr(), keys.scales[0].data_ptr(), keys.scales[-1].data_ptr(),
        values.codes.data_ptr(), values.scales[0].data_ptr(), strides.data_ptr(), firsts.data_ptr(), lasts.data_ptr(),
        out.data_ptr(), texts, kv_heads, heads // kv_heads, width, keys.widths[0], depth, scoring.scale,
        scoring.cap or 0.0,
    )  # fmt: skip
    return out
