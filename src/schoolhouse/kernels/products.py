"""Products in training that AMX's tiles make faster than torch does: gradients of weights.

torch's own product with a transposed left side lays both sides out as a whole, which takes as long as multiplying them
(docs/lab-log.md, 2026-11-24).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import has_tiles, library

LEAST = 1 << 21  # products of numbers, below which torch is as fast
_IN_PLACE = "sums_its_gradient_in_place"


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
        grad_weight = gradient_of(weight, rows, x.flatten(0, -2)) if need_weight else None
        return grad_x, grad_weight, rows.sum(0) if need_bias else None


def linear_in_training(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` with gradients. x: (..., K), weight: (N, K), bias: (N,) or None to (..., N)."""
    if not _is_ours(x) or not weight.requires_grad:
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The transpose of grad (M, N) times x (M, K): (N, K), sums in fp32. `torch.mm` is the twin."""
    if not _is_turned(grad, x):
        return torch.mm(grad.t(), x)
    out = torch.empty(grad.shape[1], x.shape[1], dtype=x.dtype)
    _turned(grad, x, out, add=False)
    return out


def sum_in_place(weight: Tensor) -> None:
    """Let `gradient_of` add this leaf's gradients to its `grad`, which must exist, as soon as they are made.

    autograd would write each one to memory, read it again and add it. Neither hooks on the weight's gradient nor
    `torch.autograd.grad` see what is added so.
    """
    setattr(weight, _IN_PLACE, True)


def gradient_of(weight: Tensor, grad: Tensor, x: Tensor) -> Tensor | None:
    """`weight_gradient` for a backward pass to return; None if it has been added to where the weight's are summed."""
    held = weight.grad if getattr(weight, _IN_PLACE, False) else None
    if held is None or held.stride(1) != 1 or not _is_turned(grad, x):
        return weight_gradient(grad, x)
    _turned(grad, x, held, add=True)
    return None


def homes_of(weights: Sequence[Tensor]) -> list[Tensor | None] | None:
    """Where each weight's gradients are summed, None for one that wants none; None if any other has no place."""
    homes = [w.grad if w.requires_grad and getattr(w, _IN_PLACE, False) else None for w in weights]
    if any(home is None or not home.is_contiguous() for w, home in zip(weights, homes, strict=True) if w.requires_grad):
        return None
    return homes


def _is_turned(grad: Tensor, x: Tensor) -> bool:
    return library() is not None and _is_ours(grad) and _is_ours(x) and grad.numel() * x.shape[1] >= LEAST


def _turned(grad: Tensor, x: Tensor, out: Tensor, *, add: bool) -> None:
    native = library()
    assert native is not None
    grad, x = (part if part.stride(1) == 1 else part.contiguous() for part in (grad, x))
    native.turned_product(
        grad.data_ptr(), grad.stride(0), x.data_ptr(), x.stride(0), out.data_ptr(), out.stride(0),
        grad.shape[1], x.shape[1], len(x), add,
    )  # fmt: skip


def _is_ours(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_tiles()
