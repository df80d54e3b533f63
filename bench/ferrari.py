"""Master against apprentices: what an answer of each is worth and costs, as a table and a picture.

    python bench/ferrari.py NAME=FOLDER [NAME=FOLDER ...] [--int8-cache NAME ...] [--json FILE] [--picture FILE]

Each model, the master first, answers the same 500 stacks of boxes and 500 sums in a process of its own, and the ledger
books seconds, memory, energy and money; nothing should run beside it. Those named by `--int8-cache` are asked once
more with keys and values in int8, and that counts. Results are kept: the same command measures the missing models
only. Energy is the machine's counter where it has one, else modelled from busy cores, and the JSON file says which.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from int8 import processor

from schoolhouse.evaluate.compare import paired_difference, share
from schoolhouse.evaluate.exam import EXAM, ITEMS, with_int8_cache
from schoolhouse.pipeline import run_recipe

RECIPE = Path(__file__).with_suffix(".toml")
PER = 1000  # answers


def measured(folder: Path, home: Path, int8_cache: bool) -> dict[str, Any]:
    """One model's exam: its verdicts, and what a thousand answers took."""
    set_ = [f"model.source={json.dumps(str(folder.resolve()))}", *(['exam.int8_cache=["model"]'] if int8_cache else [])]
    made = run_recipe(RECIPE, set_, home)
    exam, meter = made["exam"], made["exam"].meta["meter"]
    rows = [json.loads(line) for line in exam.file(ITEMS).read_text().splitlines()]
    model = json.loads(exam.file(EXAM).read_text())["artifacts"]["model"]
    name = with_int8_cache("model") if int8_cache else "model"
    asked = meter["phases_s"]
    answering, all_answering = asked[f"{name} thinking"], sum(asked[phase] for phase in asked if "thinking" in phase)
    rows = [row for row in rows if row["model"] == name]
    each, part = PER / len(rows), answering / all_answering  # of what was asked twice the energy is shared out by time
    return {
        "artifact": model,
        "right": {f"{row['task']} {row['id']}": row["correct"] for row in rows},
        "finished": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
        "file_bytes": sum(path.stat().st_size for path in made["model"].path.glob("*.safetensors")),
        "peak_rss_bytes": meter["peak_rss_bytes"],
        "tokens_a_second": sum(row["tokens"] for row in rows) / answering,
        "seconds": answering * each, "joules": 3600 * meter["energy_wh"] * each * part,
        "cost": meter["cost"] * each * part,
        "currency": meter["currency"], "energy_source": meter["energy_source"], "cost_source": meter["cost_source"],
    }  # fmt: skip


def row(name: str, model: dict[str, Any], master: dict[str, Any]) -> list[str]:
    """One line of the table, beside the master."""
    right = list(model["right"].values())
    found = share(sum(right), len(right))
    moved = paired_difference([model["right"][key] for key in master["right"]], list(master["right"].values()))
    low, high = (100 * end for end in moved.interval)
    change = "" if model is master else f"{100 * moved.value:+.1f} ({low:+.1f} to {high:+.1f})"
    return [
        name, f"{100 * found.value:.1f}%", change, f"{model['file_bytes'] / 1e6:.0f}",
        f"{model['peak_rss_bytes'] / 2**30:.2f}", f"{model['tokens_a_second']:,.0f}", f"{model['seconds']:.1f}",
        f"{model['joules']:,.0f}", f"{model['cost']:.5f}", f"{model['joules'] / master['joules']:.2f}",
    ]  # fmt: skip


def draw(models: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy over the energy of a thousand answers; the area of a dot is the file's size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, model in models.items():
        right = sum(model["right"].values()) / len(model["right"])
        name = f"{name}, {model['file_bytes'] / 1e6:.0f} MB"
        axes.scatter(model["joules"], 100 * right, s=model["file_bytes"] / 4e5, alpha=0.6, label=name)
    axes.set_xlabel(f"joules for {PER:,} answers")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, 1.15 * max(model["joules"] for model in models.values()))
    axes.legend(loc="lower left", labelspacing=1.2)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="NAME=FOLDER, the master first")
    parser.add_argument("--int8-cache", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/ferrari.json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures
    args = parser.parse_args()
    pairs = [text.partition("=")[::2] for text in args.models]
    if args.one:
        [(_, folder)] = pairs
        args.json.write_text(json.dumps(measured(Path(folder), args.home, bool(args.int8_cache))) + "\n")
        return
    kept = json.loads(args.json.read_text()) if args.json.exists() else {"models": {}}
    kept |= {"machine": {"cpu": processor(), "threads": torch.get_num_threads()}}
    kept |= {"torch": torch.__version__, "python": platform.python_version()}
    for name, folder in pairs:
        if name not in kept["models"]:
            part = args.json.with_suffix(".part")
            command = [sys.executable, __file__, f"{name}={folder}", "--one", "--home", str(args.home)]
            command += ["--int8-cache", name] if name in args.int8_cache else []
            subprocess.run([*command, "--json", str(part)], check=True)
            kept["models"][name] = json.loads(part.read_text())
            part.unlink()
            args.json.write_text(json.dumps(kept, indent=1) + "\n")
    master = kept["models"][pairs[0][0]]
    of_cost = ("seconds", "joules", master["currency"])
    heads = ["", "right", "points beside the master", "file, MB", "memory, GiB", "tokens/s"]
    print(" | ".join([*heads, *(f"{what} for {PER:,}" for what in of_cost), "of its energy"]))
    for name, model in kept["models"].items():
        print(" | ".join(row(name, model, master)))
    if args.picture:
        draw(kept["models"], args.picture)


if __name__ == "__main__":
    main()
