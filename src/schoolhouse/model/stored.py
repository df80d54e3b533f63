"""What lies in a checkpoint folder, told from the files' content before a weight is read.

A pickle is known whatever its name; a safetensors file is checked against its own header, so that a cut or damaged one
is found at once. Knows no torch.

Source: the safetensors format (huggingface/safetensors: README); the opcodes of pickle (Python: Lib/pickletools.py).
"""

from __future__ import annotations

import json
import math
import pickletools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import ModelError

INDEX = "model.safetensors.index.json"
"""The file that says which shard holds which tensor."""

_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_OLD_PICKLE_BYTES = 1 << 20
_PICKLE_NAMES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8}
_ITEM_BITS |= {"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}


@dataclass(frozen=True)
class StoredTensor:
    """One line of a safetensors header: which file, under which name, which type (`BF16`, ...), which shape.

    scale: the tensor that this one, in fp8, is multiplied by (`model/fp8.py`).
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: StoredTensor | None = None


def pickled_as(path: Path) -> str | None:
    """What kind of pickle (or archive of one) the file's content is, or None. The file's name is not looked at."""
    with path.open("rb") as file:
        start = file.read(16)
        if start[:4] == b"PK\x03\x04":
            return "a zip archive, as torch.save writes it"
        # A safetensors file begins with its header's length, whose low bytes may be those of a pickle by chance.
        if start[4:9] == b"\0\0\0\0{":
            return None
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            return f"a pickle of protocol {start[1]}"
        file.seek(0)
        return "a pickle of protocol 0 or 1" if _is_old_pickle(file.read(_OLD_PICKLE_BYTES)) else None


def _is_old_pickle(content: bytes) -> bool:
    """Old pickles bear no mark: the content is one if it reads as opcodes to its end and names code to run."""
    names = set()
    try:
        for opcode, _, _ in pickletools.genops(content):  # takes the stream apart without running it
            names.add(opcode.name)
    except Exception:  # whatever a parser of arbitrary bytes stumbles over, it is no pickle then
        return False
    return bool(names & {"GLOBAL", "INST", "REDUCE"})


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file declares, checked against the file's length; no weights are read.

    Raises ModelError for a pickle under whatever name, a cut or a damaged file.
    """
    kind = pickled_as(path)
    if kind is not None:
        raise ModelError(
            f"{path}: refused, the file is {kind}. Loading such a file can run any program: take safetensors."
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise damaged(path, f"its header claims {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [_check_entry(path, name, entry) for name, entry in entries.items()]
        stored = {name: StoredTensor(path, name, one["dtype"], tuple(one["shape"])) for name, one in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        if isinstance(error, ModelError):
            raise
        raise damaged(path, "its header is no list of tensors") from error
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise damaged(path, f"it has {size:,} bytes, its header describes {wanted:,}")
    return stored


def _check_entry(path: Path, name: str, entry: Mapping[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    bits = _ITEM_BITS.get(entry["dtype"])
    if bits is None:
        raise ModelError(f"{path}: tensor {name} has type {entry['dtype']}, which is not read here.")
    if (end - begin) * 8 != math.prod(entry["shape"]) * bits or begin < 0:
        raise damaged(path, f"tensor {name} of shape {entry['shape']} does not fill its {end - begin:,} bytes")
    return int(end)


def damaged(path: Path, what: str) -> ModelError:
    """The error for a file whose content does not hold together."""
    return ModelError(f"{path}: cut short or damaged: {what}. Fetch it again and compare its SHA-256.")


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name, from the headers of its one file or its shards."""
    index = folder / INDEX
    if index.is_file():
        return _indexed(index)
    path = folder / "model.safetensors"
    if path.is_file():
        return read_header(path)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_NAMES)
    if pickles:
        raise ModelError(
            f"{folder}: refused, its weights are in {pickles[0]}, a pickle, which can run any program when loaded. "
            "Take the model's safetensors."
        )
    raise ModelError(f"{folder}: there is neither model.safetensors nor {INDEX} in it.")


def _indexed(index: Path) -> dict[str, StoredTensor]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of shards ({error}).") from error
    stored: dict[str, StoredTensor] = {}
    for name in files:
        if Path(name).name != name:
            raise ModelError(f"{index}: names the shard {name!r}, which lies outside of the folder: refused.")
        path = index.parent / name
        if not path.is_file():
            raise ModelError(f"{index.parent}: the shard {name} is missing; fetch it too.")
        stored |= read_header(path)
    astray = sorted(set(stored) ^ set(names))
    if astray:
        raise ModelError(f"{index}: index and shards disagree about {some(astray)}.")
    return stored


def some(names: list[str]) -> str:
    """The first few of a list of names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
