"""The stored results as one table, and as a picture: how many times as fast as others, on which machine.

    python bench/table.py [--picture docs/speed.png]

Reads `bench/results/*.json` as the benches wrote them, measures nothing. Names that end in `-amx` are of a processor
with AMX's tiles, the others of one without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("results")
AMX = "-amx"


class Row(NamedTuple):
    """One comparison: the work, beside whom, how many times as fast, and on what."""

    work: str
    beside: str
    times: float
    processor: str


def rows() -> list[Row]:
    """All that is there, in the order of the readers below."""
    out = []
    for name, read in READERS.items():
        for path in sorted(RESULTS.glob(f"{name}*.json")):
            if path.stem in (name, name + AMX):
                processor = "AMX" if path.stem.endswith(AMX) else "AVX-512"
                out += [Row(*found, processor) for found in read(json.loads(path.read_text()))]
    return out


def generation(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Of `bench/generation.py`."""
    return [
        (f"generation, {batch['texts']} text{'s' * (batch['texts'] > 1)} at once", other, ratio["median"])
        for batch in result["batches"]
        for other, ratio in batch["ours_over"].items()
    ]


def fine_tuning(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Of `bench/sft.py`."""
    names = {"TRL": "TRL SFTTrainer", "bare loop": "bare loop (transformers)"}
    return [("fine-tuning, 8 x 512 tokens", names[other], times) for other, times in result["times"].items()]


def rl_step(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Of `bench/grpo_step.py`."""
    return [("GRPO step, 8 x 8 x 128 tokens", "TRL GRPOTrainer", result["times_faster"])]


def mixture(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Of `bench/deepseek.py`."""
    works = {"training": "DeepSeek's network, training", "generation": "DeepSeek's network, 64 texts"}
    return [
        (work, other, times)
        for key, work in works.items()
        for other, times in result[key].get("ours_over", {"transformers": result[key]["ratio"]}).items()
    ]


READERS = {"generation": generation, "sft": fine_tuning, "grpo_step": rl_step, "deepseek": mixture}


def draw(found: list[Row], path: Path) -> None:
    """A bar for each row; 1 is as fast as the other."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(found) + 1), layout="constrained")
    colours = {"AMX": "tab:blue", "AVX-512": "tab:orange"}
    for processor, colour in colours.items():
        mine = [(i, row) for i, row in enumerate(found) if row.processor == processor]
        if mine:
            bars = axes.barh([i for i, _ in mine], [row.times for _, row in mine], color=colour, label=processor)
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_yticks(range(len(found)), [f"{row.work}: {row.beside}" for row in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the other, on two cores")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    found = rows()
    for row in found:
        print(f"{row.work:<32} {row.beside:<26} {row.times:5.2f}  {row.processor}")
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
