"""Linear layers whose weights are stored as int8 with one scale a row: `w = q * scale`, q in -127..127.

On disk this is compressed-tensors' `pack-quantized` format (`weight_packed`, `weight_scale`, `weight_shape`), which
transformers reads as 8-bit weights with 16-bit activations. In memory the weights stay int8 as long as few rows
pass at a time; see `QuantLinear.forward`. For inference only.

Source: vllm-project/compressed-tensors 0.20, `compressors/pack_quantized`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.packed_weight import PackedCodes, can_pack_codes
from schoolhouse.model.families import names_of
from schoolhouse.model.transformer import Transformer

MAX_CODE = 127
FEW_ROWS = 8  # up to here torch's int8 product is faster than its bf16 one, beyond it slower (bench/int8.py)
FEWEST_ROWS = 2  # up to here it is faster than the C++ one
KEEP_AFTER = 3  # calls with many rows in a row after which the bf16 copy is kept: a batch is running, not one prompt
_FLIP = -0x7F7F7F80  # 0x80808080 as a signed int32: adds 128 to each of the four bytes
PACKED, SHAPE = "weight_packed", "weight_shape"
"""What a file calls codes, and the note of how many there are, which follows from the config and is not kept here."""

_PARTS = (PACKED, "weight_scale")


def quantize_rows(weight: Tensor, scale_dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8, each row by its own scale. weight: (N, K) floating-point.

    Returns codes (N, K) int8 and scales (N, 1) `scale_dtype`; |weight - codes * scale| <= scale / 2 for every element.
    Raises ModelError for weights that are not finite.
    """
    exact = weight.detach().float()
    if not bool(exact.isfinite().all()):
        raise ModelError(
            "A weight matrix holds values that are not finite: this checkpoint is damaged, take an earlier one."
        )
    scale = (exact.abs().amax(dim=1, keepdim=True) / MAX_CODE).to(scale_dtype)  # (N, 1)
    # Rounding the scale down to bf16 may push the largest weight 0.4% past the last code, well within half a step.
    divisor = scale.float()
    codes = (exact / divisor.where(divisor > 0, 1.0)).round().clamp(-MAX_CODE, MAX_CODE)
    return codes.to(torch.int8), scale


