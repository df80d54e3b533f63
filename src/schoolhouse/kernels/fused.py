"""Small operations in one pass over memory each, and their gradients: norm, gate, rotation.

Where the C++ takes the tensors, each is one node of the graph that keeps as little as its gradient needs, with sums in
fp32 and one rounding at the end; elsewhere plain torch does the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from schoolhouse.kernels.native import fits, keeps_gradient, library

LANES = 16  # numbers that the C++ kernels take at once
ROWS = 64  # rows whose part of a weight's gradient they sum up together


def rms_norm(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> Tensor:
    """Scale rows to unit root mean square, then by `weight`, to which `shift` is added in fp32 unless it is 0.

    x: (..., D) to the same shape and dtype. Source: arXiv 1910.07467, eq. 4; `rms_norm_plain` is the twin it is tested
    against.
    """
    fast = fits(x, weight) and x.shape[-1] % LANES == 0
    if keeps_gradient(x, weight):
        out: Tensor = (_RMSNorm if fast else _PlainRMSNorm).apply(x, weight, eps, shift)
        return out
    if fast:
        return _normed(x.contiguous(), weight, eps, shift, None)
    wide = x if shift == 0 else x.float()
    return F.rms_norm(wide, (x.shape[-1],), _shifted(weight, shift), eps).to(x.dtype)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> Tensor:
    """The same, step by step in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * _shifted(weight, shift)).to(x.dtype)


def _shifted(weight: Tensor, shift: float) -> Tensor:
    return weight if shift == 0 else shift + weight.float()


def _normed(x: Tensor, weight: Tensor, eps: float, shift: float, inverse: Tensor | None) -> Tensor:
    """The norm of contiguous rows by the kernel, and each row's factor into `inverse`."""
    native, width, out = library(), x.shape[-1], torch.empty_like(x)
    assert native is not None, "fits says whether there are kernels"
    kept = None if inverse is None else inverse.data_ptr()
    rows = x.numel() // max(width, 1)
    native.rms_norm(x.data_ptr(), width, weight.data_ptr(), out.data_ptr(), width, kept, rows, width, eps, shift)
    return out


