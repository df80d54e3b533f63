"""Small operations written with as few passes over memory as plain torch allows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import library, takes

LANES = 16  # numbers that the C++ kernels take at once


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
    native = library()
    if native is None or not takes(x, weight) or x.shape[-1] % LANES:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    x, width = x.contiguous(), x.shape[-1]
    out = torch.empty_like(x)
    native.rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps)
    return out


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same, step by step in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of equal shapes. Source: arXiv 2002.05202, eq. 6; plain torch is the twin."""
    native = library()
    if native is None or not takes(gate, up) or gate.shape[-1] % LANES:
        return F.silu(gate) * up
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    native.gated(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel())
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each head's pairs (i, i + half) turned by their token's angles. x: (B, T, H, Dh); cos, sin: (B, T, 1, Dh / 2).

    Source: arXiv 2104.09864, eq. 34; `turn_plain` is the twin.
    """
    native, (batch, length, heads, width) = library(), x.shape
    if native is None or not takes(x, cos, sin) or width % (2 * LANES):
        return turn_plain(x, cos, sin)
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    native.turn(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), batch * length, heads, width)
    return out


def turn_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same with torch's own operations."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