def pack(codes: Tensor) -> Tensor:
    """(N, K) int8 to (N, K / 4) int32: each code plus 128 as a byte, the first lowest. K: a multiple of 4."""
    return codes.contiguous().view(torch.int32) ^ _FLIP


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`."""
    return (packed ^ _FLIP).view(torch.int8)


def shape_note(packed: Tensor) -> Tensor:
    """What a file says beside packed codes: how many rows and columns they have."""
    rows, words = packed.shape
    return torch.tensor([rows, words * 4])


class QuantLinear(nn.Module):
    """`nn.Linear` with int8 weights. Its state has the names of the file, its memory the form of the fastest product.

    More rows than a few pass a copy of the codes that is laid out for the C++ product. Where there is none, the bf16
    copy that large batches need is made when several calls in a row are large, and dropped by the next small one.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        assert in_features % 4 == 0, "four codes fill one stored int32"
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self._large_calls = 0
        self._copy: Tensor | None = None
        self._packed: PackedCodes | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> QuantLinear:
        """Quantize a layer; scales keep the layer's number type. Raises ModelError for weights that are not finite."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        layer.weight, layer.weight_scale = quantize_rows(linear.weight, linear.weight.dtype)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return layer

    def dequantized(self) -> Tensor:
        """The weights as the product sees them: (N, K) in the scales' number type."""
        return self.weight.to(self.weight_scale.dtype) * self.weight_scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K) to (..., N) of the same dtype. Raises ModelError if gradients are asked for.

        A few rows are multiplied by torch with the int8 weights as they are, which reads half of the bytes. More rows
        are bound by arithmetic, where plain torch has nothing faster than bf16 that keeps 16-bit activations.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ModelError(
                "int8 weights cannot be trained: train the checkpoint that they were made from and quantize again, "
                "or run this model under torch.inference_mode()."
            )
        rows = x.reshape(-1, self.in_features)  # (M, K)
        is_bf16_on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        packs = is_bf16_on_cpu and can_pack_codes(self.weight)
        if packs and len(rows) > FEWEST_ROWS:
            self._packed = self._packed or PackedCodes(self.weight, self.weight_scale)
            out = self._packed.product(rows)
            out = out if self.bias is None else out.add_(self.bias)
        elif is_bf16_on_cpu and len(rows) <= FEW_ROWS:
            self._large_calls, self._copy = 0, None
            out = torch._weight_int8pack_mm(rows, self.weight, self.weight_scale[:, 0])  # (M, N)
            out = out if self.bias is None else out + self.bias
        else:
            out = self._many_rows(rows, may_prepack=is_bf16_on_cpu and torch.backends.mkldnn.is_available())
        return out.view(*x.shape[:-1], self.out_features)

    def _many_rows(self, rows: Tensor, may_prepack: bool) -> Tensor:
        """(M, K) to (M, N) through a copy in the activations' dtype, reordered for the processor where torch can."""
        if self._copy is None:
            weight = self.dequantized()
            self._large_calls += 1
            if self._large_calls <= KEEP_AFTER:
                return F.linear(rows, weight, self.bias)
            self._copy = torch.ops.mkldnn._reorder_linear_weight(weight, 64) if may_prepack else weight
        if self._copy.is_mkldnn:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._copy, self.bias, "none", [], "")
            return out
        return F.linear(rows, self._copy, self.bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + PACKED] = pack(self.weight)
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
        self._large_calls, self._copy, self._packed = 0, None, None

    def _take(self, part: str, tensor: Tensor) -> str | None:
        """Store one tensor of the file; returns what is wrong with it."""
        n, k = self.out_features, self.in_features
        wanted = {PACKED: (n, k // 4), "weight_scale": (n, 1), "bias": (n,)}[part]
        if tuple(tensor.shape) != wanted:
            return f"has shape {tuple(tensor.shape)}, not {wanted}"
        if part == PACKED:
            self.weight = unpack(tensor)
        elif part == "weight_scale":
            self.weight_scale = tensor
        else:
            self.bias = nn.Parameter(tensor, requires_grad=False)
        return None


def linears_to_quantize(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that int8 is for, by name: every `nn.Linear` but the output head, those of odd widths, and what makes
    keys and values from latents, which decoding multiplies in another order.
    """
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear) and name != "lm_head" and not name.endswith(".kv_b_proj")
        if plain and module.in_features % 4 == 0:
            yield name, module


def quantization_config(model: Transformer, chosen: Collection[str] = ()) -> dict[str, Any]:
    """What config.json says about a model in int8, or about one whose layers `chosen` are to be."""
    left = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in chosen}
    names = names_of(model.config)
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "group_size": None,
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
    """Put a `QuantLinear` in the place of each layer that a checkpoint's `quantization_config` says is int8.

    Raises ModelError for a quantization that is not 8-bit, per row and symmetric in compressed-tensors' packed form.
    """
    ignore, names = _check_config(config), names_of(model.config)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if _matches(name, ignore) or _matches(names.module(name), ignore):
            continue
        if linear.in_features % 4:
            raise ModelError(
                f"{name} is quantized with rows of {linear.in_features} weights, which is no multiple of 4."
            )
        parent, _, own = name.rpartition(".")
        with torch.device(linear.weight.device):
            layer = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None)
        setattr(model.get_submodule(parent), own, layer)


def _check_config(config: Mapping[str, Any]) -> list[str]:
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
    known = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": 1,
        "targets": ["Linear"],
        "num_bits": 8,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
        "input_activations": None,
        "output_activations": None,
        "kv_cache_scheme": None,
    }
    for key, value in known.items():
        if found[key] != value:
            raise ModelError(
                f"The checkpoint's quantization_config has {key} = {found[key]!r}; read here is {value!r} only "
                "(8-bit weights, one scale a row, compressed-tensors pack-quantized). Take the checkpoint in bf16."
            )
    return list(config.get("ignore") or [])


def _matches(name: str, patterns: list[str]) -> bool:
    """True for a name in the list, or one that a `re:` entry of it matches from its start."""
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)
