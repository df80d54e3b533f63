"""Weights in and out: safetensors only, names and shapes exactly those of the checkpoint.

Everything that can be wrong is found from the files' headers (`model/stored.py`), before memory is taken: a missing,
surplus or misshapen tensor, a model larger than the free memory. Files are mapped and copied tensor by tensor into a
model that had no memory until then, so that loading never holds the weights twice.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schoolhouse.core.errors import MachineError, ModelError
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.kernels.fp8 import dequantize_blocks
from schoolhouse.model.codes import PACKED, SHAPE, shape_note
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.families import from_hf, names_of, to_hf
from schoolhouse.model.fp8 import is_fp8, with_scales
from schoolhouse.model.names import Joined, Names
from schoolhouse.model.quantization import quantization_config, replace_linears, schemes_of
from schoolhouse.model.stored import INDEX, StoredTensor, damaged, find_tensors, some
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.wrapped import unwrap_config, unwrapped_name

M = TypeVar("M", bound=Transformer)

SHARD_BYTES = 4 * 10**9
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "system_prompt.txt",
)
"""What `save_model` takes over from the folder that a model came from: its tokenizer and how it is talked to."""

KEPT_IN_FP32 = "e_score_correction_bias"
"""The one weight that no type but fp32 holds: its steps of 0.001 would vanish."""


def load_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder. ModelError if there is none or if it cannot be built here."""
    return from_hf(unwrap_config(read_config(folder)))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. ModelError that says what to do for a missing folder, a missing or a broken file."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder. Name a folder with config.json and model.safetensors.")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: there is no config.json in it, so this is no model folder.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: holds a {type(raw).__name__}, not an object with keys.")
    return raw


