"""Each head's own product: what takes queries to latents and latents to values, without gradients.

torch's batched product sums in an order that hangs on how many rows there are, and lays the matrices out every time.
`torch.einsum` is the twin.
"""

from __future__ import annotations

from torch import Tensor

from schoolhouse.kernels.native import library
from schoolhouse.kernels.packed_experts import Copied
from schoolhouse.kernels.packed_weight import Matrix, can_pack

LANES = 16  # columns of a head come in such groups, for the heads' lie end to end
ROOM = 32


class HeadProducts:
    """One matrix (N, K) a head, packed."""

    def __init__(self, matrices: Tensor) -> None:
        """matrices: (H, N, K) bf16."""
        self._heads, self._columns, self._inner = matrices.shape
        self._packed = Matrix(matrices.reshape(-1, self._inner), 16)

    @property
    def address(self) -> int:
        """Where the first head's lies."""
        return self._packed.words[0]

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """out (M, H, N) = x (M, H, K) times the transpose of each head's matrix; both may lie apart."""
        native, (rows, heads, inner) = library(), x.shape
        assert native is not None, "nothing is packed where there are no kernels"
        assert x.stride(2) == out.stride(2) == 1
        laid = x.new_empty((rows + ROOM) * heads * inner)
        native.head_products(
            x.data_ptr(), x.stride(0), x.stride(1), self.address, out.data_ptr(), out.stride(0), out.stride(1), rows,
            heads, self._columns, inner, laid.data_ptr(),
        )  # fmt: skip
        return out


class PackedHeads(Copied):
    """What makes still keys and values from latents, laid out for the way back: (H, R, Dn) and (H, Dv, R)."""

    def __init__(self, weight: Tensor, still: int, depth: int) -> None:
        """weight: (H * (still + depth), R) bf16."""
        super().__init__([weight])
        both = weight.detach().view(-1, still + depth, weight.shape[1])
        self.keys = HeadProducts(both[:, :still].transpose(1, 2).contiguous())
        self.values = HeadProducts(both[:, still:].contiguous())


def can_pack_heads(weight: Tensor, still: int, depth: int) -> bool:
    """True if the C++ takes such heads."""
    return can_pack(weight) and still % 2 == 0 and depth % LANES == 0 and weight.shape[1] % LANES == 0
