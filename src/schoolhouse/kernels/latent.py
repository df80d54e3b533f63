"""Latent attention around its products in training: latents, and keys and values of all heads, in one pass each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from schoolhouse.kernels.fused import LANES, ROWS, rms_norm, turn
from schoolhouse.kernels.native import fits, keeps_gradient, library


def make_latents(
    x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, *, neighbours: bool = False
) -> Tensor:
    """Latents (B, T, R + Dr): the first R numbers normed, the others turned. `make_latents_plain` is the twin.

    x: (B, T, R + Dr); weight: (R,), of the norm; cos, sin: (B, T, 1, Dr / 2), as in `turn`.
    """
    even = weight.shape[0] % LANES == 0 and 2 * cos.shape[-1] == x.shape[-1] - weight.shape[0]
    same = cos.shape[:2] == x.shape[:2] and not keeps_gradient(cos, sin)
    if not keeps_gradient(x, weight) or not fits(x, weight, cos, sin) or not even or not same:
        return make_latents_plain(x, weight, eps, cos, sin, neighbours=neighbours)
    out: Tensor = _Latents.apply(x, weight, eps, cos, sin, neighbours)
    return out


def make_latents_plain(
    x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, *, neighbours: bool = False
) -> Tensor:
    """The same, part by part."""
    rank = weight.shape[0]
    key = turn(x[:, :, None, rank:], cos, sin, neighbours=neighbours)[:, :, 0]
    return torch.cat((rms_norm(x[..., :rank], weight, eps), key), dim=-1)


class _Latents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, neighbours: bool) -> Tensor:
        """See `make_latents`."""
        native, rank, width = library(), weight.shape[0], x.shape[-1]
        assert native is not None
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        out, inverse = torch.empty_like(x), torch.empty(x.shape[:-1], dtype=torch.float32)
        native.rms_norm(
            x.data_ptr(), width, weight.data_ptr(), out.data_ptr(), width, inverse.data_ptr(), inverse.numel(), rank,
            eps, 0.0,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, inverse, cos, sin)
        ctx.neighbours = neighbours
        _turn_behind(x, out, rank, cos, sin, neighbours, back=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The norm's way back, and the same angles the other way."""
        x, weight, inverse, cos, sin = ctx.saved_tensors
        native, rank, width, rows = library(), weight.shape[0], x.shape[-1], inverse.numel()
        assert native is not None
        grad, to_x = grad.contiguous(), torch.empty_like(x)
        to_weight, parts = torch.empty_like(weight), inverse.new_empty(-(-rows // ROWS), rank)
        native.rms_norm_back(
            grad.data_ptr(), width, x.data_ptr(), width, weight.data_ptr(), inverse.data_ptr(), None, to_x.data_ptr(),
            width, parts.data_ptr(), to_weight.data_ptr(), rows, rank, 0.0,
        )  # fmt: skip
        _turn_behind(grad, to_x, rank, cos, sin, ctx.neighbours, back=True)
        return to_x, to_weight, None, None, None, None


def _turn_behind(x: Tensor, out: Tensor, rank: int, cos: Tensor, sin: Tensor, neighbours: bool, *, back: bool) -> None:
    """What lies behind the first `rank` numbers of each row, turned, into `out`."""
    native, width = library(), x.shape[-1]
    assert native is not None
    native.turn(
        x[..., rank:].data_ptr(), width, 0, cos.data_ptr(), sin.data_ptr(), out[..., rank:].data_ptr(), width,
        x.numel() // width, 1, width - rank, 0, cos.shape[-1], neighbours, back,
    )  # fmt: skip


def spread_keys(both: Tensor, key: Tensor, still: int) -> tuple[Tensor, Tensor]:
    """Keys (B, S, H, Dn + Dr) and values (B, S, H, Dv).

    both: (B, S, H, Dn + Dv), each head's still key of `still` numbers and value; key: (B, S, 1, Dr), one for all heads.
    `spread_keys_plain` is the twin.
    """
    if not keeps_gradient(both, key) or not fits(both, key):
        return spread_keys_plain(both, key, still)
    keys, values = _SpreadKeys.apply(both, key, still)
    return keys, values


def spread_keys_plain(both: Tensor, key: Tensor, still: int) -> tuple[Tensor, Tensor]:
    """The same by torch."""
    first, values = both.tensor_split((still,), dim=-1)
    return torch.cat((first, key.expand(-1, -1, first.shape[2], -1)), dim=-1), values


class _SpreadKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor, key: Tensor, still: int) -> tuple[Tensor, Tensor]:
        """See `spread_keys`."""
        native, (batch, length, heads, width), turning = library(), both.shape, key.shape[-1]
        assert native is not None
        both, tokens = both.contiguous(), batch * length
        flat = key.reshape(tokens, turning)
        flat = flat if flat.stride(1) == 1 else flat.contiguous()
        keys, values = (
            both.new_empty(batch, length, heads, still + turning),
            both.new_empty(*both.shape[:3], width - still),
        )
        native.spread_keys(
            both.data_ptr(), flat.data_ptr(), flat.stride(0), keys.data_ptr(), values.data_ptr(), tokens, heads, still,
            turning, width - still,
        )  # fmt: skip
        ctx.still = still
        return keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, keys: Tensor, values: Tensor) -> tuple[Tensor | None, ...]:
        """Each head's own part back, and the sum over heads of what they share."""
        native, (batch, length, heads, width), depth = library(), keys.shape, values.shape[-1]
        assert native is not None
        keys, values, still = keys.contiguous(), values.contiguous(), ctx.still
        both, key = keys.new_empty(batch, length, heads, still + depth), keys.new_empty(batch, length, 1, width - still)
        native.spread_keys_back(
            keys.data_ptr(), values.data_ptr(), both.data_ptr(), key.data_ptr(), batch * length, heads, still,
            width - still, depth,
        )  # fmt: skip
        return both, key, None
