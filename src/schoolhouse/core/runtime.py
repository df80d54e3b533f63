"""The machine as a stage sees it: device, number type and threads."""

import ctypes
import functools
import gc
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.errors import MachineError
from schoolhouse.core.machine import available_memory_bytes, usable_cores


@dataclass(frozen=True)
class Runtime:
    """Where tensors live and in which type they are multiplied."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    @classmethod
    def detect(cls, machine: MachineConfig | None = None) -> "Runtime":
        """Choose device, number type and threads for this machine, and set torch's threads.

        Raises `MachineError` if the recipe asks for a GPU and there is none.
        """
        machine = machine or MachineConfig()
        keep_memory()
        has_gpu = torch.cuda.is_available()
        if machine.device == "cuda" and not has_gpu:
            raise MachineError(
                "the recipe asks for machine.device = 'cuda', but torch sees no GPU; take 'auto' or 'cpu'"
            )
        device = torch.device("cuda" if has_gpu and machine.device != "cpu" else "cpu")
        if machine.dtype == "auto":
            dtype = torch.bfloat16 if _is_bf16_fast(device) else torch.float32
        else:
            dtype = getattr(torch, machine.dtype)
        threads = machine.threads or usable_cores()
        torch.set_num_threads(threads)
        return cls(device, dtype, threads)

    def describe(self) -> dict[str, str | int]:
        """Return the facts that an artifact's manifest keeps."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "torch": str(torch.__version__),
        }


def _is_bf16_fast(device: torch.device) -> bool:
    """True where the hardware multiplies bfloat16 itself; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.cache
def keep_memory() -> bool:
    """Let this process keep the memory that it once had, in large pages where the system offers them.

    Training asks for and frees the same hundreds of megabytes every second. By default glibc hands each large block
    back to the system, which zeroes it anew, page by page: 15% of a training step here, and far more in a virtual
    machine whose host takes freed pages back (`docs/lab-log.md`, 2026-11-22). Returns False, and changes nothing,
    without glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max, arena_max, huge = -1, -2, -4, -8, 14  # malloc.h and sys/mman.h
    # One arena, for the backward pass runs in a thread of its own and would fill a second one.
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20))
    if not all(libc.mallopt(name, value) for name, value in settings):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # A range of addresses, not of memory: nothing of it is used before something is written there.
    page, size = 2 << 20, available_memory_bytes() // 2
    start = libc.malloc(size)
    libc.malloc(4 << 20)  # stays, above the range: a free range at the end of the heap would be given back
    if start:
        first = -(-start // page) * page
        libc.madvise(first, (size - page) // page * page, huge)
        libc.free(start)
    return True


def release_memory() -> None:
    """Give back what `keep_memory` kept and nobody uses: the gaps in it, now and then, and all between two stages."""
    gc.collect()
    if keep_memory():
        ctypes.CDLL(None).malloc_trim(0)
