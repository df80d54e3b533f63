"""What pays at which size: a mixture or a dense network, latents or grouped queries, further tokens, fp8, Muon.

    python bench/what_pays.py [--size nano] [--minutes 3] [--seeds 0 1 2] [--home runs] [--json FILE] [--picture FILE]

First the seconds of a token are measured, all choices in turn, nothing beside it; they are kept. Then each choice is
trained from nothing on the same text twice: for as many tokens as it reads in equal minutes, and for as many as cost
the operations that the mixture spends in those minutes. So what is learnt does not hang on the machine's mood, and
other work may run beside it. Quality is what a byte of held-out text costs, in bits. Every run is kept as it ends, so
that the same command goes on where it was stopped; about 2 hours for nano with three seeds. The rates are those of
`train.pretrain`'s default for Muon and half of it for AdamW: neither was searched for at this budget.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from int8 import processor
from student import half_width

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.runtime import keep_memory
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.fp8_linear import train_in_fp8
from schoolhouse.model.presets import preset
from schoolhouse.model.transformer import Transformer
from schoolhouse.pipeline import run_recipe
from schoolhouse.text.documents import Documents
from schoolhouse.train.balance import Balance, Balancing
from schoolhouse.train.corpus import Rows, make_part
from schoolhouse.train.optimizer import Optimizer
from schoolhouse.train.pretrain import next_tokens

RECIPE = Path(__file__).with_name("what_pays.toml")
LENGTH, STEP_TOKENS = 512, 4096  # of a row and of a step, as `train.pretrain` has them
MIXTURE = "mixture (MoE, MLA, Muon, bf16)"

CHOICES: dict[str, tuple[str, dict[str, object]]] = {
    MIXTURE: ("", {}),
    "dense, as many active": ("-active", {}),
    "dense, as many in all": ("-total", {}),
    "dense with latents (MLA)": ("-latent", {}),
    "mixture, one token further (MTP)": ("", {"mtp": 1}),
    "mixture, fp8 products": ("", {"fp8": True}),
    "mixture, AdamW": ("", {"optimizer": "adamw", "lr": 2e-3}),
}
"""What is compared: the preset's ending and the keys that differ."""

BESIDE = {
    "MoE against dense, equal active": (MIXTURE, "dense with latents (MLA)"),
    "MoE against dense, equal in all": (MIXTURE, "dense, as many in all"),
    "MLA against GQA": ("dense with latents (MLA)", "dense, as many active"),
    "MTP against none": ("mixture, one token further (MTP)", MIXTURE),
    "fp8 against bf16": ("mixture, fp8 products", MIXTURE),
    "Muon against AdamW": (MIXTURE, "mixture, AdamW"),
}
"""The questions: which choice is set beside which."""


def network(name: str, size: str, vocabulary: int = 4096) -> ModelConfig:
    """The shape of a choice."""
    ending, keys = CHOICES[name]
    return preset(size + ending, vocabulary, {}, int(keys.get("mtp", 0)))


class Racer:
    """One choice with its optimizer, for the measurement of its speed."""

    def __init__(self, name: str, size: str, vocabulary: int) -> None:
        keys = CHOICES[name][1]
        config = network(name, size, vocabulary)
        self.model = Transformer(config)
        self.model.init_weights(torch.Generator().manual_seed(0))
        for parameter in self.model.parameters():  # what balances the experts stays in fp32, as in training
            parameter.data = parameter.data.to(torch.bfloat16)
        if keys.get("fp8"):
            train_in_fp8(self.model)
        self.optimizer = Optimizer(self.model, kind=keys.get("optimizer", "muon"))
        self.balance = Balance(self.model, Balancing(0.02, 1e-4))
        self.depths = 1 + config.num_nextn_predict_layers
        self.seconds: list[float] = []

    def step(self, pieces: list) -> None:
        """One update by a step's pieces of text; its seconds are kept."""
        part = make_part(pieces, [1 / STEP_TOKENS] * self.depths, torch.device("cpu"))
        started = time.perf_counter()
        with self.balance.watching():
            loss, _ = next_tokens(self.model, part)
        leaning = self.balance.count(part.texts, len(part.texts))
        (loss if leaning is None else loss + leaning).backward()
        self.balance.step()
        self.optimizer.step(1e-4)
        self.seconds.append(time.perf_counter() - started)


