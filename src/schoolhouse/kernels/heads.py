"""Heads that share latents: each one's own product, to latents and from them, and what all see there; no gradients.

torch's batched product sums in an order that hangs on how many rows there are, and lays the matrices out every time.
`torch.einsum` is the twin of the products, `attend` of `kernels/attention.py` that of attention.
"""

from __future__ import annotations

from torch import Tensor

from schoolhouse.kernels.attention import Scoring
from schoolhouse.kernels.native import library, takes
from schoolhouse.kernels.packed_experts import Copied
from schoolhouse.kernels.packed_weight import can_pack, laid_out

LANES = 16  # columns of a head come in such groups, for the heads' lie end to end
ROOM = 32
BLOCK = 32  # tokens by which memory is read


class HeadProducts:
    """One matrix (N, K) a head, packed."""

    def __init__(self, matrices: Tensor) -> None:
        """matrices: (H, N, K) bf16."""
        self._heads, self._columns, self._inner = matrices.shape
        self._packed = laid_out(matrices.reshape(-1, self._inner))

    @property
    def address(self) -> int:
        """Where the first head's lies."""
        return self._packed.data_ptr()

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


def look_at_latents(q: Tensor, held: Tensor, rank: int, lengths: Tensor, scoring: Scoring) -> Tensor | None:
    """What T tokens of each text see in its latents, each those before it and its own; None where no kernel does it.

    q: (B, T, H, R + Dr); held: (B, 1, S, R + Dr), new tokens in their places; lengths: (B,) int64, tokens that each
    text held before these. Returns (B, T, H, R).
    """
    native, (texts, tokens, heads, width) = library(), q.shape
    fits = width % LANES == 0 and rank % LANES == 0 and held.stride(3) == 1 and held.shape[2] % BLOCK == 0
    if native is None or not takes(q, held) or not fits or scoring.window is not None or scoring.cap is not None:
        return None
    q, lengths, out = q.contiguous(), lengths.contiguous(), q.new_empty(texts, tokens, heads, rank)
    native.look_latent(
        q.data_ptr(), held.data_ptr(), held.stride(0), held.stride(2), lengths.data_ptr(), out.data_ptr(), texts,
        tokens, heads, width, rank, scoring.scale,
    )  # fmt: skip
    return out
