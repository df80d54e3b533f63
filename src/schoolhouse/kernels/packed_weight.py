"""A matrix laid out for the C++ product, for rows that pass it many times between two changes of the weights.

Packing costs about as much as reading the matrix twice, which a decoding step does not; torch lays it out anew in every
product.
"""

from __future__ import annotations

from ctypes import c_long

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import library, pointer

FILL = 32  # columns come in such groups


def can_pack(weight: Tensor) -> bool:
    """True for a matrix that the C++ product takes: bf16, on the CPU, rows of an even length end to end."""
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.stride(-1) == 1
    return fits and weight.shape[1] % 2 == 0 and not weight.is_inference() and library() is not None


class PackedWeight:
    """A copy of a matrix (N, K). It knows the matrix that it was made from, and notices when that one has changed."""

    def __init__(self, weight: Tensor) -> None:
        native = library()
        assert native is not None, "can_pack says whether there are kernels"
        self._native = native
        self._weight, self._version = weight.detach(), weight._version
        self._rows, self._inner = weight.shape
        self._packed = torch.empty(-(-self._rows // FILL) * FILL, self._inner, dtype=torch.bfloat16)
        native.pack_weight(
            pointer(self._weight), c_long(weight.stride(0)), c_long(self._rows), c_long(self._inner),
            pointer(self._packed),
        )  # fmt: skip

    def is_of(self, weight: Tensor) -> bool:
        """True while the matrix has neither moved nor been written to since it was packed."""
        return weight.data_ptr() == self._weight.data_ptr() and weight._version == self._version

    def product(self, x: Tensor) -> Tensor:
        """x: (..., K) bf16 to (..., N), sums in fp32; `torch.nn.functional.linear` is the twin."""
        rows = x.reshape(-1, self._inner)
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        count = len(rows)
        out, laid = torch.empty(count, self._rows, dtype=x.dtype), torch.empty(count * self._inner, dtype=x.dtype)
        if count:
            self._native.linear(
                pointer(rows), c_long(rows.stride(0)), pointer(self._packed), pointer(out), c_long(self._rows),
                c_long(count), c_long(self._rows), c_long(self._inner), pointer(laid),
            )  # fmt: skip
        return out.view(*x.shape[:-1], self._rows)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedWeight | None) -> Tensor:
    """`torch.nn.functional.linear`, by the packed copy where there is one that still holds and no gradient is kept."""
    if packed is None or torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not packed.is_of(weight):
        return F.linear(x, weight, bias)
    out = packed.product(x)
    return out if bias is None else out.add_(bias)
