"""Programs beside each other: each a process of its own that stays and answers questions, and they take turns.

What the benches share. It imports neither torch nor schoolhouse: another program's interpreter reads it, too.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class Side:
    """A process that answers when it is asked; `versions` is what it says of itself."""

    def __init__(self, interpreter: str, script: str, *words: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [interpreter, script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.versions = self._answer()

    def _answer(self) -> Answer:
        """The next line that is an answer: libraries print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: Answer = json.loads(line)
                return answer
        raise SystemExit(f"a side ended with {self._process.wait()}")

    def ask(self, **question: object) -> Answer:
        """Ask, and wait for the answer."""
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Let it go."""
        with self._process:  # closes both pipes, and waits
            pass


def serve(answer: Callable[..., Answer], **versions: str) -> None:
    """A side's own half: answer each question until there are no more."""
    print(json.dumps({"python": platform.python_version()} | versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


@contextmanager
def sides_of(made: dict[str, Callable[[], Side]]) -> Iterator[dict[str, Side]]:
    """The sides by name; they end when they are not needed any more."""
    sides: dict[str, Side] = {}
    try:
        for name, make in made.items():
            sides[name] = make()
        yield sides
    finally:
        for side in sides.values():
            side.end()


def turns(sides: dict[str, Side], rounds: int, **question: object) -> dict[str, list[Answer]]:
    """Each side's answers, one a round, each side asked in turn; a round before the first warms up."""
    answers: dict[str, list[Answer]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            answer = side.ask(**question, number=number)
            if number:
                answers[name].append(answer)
    return answers


def over(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How much more ours is than theirs, round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def prompts(texts: int, tokens: int, number: int = 0, words: int = 40_000) -> list[list[int]]:
    """The same random ids for every side, new ones for each number."""
    rng = random.Random(f"{texts} {tokens} {number}")
    return [[rng.randrange(1_000, words) for _ in range(tokens)] for _ in range(texts)]


def clock(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    made = act()
    return time.perf_counter() - started, made


def machine() -> dict[str, object]:
    """Processor and cores."""
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}


def processor() -> str:
    """As the system names it."""
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text().splitlines() if listed.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Print what was found, and store it where that is asked for."""
    text = json.dumps(result, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n")
