"""Seconds and memory of one GRPO step, beside TRL's GRPOTrainer: same weights, questions and shape, in one run.

8 prompts x 8 replies x 128 new tokens (no reply may end earlier, so that both do the same work), bf16 weights, AdamW,
no KL term, one update a step. Each side runs in a process of its own; the two take turns; the median counts.

    python bench/grpo_step.py MODEL_FOLDER [--steps 3] [--json bench/results/grpo_step.json]

needs `pip install -c constraints.txt -e '.[bench,dev]'` and a checkpoint such as `schoolhouse export base FOLDER`
gives.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

PROMPTS, GROUP, NEW_TOKENS = 8, 8, 128


def ours(folder: Path, steps: int) -> list[float]:
    """Seconds of each of our steps: rollout, judge, advantages, update."""
    import torch

    from schoolhouse.core.config import MachineConfig
    from schoolhouse.core.run import Run
    from schoolhouse.infer.engine import Engine
    from schoolhouse.infer.sampler import Sampling
    from schoolhouse.model.weights import load_model
    from schoolhouse.tasks.load import load_task
    from schoolhouse.text.chat import ChatFormat
    from schoolhouse.train import grpo
    from schoolhouse.train.optimizer import Optimizer
    from schoolhouse.train.rollout import roll_out

    run = replace(Run.for_tests(Path(tempfile.mkdtemp())), machine=MachineConfig(device="cpu", threads=2))
    assert run.runtime.threads == torch.get_num_threads() == 2
    config = grpo.Config(model="base", tasks=["boxes"], prompts=PROMPTS, group=GROUP, learn_truncated=True)
    chat, task = ChatFormat.load(folder), load_task("boxes")
    model = load_model(folder, torch.bfloat16)
    optimizer, engine = Optimizer(model), Engine(model, slots=PROMPTS * GROUP)
    rehearsal = grpo.Rehearsal(config, model, chat, {"boxes": task}, run)
    objective = grpo.GroupObjective(config, None)
    seconds = []
    for step in range(steps):
        examples = task.examples("train", "4-3", PROMPTS, step)
        samplings = [[Sampling(NEW_TOKENS, seed=step * 64 + i * 8 + j) for j in range(GROUP)] for i in range(PROMPTS)]
        started = time.monotonic()
        engine.forget()
        rollouts = roll_out(engine, chat, {"boxes": task}, examples, samplings)
        assert all(len(s.ids) == NEW_TOKENS for g in rollouts.groups for s in g.samples)
        for part in rehearsal.parts(rollouts.groups):
            loss, _ = objective(model, part)
            loss.backward()
        optimizer.step(1e-6)
        seconds.append(time.monotonic() - started)
    return seconds


def trl(folder: Path, steps: int) -> list[float]:
    """Seconds of each of TRL's steps on the same questions."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from schoolhouse.tasks.load import load_task

    torch.set_num_threads(2)
    task = load_task("boxes")
    rows = []
    for step in range(steps):
        for example in task.examples("train", "4-3", PROMPTS, step):
            messages = task.conversation(example).messages
            rows.append(
                {"prompt": [{"role": m.role, "content": m.content} for m in messages], "answer": example.answer}
            )

    def reward(completions, answer, **_):
        return [
            float(a in c[0]["content"]) + 0.001 * i for i, (c, a) in enumerate(zip(completions, answer, strict=True))
        ]

    class Clock(TrainerCallback):
        seconds: list[float] = []  # noqa: RUF012 - one trainer a process

        def on_step_begin(self, *_, **__):
            self.started = time.monotonic()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.monotonic() - self.started)

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=NEW_TOKENS, beta=0.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_steps=steps,
        save_strategy="no", report_to=[], generation_kwargs={"min_new_tokens": NEW_TOKENS}, disable_tqdm=True,
        learning_rate=1e-6, shuffle_dataset=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    trainer = GRPOTrainer(
        model, reward, args=config, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    return Clock.seconds


def measure(side: str, folder: Path, steps: int) -> dict[str, object]:
    """Run one side in a process of its own."""
    words = [sys.executable, __file__, str(folder), "--steps", str(steps), "--side", side]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3, help="steps of a process; its first one is not counted")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each side, in turn")
    parser.add_argument("--side", choices=("ours", "trl"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.side:
        seconds = (ours if args.side == "ours" else trl)(args.folder, args.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
        return
    sides: dict[str, list[dict]] = {"ours": [], "trl": []}
    for _ in range(args.rounds):
        for side, results in sides.items():
            results.append(measure(side, args.folder, args.steps))
            print(side, results[-1], flush=True)
    table = {}
    for side, results in sides.items():
        counted = [s for r in results for s in (r["seconds"][1:] or r["seconds"])]
        table[side] = {"median_step_s": median(counted), "peak_rss_bytes": max(r["peak_rss_bytes"] for r in results)}
    speed = table["trl"]["median_step_s"] / table["ours"]["median_step_s"]
    memory = table["ours"]["peak_rss_bytes"] / table["trl"]["peak_rss_bytes"]
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    import torch
    import trl as trl_package

    versions = {"torch": torch.__version__, "trl": trl_package.__version__, "python": platform.python_version()}
    result = {
        "what": f"GRPO step {PROMPTS}x{GROUP}x{NEW_TOKENS}", "sides": table, "times_faster": speed,
        "memory_share": memory,
        "machine": {"cpu": cpu, "threads": 2}, "versions": versions, "raw": sides,
    }  # fmt: skip
    print(f"{speed:.2f} times as fast as TRL with {memory:.2f} of its memory")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
