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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from schoolhouse.kernels.fused import gated, gated_slopes
from schoolhouse.kernels.grid import GRID
from schoolhouse.kernels.native import fits, has_tiles, keeps_gradient, library
from schoolhouse.kernels.products import gradient_of, homes_of, linear_in_training

FILL = 32  # numbers to which the widths of what is kept for the way back are filled up
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
        _each(ends, gated(gate, up), downs, out, products)
        ctx.ends, ctx.products = ends, products
        ctx.save_for_backward(rows, gate, up, out, shares, token, place, *matrices)
        return sum_rows(out, place.view_as(shares), shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each block of rows back through its expert."""
        rows, gate, up, out, shares, token, place, *matrices = ctx.saved_tensors
        ends, products, count = ctx.ends, ctx.products, len(matrices) // 3
        gates, ups, downs = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        weights = shares.new_zeros(len(token)).index_copy_(0, place, shares.flatten())  # a filler's is 0
        inner, grad_rows = spread_rows(grad, out, token, weights)
        grad_shares = inner[place].view_as(shares).to(shares.dtype)
        grad_downs = _weights(ends, grad_rows, gated(gate, up), downs, products)
        grad_gated = torch.empty_like(gate)
        _each(ends, grad_rows, downs, grad_gated, products, turned=True)
        grad_gate, grad_up = gated_slopes(grad_gated, gate, up)
        grad_gates = _weights(ends, grad_gate, rows, gates, products)
        grad_ups = _weights(ends, grad_up, rows, ups, products)
        _each(ends, grad_gate, gates, grad_rows, products, turned=True)
        _each(ends, grad_up, ups, grad_rows, products, turned=True, add=True)
        grad_x = sum_rows(grad_rows, place.view_as(shares), None)
        return (grad_x, grad_shares, None, None, *grad_gates, *grad_ups, *grad_downs)


class _Tiled(torch.autograd.Function):
    """The same by AMX's tiles, in one call each way; a further expert behind them is met by all tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shares: Tensor, chosen: Tensor, count: int, keep: bool, *matrices: Tensor
    ) -> Tensor:
        """matrices: gates, then ups, then downs, one of each an expert; the first `count` are chosen among."""
        native, (tokens, hidden), choices = library(), x.shape, chosen.shape[1]
        assert native is not None
        x, chosen, shares = x.contiguous(), chosen.contiguous(), shares.contiguous()
        sent, experts = tokens * choices, len(matrices) // 3
        total = sent + (experts - count) * tokens
        table = _table(matrices, [None] * len(matrices), total)
        choice, place = (torch.empty(sent, dtype=torch.int64) for _ in range(2))
        native.rows_by_expert(chosen.data_ptr(), sent, table.data_ptr(), count, choice.data_ptr(), place.data_ptr())
        ends, widths = table[:, 0].tolist(), table[:, 1].tolist()
        filled = [-(-width // FILL) * FILL for width in widths]
        held = sum(w * (end - start) for w, start, end in zip(filled, [0, *ends], ends, strict=False))
        kept = x.new_empty(2 * held) if keep else None
        rows, out = x.new_empty(total, hidden), torch.empty_like(x)
        native.experts_forward(
            x.data_ptr(), table.data_ptr(), experts, hidden, sent, choices, choice.data_ptr(),
            None if kept is None else kept.data_ptr(), rows.data_ptr(),
        )  # fmt: skip
        _sum_of(rows, place, shares, out)
        if kept is not None:
            ctx.save_for_backward(x, shares, choice, place, kept, *matrices)
            ctx.ends = ends
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Back through the experts; the gradients of matrices go where they are summed, if they are."""
        x, shares, choice, place, kept, *matrices = ctx.saved_tensors
        native, ends, grad = library(), ctx.ends, grad.contiguous()
        assert native is not None
        homes = homes_of(matrices)
        starts = [0, *ends[:-1]] * 3
        found = [
            torch.empty_like(m) if homes is None and m.requires_grad and end > start else None
            for m, start, end in zip(matrices, starts, ends * 3, strict=True)
        ]
        table = _table(matrices, found if homes is None else homes, ends[-1])
        table[:, 0] = torch.tensor(ends)
        rows, to_shares = x.new_empty(ends[-1], x.shape[1]), torch.empty_like(shares)
        slopes, inner = torch.empty_like(kept), kept.new_empty(len(kept) // 2)
        tokens = choice.new_empty(ends[-1])
        native.experts_backward(
            x.data_ptr(), grad.data_ptr(), table.data_ptr(), len(ends), x.shape[1], len(choice), shares.shape[1],
            choice.data_ptr(), shares.data_ptr(), kept.data_ptr(), slopes.data_ptr(), inner.data_ptr(),
            tokens.data_ptr(), rows.data_ptr(), to_shares.data_ptr(), homes is not None,
        )  # fmt: skip
        to_x = torch.empty_like(x)
        _sum_of(rows, place.view_as(shares), None, to_x)
        return to_x, to_shares, None, None, None, *found


def _table(matrices: Sequence[Tensor], grads: Sequence[Tensor | None], total: int) -> Tensor:
    """What the C++ is told of each expert: where its rows end, its width, where its matrices and gradients are."""
    count = len(matrices) // 3
    places = [[m.data_ptr() for m in matrices[e::count]] for e in range(count)]
    homes = [[0 if g is None else g.data_ptr() for g in grads[e::count]] for e in range(count)]
    return torch.tensor([[total, matrices[e].shape[0], *places[e], *homes[e]] for e in range(count)])


def _sum_of(rows: Tensor, place: Tensor, shares: Tensor | None, out: Tensor) -> None:
    """`sum_rows` into `out`, and where there are rows behind those of the choices, one more for each token."""
    native, (tokens, hidden), sent = library(), out.shape, place.numel()
    assert native is not None
    native.sum_rows(
        rows.data_ptr(), place.data_ptr(), None if shares is None else shares.data_ptr(),
        rows[sent:].data_ptr() if len(rows) > sent else None, out.data_ptr(), tokens, sent // max(tokens, 1), hidden,
    )  # fmt: skip


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
    turned: bool = False,
    add: bool = False,
) -> None:
    """Each expert's rows times its own matrix (out, in), or (in, out) if turned, into the same rows of `out`."""
    start = 0
    for end, weight in zip(ends, weights, strict=True):
        if end > start:
            place, right = out[start:end], weight if turned else weight.t()
            if products is None:
                torch.addmm(place, rows[start:end], right, beta=int(add), out=place)
            else:
                product = products.rows(rows[start:end], right.t())
                place.copy_(place + product if add else product)
        start = end


def _weights(
    ends: Sequence[int], grad: Tensor, rows: Tensor, weights: Sequence[Tensor], products: Products | None
) -> list[Tensor | None]:
    """The gradient of each expert's matrix; None for one that no token was sent to, or that has its sum already."""
    out: list[Tensor | None] = []
    start = 0
    for end, weight in zip(ends, weights, strict=True):
        of, read = grad[start:end], rows[start:end]
        if end == start or not weight.requires_grad:
            out.append(None)
        else:
            out.append(gradient_of(weight, of, read) if products is None else products.gradient(of, read))
        start = end
    return out


def sum_rows(rows: Tensor, place: Tensor, shares: Tensor | None) -> Tensor:
    """Each token's sum over its choices of share * row. rows: (M, D), place: (N, A) int64, shares: (N, A) to (N, D)."""
    tokens, choices = place.shape
    native, width = library(), rows.shape[1]
    if native is None or not fits(rows) or (shares is not None and shares.dtype != torch.float32):
        held = rows.index_select(0, place.flatten()).view(tokens, choices, width)
        return held.sum(1) if shares is None else torch.matmul(shares[:, None].to(rows.dtype), held)[:, 0]
    rows, place, out = rows.contiguous(), place.contiguous(), rows.new_empty(tokens, width)
    shares = None if shares is None else shares.contiguous()
    native.sum_rows(
        rows.data_ptr(), place.data_ptr(), None if shares is None else shares.data_ptr(), None, out.data_ptr(),
        tokens, choices, width,
    )  # fmt: skip
    return out


def spread_rows(grad: Tensor, out: Tensor, token: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the product of its token's gradient with what came out (M,) float32, and weight * gradient (M, D).

    grad: (N, D), out: (M, D), token: (M,) int64, weights: (M,) float32.
    """
    native, (rows, width) = library(), out.shape
    if native is None or not fits(grad, out) or weights.dtype != torch.float32:
        spread = grad.index_select(0, token)
        return torch.linalg.vecdot(spread.float(), out.float()), spread * weights[:, None].to(spread.dtype)
    grad, out, token, weights = (part.contiguous() for part in (grad, out, token, weights))
    inner, scaled = weights.new_empty(rows), torch.empty_like(out)
    native.spread_rows(
        grad.data_ptr(), out.data_ptr(), token.data_ptr(), weights.data_ptr(), scaled.data_ptr(), inner.data_ptr(),
        rows, width,
    )  # fmt: skip
    return inner, scaled


def mix_experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gates: Sequence[Tensor],
    ups: Sequence[Tensor],
    downs: Sequence[Tensor],
    products: Products | None = None,
    shared: Sequence[Tensor] = (),
) -> Tensor:
    """The sum over a token's experts e of share * down_e(silu(gate_e(x)) * up_e(x)).

    x: (N, D); chosen: (N, A) int64, which experts; shares: (N, A) float32; gates and ups: E matrices (F, D), downs: E
    matrices (D, F). Returns (N, D). An expert without a token gets no gradient. products: other ways to multiply, with
    operands in fp8 for example. shared: gate, up and down of a further expert that all tokens meet, of any width.
    """
    if products is None and _has_tiles_for(x, *gates, *ups, *downs, *shared) and shares.dtype == torch.float32:
        further = [[m] for m in shared] or [[], [], []]
        matrices = [*gates, *further[0], *ups, *further[1], *downs, *further[2]]
        keep = keeps_gradient(x, shares, *matrices)
        out: Tensor = _Tiled.apply(x, shares, chosen, len(gates), keep, *matrices)
        return out
    out = _Experts.apply(x, shares, chosen, products, *gates, *ups, *downs)
    if not shared:
        return out
    gate, up, down = shared
    return out + linear_in_training(
        gated(linear_in_training(x, gate, None), linear_in_training(x, up, None)), down, None
    )


def _has_tiles_for(*tensors: Tensor) -> bool:
    """True for what the tiled kernel takes; the first tensor is the rows', which it may copy."""
    return has_tiles() and len(tensors[0]) > 0 and fits(*tensors) and all(m.is_contiguous() for m in tensors[1:])


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
