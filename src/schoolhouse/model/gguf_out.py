"""GGUF out: a checkpoint's weights as one file that llama.cpp runs.

Tensors pass through memory one by one. Norms, biases and the experts' router stay in fp32, as llama.cpp wants them; a
row that does not fill the blocks of the chosen kind is stored in F16, and counted.

Source: the GGUF specification (ggml-org/ggml: docs/gguf.md); what a tensor goes through: llama.cpp's converter
(ggml-org/llama.cpp: conversion/base.py, llama.py, deepseek.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.gguf_meta import ROPE_DIVISORS, llama3_divisors, metadata
from schoolhouse.model.gguf_names import ARCHITECTURES
from schoolhouse.model.stored import StoredTensor
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import check_folder, read_config, read_tensors

KINDS: dict[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
"""How weights can be stored. Q4_K is not among them: the gguf package unpacks its blocks and cannot make them."""

_FOUR_BITS = ("q4_0", "q4_1")
_ENDS = ("token_embd.weight", "output.weight")  # what four bits would spoil most: eight for them
_ROUTER = ".ffn_gate_inp."


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: its name, the checkpoint's keys that it is made of, its shape (rows first) and kind."""

    name: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


@dataclass
class _Errors:
    """Sums of squares, of the weights and of what rounding changed."""

    signal: float = 0.0
    noise: float = 0.0


def write_gguf(
    source: Path,
    target: Path,
    kind: str,
    extra: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint folder `source` as the file `target`; returns its size, counts and rounding error.

    kind: one of KINDS; extra: metadata to write beside the shape's, such as name and vocabulary; progress: called with
    finished and all tensors, and may raise. Raises ModelError for a quantized checkpoint, a family or a feature that
    GGUF cannot say (`gguf_meta.metadata`), and for weights that the kind cannot hold.
    """
    if "quantization_config" in read_config(source):
        raise ModelError(f"{source}: this checkpoint is quantized already; export the one it was made from.")
    model, stored = check_folder(source)
    config = replace(model.config, num_nextn_predict_layers=0)
    shape = metadata(config)
    planned = plan(config, kind)
    writer = gguf.GGUFWriter(target, ARCHITECTURES[config.model_type].name)
    _add(writer, {"general.type": "model"} | dict(extra) | shape)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(KINDS[kind][1])
    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.kind)
    errors = _Errors()
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, values in enumerate(_blocks(planned, stored, config, errors), start=1):
            writer.write_tensor_data(values)
            if progress:
                progress(done, len(planned))
    finally:
        writer.close()
    wanted = KINDS[kind][0]
    return {
        "file_bytes": target.stat().st_size,
        "tensors": len(planned),
        "tensors_in_kind": sum(tensor.kind == wanted for tensor in planned),
        "tensors_in_f16_instead": sum(t.kind == gguf.GGMLQuantizationType.F16 for t in planned) * (kind != "f16"),
        "prediction_layers_left_out": model.config.num_nextn_predict_layers,
        "relative_error": (errors.noise / errors.signal) ** 0.5 if errors.signal else 0.0,
    }


def plan(config: ModelConfig, kind: str) -> list[Planned]:
    """Every tensor of the file, in the order of the layers."""
    row = ARCHITECTURES[config.model_type]
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    held: dict[str, list[str]] = {}
    for key in state:
        for name in row.names(key):
            held.setdefault(name, []).append(key)
    planned = []
    for name, keys in held.items():
        shape = tuple(_assembled(name, [state[key] for key in keys], config).shape)
        planned.append(Planned(name, tuple(keys), shape, _kind(name, shape, kind)))
    if (config.rope_scaling or {}).get("rope_type") == "llama3":
        planned.append(Planned(ROPE_DIVISORS, (), (config.head_dim // 2,), gguf.GGMLQuantizationType.F32))
    return planned


def _kind(name: str, shape: tuple[int, ...], wanted: str) -> gguf.GGMLQuantizationType:
    if len(shape) == 1 or _ROUTER in name:
        return gguf.GGMLQuantizationType.F32
    kind = KINDS["q8_0" if wanted in _FOUR_BITS and name in _ENDS else wanted][0]
    return gguf.GGMLQuantizationType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def _assembled(name: str, tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """A tensor of the file from the checkpoint's: experts stacked, kv_b halved, rows of q and k in pairs."""
    tensor = tensors[0]
    if "_exps." in name:
        return torch.stack(list(tensors))
    if ".attn_k_b." in name or ".attn_v_b." in name:
        assert config.mla is not None
        widths = (config.mla.qk_nope_head_dim, config.mla.v_head_dim)
        keys, values = tensor.unflatten(0, (config.num_attention_heads, sum(widths))).split(widths, dim=1)
        return keys.transpose(1, 2) if ".attn_k_b." in name else values  # (H, R, Dn), (H, Dv, R)
    if ARCHITECTURES[config.model_type].permuted and (".attn_q." in name or ".attn_k." in name):
        return permuted(tensor, config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads)
    return tensor


def permuted(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, (heads * Dh, ...), from Hugging Face's halves to llama.cpp's pairs side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _blocks(
    planned: Sequence[Planned], stored: Mapping[str, StoredTensor], config: ModelConfig, errors: _Errors
) -> Iterator[np.ndarray]:
    for tensor in planned:
        if tensor.name == ROPE_DIVISORS:
            assert config.rope_scaling is not None
            yield llama3_divisors(config.rope_scaling, config.head_dim, config.rope_theta).numpy()
            continue
        weights = [weight.float() for _, weight in read_tensors({key: stored[key] for key in tensor.keys})]
        exact = _assembled(tensor.name, weights, config).contiguous().numpy()
        with np.errstate(over="ignore"):  # what is too large for F16 is told below, by name
            values = gguf.quants.quantize(exact, tensor.kind)
        rounded = gguf.quants.dequantize(values, tensor.kind)
        if not np.isfinite(rounded).all():
            raise ModelError(
                f"{tensor.name} holds values that {tensor.kind.name} cannot: the largest is {np.abs(exact).max():g}. "
                'Export with kind = "bf16", or train anew if they are not finite.'
            )
        if tensor.kind != gguf.GGMLQuantizationType.F32:
            errors.signal += float(np.square(exact, dtype=np.float64).sum())
            errors.noise += float(np.square(exact - rounded, dtype=np.float64).sum())
        yield values


def _add(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
