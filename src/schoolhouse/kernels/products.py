"""Linear layers in training: torch multiplies on the way in and back, and AMX's tiles make the gradient of the weights.

torch's own product with a transposed left side lays both sides out as a whole, which takes as long as multiplying them
(docs/lab-log.md, 2026-11-24).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import has_tiles, library

LEAST = 1 << 21  # products of numbers, below which torch is as fast


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` whose weight gets its gradient by `weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (..., K) to (..., N)."""
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of what wants one."""
        x, weight = ctx.saved_tensors
        rows, (need_x, need_weight, need_bias) = grad.flatten(0, -2), ctx.needs_input_grad
        grad_x = torch.matmul(grad, weight) if need_x else None
        grad_weight = weight_gradient(rows, x.flatten(0, -2)) if need_weight else None
        return grad_x, grad_weight, rows.sum(0) if need_bias else None


def linear_in_training(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` with gradients. x: (..., K), weight: (N, K), bias: (N,) or None to (..., N)."""
    if not _is_ours(x) or not weight.requires_grad:
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The transpose of grad (M, N) times x (M, K): (N, K), sums in fp32. `torch.mm` is the twin."""
    (rows, wide), deep = grad.shape, x.shape[1]
    native = library()
    if native is None or not (_is_ours(grad) and _is_ours(x)) or rows * wide * deep < LEAST:
        return torch.mm(grad.t(), x)
    grad, x = (part if part.stride(1) == 1 else part.contiguous() for part in (grad, x))
    out = torch.empty(wide, deep, dtype=x.dtype)
    native.turned_product(
        grad.data_ptr(), grad.stride(0), x.data_ptr(), x.stride(0), out.data_ptr(), deep, wide, deep, rows
    )
    return out


def _is_ours(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_tiles()