def load_model(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Transformer:
    """Load a checkpoint folder, its floating-point weights in `dtype` on `device`. int8 stays, fp8 is de-quantized.

    Raises ModelError that names the file or tensors for weights that do not fit the config, and MachineError before
    anything is loaded if the free memory does not hold them.
    """
    return load_kind(Transformer, folder, dtype, torch.device(device))


def load_kind(kind: type[M], folder: Path, dtype: torch.dtype, device: torch.device) -> M:
    """The same for a kind of decoder that is not a language model."""
    model, stored = check_kind(kind, folder)
    _check_memory(folder, model.state_dict(), dtype, device)
    _fill(model, stored, dtype, device)
    return model.eval()


def check_folder(folder: Path) -> tuple[Transformer, dict[str, StoredTensor]]:
    """The model that a folder's config.json describes, without memory (torch's meta device), and its tensors.

    Reads headers only. Raises ModelError for whatever would keep `load_model` from filling the model.
    """
    return check_kind(Transformer, folder)


def check_kind(kind: type[M], folder: Path) -> tuple[M, dict[str, StoredTensor]]:
    """See `check_folder` and `load_kind`."""
    outer = read_config(folder)
    raw = kind.causal(unwrap_config(outer))
    config, quantization = from_hf(raw), raw.get("quantization_config")
    found = {unwrapped_name(outer, name): entry for name, entry in find_tensors(folder).items()}
    stored = with_scales({name: entry for name, entry in found.items() if name is not None}, quantization)
    if not any(name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in stored):
        config = replace(config, num_nextn_predict_layers=0)  # who wrote it left the prediction layers out, as many do
    with torch.device("meta"):
        model = kind(config)
    if quantization is not None and not is_fp8(quantization):
        replace_linears(model, quantization)
        stored = {name: entry for name, entry in stored.items() if not name.endswith(f".{SHAPE}")}
    names = names_of(config)
    stored = _without_derived(stored, names, config)
    check_names(folder, stored, stored_shapes(names, model.state_dict()))
    return model, stored


def stored_shapes(names: Names, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a checkpoint of this model holds."""
    return {
        stored: (sum(state[name].shape[0] for name in held), *state[held[0]].shape[1:])
        if names.join(stored)
        else tuple(state[held[0]].shape)
        for stored, held in names.holders(state).items()
    }


def read_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves, one by one, as they are stored; those in fp8 de-quantized to fp32.

    Raises ModelError if a file cannot be read.
    """
    for name, entry in stored.items():
        yield name, _dequantized(_read(entry), entry, torch.float32)


def _without_derived(stored: dict[str, StoredTensor], names: Names, config: ModelConfig) -> dict[str, StoredTensor]:
    """Drop what follows from other tensors: stored tables, and the copy of a tied head, if it is a copy."""
    stored = {n: entry for n, entry in stored.items() if not any(re.fullmatch(p, n) for p in names.derived)}
    head, embedding = names.stored("lm_head.weight"), names.stored("model.embed_tokens.weight")
    if config.tie_word_embeddings:
        _drop_copy(stored, head, embedding, "Set tie_word_embeddings to false if the head is to be used.")
        head = embedding
    for copied, shared in copies(config, head, embedding).items():
        _drop_copy(stored, copied, shared, "A prediction layer with a head or embedding of its own is not built here.")
    return stored


def copies(config: ModelConfig, head: str, embedding: str) -> dict[str, str]:
    """What the layers that predict further tokens store again, and from where."""
    first = config.num_hidden_layers
    return {
        f"model.layers.{first + i}.{name}": shared
        for i in range(config.num_nextn_predict_layers)
        for name, shared in (("embed_tokens.weight", embedding), ("shared_head.head.weight", head))
    }


def _drop_copy(stored: dict[str, StoredTensor], copied: str, shared: str, otherwise: str) -> None:
    """Forget a tensor that is the copy of another; ModelError if it is not."""
    if copied not in stored:
        return
    copy, original = stored.pop(copied), stored.get(shared)
    if original is not None and not torch.equal(_read(copy), _read(original)):
        raise ModelError(f"{copy.file}: {copied} should be a copy of {shared} by config.json, but differs. {otherwise}")


def _read(entry: StoredTensor) -> Tensor:
    try:
        with safe_open(entry.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(entry.name)
    except SafetensorError as error:
        raise damaged(entry.file, str(error)) from error
    return tensor


def _dequantized(tensor: Tensor, entry: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it was read, or in `dtype` if it is in fp8."""
    if entry.scale is None:
        return tensor
    return dequantize_blocks(tensor, _read(entry.scale), dtype)


def check_names(where: Path, stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError that names tensors without a place in the model, places without a tensor, and a wrong shape."""
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        parts = [f"missing: {some(missing)}"] if missing else []
        parts += [f"not in the model: {some(surplus)}"] if surplus else []
        raise ModelError(f"{where}: the weights do not belong to the config; {'; '.join(parts)}.")
    for name, shape in wanted.items():
        if shape != stored[name].shape:
            raise ModelError(f"{stored[name].file}: {name} is {stored[name].shape}, the config asks for {shape}.")


def _check_memory(folder: Path, wanted: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    need = sum(t.numel() * (dtype if t.is_floating_point() else t.dtype).itemsize for t in wanted.values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    if need > free:
        raise MachineError(
            f"{folder}: the weights need {need / 2**30:.2f} GiB in {str(dtype).removeprefix('torch.')}, "
            f"{free / 2**30:.2f} GiB are free. Close other programs, load in bfloat16, or take a smaller model."
        )


def _fill(model: Transformer, stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device) -> None:
    names = names_of(model.config)
    wanted = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in model.state_dict().items()}
    holders = names.holders(wanted)
    by_file: dict[Path, list[str]] = {}
    for name, entry in stored.items():
        by_file.setdefault(entry.file, []).append(name)
    for path, inside in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in inside:
                    rows = [wanted[n] for n in holders[name]]
                    tensor = _dequantized(file.get_tensor(stored[name].name), stored[name], dtype)
                    parts = _split(tensor, names.join(name), rows, model.config.num_key_value_heads)
                    state = {n: _placed(n, part, dtype, device) for n, part in zip(holders[name], parts, strict=True)}
                    model.load_state_dict(state, strict=False, assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise damaged(path, str(error)) from error


def _split(tensor: Tensor, join: Joined | None, rows: list[int], groups: int) -> list[Tensor]:
    """Our tensors, of so many rows each, from the one that holds them."""
    if join is None:
        return [tensor]
    if not join.by_group:
        return list(tensor.split(rows))
    by_group = tensor.unflatten(0, (groups, -1)).split([n // groups for n in rows], dim=1)
    return [part.flatten(0, 1) for part in by_group]


def _join(parts: list[Tensor], join: Joined | None, groups: int) -> Tensor:
    """The inverse of `_split`."""
    if join is None:
        return parts[0]
    if not join.by_group:
        return torch.cat(parts)
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def _placed(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of its own: a mapped tensor would change under us if the file did."""
    return tensor.to(device=device, dtype=held_type(name, tensor, dtype), copy=True)


def held_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type in which a tensor is held where the others are held in `dtype` (None: as they are)."""
    if not tensor.is_floating_point() or dtype is None:
        return tensor.dtype
    return torch.float32 if name.endswith(KEPT_IN_FP32) else dtype


def save_model(
    model: Transformer, folder: Path, *, like: Path | None = None, dtype: torch.dtype | None = torch.bfloat16
) -> None:
    """Write config.json and the weights (floating-point ones in `dtype`, None as they are) into `folder`.

    `like` is the folder that the model came from: its tokenizer, chat template and generation settings are copied.
    A model in codes stays one: they are written as they are, with the quantization_config that says which layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    write_tensors(folder, _in_their_names(model, state, dtype))
    name = str(dtype or next(iter(state.values())).dtype).removeprefix("torch.")
    raw = to_hf(model.config, name)
    schemes = schemes_of(model)
    if schemes:
        raw["quantization_config"] = quantization_config(model, schemes)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    if like is not None:
        copy_companions(like, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the tokenizer, chat template and generation settings that `source` has."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _in_their_names(
    model: Transformer, state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the family's checkpoints name and join them."""
    names, schemes = names_of(model.config), schemes_of(model)
    for stored, held in names.holders(state).items():
        joined = _join([state[n] for n in held], names.join(stored), model.config.num_key_value_heads)
        wanted = held_type(stored, joined, dtype)
        yield stored, joined.detach().to(device="cpu", dtype=wanted).contiguous()
        if stored.endswith(f".{PACKED}"):
            scheme = schemes[held[0].removesuffix(f".{PACKED}")]
            yield stored.removesuffix(PACKED) + SHAPE, shape_note(joined, scheme.bits)
    for copied, shared in copies(model.config, "lm_head.weight", "model.embed_tokens.weight").items():
        source = state.get("model.embed_tokens.weight" if model.config.tie_word_embeddings else shared)
        if source is None:
            continue  # in codes: who reads it shares them
        yield copied, source.detach().to(device="cpu", dtype=held_type(shared, source, dtype), copy=True).contiguous()


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as model.safetensors, or as numbered shards with an index where they pass `shard_bytes`.

    At most one shard is held in memory; tensors come one by one and must be contiguous, on the CPU.
    """
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = held = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.itemsize
        if waiting and held + size > shard_bytes:
            shards.append(_write_shard(folder, len(shards), waiting))
            waiting, held = {}, 0
        waiting[name] = tensor
        held, total = held + size, total + size
    shards.append(_write_shard(folder, len(shards), waiting))
    _name_shards(folder, shards, total)


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    path = folder / f"shard-{number}.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library makes it private to its writer, unlike every other file of the folder
    return list(tensors)


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Give the shards their final names, which hold their number, known only now."""
    if len(shards) == 1:
        (folder / "shard-0.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
