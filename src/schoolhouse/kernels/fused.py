"""Small operations written with as few passes over memory as plain torch allows."""

from __future__ import annotations

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number per row for the way back, nothing else."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `rms_norm`."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()  # (..., 1)
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """d/dx of x * r(x) * w with r = (mean(x^2) + eps)^-1/2."""
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse  # fp32
        weighted = grad * normed
        grad_weight = weighted.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        inner = torch.matmul(weighted, weight.float()[:, None]).div_(x.shape[-1])  # (..., 1)
        slope = (grad * weight).float()
        return slope.sub_(normed.mul_(inner)).mul_(inverse).to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale rows to unit root mean square, then by `weight`. x: (..., D) to the same shape and dtype.

    Source: arXiv 1910.07467, eq. 4; `rms_norm_plain` is the twin it is tested against.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same, step by step in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
