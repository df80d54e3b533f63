"""The file format GGUF (llama.cpp's): what a file's header says, and its tensors unpacked.

The header is read by `struct` straight from the mapped file: the `gguf` package's own reader makes one numpy view for
every vocabulary entry and needs ten seconds for what takes a few hundredths here. The package still unpacks the blocks.

What the entries mean for a model is said in `model/gguf_names.py` and `model/gguf_meta.py`.

Source: the GGUF specification, version 3 (ggml-org/ggml: docs/gguf.md).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from schoolhouse.core.errors import ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_ITEMS = 1 << 28  # entries of one array, tensors, keys: more than any real file holds
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in the file: shape in torch's order (rows first), block type, byte range."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: metadata by key, tensors by name; the tensors' bytes stay on disk until `load`."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """GGUF's name for the model's family, such as `llama`."""
        return str(self.meta.get("general.architecture", "?"))

    def load(self, name: str) -> torch.Tensor:
        """One tensor, unpacked to float32, in torch's shape. ModelError for a block type that cannot be unpacked."""
        entry = self.tensors[name]
        block, size = gguf.GGML_QUANT_SIZES[entry.kind]
        row_bytes = entry.shape[-1] // block * size
        raw = np.memmap(
            self.path, dtype=np.uint8, mode="r", offset=entry.offset, shape=(entry.bytes // row_bytes, row_bytes)
        )
        try:
            values = gguf.quants.dequantize(np.asarray(raw), entry.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {name} is stored as {entry.kind.name}, which cannot be unpacked here. "
                "Take a file of another quantization (Q4_0 to Q8_0, Q4_K, Q6_K, F16, BF16, F32)."
            ) from error
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(entry.shape)


class _Cursor:
    """Reads GGUF's little-endian values one after another; every read is checked against the end of the file."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.at = path, buffer, 0

    def bad(self, what: str) -> ModelError:
        """The error for a header that does not make sense at this place."""
        return ModelError(
            f"{self.path}: {what} at byte {self.at:,} of {len(self.buffer):,}. "
            "The file is cut short or damaged: fetch it again and compare its SHA-256."
        )

    def scalar(self, layout: str) -> Any:
        """One number, by its struct layout."""
        try:
            (value,) = struct.unpack_from(layout, self.buffer, self.at)
        except struct.error:
            raise self.bad("the header ends too early") from None
        self.at += struct.calcsize(layout)
        return value

    def count(self) -> int:
        """A length field; a length that no real file has is an error before memory is asked for."""
        value = int(self.scalar("<Q"))
        if value > _MOST_ITEMS:
            raise self.bad(f"a length of {value:,} in the header")
        return value

    def text(self) -> str:
        """One UTF-8 string."""
        length = self.count()
        if self.at + length > len(self.buffer):
            raise self.bad(f"a text of {length:,} bytes runs over the end")
        try:
            text = self.buffer[self.at : self.at + length].decode()
        except UnicodeDecodeError:
            raise self.bad("a text that is no UTF-8") from None
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        """One metadata value of the given GGUF type number: a number, a text or a list."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.bad(f"unknown value type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        """A list of values of one type; numbers are read in one go."""
        kind, length = self.scalar("<I"), self.count()
        if kind == _ARRAY:
            raise self.bad("a list of lists, which no model has,")
        if kind not in _SCALARS:
            return [self.value(kind) for _ in range(length)]
        item = _SCALARS[kind][1]
        size = struct.calcsize("<" + item) * length
        if self.at + size > len(self.buffer):
            raise self.bad(f"a list of {length:,} numbers runs over the end")
        values = list(struct.unpack_from(f"<{length}{item}", self.buffer, self.at))
        self.at += size
        return values


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file of version 2 or 3. ModelError for anything else, a cut or a damaged file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _read_header(_Cursor(path, buffer))
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file.") from None
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: the file is empty. Fetch it again.") from error  # mmap refuses empty files


def _read_header(cursor: _Cursor) -> GgufFile:
    if cursor.buffer[:4] != MAGIC:
        raise ModelError(f"{cursor.path}: not a GGUF file (it starts with {cursor.buffer[:4]!r}, not {MAGIC!r}).")
    cursor.at = 4
    version = cursor.scalar("<I")
    if version not in _VERSIONS:
        raise ModelError(f"{cursor.path}: GGUF version {version} is not read here, only {_VERSIONS} (little-endian).")
    tensor_count, key_count = cursor.count(), cursor.count()
    meta = {}
    for _ in range(key_count):
        key = cursor.text()
        meta[key] = cursor.value(cursor.scalar("<I"))
    entries = [_read_entry(cursor) for _ in range(tensor_count)]
    alignment = meta.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.bad(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        tensor = _place(cursor, name, shape, kind, start + offset)
        if name in tensors:
            raise cursor.bad(f"tensor {name!r} is listed twice")
        tensors[name] = tensor
    return GgufFile(cursor.path, meta, tensors)


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    dims = cursor.scalar("<I")
    if not 1 <= dims <= 4:
        raise cursor.bad(f"tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.count() for _ in range(dims))
    return name, shape[::-1], cursor.scalar("<I"), cursor.scalar("<Q")  # GGUF writes the fastest dimension first


def _place(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    try:
        block_type = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise ModelError(f"{cursor.path}: tensor {name!r} has the unknown block type {kind}.") from None
    block, size = gguf.GGML_QUANT_SIZES[block_type]
    items = math.prod(shape)
    if items == 0 or shape[-1] % block:
        raise cursor.bad(f"tensor {name!r} of shape {shape} does not fill blocks of {block}")
    length = items // block * size
    if offset + length > len(cursor.buffer):
        raise ModelError(
            f"{cursor.path}: tensor {name!r} should end at byte {offset + length:,}, "
            f"the file has {len(cursor.buffer):,}. It is cut short: fetch it again."
        )
    return GgufTensor(name, shape, block_type, offset, length)
