"""The one side door that a stage has: seed, scratch folder, log, runtime, meter, and when to stop."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from schoolhouse.core.config import MachineConfig
from schoolhouse.core.log import Log
from schoolhouse.core.meter import Meter

if TYPE_CHECKING:  # the runtime brings torch; a stage that never computes must not pay for it
    from schoolhouse.core.runtime import Runtime


@dataclass
class Run:
    """What the pipeline hands to a stage.

    `scratch` is kept until the stage's artifact exists: what a stage needs to go on after a kill lies there.
    `limit_s` says how many seconds this stage may use in all, those before a resume included; `None` is no limit.
    `has_share` says whether that is the stage's own share, which it fills and ends with, or what the whole recipe has
    left: a result that this cut short would pass for a whole one.
    """

    stage: str
    seed: int
    scratch: Path
    log: Log
    meter: Meter
    machine: MachineConfig = field(default_factory=MachineConfig)
    limit_s: float | None = None
    has_share: bool = True
    interrupted: threading.Event = field(default_factory=threading.Event)

    @functools.cached_property
    def runtime(self) -> "Runtime":
        """Device, number type and threads; found out at first use, for a stage that never computes needs no torch."""
        from schoolhouse.core.runtime import Runtime

        runtime = Runtime.detect(self.machine)
        if runtime.device.type == "cuda":
            self.meter.count_gpu()
        return runtime

    def seconds_left(self) -> float | None:
        """Return the seconds that this stage may still use, at least 0; `None` without a budget."""
        return None if self.limit_s is None else max(0.0, self.limit_s - self.meter.seconds)

    def should_stop(self) -> str | None:
        """Return `"interrupted"` after Ctrl-C or SIGTERM, `"budget"` when the stage's time is spent, else `None`."""
        if self.interrupted.is_set():
            return "interrupted"
        return "budget" if self.seconds_left() == 0 else None

    @classmethod
    def for_tests(cls, tmp_path: Path, seed: int = 0) -> "Run":
        """Make a run in a temporary folder with one thread on the CPU, for the test of a single stage."""
        scratch = tmp_path / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        log = Log("test", tmp_path / "log.jsonl")
        machine = MachineConfig(device="cpu", threads=1)
        return cls("test", seed, scratch, log, Meter(machine, scratch / "meter.json"), machine)


@contextlib.contextmanager
def stop_on_signals(interrupted: threading.Event) -> Iterator[None]:
    """While the block runs, the first Ctrl-C or SIGTERM sets `interrupted`; a second one ends the process at once.

    Nothing is lost by a second one: every stage may be killed at any instruction.
    """

    def ask_to_stop(number: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        # A handler may interrupt a half-finished print, so it writes past the buffers instead of logging.
        os.write(2, b"\nstopping after this step; what was done is being saved (once more to stop at once)\n")

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
