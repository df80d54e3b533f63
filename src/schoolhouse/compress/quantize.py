"""The stage `compress.quantize`: a checkpoint's layers in 8 or 4 bits, in a folder that other programs load.

`int8` has one scale a row and `int4` one for a group of neighbours; both are computed with as they are. `fp8` has one a
block of 128 x 128, as DeepSeek publishes its models, and is de-quantized when it is loaded. Rounding to nearest needs
no data, and for 8 bits nothing better is worth its time; for 4 bits GPTQ and AWQ look at what the layers read in
conversations of the user's own. The embedding and the head are a fifth and more of a small model: they become codes
where that is asked for. transformers de-quantizes such a model when it loads it; most other programs want them whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from schoolhouse.compress.calibrate import Schemes, quantize_calibrated, read_texts, schemes_to_make, unquantized
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import ModelError, RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.kernels.fp8 import dequantize_blocks, quantize_blocks
from schoolhouse.model.codes import INT8, Scheme, pack, quantize_rows, scheme_for, shape_note, spread
from schoolhouse.model.families import from_hf, names_of
from schoolhouse.model.fp8 import QUANTIZATION_CONFIG, SCALES, linears_for_fp8
from schoolhouse.model.quantization import EMBEDDING, HEAD, quantization_config
from schoolhouse.model.stored import find_tensors
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import copies, copy_companions, load_model, save_model, write_tensors


class Config(StageConfig):
    """What to quantize: the checkpoint that a stage made, into which format, and how."""

    model: Ref
    format: Literal["int8", "int4", "fp8"] = "int8"
    group: Literal[32, 64, 128] | None = None  # weights that share a scale; without it int4 has 64, int8 a whole row
    method: Literal["nearest", "gptq", "awq"] = "nearest"  # the other two go by what the layers read in `data`
    data: Ref | None = None  # the stage whose conversations they look at, for example `prepare.traces`
    texts: int = Field(128, ge=1)  # how many of its conversations
    embedding: Literal["int8", "int4"] | None = None  # of the embedding and the head; without it they stay whole


def check(config: Config) -> None:
    """Raise RecipeError for settings that do not go together."""
    if config.format == "fp8" and (config.group or config.embedding or config.method != "nearest"):
        raise RecipeError(
            "format 'fp8' rounds linear layers to nearest in blocks of 128 x 128: leave out group, method, embedding."
        )
    if (config.method == "nearest") != (config.data is None):
        raise RecipeError(
            f"method is {config.method!r} and data {config.data!r}: 'gptq' and 'awq' need the conversations of a "
            "stage, for example of prepare.traces, and 'nearest' looks at none."
        )


Convert = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""A weight's stored tensors, with what they stand for."""


