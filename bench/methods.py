"""What each method of reinforcement, and each piece of one, does to the same cold start in the same number of steps.

Every variant runs bench/methods.toml with its own keys: 24 steps of 16 questions and 8 replies, then the same 400
held-out questions. Nothing is made twice: stopped, the same command goes on, and variants whose result lies in the
file are not run again. About four minutes each on two cores with AMX.

    python bench/methods.py [--only dapo gspo] [--seed 0] [--home runs] [--json bench/results/methods.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from schoolhouse.pipeline import run_recipe
from schoolhouse.train.policy import METHODS

RECIPE = Path(__file__).with_name("methods.toml")
PIECES: dict[str, list[str]] = {
    "ours": [],
    "all replies": ["rl.learn='all'"],
    "kl k3": ["rl.kl=0.02"],
    "kl k2": ["rl.kl=0.02", "rl.distance='k2'"],
    "kl unbiased": ["rl.kl=0.02", "rl.distance='unbiased'"],
    "truncated correction": ["rl.correction='truncate'"],
    "masked correction": ["rl.correction='mask'"],
    "language": ["rl.language='en'"],
    "ahead 1": ["rl.ahead=1"],
    "ahead 4": ["rl.ahead=4", "rl.correction='truncate'"],
    "lora 32": ["rl.lora=32", "rl.lr=3e-4"],
} | {method: [f"rl.method='{method}'"] for method in METHODS}
"""The variants, and what they set beside the recipe."""


def outcome(name: str, seed: int, home: Path) -> dict[str, Any]:
    """One variant's shares of right answers, its curve and what it took."""
    done = run_recipe(RECIPE, [f"seed={seed}", *PIECES[name]], home)
    rows = [json.loads(line) for line in done["rl"].file("metrics.jsonl").read_text().splitlines()]
    items = [json.loads(line) for line in done["exam"].file("items.jsonl").read_text().splitlines()]
    right = {task: [item["correct"] for item in items if item["task"] == task] for task in ("boxes", "arithmetic")}
    last = rows[-10:]
    return {
        "variant": name,
        "seed": seed,
        "right": {task: [sum(found), len(found)] for task, found in right.items()},
        "reward": [row["reward"] for row in rows],
        "last": {
            key: statistics.mean(row[key] for row in last if key in row)
            for key in ("entropy", "clipped", "length", "sampler_gap")
        },
        "seconds": done["rl"].meta["meter"]["seconds"],
        "artifact": done["rl"].id,
    }


def table(results: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| | boxes | sums | entropy | clipped | tokens a reply | time |", "|---|---|---|---|---|---|---|"]
    for r in results:
        shares = [f"{100 * a / b:.0f}%" for a, b in r["right"].values()]
        last = r["last"]
        lines.append(
            f"| {r['variant']} | {shares[0]} | {shares[1]} | {last['entropy']:.3f} | {last['clipped']:.4f} "
            f"| {last['length']:.0f} | {r['seconds'] / 60:.1f} min |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PIECES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kept = json.loads(args.json.read_text())["results"] if args.json and args.json.exists() else []
    known = {(r["variant"], r["seed"]): r for r in kept}
    cpu = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    for name in args.only or PIECES:
        if (name, args.seed) not in known:
            known[name, args.seed] = outcome(name, args.seed, args.home)
        if args.json:
            machine = {"cpu": cpu[:1], "threads": len(cpu), "python": platform.python_version()}
            args.json.write_text(json.dumps({"machine": machine, "results": list(known.values())}, indent=1) + "\n")
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
