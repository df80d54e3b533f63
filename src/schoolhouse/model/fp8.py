"""Checkpoints in fp8 blocks, as DeepSeek publishes V3 and R1: `X.weight` in e4m3 beside `X.weight_scale_inv`.

They are de-quantized when they are read (`model/weights.py`), so that the network knows nothing of it.

Source: arXiv 2412.19437, section 3.3; the layout of deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.fp8 import BLOCK
from schoolhouse.model.stored import StoredTensor

SCALES = "_scale_inv"
"""What the name of a quantized tensor's scales adds to its own."""

QUANTIZATION_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
"""What config.json says about a model in fp8 blocks."""

_CODES = "F8_E4M3"
_READ = {
    "fmt": ("e4m3",),
    "weight_block_size": ([BLOCK, BLOCK],),
    "activation_scheme": ("dynamic",),
    "scale_fmt": (None, "float", "ue8m0"),  # powers of two are stored as the fp32 numbers that they are
    "expert_dtype": (None, "fp8"),
}
_DEFAULTS = {"fmt": "e4m3", "activation_scheme": "dynamic"}  # what transformers leaves out or means


def is_fp8(config: Mapping[str, Any] | None) -> bool:
    """True if a checkpoint's `quantization_config` (None without one) says that it is in fp8."""
    return config is not None and config.get("quant_method") == "fp8"


def with_scales(stored: Mapping[str, StoredTensor], config: Mapping[str, Any] | None) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, those in fp8 with their scales, which are no tensors of their own any more.

    Raises ModelError for another fp8 than e4m3 in blocks of 128 x 128, and one that names the tensor for scales that
    are missing or have another shape.
    """
    if is_fp8(config):
        assert config is not None
        _check_config(config)
    out = dict(stored)
    for name, entry in stored.items():
        if entry.dtype != _CODES:
            continue
        if not is_fp8(config):
            method = None if config is None else config.get("quant_method")
            raise ModelError(
                f"{entry.file}: {name} is in fp8, which is read only where config.json's quantization_config has "
                f"quant_method 'fp8', not {method!r}. Take it in bf16, or with the config.json that belongs to it."
            )
        out[name] = replace(entry, scale=_scales(name, entry, out.pop(name + SCALES, None)))
    return out


def _check_config(config: Mapping[str, Any]) -> None:
    for key, known in _READ.items():
        found = config.get(key, _DEFAULTS.get(key))
        if found not in known:
            raise ModelError(
                f"The checkpoint's quantization_config has {key} = {found!r}; read here is "
                f"{' or '.join(map(repr, known))} (fp8 blocks as DeepSeek V3 has them). Take the checkpoint in bf16."
            )


def _scales(name: str, entry: StoredTensor, scale: StoredTensor | None) -> StoredTensor:
    """The scales of a tensor in fp8, or the ModelError that says what is wrong with them."""
    if scale is None:
        raise ModelError(
            f"{entry.file}: {name} is in fp8, but its scales {name + SCALES} are missing. "
            "Fetch the checkpoint again, with all of its files."
        )
    wanted = tuple(-(-size // BLOCK) for size in entry.shape)
    if len(wanted) != 2 or scale.shape != wanted or scale.dtype not in ("F32", "BF16"):
        raise ModelError(
            f"{scale.file}: {name + SCALES} is {scale.dtype} {scale.shape}; {name} {entry.shape} in blocks of "
            f"{BLOCK} x {BLOCK} needs F32 {wanted}."
        )
    return scale


def linears_for_fp8(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that DeepSeek keeps and trains in fp8, by name: every `nn.Linear` but the output head and what joins
    embedding and hidden state in a prediction layer. A router is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head" and not name.endswith(".eh_proj"):
            yield name, module
