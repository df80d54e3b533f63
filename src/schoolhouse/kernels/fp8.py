"""Matrices in fp8: e4m3 codes with one fp32 scale for each block of 128 x 128 weights, or tile of 1 x 128 activations.

A scale is the largest magnitude of its block over 448, the largest code. Last blocks may be partial: they are treated
as if zeros filled them. In DeepSeek's files the scales are called `weight_scale_inv`; despite the name one multiplies
by them.

Source: arXiv 2412.19437, section 3.3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError

BLOCK = 128
"""Side of a block of weights, and length of a tile of activations."""

LARGEST = 448.0  # the largest number of e4m3
_TINY = torch.finfo(torch.float32).tiny  # a smaller scale has few bits left, and its inverse no number


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as codes (N, K) float8_e4m3fn and scales (ceil(N / 128), ceil(K / 128)) float32.

    weight: (N, K) floating-point. What is above 2^-6 of a block's scale is off by at most 2^-4 of itself, what is below
    by at most 2^-10 of the scale. Raises ModelError for weights that are not finite.
    """
    codes, scale = round_blocks(weight.detach())
    if not bool(scale.isfinite().all()):  # the largest magnitude of a block is infinite or no number if one of it is
        raise ModelError(
            "A weight matrix holds values that are not finite: this checkpoint is damaged, take an earlier one."
        )
    return codes, scale


def round_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_blocks` without its check, for a training step: a block that is not finite becomes NaN as a whole."""
    return _quantize(weight, BLOCK)


def quantize_tiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as codes (N, K) float8_e4m3fn and scales (N, ceil(K / 128)) float32, a scale for each 128 numbers of a row.

    x: (N, K) floating-point. For tiles of 128 x 1 hand in `x.t()`. A tile that is not finite becomes NaN as a whole.
    """
    return _quantize(x, 1)


def _quantize(x: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of blocks of height x 128."""
    rows, columns = x.shape
    padded = F.pad(x.float(), (0, -columns % BLOCK, 0, -rows % height))
    grid = padded.reshape(len(padded) // height, height, padded.shape[1] // BLOCK, BLOCK)
    scale = (grid.abs().amax(dim=(1, 3)) / LARGEST).clamp_min(_TINY)
    codes = (grid / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return codes.reshape(padded.shape)[:rows, :columns].contiguous(), scale


def dequantize_blocks(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize_blocks`: (N, K), multiplied in fp32, then rounded to `dtype`. scale: any floating-point type.

    One strip of blocks is in fp32 at a time, so that little more memory is taken than that of the result.
    """
    wide = scale.float()
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for row, (strip, place) in enumerate(zip(codes.split(BLOCK), out.split(BLOCK), strict=True)):
        place.copy_(strip.float().mul_(_along_rows(wide[row : row + 1], codes.shape[1])))
    return out


def dequantize_tiles(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize_tiles`: (N, K), multiplied in fp32, then rounded to `dtype`."""
    return codes.float().mul_(_along_rows(scale, codes.shape[1])).to(dtype)


def _along_rows(scale: Tensor, columns: int) -> Tensor:
    """Each scale 128 times, cut to so many columns."""
    return scale.repeat_interleave(BLOCK, dim=1)[:, :columns]
