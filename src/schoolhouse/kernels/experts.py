"""A mixture of gated feed-forwards: each token through its own few experts, and their weighted sum.

The tokens are sorted by expert once, so that every expert multiplies one block of rows; all that is done a number at a
time runs over all blocks together. The experts' weights are separate tensors: a slice of a stacked parameter would get
a gradient of the whole stack's size, 11 to 15 times slower with 64 experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.grid import GRID
from schoolhouse.kernels.products import weight_gradient

MANY = 128  # rows of an expert from which on they are filled up


class Products(NamedTuple):
    """How rows meet matrices where they are not plainly multiplied.

    rows: of rows (N, K) and a matrix (F, K) the product (N, F); gradient: of the gradient of such a product (N, F) and
    its rows (N, K) the gradient of the matrix (F, K).
    """

    rows: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


class _Experts(torch.autograd.Function):
    """All experts in one node of the graph, so that intermediate rows are laid out once for both passes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shares: Tensor, chosen: Tensor, products: Products | None, *matrices: Tensor
    ) -> Tensor:
        """matrices: gates, then ups, then downs, one of each an expert."""
        count = len(matrices) // 3
        gates, ups, downs = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        fills = products is None and chosen.numel() >= MANY * count  # a filler would enter the scales of fp8's tiles
        token, place, ends = _by_expert(chosen, count, GRID if fills else 1)
        rows = x.index_select(0, token)  # (M, D)
        gate, up = (rows.new_empty(len(rows), gates[0].shape[0]) for _ in range(2))
        _each(ends, rows, gates, gate, products)
        _each(ends, rows, ups, up, products)
        out = torch.empty_like(rows)
        _each(ends, F.silu(gate).mul_(up), downs, out, products)
        ctx.ends, ctx.products = ends, products
        ctx.save_for_backward(rows, gate, up, out, shares, token, place, *matrices)
        return _gathered(out, place, shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each block of rows back through its expert."""
        rows, gate, up, out, shares, token, place, *matrices = ctx.saved_tensors
        ends, products, count, choices = ctx.ends, ctx.products, len(matrices) // 3, shares.shape[1]
        gates, ups, downs = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        grad_rows = grad.index_select(0, token)  # (M, D)
        grad_shares = torch.linalg.vecdot(grad_rows.float(), out.float())[place].view_as(shares).to(shares.dtype)
        weights = shares.new_zeros(len(token)).index_copy_(0, place, shares.flatten())  # a filler's is 0
        grad_rows = grad_rows * weights[:, None].to(grad_rows.dtype)
        squashed = torch.sigmoid(gate)
        active = gate * squashed  # silu(gate)
        grad_downs = _weights(ends, grad_rows, active * up, downs, products)
        inner = torch.empty_like(gate)
        _each(ends, grad_rows, [w.t() for w in downs], inner, products)
        grad_up = inner * active
        grad_gate = inner.mul_(up).mul_(squashed + active * (1 - squashed))
        grad_gates = _weights(ends, grad_gate, rows, gates, products)
        grad_ups = _weights(ends, grad_up, rows, ups, products)
        _each(ends, grad_gate, [w.t() for w in gates], grad_rows, products)
        _each(ends, grad_up, [w.t() for w in ups], grad_rows, products, add=True)
        grad_x = grad_rows.index_select(0, place).view(len(shares), choices, -1).sum(1)
        return (grad_x, grad_shares, None, None, *grad_gates, *grad_ups, *grad_downs)


def _by_expert(chosen: Tensor, count: int, grid: int) -> tuple[Tensor, Tensor, list[int]]:
    """Rows by expert: the token of each row (M,), the row of each choice (N * A,), and where each expert's rows end.

    Each expert's are filled up to the grid, by rows of token 0 that nobody reads: the number of a product's rows is
    part of its shape, and every new shape costs a kernel.
    """
    choices = chosen.flatten()
    order = choices.argsort(stable=True)
    held = torch.bincount(choices, minlength=count)
    room = (held + grid - 1) // grid * grid
    ends = room.cumsum(0)
    shift = (ends - room) - (held.cumsum(0) - held)  # by how much an expert's rows have moved
    rows = torch.arange(len(order), device=order.device) + shift[choices[order]]
    last = ends.tolist()
    token = order.new_zeros(last[-1]).index_copy_(0, rows, order // chosen.shape[1])
    return token, torch.empty_like(order).index_copy_(0, order, rows), last


def _each(
    ends: Sequence[int],
    rows: Tensor,
    weights: Sequence[Tensor],
    out: Tensor,
    products: Products | None,
    *,
    add: bool = False,
) -> None:
    """Each expert's block of rows times its own matrix (out, in), into (or on top of) the same rows of `out`."""
    start = 0
    for end, weight in zip(ends, weights, strict=True):
        if end > start:
            place = out[start:end]
            if products is not None:
                product = products.rows(rows[start:end], weight)
                place.copy_(place + product if add else product)
            elif add:
                place.addmm_(rows[start:end], weight.t())
            else:
                torch.mm(rows[start:end], weight.t(), out=place)
        start = end


def _weights(
    ends: Sequence[int], grad: Tensor, rows: Tensor, weights: Sequence[Tensor], products: Products | None
) -> list[Tensor | None]:
    """The gradient of each expert's matrix; None for one that no token was sent to."""
    gradient = weight_gradient if products is None else products.gradient
    out: list[Tensor | None] = []
    start = 0
    for end, weight in zip(ends, weights, strict=True):
        used = end > start and weight.requires_grad
        out.append(gradient(grad[start:end], rows[start:end]) if used else None)
        start = end
    return out


def _gathered(out: Tensor, place: Tensor, shares: Tensor) -> Tensor:
    """Rows by expert to the weighted sum of each token: (M, D) to (N, D)."""
    choices = out.index_select(0, place).view(*shares.shape, -1)  # (N, A, D)
    return torch.matmul(shares[:, None].to(out.dtype), choices)[:, 0]


def mix_experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gates: Sequence[Tensor],
    ups: Sequence[Tensor],
    downs: Sequence[Tensor],
    products: Products | None = None,
) -> Tensor:
    """The sum over a token's experts e of share * down_e(silu(gate_e(x)) * up_e(x)).

    x: (N, D); chosen: (N, A) int64, which experts; shares: (N, A) float32; gates and ups: E matrices (F, D), downs: E
    matrices (D, F). Returns (N, D). An expert without a token gets no gradient. products: other ways to multiply, with
    operands in fp8 for example.
    """
    return _Experts.apply(x, shares, chosen, products, *gates, *ups, *downs)


def mix_experts_plain(
    x: Tensor, chosen: Tensor, shares: Tensor, gates: Sequence[Tensor], ups: Sequence[Tensor], downs: Sequence[Tensor]
) -> Tensor:
    """The same, expert by expert: the twin that `mix_experts` is tested against."""
    out = torch.zeros_like(x)
    for expert, (gate, up, down) in enumerate(zip(gates, ups, downs, strict=True)):
        tokens, place = (chosen == expert).nonzero(as_tuple=True)
        inner = F.silu(x[tokens] @ gate.t()) * (x[tokens] @ up.t())
        out = out.index_add(0, tokens, (inner @ down.t()) * shares[tokens, place, None].to(x.dtype))
    return out
