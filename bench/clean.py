"""How many documents a second each step of `prepare.clean` takes, on documents made here, on one thread.

python bench/clean.py [--documents 2000] [--words 300] [--json bench/results/clean.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.run import Run
from schoolhouse.prepare import clean
from schoolhouse.prepare.cleaning.decontaminate import Evaluations
from schoolhouse.prepare.cleaning.duplicates import Before, bytes_of
from schoolhouse.prepare.cleaning.quality import Quality, unfit
from schoolhouse.tasks.load import load_task
from schoolhouse.text.language import share_in
from schoolhouse.text.sourced import Document, Origin, write_documents

SIMILAR = 0.75


def vocabulary(size: int) -> list[str]:
    """Words of a made-up language, the first ones used most."""
    rng = random.Random(0)
    return [
        "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))) for _ in range(size)
    ]


def texts(count: int, length: int) -> list[str]:
    """Sentences by Zipf's law; every tenth document is another with a few words changed."""
    rng, words = random.Random(1), vocabulary(20_000)
    weights = [1 / (rank + 5) for rank in range(len(words))]
    made: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            changed = made[rng.randrange(number)].split(" ")
            changed[rng.randrange(len(changed))] = "changed"
            made.append(" ".join(changed))
            continue
        drawn = rng.choices(words, weights, k=length)
        made.append(". ".join(" ".join(drawn[at : at + 12]).capitalize() for at in range(0, length, 12)) + ".")
    return made


def speed(step: Callable[[str], object], over: Iterable[str]) -> float:
    """Documents a second."""
    count, start = 0, time.perf_counter()
    for text in over:
        step(text)
        count += 1
    return count / (time.perf_counter() - start)


def whole(made: list[str], folder: Path) -> dict[str, float]:
    """The stage from file to files, without languages and evaluation sets."""
    (folder / "in").mkdir()
    origins = [Origin("made", f"line {n}", "00" * 32) for n in range(len(made))]
    documents = (Document(f"d{n}", t, origins[n], person=f"p{n // 3}") for n, t in enumerate(made))
    write_documents(folder / "in", documents)
    given = Artifact("in", folder / "in", {"kind": "bench", "parents": [], "meta": {}, "files": {}})
    (folder / "out").mkdir()
    out = Draft(folder / "out", {})
    start = time.perf_counter()
    config = clean.Config(data="in", similar=SIMILAR)
    clean.run(config, {"in": given}, Run.for_tests(folder / "run"), out)
    return {"documents_per_s": len(made) / (time.perf_counter() - start), "set_aside": out.meta["set_aside"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    made = texts(args.documents, args.words)
    task = load_task("boxes")
    sets = Evaluations(8, 0.7)
    sets.add("boxes", (e.question for level in task.levels for e in task.examples("test", level, 500, 0)))
    sets.find(made[:1])  # sorts, once
    before, equal = Before(SIMILAR), Before(1)
    numbers = iter(range(sys.maxsize))
    steps: dict[str, Callable[[str], object]] = {
        "quality": lambda text: unfit(text, Quality()),
        "language": lambda text: share_in(text, "en"),
        "evaluation sets": lambda text: sets.find([text]),
        "equal texts": lambda text: equal.meet(text, next(numbers)),
        "near duplicates": lambda text: before.meet(text, next(numbers)),
    }
    result: dict[str, object] = {name: round(speed(step, made), 1) for name, step in steps.items()}
    with tempfile.TemporaryDirectory() as folder:
        result["whole"] = whole(made, Path(folder))
    tracemalloc.start()
    again = Before(SIMILAR)
    kept = sum(again.meet(text, n) is None for n, text in enumerate(made))
    held = tracemalloc.get_traced_memory()[0] / kept
    result["bytes_a_kept_document"] = {"measured": round(held), "asked_for": bytes_of(SIMILAR)}
    result |= {"documents": args.documents, "words": args.words, "machine": platform.processor() or platform.machine()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
