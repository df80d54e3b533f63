"""The stage `compress.quantize`: a checkpoint's linear layers in 8 bits, in a folder that other programs load.

`int8` has one scale a row and is computed with as it is; `fp8` has one a block of 128 x 128, as DeepSeek publishes its
models, and is de-quantized when it is loaded. Round to nearest needs no calibration data, and for 8 bits nothing better
is worth its time. The embedding and the head stay as they are: other programs read a tied pair only so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import ModelError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.kernels.fp8 import dequantize_blocks, quantize_blocks
from schoolhouse.model.families import from_hf, names_of
from schoolhouse.model.fp8 import QUANTIZATION_CONFIG, SCALES, linears_for_fp8
from schoolhouse.model.quantized import linears_to_quantize, pack, quantization_config, quantize_rows, shape_note
from schoolhouse.model.stored import find_tensors
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import copy_companions, read_config, write_tensors


class Config(StageConfig):
    """What to quantize: the checkpoint that a stage made, and into which format."""

    model: Ref
    format: Literal["int8", "fp8"] = "int8"


class _Format(NamedTuple):
    """Which layers, what config.json says of them, and a weight's stored tensors with what they stand for."""

    layers: Callable[[nn.Module], Iterator[tuple[str, nn.Linear]]]
    config: Callable[[Transformer, Collection[str]], dict[str, Any]]
    convert: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]


def _int8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    codes, scale = quantize_rows(weight)
    packed = pack(codes)
    parts = {"_packed": packed, "_scale": scale, "_shape": shape_note(packed)}
    return {name + part: tensor for part, tensor in parts.items()}, codes.float() * scale.float()


def _fp8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    codes, scale = quantize_blocks(weight)
    return {name: codes, name + SCALES: scale}, dequantize_blocks(codes, scale)


_FORMATS = {
    "int8": _Format(linears_to_quantize, quantization_config, _int8),
    "fp8": _Format(linears_for_fp8, lambda *_: dict(QUANTIZATION_CONFIG), _fp8),
}


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the quantized checkpoint; `out.meta` gets its size beside the source's and the largest rounding error.

    Raises ModelError if the source is quantized already or holds weights that are not finite.
    """
    source = inputs[config.model].path
    facts = quantize_folder(source, out.path, run, config.format)
    out.meta |= facts | {"format": config.format}
    run.log.info(
        f"{facts['layers']} layers to {config.format}: {facts['weight_bytes'] / 1e6:.0f} MB instead of "
        f"{facts['source_weight_bytes'] / 1e6:.0f} MB, rounding error {facts['relative_error']:.2%} of the weights"
    )


def quantize_folder(source: Path, folder: Path, run: Run, to: Literal["int8", "fp8"] = "int8") -> dict[str, Any]:
    """Quantize a checkpoint folder tensor by tensor, so that a model larger than the memory passes through."""
    form = _FORMATS[to]
    raw = read_config(source)
    if "quantization_config" in raw:
        raise ModelError(f"{source}: this checkpoint is quantized already; quantize the one it was made from.")
    model_config = from_hf(raw)
    with torch.device("meta"):
        model = Transformer(model_config)
    names = names_of(model_config)
    layers = {name for name, _ in form.layers(model)}
    chosen = {names.stored(f"{name}.weight") for name in layers}
    errors = _Errors()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, _converted(source, chosen, form, errors, run))
    config = raw | {"quantization_config": form.config(model, layers)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(source, folder)
    return {
        "layers": len(chosen),
        "weight_bytes": _weight_bytes(folder),
        "source_weight_bytes": _weight_bytes(source),
        "relative_error": (errors.noise / errors.signal) ** 0.5 if errors.signal else 0.0,
    }


class _Errors:
    """Sums of squares, of the weights and of what rounding changed."""

    signal = 0.0
    noise = 0.0


def _converted(
    source: Path, chosen: set[str], form: _Format, errors: _Errors, run: Run
) -> Iterator[tuple[str, Tensor]]:
    stored = find_tensors(source)
    for done, (name, entry) in enumerate(stored.items(), start=1):
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while quantizing; the same command starts this stage anew, it takes seconds")
        with safe_open(entry.file, framework="pt") as file:
            tensor = file.get_tensor(name)
        if name not in chosen:
            yield name, tensor
            continue
        parts, rounded = form.convert(name, tensor)
        exact = tensor.float()
        errors.signal += float(exact.square().sum())
        errors.noise += float(rounded.sub_(exact).square().sum())
        yield from parts.items()
        if done % 64 == 0:
            run.log.step(done, len(stored))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
