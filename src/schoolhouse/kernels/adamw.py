"""A step of AdamW in one pass over memory, and the norm of gradients; torch's own fused AdamW is the twin."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schoolhouse.kernels.native import fits, library

BLOCK = 1 << 14  # numbers whose squares the C++ kernel sums up together
_WEIGHT = struct.Struct("6q2d")  # what it is told of a weight


class Pace(NamedTuple):
    """How a step goes: its rate, decay and betas; clip: what the gradient is multiplied by before."""

    lr: float
    decay: float
    betas: tuple[float, float]
    clip: float = 1.0
    eps: float = 1e-8


def can_step(weight: Tensor, grad: Tensor) -> bool:
    """True if `step` takes a weight and its gradient: bf16 on the CPU, end to end in memory."""
    return fits(weight, grad) and weight.is_contiguous() and grad.is_contiguous()


class Move(NamedTuple):
    """A weight, its gradient, its fp32 master, and torch's own state of AdamW: "step", "exp_avg", "exp_avg_sq"."""

    weight: Tensor
    grad: Tensor
    master: Tensor
    state: Mapping[str, Tensor]


def step(moves: Sequence[Move], pace: Pace) -> None:
    """Move each fp32 master by its gradient, round it into the weight and zero the gradient; the states move along.

    All in one call: a mixture has hundreds of small matrices. Source: arXiv 1711.05101, algorithm 2.
    """
    native = library()
    assert native is not None, "can_step says whether there are kernels"
    if not moves:
        return
    steps = [move.state["step"] for move in moves]
    torch._foreach_add_(steps, 1)
    beta1, beta2 = pace.betas
    held = [(m.grad, m.weight, m.master, m.state["exp_avg"], m.state["exp_avg_sq"]) for m in moves]
    told = b"".join(
        _WEIGHT.pack(
            *(part.data_ptr() for part in parts), parts[0].numel(), pace.lr / (1 - beta1**n), (1 - beta2**n) ** -0.5
        )
        for parts, n in zip(held, torch.stack(steps).tolist(), strict=True)
    )
    native.adamw(told, len(moves), pace.clip, 1 - pace.lr * pace.decay, beta1, 1 - beta1, beta2, 1 - beta2, pace.eps)
    # Whoever keeps a copy of the weight asks for its version; what writes by a pointer has to say so itself.
    torch.autograd.graph.increment_version([part for parts in held for part in parts])


def norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers of some tensors, squares summed in fp32; not finite if one of them is not."""
    native = library()
    if native is None or not all(fits(t) and t.is_contiguous() for t in tensors):
        return float(torch.linalg.vector_norm(torch.stack([_plain_norm(t) for t in tensors])))
    sums = torch.empty(sum(-(-t.numel() // BLOCK) for t in tensors), dtype=torch.float64)
    told = b"".join(struct.pack("2q", t.data_ptr(), t.numel()) for t in tensors)
    native.squares(told, len(tensors), sums.data_ptr())
    return math.sqrt(math.fsum(sums.tolist()))


def _plain_norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)
