"""What a stage used: seconds, tokens, operations, memory, energy, money; and how each figure was got."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from schoolhouse.core.config import MachineConfig

DEFAULT_WATTS_PER_CORE = 10.0
DEFAULT_PRICE_PER_KWH = 0.30
_RAPL = Path("/sys/class/powercap")
_SAVE_EVERY_S = 2.0


class Meter:
    """Counts what one stage uses.

    With `state_path` the count survives a kill, so that a resumed stage counts both halves.
    """

    def __init__(self, machine: MachineConfig | None = None, state_path: Path | None = None) -> None:
        self._machine = machine or MachineConfig()
        self._state_path = state_path
        self._before = _Totals()  # what earlier processes used on this stage
        self.tokens = 0
        self.flops = 0.0
        self.phases: dict[str, float] = {}
        self.phase_now = ""
        self._counters = _rapl_counters()
        self._is_gpu_unknown = False
        self._started, self._cpu_started = time.monotonic(), _cpu_seconds()
        self._saved_at = self._started
        self._has_own_peak = _reset_peak()
        if state_path is not None and state_path.is_file():
            self._before = _Totals(**json.loads(state_path.read_text()))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds on this stage, those before a resume included."""
        return self._before.seconds + time.monotonic() - self._started

    def count_gpu(self) -> None:
        """Count the energy of the GPUs too, from now on; without an energy counter their energy stays unknown."""
        if not any(counter.what == "gpu" for counter in self._counters):
            self._counters += _nvml_counters()
            self._is_gpu_unknown = not any(counter.what == "gpu" for counter in self._counters)

    def add(self, tokens: int = 0, flops: float = 0) -> None:
        """Count tokens that the model read or wrote, and floating-point operations."""
        self.tokens += tokens
        self.flops += flops
        self._tick()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under `name`; a phase inside a phase counts for both."""
        outer, self.phase_now = self.phase_now, name
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started
            self.phase_now = outer
            self._tick()

    def summary(self) -> dict[str, Any]:
        """Return every figure; `*_source` says whether it was `measured`, `modelled` or `assumed`, and how."""
        now = self._totals()
        energy_wh, energy_source = self._energy(now)
        price = self._machine.price_per_kwh
        currency = self._machine.currency
        stated = f"at {DEFAULT_PRICE_PER_KWH if price is None else price:g} {currency}/kWh"
        return {
            "seconds": round(now.seconds, 3),
            "cpu_seconds": round(now.cpu_seconds, 3),
            "phases_s": {name: round(seconds, 3) for name, seconds in now.phases.items()},
            "tokens": now.tokens,
            "flops": now.flops,
            "flops_source": "modelled: counted from the model's shape",
            "peak_rss_bytes": now.peak_rss_bytes,
            "peak_rss_source": "measured" if self._has_own_peak else "measured: peak of the whole process",
            "energy_wh": round(energy_wh, 6),
            "energy_source": energy_source,
            "cost": round(energy_wh / 1000 * (DEFAULT_PRICE_PER_KWH if price is None else price), 6),
            "currency": currency,
            "cost_source": f"assumed: electricity {stated}" if price is None else f"modelled: electricity {stated}",
        }

    def save(self) -> None:
        """Write the totals to the state file, whole or not at all."""
        if self._state_path is not None:
            part = self._state_path.with_name(self._state_path.name + ".part")
            part.write_text(json.dumps(vars(self._totals())))
            part.replace(self._state_path)
        self._saved_at = time.monotonic()

    def _tick(self) -> None:
        for counter in self._counters:
            counter.read()
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def _totals(self) -> "_Totals":
        for counter in self._counters:
            counter.read()
        before = self._before
        joules = dict(before.joules)
        for counter in self._counters:
            joules[counter.what] = joules.get(counter.what, 0.0) + counter.joules
        phases = dict(before.phases)
        for name, seconds in self.phases.items():
            phases[name] = phases.get(name, 0.0) + seconds
        return _Totals(
            seconds=self.seconds,
            cpu_seconds=before.cpu_seconds + _cpu_seconds() - self._cpu_started,
            tokens=before.tokens + self.tokens,
            flops=before.flops + self.flops,
            peak_rss_bytes=max(before.peak_rss_bytes, _peak_rss_bytes()),
            phases=phases,
            joules=joules,
        )

    def _energy(self, now: "_Totals") -> tuple[float, str]:
        watts = self._machine.watts_per_core
        modelled = now.cpu_seconds * (DEFAULT_WATTS_PER_CORE if watts is None else watts)
        how = (
            f"assumed {DEFAULT_WATTS_PER_CORE:g} W per busy core"
            if watts is None
            else f"{watts:g} W per busy core (recipe)"
        )
        if self._is_gpu_unknown:
            how += "; the GPU, which has no energy counter, is NOT in it"
        gpu, cpu = now.joules.get("gpu"), now.joules.get("cpu")
        if gpu is None and cpu is None:
            return modelled / 3600, f"modelled: {how}"
        if gpu is None:
            return (cpu or 0.0) / 3600, "measured: RAPL, whole processor package"
        if cpu is None:
            return (gpu + modelled) / 3600, f"measured: NVML for the GPU; modelled for the CPU: {how}"
        return (gpu + cpu) / 3600, "measured: NVML for the GPU, RAPL for the whole processor package"


@dataclass
class _Totals:
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_rss_bytes: int = 0
    phases: dict[str, float] = None  # type: ignore[assignment]
    joules: dict[str, float] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.phases = dict(self.phases or {})
        self.joules = dict(self.joules or {})


class _Counter:
    """An energy counter that only grows, but may wrap around at `wrap` joules."""

    def __init__(self, what: str, read_joules: Callable[[], float], wrap: float = 0.0) -> None:
        self.what = what
        self.joules = 0.0
        self._read_joules, self._wrap = read_joules, wrap
        self._last = read_joules()

    def read(self) -> None:
        """Add what was used since the last reading."""
        now = self._read_joules()
        step = now - self._last
        self.joules += step if step >= 0 else step + self._wrap
        self._last = now


def _rapl_counters() -> list[_Counter]:
    counters = []
    for package in sorted(_RAPL.glob("intel-rapl:[0-9]")):
        with contextlib.suppress(OSError, ValueError):  # readable by root only on most systems
            wrap = int((package / "max_energy_range_uj").read_text()) / 1e6
            path = package / "energy_uj"
            counters.append(_Counter("cpu", lambda path=path: int(path.read_text()) / 1e6, wrap))  # type: ignore[misc]
    return counters


def _nvml_counters() -> list[_Counter]:
    import pynvml  # loads a driver library: only where a GPU is used

    counters = []
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            counters.append(
                _Counter("gpu", lambda h=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3)  # type: ignore[misc]
            )
    except pynvml.NVMLError:
        return []  # an old card has no energy counter: the figure then covers the CPU, and says so
    return counters


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> bool:
    """Start the kernel's memory high-water mark anew; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)
