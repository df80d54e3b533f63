"""A matrix laid out for the C++ product, for rows that pass it many times between two changes of the weights.

Packing costs about as much as reading the matrix twice, which a decoding step does not; torch lays it out anew in every
product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from schoolhouse.kernels.native import library
from schoolhouse.kernels.products import linear_in_training

FILL = 32  # columns come in such groups, and rows that the product wants room for
STEP = 64  # codes along a row come in such groups


def can_pack(weight: Tensor) -> bool:
    """True for a matrix that the C++ product takes: bf16, on the CPU, rows of an even length end to end."""
    fits = weight.dtype == torch.bfloat16 and _fits(weight)
    return fits and not weight.is_inference() and library() is not None


def can_pack_codes(codes: Tensor, scales: Tensor) -> bool:
    """True for int8 codes that the C++ product takes: on the CPU, rows end to end, scales in bf16."""
    return _fits(codes) and scales.dtype == torch.bfloat16 and library() is not None


def room(rows: int, inner: int) -> int:
    """Numbers of 16 bits that a product of so many rows wants to lay out what it reads."""
    return _filled(rows, FILL) * (2 * inner + 128)


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.stride(-1) == 1 and weight.shape[1] % 2 == 0


class Matrix:
    """A matrix (N, K) as the C++ reads it, N filled up to a multiple of `FILL`; `words` says where it lies."""

    def __init__(self, shape: Sequence[int], packed: Tensor, bits: int, scales: Tensor | None = None) -> None:
        self._columns, self._inner = shape
        self._packed, self._scales = packed, scales  # they own the memory that the words point to
        group = self._inner if scales is None else self._inner // scales.shape[1]
        address = 0 if scales is None else scales.data_ptr()
        self.words = (packed.data_ptr(), address, group, self._columns, self._inner, bits)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self._columns, self._inner

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x: (..., K) bf16 to (..., N), sums in fp32. out: where they go, rows end to end; fresh memory if None."""
        native, inner, columns = library(), self._inner, self._columns
        assert native is not None, "nothing is packed where there are no kernels"
        rows = x.reshape(-1, inner)
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        count = len(rows)
        out = torch.empty(count, columns, dtype=x.dtype) if out is None else out
        assert out.is_contiguous()
        assert out.numel() == count * columns
        laid = torch.empty(room(count, inner), dtype=x.dtype)
        if count:
            weight, scales, group, _, _, bits = self.words
            native.linear(
                rows.data_ptr(), rows.stride(0), weight, scales, group, bits, out.data_ptr(), columns, count, columns,
                inner, laid.data_ptr(),
            )  # fmt: skip
        return out.view(*x.shape[:-1], columns)


class PackedWeight(Matrix):
    """A copy of a bf16 matrix. It knows the matrix that it was made from, and notices when that one has changed.

    `torch.nn.functional.linear` is the product's twin.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version = weight.detach(), weight._version
        super().__init__(weight.shape, laid_out(self._weight), 16)

    def is_of(self, weight: Tensor) -> bool:
        """True while the matrix has neither moved nor been written to since it was packed."""
        return weight.data_ptr() == self._weight.data_ptr() and weight._version == self._version


class PackedCodes(Matrix):
    """Codes (N, K) of 8 or 4 bits with scales (N, K / group) of groups along K: x meets codes times scales.

    Codes come as int8, those of 4 bits in -8..7. A row of x takes part as whole numbers of 16 bits,
    its largest one as 32639 or -32639; many rows over groups meet codes times scales rounded to bf16 instead.
    `torch.nn.functional.linear` with codes times scales is the product's twin.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bits: int = 8) -> None:
        native, (columns, inner), groups = library(), codes.shape, scales.shape[1]
        assert native is not None, "can_pack_codes says whether there are kernels"
        filled = _filled(columns, FILL)
        packed = torch.empty(filled, _filled(inner, STEP) * bits // 8, dtype=torch.int8)
        native.pack_codes(codes.data_ptr(), codes.stride(0), columns, inner, bits, packed.data_ptr())
        each = F.pad(scales, (0, 0, 0, filled - columns)).view(-1, FILL, groups).transpose(1, 2)
        super().__init__(codes.shape, packed, bits, each.contiguous())  # scales of `FILL` columns together


def laid_out(weight: Tensor) -> Tensor:
    """A copy of a bf16 matrix (N, K) in the order in which the product reads it, N filled up."""
    native, (columns, inner) = library(), weight.shape
    assert native is not None, "can_pack says whether there are kernels"
    packed = torch.empty(_filled(columns, FILL), inner, dtype=torch.bfloat16)
    native.pack_weight(weight.data_ptr(), weight.stride(0), columns, inner, packed.data_ptr())
    return packed


def _filled(count: int, to: int) -> int:
    return -(-count // to) * to


@contextmanager
def rounded_as(rows: int) -> Iterator[None]:
    """Within, products with codes of groups go the way that they would go for so many rows, however many they have."""
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
        return linear_in_training(x, weight, bias) if torch.is_grad_enabled() else F.linear(x, weight, bias)
    out = packed.product(x)
    return out if bias is None else out.add_(bias)
