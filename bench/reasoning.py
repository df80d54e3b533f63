"""What reinforcement learning adds to the same traces without it, on three seeds: the claim of the README.

Each seed runs bench/reasoning.toml (about 55 minutes on two cores): cold start and reinforcement learning as in the
quickstart, and two controls on the same traces, one to convergence, one for as long as both together. Nothing is
made twice: stopped, the same command goes on, and seeds whose result lies in the file are not run again.
Reinforcement learning has 16.5 minutes here, as in the quickstart.

    python bench/reasoning.py [--seeds 0 1 2] [--home runs] [--json bench/results/reasoning.json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from pathlib import Path

import schoolhouse
from schoolhouse.pipeline import run_recipe

RECIPE = Path(__file__).with_name("reasoning.toml")


def code_sha256() -> str:
    """Which code made a result: a hash over the package's modules."""
    files = sorted(Path(schoolhouse.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def outcome(seed: int, home: Path) -> dict[str, object]:
    """One seed's verdict, its shares of right answers, and what each stage took."""
    done = run_recipe(RECIPE, [f"seed={seed}"], home)
    report = json.loads(done["report"].file("report.json").read_text())
    return {
        "seed": seed,
        "code_sha256": code_sha256(),
        "met": report["verdict"]["met"],
        "verdict": report["verdict"],
        "accuracy": [row for row in report["accuracy"] if row["mode"] == "thinking"],
        "meters": {name: artifact.meta["meter"] for name, artifact in done.items()},
        "artifacts": {name: artifact.id for name, artifact in done.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch

    recipe = hashlib.sha256(RECIPE.read_bytes()).hexdigest()
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    known = {s["seed"]: s for s in kept.get("seeds", []) if kept.get("recipe_sha256") == recipe}
    seeds = []
    for seed in args.seeds:
        seeds.append(known.get(seed) or outcome(seed, args.home))
        cpu = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        result = {
            "recipe_sha256": recipe,
            "claim_met": sum(bool(s["met"]) for s in seeds), "of": len(args.seeds), "seeds": seeds,
            "machine": {"cpu": cpu[:1], "threads": len(cpu), "python": platform.python_version()},
            "torch": torch.__version__,
        }  # fmt: skip
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"the claim was met on {result['claim_met']} of {result['of']} seeds")


if __name__ == "__main__":
    main()
