"""Tokens a second of supervised fine-tuning beside TRL's SFTTrainer and a bare loop of transformers and torch.

    python bench/sft.py MODEL_FOLDER [--steps 4] [--rounds 2] [--json bench/results/sft.json]

needs `pip install -c constraints.txt -e '.[bench,dev]'` and a checkpoint such as `schoolhouse export base FOLDER`
gives. 8 texts of 512 random tokens a step, every one of them learnt, AdamW. Ours and the bare loop hold bf16 weights;
ours keeps fp32 masters beside them, the bare loop does not; SFTTrainer trains fp32 weights with `bf16=True`.
Each side runs in a process of its own; they take turns; the median step counts, the first one of a process does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TEXTS, LENGTH, VOCABULARY = 8, 512, 40_000


def ours(folder: Path, steps: int) -> list[float]:
    """Seconds of our steps."""
    import torch

    from schoolhouse.core.config import MachineConfig
    from schoolhouse.core.runtime import Runtime
    from schoolhouse.model.packed import Packed
    from schoolhouse.model.weights import load_model
    from schoolhouse.train.optimizer import Optimizer
    from schoolhouse.train.sft import Part, cross_entropy

    Runtime.detect(MachineConfig(device="cpu", threads=2))
    model = load_model(folder, torch.bfloat16)
    optimizer, seconds = Optimizer(model), []
    places = torch.arange(TEXTS * LENGTH).view(TEXTS, LENGTH)[:, :-1].flatten()
    for ids in batches(steps):
        row, lengths = ids.view(1, -1), [LENGTH] * TEXTS
        started = time.monotonic()
        part = Part(row, Packed(lengths), places, row[0, places + 1], 1 / len(places), lengths)
        loss, _ = cross_entropy(model, part)
        loss.backward()
        optimizer.step(1e-5)
        seconds.append(time.monotonic() - started)
    return seconds


def bare(folder: Path, steps: int) -> list[float]:
    """Seconds of a loop over transformers' network in bf16 with torch's fused AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), []
    for ids in batches(steps):
        started = time.monotonic()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
    return seconds


def trl(folder: Path, steps: int) -> list[float]:
    """Seconds of SFTTrainer's steps."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(2)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = time.monotonic()

        def on_step_end(self, *_, **__):
            seconds.append(time.monotonic() - self.started)

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=TEXTS, max_length=LENGTH, max_steps=steps,
        use_cpu=True, bf16=True, gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True,
        learning_rate=1e-5,
    )  # fmt: skip
    rows = [{"input_ids": row} for ids in batches(steps) for row in ids.tolist()]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args=config, callbacks=[Clock()],
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    return seconds


SIDES = {"ours": ours, "bare loop": bare, "TRL": trl}


def batches(steps: int):
    """The same random ids for every side: (TEXTS, LENGTH) a step."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1000, VOCABULARY, (TEXTS, LENGTH), generator=generator) for _ in range(steps)]


def measure(side: str, folder: Path, steps: int) -> dict[str, object]:
    """Run one side in a process of its own."""
    words = [sys.executable, __file__, str(folder), "--steps", str(steps), "--side", side]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4, help="of a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side, in turn")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.side:
        seconds = SIDES[args.side](args.folder, args.steps)
        print(
            json.dumps(
                {"seconds": seconds, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
            )
        )
        return
    raw: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side, results in raw.items():
            results.append(measure(side, args.folder, args.steps))
            print(side, results[-1], flush=True)
    import torch
    import transformers
    import trl as trl_package
    from int8 import processor

    from schoolhouse.kernels.native import status

    tokens = TEXTS * LENGTH
    speeds = {side: tokens / median(s for r in results for s in r["seconds"][1:]) for side, results in raw.items()}
    result = {
        "tok_s": speeds, "times": {side: speeds["ours"] / speeds[side] for side in SIDES if side != "ours"},
        "peak_rss_bytes": {side: max(r["peak_rss_bytes"] for r in results) for side, results in raw.items()},
        "machine": {"cpu": processor(), "threads": 2}, "kernels": status(), "torch": torch.__version__,
        "transformers": transformers.__version__, "trl": trl_package.__version__,
        "python": platform.python_version(), "raw": raw,
    }  # fmt: skip
    print(json.dumps({key: result[key] for key in ("tok_s", "times", "peak_rss_bytes")}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