def rms_norm_beside(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """x itself and its `rms_norm`, for a stream that goes on beside it: their gradients come back as one sum."""
    if not keeps_gradient(x, weight) or not fits(x, weight) or x.shape[-1] % LANES or not x.is_contiguous():
        return x, rms_norm(x, weight, eps, shift)
    stream, normed = _RMSNormBeside.apply(x, weight, eps, shift)
    return stream, normed


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number per row for the way back, nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float) -> Tensor:
        """See `rms_norm`."""
        x = x.contiguous()
        inverse = torch.empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse)
        ctx.shift = shift
        return _normed(x, weight, eps, shift, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `slopes`."""
        return *_RMSNorm.slopes(ctx, grad, None), None, None

    @staticmethod
    def slopes(ctx: Any, grad: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """d/dx of x * r(x) * w with r = (mean(x^2) + eps)^-1/2, on top of another gradient of x; and d/dw."""
        x, weight, inverse = ctx.saved_tensors
        native, width, rows = library(), x.shape[-1], inverse.numel()
        assert native is not None
        grad, to_x = grad.contiguous(), torch.empty_like(x)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        parts = inverse.new_empty(-(-rows // ROWS), width)
        native.rms_norm_back(
            grad.data_ptr(), width, x.data_ptr(), width, weight.data_ptr(), inverse.data_ptr(),
            None if beside is None else beside.data_ptr(), to_x.data_ptr(), width, parts.data_ptr(),
            None if to_weight is None else to_weight.data_ptr(), rows, width, ctx.shift,
        )  # fmt: skip
        return to_x, to_weight


class _RMSNormBeside(torch.autograd.Function):
    """`_RMSNorm` that hands its input on, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
        """See `rms_norm_beside`."""
        return x, _RMSNorm.forward(ctx, x, weight, eps, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, stream: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Both gradients in one pass."""
        return *_RMSNorm.slopes(ctx, grad, stream.contiguous()), None, None


class _PlainRMSNorm(torch.autograd.Function):
    """The same with torch's own operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float) -> Tensor:
        """See `rms_norm`."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()  # (..., 1)
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.shift = shift
        return (x * inverse).mul_(_shifted(weight, shift)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `_RMSNorm`."""
        x, weight, inverse = ctx.saved_tensors
        normed, scale = x * inverse, _shifted(weight, ctx.shift)
        weighted = grad * normed  # fp32
        grad_weight = weighted.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        inner = torch.matmul(weighted, scale.float()[:, None]).div_(x.shape[-1])  # (..., 1)
        slope = (grad * scale).float()
        return slope.sub_(normed.mul_(inner)).mul_(inverse).to(x.dtype), grad_weight, None, None


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of equal shapes. Source: arXiv 2002.05202, eq. 6; plain torch is the twin."""
    if not fits(gate, up) or gate.shape != up.shape:
        return F.silu(gate) * up
    if keeps_gradient(gate, up):
        out: Tensor = _Gated.apply(gate, up)
        return out
    return _product(gate.contiguous(), up.contiguous())


def _product(gate: Tensor, up: Tensor) -> Tensor:
    native, out = library(), torch.empty_like(gate)
    assert native is not None
    native.gated(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel())
    return out


def gated_slopes(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, from that of `gated`, all of one shape."""
    native = library()
    if native is None or not fits(grad, gate, up):
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    native.gated_back(
        grad.data_ptr(), gate.data_ptr(), up.data_ptr(), to_gate.data_ptr(), to_up.data_ptr(), gate.numel()
    )
    return to_gate, to_up


class _Gated(torch.autograd.Function):
    """Keeps gate and up, and nothing that is between them and the product."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """See `gated`."""
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """d silu(g) = s * (1 + g * (1 - s)) with s = sigmoid(g)."""
        return gated_slopes(grad, *ctx.saved_tensors)


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, still: int = 0, neighbours: bool = False) -> Tensor:
    """Each head's pairs turned by their token's angles: (i, i + half) or, as neighbours, (2i, 2i + 1).

    x: (B, T, H, Dh) to the same shape; cos, sin: (B, T, 1, pairs). The pairs lie behind the first `still` numbers of a
    head; these and what lies behind the pairs stay. Neighbours come out as halves, in queries and keys alike, so that
    their products are the same. Source: arXiv 2104.09864, eq. 34; `turn_plain` is the twin.
    """
    if not fits(x, cos, sin) or cos.shape[:2] != x.shape[:2] or cos.shape != sin.shape or keeps_gradient(cos, sin):
        return turn_plain(x, cos, sin, still=still, neighbours=neighbours)
    cos, sin = cos.contiguous(), sin.contiguous()
    if keeps_gradient(x):
        out: Tensor = _Turn.apply(x, cos, sin, still, neighbours)
        return out
    return _turned(x, cos, sin, still, neighbours, back=False)


def turn_plain(x: Tensor, cos: Tensor, sin: Tensor, *, still: int = 0, neighbours: bool = False) -> Tensor:
    """The same with torch's own operations."""
    before, turning, behind = x.tensor_split((still, still + 2 * cos.shape[-1]), dim=-1)
    first, second = (turning[..., 0::2], turning[..., 1::2]) if neighbours else turning.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((before, *turned, behind), dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, still: int, neighbours: bool, *, back: bool) -> Tensor:
    native, (batch, length, heads, width) = library(), x.shape
    assert native is not None
    even = batch == 1 or length == 1 or x.stride(0) == length * x.stride(1)  # from token to token
    x = x if even and x.stride(3) == 1 else x.contiguous()
    step, out = x.stride(1) if length > 1 else x.stride(0), x.new_empty(x.shape)
    native.turn(
        x.data_ptr(), step, x.stride(2), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), heads * width, batch * length,
        heads, width, still, cos.shape[-1], neighbours, back,
    )  # fmt: skip
    return out


class _Turn(torch.autograd.Function):
    """Keeps the angles alone: a rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, still: int, neighbours: bool) -> Tensor:
        """See `turn`."""
        ctx.save_for_backward(cos, sin)
        ctx.still, ctx.neighbours = still, neighbours
        return _turned(x, cos, sin, still, neighbours, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The same angles the other way."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, ctx.still, ctx.neighbours, back=True), None, None, None, None
