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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schoolhouse.core.errors import MachineError, ModelError
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.families import from_hf, to_hf
from schoolhouse.model.quantized import QuantLinear, quantization_config, replace_linears
from schoolhouse.model.stored import INDEX, StoredTensor, damaged, find_tensors, some
from schoolhouse.model.transformer import Transformer

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

# Tables that old versions of transformers stored; they follow from the config.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def load_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder. ModelError if there is none or if it cannot be built here."""
    return from_hf(read_config(folder))


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
    """Load a checkpoint folder, its floating-point weights in `dtype` on `device`.

    Raises ModelError that names the file or tensors for weights that do not fit the config, and MachineError before
    anything is loaded if the free memory does not hold them.
    """
    model, stored = check_folder(folder)
    _check_memory(folder, model.state_dict(), dtype, torch.device(device))
    _fill(model, stored, dtype, torch.device(device))
    return model.eval()


def check_folder(folder: Path) -> tuple[Transformer, dict[str, StoredTensor]]:
    """The model that a folder's config.json describes, without memory (torch's meta device), and its tensors.

    Reads headers only. Raises ModelError for whatever would keep `load_model` from filling the model.
    """
    raw = read_config(folder)
    config = from_hf(raw)
    stored = find_tensors(folder)
    with torch.device("meta"):
        model = Transformer(config)
    if "quantization_config" in raw:
        replace_linears(model, raw["quantization_config"])
    wanted = model.state_dict()
    stored = _without_derived(stored, wanted, config)
    check_names(folder, stored, wanted)
    return model, stored


def read_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves, one by one, as they are stored. ModelError if a file cannot be read."""
    for name, entry in stored.items():
        yield name, _read(entry, name)


def _without_derived(
    stored: dict[str, StoredTensor], wanted: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, StoredTensor]:
    """Drop what follows from other tensors: stored rotary tables, and the copy of a tied head, if it is a copy."""
    stored = {name: entry for name, entry in stored.items() if not _DERIVED.fullmatch(name)}
    if not config.tie_word_embeddings or "lm_head.weight" not in stored or "lm_head.weight" in wanted:
        return stored
    head, embedding = stored.pop("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if embedding is not None and not torch.equal(
        _read(head, "lm_head.weight"), _read(embedding, "model.embed_tokens.weight")
    ):
        raise ModelError(
            f"{head.file}: config.json says tie_word_embeddings, but lm_head.weight differs "
            "from model.embed_tokens.weight. Set tie_word_embeddings to false if the head is to be used."
        )
    return stored


def _read(entry: StoredTensor, name: str) -> Tensor:
    try:
        with safe_open(entry.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise damaged(entry.file, str(error)) from error
    return tensor


def check_names(where: Path, stored: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ModelError that names tensors without a place in the model, places without a tensor, and a wrong shape."""
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        parts = [f"missing: {some(missing)}"] if missing else []
        parts += [f"not in the model: {some(surplus)}"] if surplus else []
        raise ModelError(f"{where}: the weights do not belong to the config; {'; '.join(parts)}.")
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != stored[name].shape:
            raise ModelError(
                f"{stored[name].file}: {name} is {stored[name].shape}, the config asks for {tuple(tensor.shape)}."
            )


def _check_memory(folder: Path, wanted: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    need = sum(t.numel() * (dtype if t.is_floating_point() else t.dtype).itemsize for t in wanted.values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    if need > free:
        raise MachineError(
            f"{folder}: the weights need {need / 2**30:.2f} GiB in {str(dtype).removeprefix('torch.')}, "
            f"{free / 2**30:.2f} GiB are free. Close other programs, load in bfloat16, or take a smaller model."
        )


def _fill(model: Transformer, stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device) -> None:
    by_file: dict[Path, list[str]] = {}
    for name, entry in stored.items():
        by_file.setdefault(entry.file, []).append(name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                model.load_state_dict(
                    {name: _placed(file.get_tensor(name), dtype, device) for name in names}, strict=False, assign=True
                )
        except (SafetensorError, RuntimeError) as error:
            raise damaged(path, str(error)) from error


def _placed(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of its own: a mapped tensor would change under us if the file did."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def save_model(
    model: Transformer, folder: Path, *, like: Path | None = None, dtype: torch.dtype | None = torch.bfloat16
) -> None:
    """Write config.json and the weights (floating-point ones in `dtype`, None as they are) into `folder`.

    `like` is the folder that the model came from: its tokenizer, chat template and generation settings are copied.
    An int8 model stays one: its codes are written as they are, with the quantization_config that says which layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    write_tensors(folder, ((name, _stored_as(tensor, dtype)) for name, tensor in state.items()))
    name = str(dtype or next(iter(state.values())).dtype).removeprefix("torch.")
    raw = to_hf(model.config, name)
    if any(isinstance(module, QuantLinear) for module in model.modules()):
        whole = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raw["quantization_config"] = quantization_config(model) | {"ignore": sorted({"lm_head", *whole})}
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    if like is not None:
        copy_companions(like, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the tokenizer, chat template and generation settings that `source` has."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _stored_as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device="cpu", dtype=wanted).contiguous()


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
