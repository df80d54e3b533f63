"""What a reward model makes of two models' answers to the same open questions: the figure of docs/r1.md.

python bench/open_answers.py runs r1 [--before again --after rl2 --judge judge] [--json bench/results/open_answers.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.reward import load_reward_model
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskTable, load_task
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.reply import answer_of
from schoolhouse.train.reward import judged

CPU = torch.device("cpu")


def replies(folder: Path, task, examples) -> list[str]:
    """Greedy, with thinking, at most 112 tokens."""
    chat, model = ChatFormat.load(folder), load_model(folder, torch.bfloat16).requires_grad_(False)
    sampling = Sampling(112, 0.0, 1.0, chat.stop_ids, 0)
    prompts = [chat.prompt(task.conversation(e)) for e in examples]
    found = Engine(model, 64).generate(prompts, [[sampling]] * len(prompts))
    return [chat.reply_text(row[0].ids) for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("recipe")
    for role, stage in (("before", "again"), ("after", "rl2"), ("judge", "judge")):
        parser.add_argument(f"--{role}", default=stage)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    latest = json.loads((args.home / args.recipe / "latest.json").read_text())
    folder = {role: args.home / "store" / latest[getattr(args, role)] for role in ("before", "after", "judge")}
    task = load_task(TaskTable(task="recipes/everyday.jsonl", verifier="open"))
    examples = [e for split in ("test", "train") for e in task.examples(split, "all", 100, 0)]
    judge, chat = load_reward_model(folder["judge"], torch.bfloat16, CPU), ChatFormat.load(folder["judge"])
    said = {role: replies(folder[role], task, examples) for role in ("before", "after")}
    pairs = list(zip(examples, said["before"], said["after"], strict=True))
    rewards = [judged(judge, chat, task.conversation(example), both, CPU) for example, *both in pairs]
    answered = [all(answer_of(text) for text in both) for _, *both in pairs]
    better = [after > before for before, after in rewards]
    formed = {role: sum(task.judge(e, s).score > 0 for e, s in zip(examples, said[role], strict=True)) for role in said}
    result = {
        "questions": len(examples), "after_preferred": sum(better), "well_formed": formed,
        "both_answered": sum(answered),
        "after_preferred_of_these": sum(b for b, both in zip(better, answered, strict=True) if both),
    }  # fmt: skip
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result | {"artifacts": latest}, indent=1) + "\n")


if __name__ == "__main__":
    main()
