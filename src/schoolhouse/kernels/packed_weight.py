"""A matrix laid out for the C++ product, for rows that pass it many times between two changes of the weights.

Packing costs about as much as reading the matrix twice, which a decoding step does not; torch lays it out anew in every
product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import library

FILL = 32  # columns come in such groups
ROWS = 32  # the least that the product wants room for


def can_pack(weight: Tensor) -> bool:
    """True for a matrix that the C++ product takes: bf16, on the CPU, rows of an even length end to end."""
    fits = weight.dtype == torch.bfloat16 and _fits(weight)
    return fits and not weight.is_inference() and library() is not None


def can_pack_codes(codes: Tensor) -> bool:
    """True for int8 codes that the C++ product takes: on the CPU, rows of an even length end to end."""
    return _fits(codes) and library() is not None


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.stride(-1) == 1 and weight.shape[1] % 2 == 0


class PackedWeight:
    """A copy of a matrix (N, K). It knows the matrix that it was made from, and notices when that one has changed."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version = weight.detach(), weight._version
        self._packed = _packed(self._weight, "pack_weight", 16)

    def is_of(self, weight: Tensor) -> bool:
        """True while the matrix has neither moved nor been written to since it was packed."""
        return weight.data_ptr() == self._weight.data_ptr() and weight._version == self._version

    def product(self, x: Tensor) -> Tensor:
        """x: (..., K) bf16 to (..., N), sums in fp32; `torch.nn.functional.linear` is the twin."""
        return _product(x, "linear", (self._packed,), len(self._weight))


class PackedCodes:
    """Codes (N, K) of 8 or 4 bits, laid out for the product, with scales (N, K / group) of groups along K.

    Codes come as int8, those of 4 bits in -8..7.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bits: int = 8) -> None:
        self._columns, self._group = len(codes), codes.shape[1] // scales.shape[1]
        self._packed = _packed(codes, "pack_codes" if bits == 8 else "pack_nibbles", bits)
        fill = len(self._packed) - self._columns
        self._scales = F.pad(scales.float(), (0, 0, 0, fill)).t().contiguous()  # (K / group, N and fill)
        self._product = "linear_of_codes" if bits == 8 else "linear_of_nibbles"

    def product(self, x: Tensor) -> Tensor:
        """x: (..., K) bf16 to (..., N): the sums of x times codes, in fp32, times the scales."""
        return _product(x, self._product, (self._packed, self._scales), self._columns, self._group)


def _packed(weight: Tensor, function: str, bits: int) -> Tensor:
    """A matrix (N, K) as the product reads it: N filled up to a multiple of `FILL`, numbers of so many bits."""
    native, (columns, inner) = library(), weight.shape
    assert native is not None, "can_pack says whether there are kernels"
    packed = torch.empty(-(-columns // FILL) * FILL, inner * bits // 8, dtype=torch.int8)
    getattr(native, function)(weight.data_ptr(), weight.stride(0), columns, inner, packed.data_ptr())
    return packed


def _product(x: Tensor, function: str, packed: tuple[Tensor, ...], columns: int, *group: int) -> Tensor:
    native, inner = library(), x.shape[-1]
    assert native is not None, "nothing is packed where there are no kernels"
    rows = x.reshape(-1, inner)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    count = len(rows)
    out, laid = torch.empty(count, columns, dtype=x.dtype), torch.empty(max(count, ROWS) * inner, dtype=x.dtype)
    if count:
        getattr(native, function)(
            rows.data_ptr(), rows.stride(0), *(part.data_ptr() for part in packed), *group, out.data_ptr(), columns,
            count, columns, inner, laid.data_ptr(),
        )  # fmt: skip
    return out.view(*x.shape[:-1], columns)


@contextmanager
def rounded_as(rows: int) -> Iterator[None]:
    """Within, products sum in the order in which they would sum for so many rows, however many they have."""
    native = library()
    if native is None:
        yield
        return
    native.choose_as(rows)
    try:
        yield
    finally:
        native.choose_as(0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedWeight | None) -> Tensor:
    """`torch.nn.functional.linear`, by the packed copy where there is one that still holds and no gradient is kept."""
    if packed is None or torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not packed.is_of(weight):
        return F.linear(x, weight, bias)
    out = packed.product(x)
    return out if bias is None else out.add_(bias)
