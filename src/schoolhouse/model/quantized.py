"""Linear layers with weights in codes of 8 or 4 bits: `w = code * scale`, a scale for a row or a part of it.

On disk this is compressed-tensors' `pack-quantized` format (`weight_packed`, `weight_scale`, `weight_shape`), which
transformers reads as such weights with 16-bit activations. In memory they stay codes, see `QuantLinear`. For inference
only.

Source: vllm-project/compressed-tensors 0.20, `compressors/pack_quantized`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.packed_weight import PackedCodes, can_pack_codes
from schoolhouse.model.families import names_of
from schoolhouse.model.transformer import Transformer

FEW_ROWS = 8  # up to here torch's int8 product is faster than its bf16 one, beyond it slower (bench/int8.py)
KEEP_AFTER = 3  # calls with many rows in a row after which the bf16 copy is kept: a batch is running, not one prompt
_FLIP = -0x7F7F7F80  # 0x80808080 as a signed int32: adds 128 to each of the four bytes
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a scale of 4 bits: cutting the largest may spare the others
PACKED, SHAPE = "weight_packed", "weight_shape"
"""What a file calls codes, and the note of how many there are, which follows from the config and is not kept here."""

_PARTS = (PACKED, "weight_scale")


@dataclass(frozen=True)
class Scheme:
    """How weights become codes: the bits of a code, and how many of a row share a scale (None: all of them)."""

    bits: int = 8
    group: int | None = None

    @property
    def most(self) -> int:
        """The largest code; 8 bits use as many below 0, 4 bits one more."""
        return (1 << self.bits - 1) - 1

    @property
    def in_a_word(self) -> int:
        """Codes in a stored int32."""
        return 32 // self.bits

    def fits(self, inner: int) -> bool:
        """True if rows of so many weights can be stored so."""
        return inner % self.in_a_word == 0 and (self.group is None or inner % self.group == 0)

    def groups(self, inner: int) -> int:
        """Scales of a row of so many weights."""
        return 1 if self.group is None else inner // self.group


INT8 = Scheme()


def quantize_rows(
    weight: Tensor, scale_dtype: torch.dtype = torch.bfloat16, scheme: Scheme = INT8
) -> tuple[Tensor, Tensor]:
    """Round a matrix to the nearest codes, each row, or group of a row, by its own scale. weight: (N, K) floats.

    Returns codes (N, K) int8 and scales (N, G) `scale_dtype`. With 8 bits |weight - codes * scale| <= scale / 2 for
    every element; with 4 bits the scale is the one of a few, smaller ones too, that leaves the least squared error.
    Raises ModelError for weights that are not finite.
    """
    exact = finite(weight)
    parts = exact.unflatten(1, (scheme.groups(exact.shape[1]), -1))  # (N, G, K / G)
    scales = best_scales(parts, scheme, scale_dtype)  # (N, G)
    return round_by(parts, scales[..., None], scheme).flatten(1), scales


def finite(weight: Tensor) -> Tensor:
    """The same numbers in fp32; ModelError if one of them is none."""
    exact = weight.detach().float()
    if not bool(exact.isfinite().all()):
        raise ModelError(
            "A weight matrix holds values that are not finite: this checkpoint is damaged, take an earlier one."
        )
    return exact


def best_scales(parts: Tensor, scheme: Scheme, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A scale for each row along the last dimension, rounded to `dtype`. parts: (..., n) fp32 to (...)."""
    widest = parts.abs().amax(dim=-1) / scheme.most
    if scheme.bits == 8:
        return widest.to(dtype)
    best, least = widest.to(dtype), torch.full_like(widest, float("inf"))
    for shrink in _SHRINKS:
        scale = (widest * shrink).to(dtype)
        error = (round_by(parts, scale[..., None], scheme) * scale[..., None].float() - parts).square().sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def round_by(weights: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """The nearest codes, int8, in the shape of `weights`; scales: of a shape that spreads over them."""
    # Rounding the scale down to bf16 may push the largest weight 0.4% past the last code, well within half a step.
    divisor = scales.float()
    codes = (weights / divisor.where(divisor > 0, 1.0)).round()
    return codes.clamp_(-scheme.most - (scheme.bits == 4), scheme.most).to(torch.int8)


def spread(scales: Tensor, inner: int) -> Tensor:
    """Scales (N, G) for every weight of their rows: (N, K), or (N, 1) where a row has one."""
    return scales if scales.shape[1] == 1 else scales.repeat_interleave(inner // scales.shape[1], dim=1)


def pack(codes: Tensor, bits: int = 8) -> Tensor:
    """(N, K) int8 to int32 words, the first code lowest: each of 8 bits plus 128, each of 4 bits plus 8."""
    if bits == 8:
        return codes.contiguous().view(torch.int32) ^ _FLIP
    return nibbles(codes).view(torch.int32)


def unpack(packed: Tensor, bits: int = 8) -> Tensor:
    """Undo `pack`."""
    return (packed ^ _FLIP).view(torch.int8) if bits == 8 else from_nibbles(packed.view(torch.uint8))


def nibbles(codes: Tensor) -> Tensor:
    """Codes (N, K) of -8..7, two a byte, 8 added to each, the first low: (N, K / 2) uint8."""
    both = (codes + 8).to(torch.uint8)
    return (both[:, 0::2] | both[:, 1::2] << 4).contiguous()


def from_nibbles(both: Tensor) -> Tensor:
    """Undo `nibbles`: (N, K) int8."""
    return torch.stack((both & 15, both >> 4), dim=-1).flatten(1).to(torch.int8) - 8


def shape_note(packed: Tensor, bits: int = 8) -> Tensor:
    """What a file says beside packed codes: how many rows and columns they have."""
    rows, words = packed.shape
    return torch.tensor([rows, words * 32 // bits])


class QuantLinear(nn.Module):
    """`nn.Linear` with weights in codes. Its state has the names of the file, its memory the form of a fast product.

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

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: Scheme = INT8) -> QuantLinear:
        """Round a layer to nearest; scales keep its number type. Raises ModelError for weights that are not finite."""
        return cls.from_codes(linear, *quantize_rows(linear.weight, linear.weight.dtype, scheme), scheme)

    @classmethod
    def from_codes(cls, linear: nn.Linear, codes: Tensor, scales: Tensor, scheme: Scheme) -> QuantLinear:
        """What takes the place of a layer whose weights became codes (N, K) int8 with scales (N, G)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, scheme)
        layer.weight = codes.contiguous() if scheme.bits == 8 else nibbles(codes)
        layer.weight_scale = scales.to(linear.weight.dtype)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def packed(self) -> PackedCodes | None:
        """The copy that the C++ product reads, once rows have passed it."""
        return self._packed

    def codes(self) -> Tensor:
        """(N, K) int8."""
        return self.weight if self.scheme.bits == 8 else from_nibbles(self.weight)

    def dequantized(self) -> Tensor:
        """The weights as the product sees them: (N, K) in the scales' number type."""
        return self.codes().to(self.weight_scale.dtype) * spread(self.weight_scale, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
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
        if is_bf16_on_cpu and self._packed is None and can_pack_codes(self.weight):
            self._packed = PackedCodes(self.codes(), self.weight_scale, self.scheme.bits)
        if is_bf16_on_cpu and self._packed is not None:
            product = self._packed.product(x)
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
        destination[prefix + "weight_scale"] = self.weight_scale
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
        for part in (*_PARTS, *(("bias",) if self.bias is not None else ())):
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
        wanted = {PACKED: (n, k // scheme.in_a_word), "weight_scale": (n, scheme.groups(k)), "bias": (n,)}[part]
        if tuple(tensor.shape) != wanted:
            return f"has shape {tuple(tensor.shape)}, not {wanted}"
        if part == PACKED:
            self.weight = unpack(tensor) if scheme.bits == 8 else tensor.view(torch.uint8)
        elif part == "weight_scale":
            self.weight_scale = tensor
        else:
            self.bias = nn.Parameter(tensor, requires_grad=False)
        return None


def linears_to_quantize(model: nn.Module, scheme: Scheme = INT8) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that codes are for, by name: every `nn.Linear` but the output head, those of odd widths, and what
    makes keys and values from latents, which decoding multiplies in another order.
    """
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear) and name != "lm_head" and not name.endswith(".kv_b_proj")
        if plain and scheme.fits(module.in_features):
            yield name, module


def scheme_of(model: nn.Module) -> Scheme | None:
    """How the layers of a model that are in codes came to them; None if none is."""
    return next((module.scheme for module in model.modules() if isinstance(module, QuantLinear)), None)


def quantization_config(model: Transformer, chosen: Collection[str] = (), scheme: Scheme = INT8) -> dict[str, Any]:
    """What config.json says about a model in codes, or about one whose layers `chosen` are to be."""
    left = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in chosen}
    names = names_of(model.config)
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        # The head in any case, under transformers' name: it builds one of its own where it is tied.
        "ignore": sorted({"lm_head", *map(names.module, left)}),
        "kv_cache_scheme": None,
    }


def replace_linears(model: Transformer, config: Mapping[str, Any]) -> None:
    """Put a `QuantLinear` in the place of each layer that a checkpoint's `quantization_config` says is in codes.

    Raises ModelError for a quantization that is not symmetric, of 8 or 4 bits, in compressed-tensors' packed form.
    """
    (ignore, scheme), names = _check_config(config), names_of(model.config)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if _matches(name, ignore) or _matches(names.module(name), ignore):
            continue
        if not scheme.fits(linear.in_features):
            raise ModelError(
                f"{name} is quantized with rows of {linear.in_features} weights, which is no multiple of "
                f"{max(scheme.in_a_word, scheme.group or 1)}."
            )
        parent, _, own = name.rpartition(".")
        with torch.device(linear.weight.device):
            layer = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None, scheme)
        setattr(model.get_submodule(parent), own, layer)


def _check_config(config: Mapping[str, Any]) -> tuple[list[str], Scheme]:
    """The names to leave alone, after a look at everything that would change the meaning of the stored numbers."""
    groups = list((config.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if len(groups) == 1 else {}
    group = groups[0] if len(groups) == 1 else {}
    found = {
        "quant_method": config.get("quant_method"),
        "format": group.get("format") or config.get("format"),
        "config_groups": len(groups),
        "targets": group.get("targets"),
        "num_bits": weights.get("num_bits"),
        "type": weights.get("type"),
        "strategy": weights.get("strategy"),
        "symmetric": weights.get("symmetric"),
        "input_activations": group.get("input_activations"),
        "output_activations": group.get("output_activations"),
        "kv_cache_scheme": config.get("kv_cache_scheme"),
    }
    known: dict[str, tuple[Any, ...]] = {
        "quant_method": ("compressed-tensors",),
        "format": ("pack-quantized",),
        "config_groups": (1,),
        "targets": (["Linear"],),
        "num_bits": (8, 4),
        "type": ("int",),
        "strategy": ("channel", "group"),
        "symmetric": (True,),
        "input_activations": (None,),
        "output_activations": (None,),
        "kv_cache_scheme": (None,),
    }
    for key, values in known.items():
        if found[key] not in values:
            raise ModelError(
                f"The checkpoint's quantization_config has {key} = {found[key]!r}; read here is "
                f"{' or '.join(map(repr, values))} (weights of 8 or 4 bits, symmetric, a scale for a row or a group of "
                "it, compressed-tensors pack-quantized). Take the checkpoint in bf16."
            )
    if found["strategy"] == "channel":
        return list(config.get("ignore") or []), Scheme(int(weights["num_bits"]))
    size = weights.get("group_size")
    if not isinstance(size, int) or size < 2 or size % 2:
        raise ModelError(
            f"The checkpoint's quantization_config has group_size = {size!r}; it has to be an even number."
        )
    return list(config.get("ignore") or []), Scheme(int(weights["num_bits"]), size)


def _matches(name: str, patterns: list[str]) -> bool:
    """True for a name in the list, or one that a `re:` entry of it matches from its start."""
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)
