"""Weights as codes of 8 or 4 bits: `w = code * scale`, a scale for a row or a part of it; codes in stored words.

Source: vllm-project/compressed-tensors 0.20, `compressors/pack_quantized`, for the order of codes in a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError

_FLIP = -0x7F7F7F80  # 0x80808080 as a signed int32: adds 128 to each of the four bytes
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a scale of 4 bits: cutting the largest may spare the others
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
"""What a file calls codes, scales, and the note of how many codes there are, which follows from the config."""


@dataclass(frozen=True)
class Scheme:
    """How weights become codes: the bits of a code, and how many of a row share a scale (None: all of them)."""

    bits: int = 8
    group: int | None = None

    @property
    def most(self) -> int:
        """The largest code; 8 bits use as many below 0, 4 bits one more."""
        return (1 << self.bits - 1) - 1

    @property
    def in_a_word(self) -> int:
        """Codes in a stored int32."""
        return 32 // self.bits

    def fits(self, inner: int) -> bool:
        """True if rows of so many weights can be stored so."""
        return inner % self.in_a_word == 0 and (self.group is None or inner % self.group == 0)

    def groups(self, inner: int) -> int:
        """Scales of a row of so many weights."""
        return 1 if self.group is None else inner // self.group


INT8 = Scheme()
USUAL_GROUP = 64  # of 4 bits: divides the widths of small models, too, which 128 often does not


def scheme_for(to: str, group: int | None) -> Scheme:
    """How codes of a format ("int8", "int4") are made; without a group int8 has a scale a row, int4 one for 64."""
    return Scheme(8, group) if to == "int8" else Scheme(4, group or USUAL_GROUP)


def quantize_rows(
    weight: Tensor, scale_dtype: torch.dtype = torch.bfloat16, scheme: Scheme = INT8
) -> tuple[Tensor, Tensor]:
    """Round a matrix to the nearest codes, each row, or group of a row, by its own scale. weight: (N, K) floats.

    Returns codes (N, K) int8 and scales (N, G) `scale_dtype`. With 8 bits |weight - codes * scale| <= scale / 2 for
    every element; with 4 bits the scale is the one of a few, smaller ones too, that leaves the least squared error.
    Raises ModelError for weights that are not finite.
    """
    exact = finite(weight)
    parts = exact.unflatten(1, (scheme.groups(exact.shape[1]), -1))  # (N, G, K / G)
    scales = best_scales(parts, scheme, scale_dtype)  # (N, G)
    return round_by(parts, scales[..., None], scheme).flatten(1), scales


def finite(weight: Tensor) -> Tensor:
    """The same numbers in fp32; ModelError if one of them is none."""
    exact = weight.detach().float()
    if not bool(exact.isfinite().all()):
        raise ModelError(
            "A weight matrix holds values that are not finite: this checkpoint is damaged, take an earlier one."
        )
    return exact


def best_scales(parts: Tensor, scheme: Scheme, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A scale for each row along the last dimension, rounded to `dtype`. parts: (..., n) fp32 to (...)."""
    widest = parts.abs().amax(dim=-1) / scheme.most
    if scheme.bits == 8:
        return widest.to(dtype)
    best, least = widest.to(dtype), torch.full_like(widest, float("inf"))
    for shrink in _SHRINKS:
        scale = (widest * shrink).to(dtype)
        error = (round_by(parts, scale[..., None], scheme) * scale[..., None].float() - parts).square().sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def round_by(weights: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """The nearest codes, int8, in the shape of `weights`; scales: of a shape that spreads over them."""
    # Rounding the scale down to bf16 may push the largest weight 0.4% past the last code, well within half a step.
    divisor = scales.float()
    codes = (weights / divisor.where(divisor > 0, 1.0)).round()
    return codes.clamp_(-scheme.most - (scheme.bits == 4), scheme.most).to(torch.int8)


def spread(scales: Tensor, inner: int) -> Tensor:
    """Scales (N, G) for every weight of their rows: (N, K), or (N, 1) where a row has one."""
    return scales if scales.shape[1] == 1 else scales.repeat_interleave(inner // scales.shape[1], dim=1)


def pack(codes: Tensor, bits: int = 8) -> Tensor:
    """(N, K) int8 to int32 words, the first code lowest: each of 8 bits plus 128, each of 4 bits plus 8."""
    if bits == 8:
        return codes.contiguous().view(torch.int32) ^ _FLIP
    return nibbles(codes).view(torch.int32)


def unpack(packed: Tensor, bits: int = 8) -> Tensor:
    """Undo `pack`."""
    return (packed ^ _FLIP).view(torch.int8) if bits == 8 else from_nibbles(packed.view(torch.uint8))


def nibbles(codes: Tensor) -> Tensor:
    """Codes (N, K) of -8..7, two a byte, 8 added to each, the first low: (N, K / 2) uint8."""
    both = (codes + 8).to(torch.uint8)
    return (both[:, 0::2] | both[:, 1::2] << 4).contiguous()


def from_nibbles(both: Tensor) -> Tensor:
    """Undo `nibbles`: (N, K) int8."""
    return torch.stack((both & 15, both >> 4), dim=-1).flatten(1).to(torch.int8) - 8


def shape_note(packed: Tensor, bits: int = 8) -> Tensor:
    """What a file says beside packed codes: how many rows and columns they have."""
    rows, words = packed.shape
    return torch.tensor([rows, words * 32 // bits])
