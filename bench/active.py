"""How many labels active learning needs for what a random choice of texts reaches with all of its labels.

    OMP_NUM_THREADS=1 python bench/active.py [--orders random margin] [--seeds 0 1 2] [--json bench/results/active.json]

The texts are descriptions of ICD-10-CM codes and the class is their chapter, 21 of the 22 (the last has two headings);
they come with the package simple-icd-10-cm. Two tasks:

- `codes`: 6,000 codes as they are, of which more than half are injuries and many differ by a word ("left", "initial
  encounter"), like records of a clinic. The 3,000 that are guessed are of headings of which none stands in the pool.
- `headings`: the 1,957 headings of three letters, no two alike, no chapter above a seventh: 1,400 to label, the others
  are guessed. Here there is little to leave out.

Every order but `diversity` begins with 50 texts by chance, as `prepare.annotate` does, and asks again and again with
the labels so far. Each seed draws pool and test anew. `plain-margin` and `plain-entropy` take the highest scores,
however alike.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import simple_icd_10_cm as icd
from sides import keep, machine

from schoolhouse.prepare.annotation.active import (
    Known,
    Order,
    ask_next,
    by_entropy,
    by_margin,
    counted,
    grams,
    learn,
    weighed,
)

SIZES = (50, 100, 200, 300, 400, 500, 600, 700, 850, 1000)
FULL = SIZES[-1]
PLAIN = {"plain-margin": by_margin, "plain-entropy": by_entropy}
CHAPTERS = [str(number) for number in range(1, 22)]


@dataclass(frozen=True)
class Bench:
    """Rows of texts to label and to guess, and the classes of both as numbers."""

    pool: Any
    classes: np.ndarray
    test: Any
    truth: np.ndarray


def codes(rng: random.Random) -> tuple[list[str], list[str]]:
    """A fifth of the headings is held out with all of their codes."""
    headings = [code for code in icd.get_all_codes(False) if icd.is_category(code)]
    rng.shuffle(headings)
    held = set(headings[: len(headings) // 5])
    leaves = [c for c in icd.get_all_codes(False) if icd.is_category_or_subcategory(c) and icd.is_leaf(c)]
    rng.shuffle(leaves)
    known = [c for c in leaves if c[:3] not in held and chapter(c) in CHAPTERS]
    return known[:6000], [c for c in leaves if c[:3] in held and chapter(c) in CHAPTERS][:3000]


def headings(rng: random.Random) -> tuple[list[str], list[str]]:
    found = [c for c in icd.get_all_codes(False) if icd.is_category(c) and chapter(c) in CHAPTERS]
    rng.shuffle(found)
    return found[:1400], found[1400:]


def chapter(code: str) -> str:
    ancestors = icd.get_ancestors(code)
    return ancestors[-1] if ancestors else code


def load(task: Callable[[random.Random], tuple[list[str], list[str]]], seed: int) -> Bench:
    pool, test = task(random.Random(seed))
    rows = weighed(counted(grams(icd.get_description(code)) for code in pool + test))
    classes = np.array([CHAPTERS.index(chapter(code)) for code in pool + test])
    n = len(pool)
    return Bench(rows[:n], classes[:n], rows[n:], classes[n:])


def curve(bench: Bench, order: str, seed: int) -> list[dict[str, float]]:
    """Accuracy, and the mean of the chapters' recalls, after so many labels."""
    asked = np.zeros(0, dtype=int)
    points = []
    for step, size in enumerate(SIZES):
        if size > FULL * 0.7 and order != "random":
            break
        left = np.setdiff1d(np.arange(len(bench.classes)), asked)
        known = taught(bench, asked)
        if order in PLAIN and known.teaches:
            scores = PLAIN[order](learn(known).guess(bench.pool[left]), True)
            chosen = np.argsort(-scores, kind="stable")[: size - len(asked)]
        else:
            name: Any = "margin" if order in PLAIN else order
            chosen = np.array(
                [p.place for p in ask_next(name, bench.pool[left], known, size - len(asked), 1000 * seed + step)]
            )
        asked = np.concatenate([asked, left[chosen]])
        guesses = learn(taught(bench, asked)).guess(bench.test).argmax(axis=1)
        recalls = [(guesses[bench.truth == k] == k).mean() for k in np.unique(bench.truth)]
        accuracy = float((guesses == bench.truth).mean())
        points.append(
            {"labels": size, "accuracy": round(accuracy, 4), "mean_recall": round(float(np.mean(recalls)), 4)}
        )
    return points


def taught(bench: Bench, asked: np.ndarray) -> Known:
    return Known(bench.pool[asked], np.eye(len(CHAPTERS))[bench.classes[asked]], CHAPTERS)


def first(points: list[dict[str, float]], what: str, goal: float) -> float | None:
    """The fewest labels from which the goal is met."""
    return next((p["labels"] for p in points if p[what] >= goal), None)


def compare(curves: dict[str, list[list[dict[str, float]]]]) -> dict[str, Any]:
    """What each order needs for what chance has in the end with the same pool and test."""
    found: dict[str, Any] = {}
    for order, runs in curves.items():
        if order == "random":
            continue
        found[order] = {
            f"labels_for_{what}_of_random_with_{FULL}": [
                first(run, what, base[-1][what]) for run, base in zip(runs, curves["random"], strict=True)
            ]
            for what in ("accuracy", "mean_recall")
        } | {"mean_accuracy_with_half": mean(runs, FULL // 2)}  # fmt: skip
    found["random"] = {f"mean_accuracy_with_{n}": mean(curves["random"], n) for n in (FULL // 2, FULL)}
    return found


def mean(runs: list[list[dict[str, float]]], labels: int) -> float:
    return round(statistics.mean(p["accuracy"] for run in runs for p in run if p["labels"] == labels), 4)


def main() -> None:
    orders = (*get_args(Order), *PLAIN)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", nargs="+", choices=orders, default=["random", "margin"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    asked = list(dict.fromkeys(["random", *args.orders]))
    result: dict[str, Any] = {
        "command": f"OMP_NUM_THREADS=1 python bench/active.py --orders {' '.join(asked)} --seeds "
        f"{' '.join(map(str, args.seeds))}",
        "machine": machine(), "simple-icd-10-cm": version("simple-icd-10-cm"), "seeds": args.seeds, "tasks": {},
    }  # fmt: skip
    for task in (codes, headings):
        benches = {seed: load(task, seed) for seed in args.seeds}
        one = benches[args.seeds[0]]
        curves: dict[str, list[list[dict[str, float]]]] = {}
        for order in asked:
            curves[order] = [curve(bench, order, seed) for seed, bench in benches.items()]
            print(f"{task.__name__}, {order}: done", flush=True)
        largest = Counter(one.truth.tolist()).most_common(1)[0][1] / len(one.truth)
        result["tasks"][task.__name__] = {
            "pool": len(one.classes), "test": len(one.truth), "classes": len(CHAPTERS),
            "largest_class_of_the_test": round(largest, 4), "compared": compare(curves), "curves": curves,
        }  # fmt: skip
    keep(result, args.json)


if __name__ == "__main__":
    main()
