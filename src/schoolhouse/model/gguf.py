"""Reading GGUF files (llama.cpp's format) and turning them into Hugging Face checkpoints.

The header is read by `struct` straight from the mapped file: the `gguf` package's own reader makes one numpy view for
every vocabulary entry and needs ten seconds for what takes a few hundredths here. The package still unpacks the blocks.

Source: the GGUF specification, version 3 (ggml-org/ggml: docs/gguf.md); row order of q and k: `LlamaModel.permute` of
llama.cpp's converter.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from schoolhouse.core.errors import ModelError
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.families import from_hf, to_hf
from schoolhouse.model.stored import StoredTensor
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import check_names, write_tensors

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_ITEMS = 1 << 28  # entries of one array, tensors, keys: more than any real file holds
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# GGUF's name of an architecture -> (Hugging Face's model_type and class, whether q and k rows are permuted)
_FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM", True),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", False),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", False),
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Frequency divisors are stored as a tensor, Hugging Face stores the rule. Only rules that are in use are looked for.
_ROPE_RULES = [
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
]


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


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The Hugging Face config.json that the file's metadata amounts to. ModelError names a missing or unknown entry."""
    if file.architecture not in _FAMILIES:
        raise ModelError(
            f"{file.path}: architecture {file.architecture!r} is not known; known are {', '.join(sorted(_FAMILIES))}."
        )
    model_type, class_name, _ = _FAMILIES[file.architecture]
    heads = _whole(file, "attention.head_count")
    hidden = _whole(file, "embedding_length")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: the tensor token_embd.weight is missing.")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _whole(file, "feed_forward_length"),
        "num_hidden_layers": _whole(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(file, "attention.head_count_kv", heads),
        "head_dim": _whole(file, "attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "rms_norm_eps": _fraction(file, "attention.layer_norm_rms_epsilon", None),
        "rope_theta": _fraction(file, "rope.freq_base", 10000.0),
        "max_position_embeddings": _whole(file, "context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.meta.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    scaling = _rope_scaling(file, config["head_dim"], config["rope_theta"])
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _get(file: GgufFile, key: str, default: Any) -> Any:
    return file.meta.get(f"{file.architecture}.{key}", default)


def _whole(file: GgufFile, key: str, default: int | None = None) -> int:
    value = _get(file, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{file.path}: {file.architecture}.{key} is {value!r}: a whole number above 0 is needed.")
    return value


def _fraction(file: GgufFile, key: str, default: float | None) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    value = _get(file, key, default)
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise ModelError(f"{file.path}: {file.architecture}.{key} is {value!r}: a number above 0 is needed.")
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    kind = _get(file, "rope.scaling.type", "none")
    if kind != "none":
        raise ModelError(f"{file.path}: rope scaling {kind!r} is not read from GGUF. Take the safetensors checkpoint.")
    if "rope_freqs.weight" not in file.tensors:
        return None
    divisors = file.load("rope_freqs.weight")
    for rule in _ROPE_RULES:
        if torch.allclose(divisors, _llama3_divisors(rule, head_dim, theta), rtol=1e-4):
            return dict(rule)
    raise ModelError(
        f"{file.path}: rope_freqs.weight follows none of the known scaling rules. Take the safetensors checkpoint."
    )


def _llama3_divisors(rule: dict[str, Any], head_dim: int, theta: float) -> torch.Tensor:
    """What Llama 3.1 divides each rotary frequency by, shape (head_dim / 2,).

    Source: `LlamaModel.generate_extra_tensors` of llama.cpp's converter.
    """
    wavelength = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    low, high = float(rule["low_freq_factor"]), float(rule["high_freq_factor"])
    factor, context = float(rule["factor"]), float(rule["original_max_position_embeddings"])
    smooth = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def hf_name(name: str) -> str | None:
    """The checkpoint key of a GGUF tensor name, or None for one that is not a dense decoder's."""
    stem, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return None
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{last}"
    head, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if head == "blk" and layer.isdecimal() and part in _INNER:
        return f"model.layers.{int(layer)}.{_INNER[part]}.{last}"
    return None


def _unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order of q and k (pairs side by side) to Hugging Face's (halves): rows (heads * Dh, ...)."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hf_tensors(file: GgufFile, dtype: torch.dtype = torch.bfloat16) -> Iterator[tuple[str, torch.Tensor]]:
    """The file's tensors one by one by their Hugging Face names, in `dtype`. ModelError names one without a place."""
    config = hf_config(file)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    permuted = _FAMILIES[file.architecture][2]
    for name in file.tensors:
        if name == "rope_freqs.weight":  # became rope_scaling in the config
            continue
        key = hf_name(name)
        if key is None:
            raise ModelError(f"{file.path}: tensor {name!r} has no place in a {file.architecture} model.")
        tensor = file.load(name)
        count = heads.get(key.split(".")[-2])
        if permuted and count is not None:
            tensor = _unpermuted(tensor, count)
        yield key, tensor.to(dtype).contiguous()


def _check_fit(file: GgufFile, config: ModelConfig) -> None:
    """Every tensor has its place and every place its tensor, before any is unpacked."""
    names = {name: hf_name(name) for name in file.tensors if name != "rope_freqs.weight"}
    stored = {
        key or name: StoredTensor(file.path, file.tensors[name].kind.name, file.tensors[name].shape)
        for name, key in names.items()
    }
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    check_names(file.path, stored, wanted)


def gguf_to_hf(path: Path, folder: Path) -> GgufFile:
    """Write config.json and model.safetensors (bf16) into `folder`; return the header, which holds the vocabulary."""
    file = read_gguf(path)
    config = from_hf(hf_config(file))
    _check_fit(file, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, hf_tensors(file))
    (folder / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    return file
