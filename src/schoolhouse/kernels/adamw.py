"""A step of AdamW in one pass over memory, and the norm of gradients; torch's own fused AdamW is the twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schoolhouse.kernels.native import fits, library

BLOCK = 1 << 14  # numbers whose squares the C++ kernel sums up together


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


def step(weight: Tensor, grad: Tensor, master: Tensor, state: Mapping[str, Tensor], pace: Pace) -> None:
    """Move the fp32 master by its gradient, round it into the weight and zero the gradient.

    state: torch's own of AdamW, "step" as well as "exp_avg" and "exp_avg_sq" in fp32, which move along. Source: arXiv
    1711.05101, algorithm 2.
    """
    native, first, second = library(), state["exp_avg"], state["exp_avg_sq"]
    assert native is not None, "can_step says whether there are kernels"
    count = int(state["step"].add_(1))
    beta1, beta2 = pace.betas
    native.adamw(
        grad.data_ptr(), weight.data_ptr(), master.data_ptr(), first.data_ptr(), second.data_ptr(), weight.numel(),
        pace.clip, 1 - pace.lr * pace.decay, beta1, 1 - beta1, beta2, 1 - beta2, pace.lr / (1 - beta1**count),
        (1 - beta2**count) ** -0.5, pace.eps,
    )  # fmt: skip
    # Whoever keeps a copy of the weight asks for its version; what writes by a pointer has to say so itself.
    torch.autograd.graph.increment_version((weight, grad, master, first, second))


def norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers of some tensors, squares summed in fp32; not finite if one of them is not."""
    native = library()
    if native is None or not all(fits(t) and t.is_contiguous() for t in tensors):
        return float(torch.linalg.vector_norm(torch.stack([_plain_norm(t) for t in tensors])))
    sums = [torch.empty(-(-t.numel() // BLOCK), dtype=torch.float64) for t in tensors]
    for tensor, blocks in zip(tensors, sums, strict=True):
        native.squares(tensor.data_ptr(), blocks.data_ptr(), tensor.numel())
    return math.sqrt(math.fsum(torch.cat(sums).tolist()))


def _plain_norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)
