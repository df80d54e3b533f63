"""GGUF in: a file becomes a checkpoint in Hugging Face's layout, or a model in memory.

Source: row order of q and k, the halves of kv_b, norms plus one: llama.cpp's converter (ggml-org/llama.cpp:
conversion/llama.py, deepseek.py, gemma.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.families import from_hf, names_of, to_hf
from schoolhouse.model.gguf import GgufFile, read_gguf
from schoolhouse.model.gguf_meta import ROPE_DIVISORS, hf_config
from schoolhouse.model.gguf_names import ANY, ARCHITECTURES, Architecture
from schoolhouse.model.names import LLAMA
from schoolhouse.model.stored import StoredTensor
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import check_names, held_type, stored_shapes, write_tensors

_K_HALF, _V_HALF = ".attn_k_b.", ".attn_v_b."


def hf_tensors(file: GgufFile, dtype: torch.dtype = torch.bfloat16) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors one by one by their checkpoint's keys, in `dtype`. ModelError names one without a place."""
    config = from_hf(hf_config(file))
    row = ARCHITECTURES[config.model_type]
    for name in file.tensors:
        if name == ROPE_DIVISORS or _V_HALF in name:  # became rope_scaling in the config; comes with its other half
            continue
        key = row.key(name)
        if key is None:
            raise _no_place(file, name)
        tensor = _checkpoints_own(file, name, row, config)
        pieces = [tensor] if ANY not in key else list(tensor)
        for number, piece in enumerate(pieces):
            one = key.replace(ANY, str(number))
            yield one, piece.to(held_type(one, piece, dtype)).contiguous()


def _no_place(file: GgufFile, name: str) -> ModelError:
    return ModelError(f"{file.path}: tensor {name!r} has no place in a {file.architecture} model.")


def _checkpoints_own(file: GgufFile, name: str, row: Architecture, config: ModelConfig) -> Tensor:
    """One tensor in the order of rows that a checkpoint has it in."""
    tensor = file.load(name)
    if _K_HALF in name:
        if name.replace(_K_HALF, _V_HALF) not in file.tensors:
            raise ModelError(f"{file.path}: {name} has no {_V_HALF.strip('.')} beside it: get the file again.")
        return _joined_kv(tensor, file.load(name.replace(_K_HALF, _V_HALF)))
    if row.permuted and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return unpermuted(tensor, heads)
    return tensor - 1 if row.plus_one and name.endswith("_norm.weight") else tensor


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order of q and k (pairs side by side) to Hugging Face's (halves): rows (heads * Dh, ...)."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _joined_kv(keys: Tensor, values: Tensor) -> Tensor:
    """kv_b, (H * (Dn + Dv), R), from its halves: keys (H, R, Dn), values (H, Dv, R)."""
    return torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)


def _shapes(file: GgufFile, row: Architecture) -> dict[str, StoredTensor]:
    """What the checkpoint's tensors would be, from the header; a name without a place stands for itself."""
    shapes: dict[str, StoredTensor] = {}
    for name, entry in file.tensors.items():
        key, shape = row.key(name), entry.shape
        if name == ROPE_DIVISORS or _V_HALF in name:
            continue
        other = file.tensors.get(name.replace(_K_HALF, _V_HALF))
        if _K_HALF in name and other is not None and len(shape) == len(other.shape) == 3:
            heads, rank, width = shape
            if (other.shape[0], other.shape[2]) == (heads, rank):
                shape = (heads * (width + other.shape[1]), rank)
        stored = StoredTensor(file.path, name, entry.kind.name, shape)
        if key is None or ANY not in key:
            shapes[key or name] = stored
            continue
        each = StoredTensor(file.path, name, entry.kind.name, shape[1:])
        shapes |= {key.replace(ANY, str(number)): each for number in range(shape[0])}
    return shapes


def _check_fit(file: GgufFile, config: ModelConfig) -> None:
    """Every tensor has its place and every place its tensor, before any is unpacked."""
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    check_names(file.path, _shapes(file, ARCHITECTURES[config.model_type]), stored_shapes(names_of(config), state))


def gguf_to_hf(path: Path, folder: Path) -> GgufFile:
    """Write config.json and model.safetensors (bf16) into `folder`; return the header, which holds the vocabulary."""
    file = read_gguf(path)
    config = from_hf(hf_config(file))
    _check_fit(file, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, hf_tensors(file))
    (folder / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    return file


def load_gguf(path: Path) -> Transformer:
    """The model of a GGUF file in fp32 on the CPU, for the families that name their tensors as Llama and DeepSeek do.

    Raises ModelError for a file that does not fit together.
    """
    file = read_gguf(path)
    config = from_hf(hf_config(file))
    assert names_of(config) is LLAMA, "only what can be exported is read straight into memory"
    _check_fit(file, config)
    with torch.device("meta"):
        model = Transformer(config)
    for key, tensor in hf_tensors(file, torch.float32):
        model.load_state_dict({key: tensor}, strict=False, assign=True)
    return model.eval()