def _coder(scheme: Scheme) -> Convert:
    def convert(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        codes, scales = quantize_rows(weight, scheme=scheme)
        packed = pack(codes, scheme.bits)
        parts = {"_packed": packed, "_scale": scales, "_shape": shape_note(packed, scheme.bits)}
        stored = {name + part: tensor for part, tensor in parts.items()}
        return stored, codes.float() * spread(scales, codes.shape[1]).float()

    return convert


def _fp8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    codes, scale = quantize_blocks(weight)
    return {name: codes, name + SCALES: scale}, dequantize_blocks(codes, scale)


_FP8: Convert = _fp8


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the quantized checkpoint; `out.meta` gets its size beside the source's and the largest rounding error.

    Raises ModelError if the source is quantized already, has no layer that fits, or holds weights that are not finite.
    """
    source, ends = inputs[config.model].path, ends_for(config)
    scheme = None if config.format == "fp8" else scheme_for(config.format, config.group)
    if config.method == "nearest" or scheme is None:
        facts = quantize_folder(source, out.path, run, scheme, ends)
    else:
        assert config.data is not None, "check asks for it"
        texts = read_texts(inputs[config.data], source, config.texts)
        facts = _calibrated_folder(source, out.path, run, Schemes(scheme, ends), config.method, texts)
    out.meta |= facts | {"format": config.format, "method": config.method}
    if facts["left"]:
        run.log.warn(f"{facts['left']} layers stay whole: their rows are no multiple of what codes or groups need")
    if ends not in (None, scheme):
        run.log.warn("embedding and layers are in codes of two kinds: transformers 5.23 reads one kind at a time only")
    run.log.info(
        f"{facts['layers']} layers to {config.format}: {facts['weight_bytes'] / 1e6:.0f} MB instead of "
        f"{facts['source_weight_bytes'] / 1e6:.0f} MB, rounding error {facts['relative_error']:.2%} of the weights"
    )


def ends_for(config: Config) -> Scheme | None:
    """How embedding and head become codes; None if they stay whole."""
    return None if config.embedding is None else scheme_for(config.embedding, config.group)


def quantize_folder(
    source: Path, folder: Path, run: Run, scheme: Scheme | None = INT8, ends: Scheme | None = None
) -> dict[str, Any]:
    """Round a checkpoint folder to nearest, tensor by tensor, so that a model larger than the memory passes through.

    scheme: of the linear layers, None for fp8; ends: of the embedding and the head, None to keep them.
    """
    raw = unquantized(source)
    with torch.device("meta"):
        model = Transformer(from_hf(raw))
    names = names_of(model.config)
    if scheme is None:
        layers = {name for name, _ in linears_for_fp8(model)}
        quantization, coders = dict(QUANTIZATION_CONFIG), dict.fromkeys(layers, _FP8)
    else:
        schemes = schemes_to_make(model, Schemes(scheme, ends))
        layers, quantization = set(schemes), quantization_config(model, schemes)
        coders = {name: _coder(own) for name, own in schemes.items()}
    left = _left(model, layers, scheme, ends)
    stored = {names.stored(f"{name}.weight"): coder for name, coder in coders.items()}
    errors = _Errors()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, _converted(source, stored, _copied(model, layers), errors, run))
    config = raw | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(source, folder)
    return _facts(source, folder, len(stored), left, errors)


def _calibrated_folder(
    source: Path, folder: Path, run: Run, schemes: Schemes, method: Literal["gptq", "awq"], texts: list[list[int]]
) -> dict[str, Any]:
    """The same by what the layers read in these texts; the whole model is in memory."""
    unquantized(source)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    layers = schemes_to_make(model, schemes).keys()
    left, errors = _left(model, layers, schemes.linears, schemes.ends), _Errors()
    run.log.info(f"{method} looks at {sum(map(len, texts)):,} tokens of {len(texts)} conversations")
    for signal, noise in quantize_calibrated(model, texts, schemes, method, run):
        errors.signal += signal
        errors.noise += noise
    save_model(model, folder, like=source)
    return _facts(source, folder, len(layers), left, errors)


def _left(model: Transformer, layers: Collection[str], scheme: Scheme | None, ends: Scheme | None) -> int:
    """Layers that codes are for and that do not fit; ModelError if none does."""
    wanted = len(layers)
    if scheme is not None:
        # By the least that any form asks for, whole words of codes, layers are counted that a group does not fit.
        wanted = len(schemes_to_make(model, Schemes(INT8, None if ends is None else INT8)))
    if not layers:
        raise ModelError(
            f"No layer of this network can be stored so ({scheme}): rows have to be multiples of the group. "
            "Take a smaller group."
        )
    return wanted - len(layers)


def _copied(model: Transformer, layers: Collection[str]) -> set[str]:
    """Stored tensors that are copies of the embedding or the head, where those are in codes: who reads shares them."""
    names, config = names_of(model.config), model.config
    head, embedding = names.stored(f"{HEAD}.weight"), names.stored(f"{EMBEDDING}.weight")
    if EMBEDDING not in layers:
        return set()
    tied = {head} if config.tie_word_embeddings else set()
    return tied | set(copies(config, head, embedding))


def _facts(source: Path, folder: Path, layers: int, left: int, errors: _Errors) -> dict[str, Any]:
    return {
        "layers": layers,
        "left": left,
        "weight_bytes": _weight_bytes(folder),
        "source_weight_bytes": _weight_bytes(source),
        "relative_error": (errors.noise / errors.signal) ** 0.5 if errors.signal else 0.0,
    }


class _Errors:
    """Sums of squares, of the weights and of what rounding changed."""

    signal = 0.0
    noise = 0.0


def _converted(
    source: Path, coders: Mapping[str, Convert], dropped: Collection[str], errors: _Errors, run: Run
) -> Iterator[tuple[str, Tensor]]:
    stored = find_tensors(source)
    for done, (name, entry) in enumerate(stored.items(), start=1):
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while quantizing; the same command starts this stage anew, it takes seconds")
        if name in dropped:
            continue
        with safe_open(entry.file, framework="pt") as file:
            tensor = file.get_tensor(name)
        if name not in coders:
            yield name, tensor
            continue
        parts, rounded = coders[name](name, tensor)
        exact = tensor.float()
        errors.signal += float(exact.square().sum())
        errors.noise += float(rounded.sub_(exact).square().sum())
        yield from parts.items()
        if done % 64 == 0:
            run.log.step(done, len(stored))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