def speeds(size: str, ids: Artifact, rounds: int) -> dict[str, float]:
    """Seconds that a token takes each choice: medians over rounds in which all of them take a step."""
    keep_memory()
    rows = Rows(Documents(ids.path, "train"), LENGTH, seed=0)
    racers = {name: Racer(name, size, ids.meta["vocab_size"]) for name in CHOICES}
    for _ in range(rounds + 1):  # the first one warms up
        pieces = [piece for _ in range(STEP_TOKENS // LENGTH) for piece in rows.next()]
        for racer in racers.values():
            racer.step(pieces)
    return {name: statistics.median(racer.seconds[1:]) / STEP_TOKENS for name, racer in racers.items()}


def tokens(name: str, by: str, size: str, seconds: dict[str, float], minutes: float) -> int:
    """How many tokens a choice is trained on."""
    if by == "time":
        return round(minutes * 60 / seconds[name])
    return round(minutes * 60 / seconds[MIXTURE] * operations(MIXTURE, size) / operations(name, size))


def operations(name: str, size: str) -> int:
    """Of a token's forward pass, prediction layers included."""
    config = network(name, size)
    total = config.flops_per_token(LENGTH // 2)
    for extra in range(config.num_nextn_predict_layers):  # a layer, the joining of both inputs, and the head once more
        layer = config.layer_params(config.num_hidden_layers + extra, active=True) + 2 * config.hidden_size**2
        total += 2 * (layer + config.vocab_size * config.hidden_size)
    return total


def trained(name: str, args: argparse.Namespace, seed: int, by: str, count: int, all_tokens: int) -> dict[str, object]:
    """One network: what a byte costs it at the end, and what its training took."""
    ending, keys = CHOICES[name]
    settings = {"preset": f'"{args.size}{ending}"', **{key: json.dumps(value) for key, value in keys.items()}}
    settings["epochs"] = f"{count / all_tokens:.6f}"
    overrides = [f"seed={seed}", *(f"base.{key}={value}" for key, value in settings.items())]
    base = run_recipe(RECIPE, overrides, args.home)["base"]
    lines = [json.loads(line) for line in base.file("metrics.jsonl").read_text().splitlines()]
    glances = [(line["step"] * STEP_TOKENS, line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    return {
        "choice": name, "seed": seed, "by": by, "artifact": base.id,
        "bits_per_byte": base.meta["bits_per_byte"]["data"]["after"],
        "tokens": sum(line["tokens"] for line in lines), "parameters": base.meta["num_params"], "curve": glances,
        "context_bytes_per_token": network(name, args.size).kv_bytes_per_token(),
    }  # fmt: skip


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


def begun(args: argparse.Namespace) -> dict[str, object]:
    """What is kept before the first run: the speeds, and where they were measured."""
    ids = run_recipe(RECIPE, ["base.epochs=1e-6"], args.home)["ids"]
    kept: dict[str, object] = {
        "size": args.size, "minutes": args.minutes, "seconds_per_token": speeds(args.size, ids, args.rounds),
        "operations_per_token": {name: operations(name, args.size) for name in CHOICES},
        "text_tokens": Documents(ids.path, "train").tokens,
        "machine": {"cpu": processor(), "threads": torch.get_num_threads()},
        "torch": torch.__version__, "python": platform.python_version(), "runs": [],
    }  # fmt: skip
    args.json.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="nano")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: speeds alone")
    parser.add_argument("--rounds", type=int, default=10, help="of the measurement of speed")
    parser.add_argument("--home", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, default=Path("bench/results/what_pays.json"))
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    kept = json.loads(args.json.read_text()) if args.json.exists() else begun(args)
    found = {key: kept[key] for key in ("size", "minutes")}
    if found != {"size": args.size, "minutes": args.minutes}:
        parser.error(f"{args.json} holds runs of {found}: name another file with --json, or the same settings")
    done = {(r["choice"], r["seed"], r["by"]) for r in kept["runs"]}
    for seed, name, by in itertools.product(args.seeds, CHOICES, ("time", "operations")):
        if (name, seed, by) not in done:
            count = tokens(name, by, args.size, kept["seconds_per_token"], args.minutes)
            kept["runs"].append(trained(name, args, seed, by, count, kept["text_tokens"]))
            args.json.write_text(json.dumps(kept | {"answers": answers(kept["runs"])}, indent=1) + "\n")
    for row in answers(kept["runs"]):
        spread = "" if row["half"] is None else f" +- {row['half']:.3f}"
        found = f"{row['difference']:+.3f}{spread} bits per byte"
        print(f"{row['question']:<36} equal {row['equal']:<10} {found}")
    if args.picture:
        draw(answers(kept["runs"]), args.picture)


if __name__ == "__main__":
    main()
