"""What a person sees while a stage runs, and the same as JSON lines for whoever reads it later."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

_QUIET_S = 30.0
_FILE_WIDTH = 120


class Log:
    """Results go to stdout, everything else to stderr; every event is also a JSON line in `file`.

    Colours appear only on a terminal and never where NO_COLOR is set.
    """

    def __init__(
        self, stage: str = "", file: Path | None = None, *, err: TextIO | None = None, out: TextIO | None = None
    ) -> None:
        self.stage = stage
        self.seconds_left: Callable[[], float | None] = lambda: None
        self._err = Console(file=err or sys.stderr, highlight=False, soft_wrap=True)
        self._out = Console(file=out or sys.stdout, highlight=False)
        if not self._out.is_terminal:
            self._out.width = max(self._out.width, _FILE_WIDTH)  # nobody's window is that of a file
        self._file = file
        self._first: tuple[float, float] | None = None  # (when, done) of the first step that this process saw
        self._lock = threading.RLock()
        self._last = time.monotonic()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)

    def result(self, what: Any) -> None:
        """Print a result (text or a rich table) to stdout."""
        self._last = time.monotonic()
        if isinstance(what, str):
            self._out.print(what, markup=False, soft_wrap=True)
        else:
            self._out.print(what)

    @property
    def width(self) -> int:
        """Columns that a table may take."""
        return self._out.width

    def info(self, text: str) -> None:
        """Say something that is good to know."""
        self._say(text, "", "info")

    def warn(self, text: str) -> None:
        """Say something that should be looked at."""
        self._say(text, "yellow", "warning")

    def step(self, done: float, total: float | None = None, **figures: float | int | str | None) -> None:
        """Print one line for a finished step: stage, step, figures, tokens a second, time that is left.

        `total` is the number of steps if it is known; otherwise the time that is left comes from the budget. `tok_s`
        is shown as `tok/s`, the others under their own names; a figure that is `None` is left out.
        """
        now = time.monotonic()
        eta = self._eta(now, done, total)
        speed = figures.pop("tok_s", None)
        place = f"{done:>5g}" + (f"/{total:<5g}" if total is not None else " " * 6)
        line = Text(f"{self.stage:<12.24} ", style="bold cyan")
        line.append(place + " ", style="bold")
        for name, value in figures.items():
            if value is not None:
                line.append(f" {name} ", style="dim")
                line.append(f"{_short(value):>6}", style="default")
        if speed is not None:
            line.append(f" {_short(speed):>6}", style="default")
            line.append(" tok/s", style="dim")
        if eta is not None:
            line.append("  ETA ", style="dim")
            line.append(clock(eta), style="default")
        self._print(line)
        shown = figures | {"tok_s": speed, "eta_s": None if eta is None else round(eta, 1)}
        self._write("step", done=done, total=total, **{k: v for k, v in shown.items() if v is not None})

    @contextlib.contextmanager
    def heartbeat(self, what_now: Callable[[], str], every_s: float = _QUIET_S) -> Iterator[None]:
        """While the block runs, say what is going on whenever nothing was printed for `every_s` seconds."""
        ended = threading.Event()
        started = time.monotonic()

        def beat() -> None:
            while not ended.wait(min(1.0, every_s)):
                if time.monotonic() - self._last >= every_s:
                    doing = what_now()
                    self.info(
                        f"still at work{f' on {doing}' if doing else ''}, {clock(time.monotonic() - started)} so far"
                    )

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _eta(self, now: float, done: float, total: float | None) -> float | None:
        left = self.seconds_left()
        if self._first is None or done < self._first[1]:
            self._first = (now, done)
        elif total is not None and done > self._first[1]:
            rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
            by_steps = (total - done) / rate
            return by_steps if left is None else min(by_steps, left)
        return left

    def _say(self, text: str, style: str, level: str) -> None:
        line = Text(f"{self.stage:<12.24} ", style="bold cyan") if self.stage else Text()
        line.append(f"warning: {text}" if level == "warning" else text, style=style or "default")
        self._print(line)
        self._write(level, text=text)

    def _print(self, line: Text) -> None:
        with self._lock:
            self._last = time.monotonic()
            self._err.print(line)

    def _write(self, event: str, **facts: Any) -> None:
        if self._file is not None:
            row = {"time": round(time.time(), 3), "event": event, "stage": self.stage} | facts
            with self._lock, self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def clock(seconds: float) -> str:
    """Write seconds as `47 s`, `3 m 20 s` or `1 h 05 m`."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def _short(value: float | int | str) -> str:
    """Write a figure in at most about six characters."""
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
