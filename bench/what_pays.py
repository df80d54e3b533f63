"""What pays at which size: a mixture or a dense network, latents or grouped queries, further tokens, fp8, Muon.

    python bench/what_pays.py [--size nano] [--minutes 3] [--seeds 0 1 2] [--home runs] [--json FILE] [--picture FILE]

Each choice is trained from nothing on the same text twice: for equal minutes, and for equal operations (those that the
mixture needs for one reading of the text). Quality is what a byte of held-out text costs, in bits. Every run is kept as
it ends, so that the same command goes on where it was stopped; about 2 hours for nano with three seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

from student import half_width

from schoolhouse.model.presets import preset
from schoolhouse.pipeline import run_recipe

RECIPE = Path(__file__).with_name("what_pays.toml")

CHOICES: dict[str, tuple[str, dict[str, object]]] = {
    "mixture (MoE, MLA, Muon, bf16)": ("", {}),
    "dense, as many active": ("-active", {}),
    "dense, as many in all": ("-total", {}),
    "dense with latents (MLA)": ("-latent", {}),
    "mixture, one token further (MTP)": ("", {"mtp": 1}),
    "mixture, fp8 products": ("", {"fp8": True}),
    "mixture, AdamW": ("", {"optimizer": "adamw", "lr": 2e-3}),
}
"""What is compared: the preset's ending and the keys that differ."""

BESIDE = {
    "MoE against dense, equal active": ("mixture (MoE, MLA, Muon, bf16)", "dense with latents (MLA)"),
    "MoE against dense, equal in all": ("mixture (MoE, MLA, Muon, bf16)", "dense, as many in all"),
    "MLA against GQA": ("dense with latents (MLA)", "dense, as many active"),
    "MTP against none": ("mixture, one token further (MTP)", "mixture (MoE, MLA, Muon, bf16)"),
    "fp8 against bf16": ("mixture, fp8 products", "mixture (MoE, MLA, Muon, bf16)"),
    "Muon against AdamW": ("mixture (MoE, MLA, Muon, bf16)", "mixture, AdamW"),
}
"""The questions: which choice is set beside which."""


def trained(name: str, size: str, seed: int, minutes: float, by: str, home: Path) -> dict[str, object]:
    """One network: what a byte costs it at the end, and what its training took."""
    ending, keys = CHOICES[name]
    settings = {"preset": f'"{size}{ending}"', **{key: json.dumps(value) for key, value in keys.items()}}
    if by == "time":
        settings |= {"share": "0.95", "epochs": "100"}
        budget = minutes * 60 / 0.95
    else:
        settings |= {"epochs": f"{epochs(name, size):.4f}"}
        budget = 7200.0
    overrides = [
        f"seed={seed}",
        f"budget.time={budget:.0f}s",
        *(f"base.{key}={value}" for key, value in settings.items()),
    ]
    base = run_recipe(RECIPE, overrides, home)["base"]
    lines = [json.loads(line) for line in base.file("metrics.jsonl").read_text().splitlines()]
    glances = [(line["seconds"], line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    return {
        "choice": name, "seed": seed, "by": by, "artifact": base.id,
        "bits_per_byte": base.meta["bits_per_byte"]["data"]["after"],
        "tokens": sum(line["tokens"] for line in lines), "train_s": sum(line["train_s"] for line in lines),
        "parameters": base.meta["num_params"], "curve": glances,
        "context_bytes_per_token": preset(size + ending, 4096, {}).kv_bytes_per_token(),
    }  # fmt: skip


def epochs(name: str, size: str) -> float:
    """Readings of the text for which a choice needs the operations that the mixture needs for one."""
    ending, keys = CHOICES[name]
    mixture, own = preset(size, 4096, {}), preset(size + ending, 4096, {})
    needed = own.flops_per_token(256)
    if keys.get("mtp"):  # a layer, the joining of both inputs, and the head once more
        layer = own.layer_params(own.num_hidden_layers - 1, active=True) + 2 * own.hidden_size**2
        needed += 2 * (layer + own.vocab_size * own.hidden_size)
    return mixture.flops_per_token(256) / needed


def answers(runs: list[dict]) -> list[dict[str, object]]:
    """Each question's difference in bits per byte, seed by seed: below 0 the first of the pair is better."""
    bits = {(r["choice"], r["by"], r["seed"]): r["bits_per_byte"] for r in runs}
    rows = []
    for question, (first, second) in BESIDE.items():
        for by in ("time", "operations"):
            seeds = [s for s in range(100) if (first, by, s) in bits and (second, by, s) in bits]
            if seeds:
                gains = [bits[first, by, s] - bits[second, by, s] for s in seeds]
                found = {"difference": statistics.mean(gains), "half": half_width(gains), "seeds": len(seeds)}
                rows.append({"question": question, "equal": by, **found})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """The differences with their intervals, one line a question, one panel a budget."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    questions = list(dict.fromkeys(row["question"] for row in rows))
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True, sharex=True, layout="constrained")
    for panel, by in zip(panels, ("time", "operations"), strict=True):
        mine = [row for row in rows if row["equal"] == by]
        places = [questions.index(row["question"]) for row in mine]
        panel.errorbar(
            [row["difference"] for row in mine], places, xerr=[row["half"] or 0.0 for row in mine], fmt="o", capsize=3
        )
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_yticks(range(len(questions)), questions)
        panel.set_title(f"equal {by}")
        panel.set_xlabel("bits per byte more than the other; left is better")
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="nano")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/what_pays.json"))
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    import torch

    kept = json.loads(args.json.read_text()) if args.json.exists() else {"runs": []}
    done = {(r["choice"], r["seed"], r["by"]) for r in kept["runs"]}
    cpu = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    for seed in args.seeds:
        for name in CHOICES:
            for by in ("time", "operations"):
                if (name, seed, by) in done:
                    continue
                kept["runs"].append(trained(name, args.size, seed, args.minutes, by, args.home))
                kept |= {
                    "size": args.size, "minutes": args.minutes, "answers": answers(kept["runs"]),
                    "machine": {"cpu": cpu[:1], "threads": len(cpu), "python": platform.python_version()},
                    "torch": torch.__version__,
                }  # fmt: skip
                args.json.write_text(json.dumps(kept, indent=1) + "\n")
    for row in answers(kept["runs"]):
        spread = "" if row["half"] is None else f" +- {row['half']:.3f}"
        found = f"{row['difference']:+.3f}{spread} bits per byte"
        print(f"{row['question']:<36} equal {row['equal']:<10} {found}")
    if args.picture:
        draw(answers(kept["runs"]), args.picture)


if __name__ == "__main__":
    main()
