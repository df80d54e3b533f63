"""The machine as a stage sees it: device, number type, threads, and random numbers by name."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.errors import MachineError
from schoolhouse.core.machine import usable_cores


@dataclass(frozen=True)
class Runtime:
    """Where tensors live and in which type they are multiplied."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    seed: int = 0

    @classmethod
    def detect(cls, machine: MachineConfig | None = None, seed: int = 0) -> "Runtime":
        """Choose device, number type and threads for this machine, and set torch's threads.

        Raises `MachineError` if the recipe asks for a GPU and there is none.
        """
        machine = machine or MachineConfig()
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
        return cls(device, dtype, threads, seed)

    def generator(self, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a random generator that depends only on the seed and `names`, so that a resumed run repeats it."""
        digest = hashlib.sha256(repr((self.seed, names)).encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

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
