"""The three products of a linear layer with operands in fp8, as DeepSeek V3 was trained.

Forward: activations in tiles of 128 along their width, weights in blocks. Gradient of the input: its gradients in such
tiles, and the same blocks. Gradient of the weight: gradients and activations in tiles of 128 along the tokens; of the
activations only the forward pass's codes are kept, and get their new tiles from these. Weights, sums and results keep
the network's type.

Where torch has products of e4m3 with such scales (`has_scaled_products`) the codes are multiplied; elsewhere that is
simulated: what the codes stand for is multiplied in the network's type. Operands are rounded the same way in both.

Source: arXiv 2412.19437, sections 3.3.1 to 3.3.3, and 3.5.2 for the second tiles of activations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.experts import Products
from schoolhouse.kernels.fp8 import BLOCK, dequantize_blocks, dequantize_tiles, quantize_tiles, round_blocks

Fp8 = tuple[Tensor, Tensor]
"""Codes (N, K) float8_e4m3fn and their scales float32."""


class _Linear(torch.autograd.Function):
    """Keeps the activations' codes for the way back: a byte a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x: (M, K); weight: (N, K)."""
        codes, scale = quantize_tiles(x)
        ctx.save_for_backward(codes, scale, weight)
        return _product((codes, scale), round_blocks(weight), x.dtype, blocks=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """grad: (M, N)."""
        codes, scale, weight = ctx.saved_tensors
        grad_x = times_weight(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = weight_gradient(grad, (codes, scale)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` whose products, and those of its gradients, have operands in fp8. x: (..., M, K); weight: (N, K)."""
    out = _Linear.apply(x.flatten(0, -2), weight)
    out = out if bias is None else out + bias
    return out.view(*x.shape[:-1], len(weight))


def times_weight(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (M, K), rounded in tiles, times weight (N, K), rounded in blocks: (M, N) of the rows' type."""
    return _product(quantize_tiles(rows), round_blocks(weight), rows.dtype, blocks=True)


def weight_gradient(grad: Tensor, x: Fp8) -> Tensor:
    """The gradient (N, K) of a weight, of grad's type. grad: (M, N); x: what `quantize_tiles` made of (M, K)."""
    kept = dequantize_tiles(*x)
    return _product(quantize_tiles(grad.t()), quantize_tiles(kept.t()), grad.dtype, blocks=False)


def _rows_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """The same for rows that were kept as they were."""
    return weight_gradient(grad, quantize_tiles(rows))


FP8_PRODUCTS = Products(times_weight, _rows_gradient)
"""What `mix_experts` multiplies by to train experts in fp8."""


def _product(a: Fp8, b: Fp8, dtype: torch.dtype, *, blocks: bool) -> Tensor:
    """a (M, K) in tiles times b (N, K), in blocks or in tiles, transposed: (M, N)."""
    if has_scaled_products(a[0].device):
        return scaled_product(a, b, dtype, blocks=blocks)
    right = dequantize_blocks(*b, dtype) if blocks else dequantize_tiles(*b, dtype)
    return dequantize_tiles(*a, dtype) @ right.t()


@cache
def has_scaled_products(device: torch.device) -> bool:
    """True where torch multiplies e4m3 by scales of 1 x 128 and 128 x 128.

    That is Hopper and no other, with CUDA 12.9. Source: torch 2.13, `ATen/native/cuda/ScaledBlas.cpp`.
    """
    if device.type != "cuda" or torch.version.cuda is None or not hasattr(F, "scaled_mm"):
        return False
    cuda = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    return torch.cuda.get_device_capability(device)[0] == 9 and cuda >= (12, 9)


def scaled_product(a: Fp8, b: Fp8, dtype: torch.dtype, *, blocks: bool) -> Tensor:
    """`_product` of the codes themselves: torch's scaled product, with operands filled up to whole blocks.

    Partial sums are promoted to fp32 (`use_fast_accum=False`), as arXiv 2412.19437, section 3.3.2 asks.
    """
    rows, columns = len(a[0]), len(b[0])
    if not (a[0].numel() and b[0].numel()):
        return torch.zeros(rows, columns, dtype=dtype, device=a[0].device)
    left, right = (_filled(codes, BLOCK, BLOCK) for codes, _ in (a, b))
    by_tile, by_block = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
    # Scales of blocks lie block column by block column, four to a step; those of tiles row by row.
    scale = _filled(b[1], 1, 4).t() if blocks else _rows_innermost(b[1])
    out = F.scaled_mm(
        left,
        right.t(),
        _rows_innermost(a[1]),
        by_tile,
        scale,
        by_block if blocks else by_tile,
        output_dtype=dtype,
        use_fast_accum=False,
    )
    return out[:rows, :columns]


def _rows_innermost(scale: Tensor) -> Tensor:
    """Scales of tiles (N, K / 128), filled up to whole blocks of rows, one row's beside the next's in memory."""
    return _filled(scale, BLOCK, 1).t().contiguous().t()


def _filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """x with zeros up to multiples of so many rows and columns."""
    height, width = (-(-size // step) * step for size, step in zip(x.shape, (rows, columns), strict=True))
    if (height, width) == tuple(x.shape):
        return x
    out = x.new_zeros(height, width)
    out[: x.shape[0], : x.shape[1]] = x
    return out
