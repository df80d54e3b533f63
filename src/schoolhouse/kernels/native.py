"""The C++ beside this folder's plain torch: compiled once where a compiler is, kept by its content, loaded by ctypes.

Every function there has a twin here that runs wherever torch does. They share torch's threads: both ask for the same
OpenMP library, which a process loads once. Nothing is compiled for a processor that could not use it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from schoolhouse.core.errors import MachineError
from schoolhouse.core.runtime import Runtime

SOURCES = sorted((Path(__file__).parent / "cpp").iterdir())
LEVEL = "SCHOOLHOUSE_KERNELS"
"""The environment variable that says how far the processor may be used: "plain" torch, "avx2", "avx512" or "amx"."""

_ARGUMENTS = {
    "choose_as": "l",
    "pack_weight": "plllp",
    "pack_codes": "pllllp",
    "linear": "plppllpllllp",
    "decode_layers": "plppppplllllllffp",
    "read_layers": "plpppplpllllllllffpl",
    "decode_latent": "ppppppllfffp",
    "head_products": "pllppllllllp",
    "look_latent": "ppllpplllllf",
    "choose_rows": "pppppll",
    "mix_packed": "ppppppllp",
    "attend_one": "pplllplllppplllllff",
    "attend_one_codes": "ppppppppppllllllff",
    "weigh_words": "plppppll",
    "attend_texts": "pllpllpllplpplllllf",
    "attend_texts_back": "pllpllpllpllplppppplllllf",
    "turned_product": "plplplllll",
    "rms_norm": "plpplpllff",
    "rms_norm_back": "plplpppplppllf",
    "router": "pppppppll",
    "router_back": "ppppppppppll",
    "rows_by_expert": "plplpp",
    "experts_forward": "ppllllppp",
    "experts_backward": "pppllllppppppppl",
    "sum_rows": "ppppplll",
    "spread_rows": "ppppppll",
    "gated": "pppl",
    "gated_back": "pppppl",
    "spread_keys": "pplpplllll",
    "spread_keys_back": "pppplllll",
    "turn": "pllpppllllllll",
    "token_logprobs": "pppppll",
    "token_slopes": "ppppllf",
    "squares": "plp",
    "adamw": "plfffffff",
}
"""What each function takes: pointers (p), whole numbers (l), fractions (f)."""

_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float}
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC")
_LEVELS = ("plain", "avx2", "avx512", "amx")
_NEEDED = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"},
    "amx": {"amx_tile", "amx_bf16", "amx_int8"},
}
"""What a processor has to have for a level, beside what the levels below it need."""
_HALVED = ("-DBY_AVX2", "-mavx2", "-mfma")
"""Flags of a library whose sixteen numbers are two registers of eight."""
_LONGEST_S = 300


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where plain torch has to do; `status` says why."""
    return _load()[0]


@functools.cache
def has_tiles() -> bool:
    """True if the kernels run here and may use AMX's tiles."""
    return _load()[2]


def status() -> str:
    """Which kernels this process uses, and if plain ones, why."""
    return _load()[1]


def fits(*tensors: Tensor) -> bool:
    """True if the kernels run here and these tensors are for them: bf16 on the CPU."""
    return library() is not None and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in tensors)


def keeps_gradient(*tensors: Tensor) -> bool:
    """True if what is made of these tensors has a way back to one of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def takes(*tensors: Tensor) -> bool:
    """True if the kernels run here and take these tensors: bf16 on the CPU, of which no gradient is kept."""
    return fits(*tensors) and not keeps_gradient(*tensors)


def dtype_for_one_text(runtime: Runtime) -> torch.dtype:
    """The number type in which a reply comes soonest, if few others are made at once.

    Where the kernels run it is bf16, even on a processor that has no bf16 of its own and trains in fp32 for that; many
    replies at once come sooner in fp32 there (docs/lab-log.md, 2026-11-24).
    """
    return torch.bfloat16 if runtime.device.type == "cpu" and library() is not None else runtime.dtype


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str, bool]:
    asked = os.environ.get(LEVEL) or _LEVELS[-1]
    if asked not in _LEVELS:
        raise MachineError(f"{LEVEL} is {asked!r}: set it to one of {', '.join(_LEVELS)}, or leave it out.")
    if asked == "plain":
        return None, f"plain torch, as {LEVEL} asks", False
    flags = _flags_of_processor()
    level = level_for(flags, asked)
    if level == "plain":
        missing = ", ".join(sorted(_NEEDED["avx2"] - flags))
        return None, f"plain torch, for this processor has no {missing}", False
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        return None, "plain torch, for there is no C++ compiler (Debian: apt-get install g++)", False
    try:
        opened = _opened(_compiled(compiler, _HALVED if level == "avx2" else ()))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return None, f"plain torch, for the kernels could not be compiled: {told.strip().splitlines()[-1][:300]}", False
    tiles = opened.allow_tiles(level == "amx") == 1
    named = "avx2" if level == "avx2" else f"avx512_bf16{' and amx_bf16' if tiles else ''}"
    return opened, f"C++, {named}", tiles


def level_for(flags: Set[str], asked: str) -> str:
    """The highest level that a processor with these flags has and that is not above the one asked for."""
    for place, level in enumerate(_LEVELS[1:], start=1):
        if not flags >= _NEEDED[level] or place > _LEVELS.index(asked):
            return _LEVELS[place - 1]
    return asked


def _opened(path: Path) -> ctypes.CDLL:
    """The library, each function told what it takes: numbers pass as they are then, which is faster than wrapping."""
    opened = ctypes.CDLL(str(path))
    for name, letters in _ARGUMENTS.items():
        function = getattr(opened, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    opened.allow_tiles.argtypes, opened.allow_tiles.restype = [ctypes.c_long], ctypes.c_long
    return opened


def _flags_of_processor() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _compiled(compiler: str, more: tuple[str, ...]) -> Path:
    """The library of these sources, this compiler and these flags; made now if it is not there."""
    flags = (*_FLAGS, *more)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=_LONGEST_S)
    content = b"".join(path.read_bytes() for path in SOURCES) + version.stdout.encode() + " ".join(flags).encode()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse"
    made = folder / f"kernels-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not made.exists():
        if sys.stderr.isatty():
            sys.stderr.write("Kernels are being compiled for this processor, once: half a minute or less.\n")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor(os.cpu_count()) as at_once:
            parts = [Path(scratch) / f"{path.stem}.o" for path in SOURCES if path.suffix == ".cpp"]
            sources = (path for path in SOURCES if path.suffix == ".cpp")
            commands = (
                [compiler, *flags, "-c", str(path), "-o", str(part)] for path, part in zip(sources, parts, strict=True)
            )
            list(at_once.map(_called, commands))
            fresh = Path(scratch) / made.name
            _called([compiler, *flags, "-shared", *map(str, parts), "-o", str(fresh)])
            fresh.replace(made)
    return made


def _called(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST_S)
