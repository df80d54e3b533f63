"""Linear layers and embeddings whose weights stay codes in memory; for inference only.

On disk this is compressed-tensors' `pack-quantized` format, which other programs read (`model/quantization.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.packed_weight import PackedCodes, can_pack_codes
from schoolhouse.model.codes import (
    INT8,
    PACKED,
    SCALE,
    Scheme,
    from_nibbles,
    nibbles,
    pack,
    quantize_rows,
    spread,
    unpack,
)

FEW_ROWS = 8  # up to here torch's int8 product is faster than its bf16 one, beyond it slower (bench/int8.py)
KEEP_AFTER = 3  # calls with many rows in a row after which the bf16 copy is kept: a batch is running, not one prompt


class Coded(nn.Module):
    """A matrix in codes, and products with it: its state has the names of the file, its memory a fast product's form.

    `weight` holds codes of 8 bits (N, K) as int8, and of 4 bits two a byte, (N, K / 2). Rows pass a copy of the codes
    that is laid out for the C++ product; where there is none, a copy in bf16: of 4 bits always, of 8 bits when several
    calls in a row are large, dropped by the next small one.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False, scheme: Scheme = INT8) -> None:
        super().__init__()
        assert scheme.fits(in_features), "codes fill stored words, and groups a row"
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        kept = torch.int8 if scheme.bits == 8 else torch.uint8
        self.register_buffer("weight", torch.zeros(out_features, in_features * scheme.bits // 8, dtype=kept))
        self.register_buffer("weight_scale", torch.ones(out_features, scheme.groups(in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self._forget_copies()

    def _forget_copies(self) -> None:
        self._large_calls = 0
        self._copy: Tensor | None = None
        self._packed: PackedCodes | None = None

    def _hold(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Self:
        self.weight = codes.contiguous() if self.scheme.bits == 8 else nibbles(codes)
        self.weight_scale = scales.to(dtype)
        return self

    @property
    def packed(self) -> PackedCodes | None:
        """The copy that the C++ product reads, made when it is first asked for; None where there are no kernels."""
        if self._packed is None and can_pack_codes(self.weight, self.weight_scale):
            self._packed = PackedCodes(self.codes(), self.weight_scale, self.scheme.bits)
        return self._packed

    def codes(self) -> Tensor:
        """(N, K) int8."""
        return self.weight if self.scheme.bits == 8 else from_nibbles(self.weight)

    def dequantized(self) -> Tensor:
        """The weights as the product sees them: (N, K) in the scales' number type."""
        return self.codes().to(self.weight_scale.dtype) * spread(self.weight_scale, self.in_features)

    def product(self, x: Tensor) -> Tensor:
        """x: (..., K) to (..., N) of the same dtype. Raises ModelError if gradients are asked for.

        Without kernels a few rows are multiplied by torch with int8 weights as they are, which reads half of the bytes.
        More rows are bound by arithmetic, where torch has nothing faster than bf16 that keeps 16-bit activations.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ModelError(
                f"int{self.scheme.bits} weights cannot be trained: train the checkpoint that they were made from and "
                "quantize again, or run this model under torch.inference_mode()."
            )
        is_bf16_on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        packed = self.packed if is_bf16_on_cpu else None
        if packed is not None:
            product = packed.product(x)
            return product if self.bias is None else product.add_(self.bias)
        rows = x.reshape(-1, self.in_features)  # (M, K)
        if is_bf16_on_cpu and len(rows) <= FEW_ROWS and self.scheme == INT8:
            self._large_calls, self._copy = 0, None
            out = torch._weight_int8pack_mm(rows, self.weight, self.weight_scale[:, 0])  # (M, N)
            out = out if self.bias is None else out + self.bias
        else:
            out = self._by_copy(rows, may_prepack=is_bf16_on_cpu and torch.backends.mkldnn.is_available())
        return out.view(*x.shape[:-1], self.out_features)

    def _by_copy(self, rows: Tensor, may_prepack: bool) -> Tensor:
        """(M, K) to (M, N) through a copy in the activations' dtype, reordered for the processor where torch can."""
        if self._copy is None:
            weight = self.dequantized()
            self._large_calls += 1
            if self._large_calls <= KEEP_AFTER and self.scheme == INT8:
                return F.linear(rows, weight, self.bias)
            self._copy = torch.ops.mkldnn._reorder_linear_weight(weight, 64) if may_prepack else weight
        if self._copy.is_mkldnn:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._copy, self.bias, "none", [], "")
            return out
        return F.linear(rows, self._copy, self.bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + PACKED] = self._words()
        destination[prefix + SCALE] = self.weight_scale
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take what is there of this layer's tensors, as torch's own layers do, and check their shapes."""
        for part in (PACKED, SCALE, *(("bias",) if self.bias is not None else ())):
            if prefix + part not in state_dict:
                missing_keys.append(prefix + part)
                continue
            error = self._take(part, state_dict[prefix + part])
            if error:
                error_msgs.append(f"{prefix}{part}: {error}")
        self._forget_copies()

    def _words(self) -> Tensor:
        return pack(self.weight) if self.scheme.bits == 8 else self.weight.view(torch.int32)

    def _take(self, part: str, tensor: Tensor) -> str | None:
        """Store one tensor of the file; returns what is wrong with it."""
        n, k, scheme = self.out_features, self.in_features, self.scheme
        wanted = {PACKED: (n, k // scheme.in_a_word), SCALE: (n, scheme.groups(k)), "bias": (n,)}[part]
        if tuple(tensor.shape) != wanted:
            return f"has shape {tuple(tensor.shape)}, not {wanted}"
        if part == PACKED:
            self.weight = unpack(tensor) if scheme.bits == 8 else tensor.view(torch.uint8)
        elif part == SCALE:
            self.weight_scale = tensor
        else:
            self.bias = nn.Parameter(tensor, requires_grad=False)
        return None


class QuantLinear(Coded):
    """`nn.Linear` with weights in codes."""

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: Scheme = INT8) -> QuantLinear:
        """Round a layer to nearest; scales keep its number type. Raises ModelError for weights that are not finite."""
        return cls.from_codes(linear, *quantize_rows(linear.weight, linear.weight.dtype, scheme), scheme)

    @classmethod
    def from_codes(cls, linear: nn.Linear, codes: Tensor, scales: Tensor, scheme: Scheme) -> QuantLinear:
        """What takes the place of a layer whose weights became codes (N, K) int8 with scales (N, G)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, scheme)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return layer._hold(codes, scales, linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K) to (..., N): see `product`."""
        return self.product(x)


class QuantEmbedding(Coded):
    """`nn.Embedding` with rows in codes; where the head is tied to it, `product` gives the logits."""

    @classmethod
    def from_codes(cls, embedding: nn.Embedding, codes: Tensor, scales: Tensor, scheme: Scheme) -> QuantEmbedding:
        """What takes the place of an embedding whose rows became codes (V, D) int8 with scales (V, G)."""
        return cls(embedding.embedding_dim, embedding.num_embeddings, scheme=scheme)._hold(
            codes, scales, embedding.weight.dtype
        )

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) int64 to their rows (..., D), in the scales' number type; only those are de-quantized."""
        chosen = ids.flatten()
        rows, scales = self.weight[chosen], self.weight_scale[chosen]
        codes = rows if self.scheme.bits == 8 else from_nibbles(rows)
        return (codes.to(scales.dtype) * spread(scales, self.in_features)).view(*ids.shape, self.in_features)
