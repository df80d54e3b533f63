"""One training in a process of its own, for tests that kill it."""

import os
import shutil
from pathlib import Path

from school import artifact, draft, fp32_run
from schoolhouse.train import grpo, sft


def teach(kind: str, folder: Path, start: Path, material: Path, fail_at: str = "") -> None:
    """Train until done, going on from whatever an earlier process left in `folder`; a checkpoint after every step."""
    os.environ["SCHOOLHOUSE_FAIL_AT"] = fail_at
    shutil.rmtree(folder / "out", ignore_errors=True)  # a stage always writes into a new draft
    out, run = draft(folder / "out"), fp32_run(folder)
    if kind == "sft":
        config = sft.Config(
            model="start", data="data", epochs=5, batch=4, lr=1e-3, part_tokens=128, optimizer="muon", save_every=1e-6
        )
        sft.run(config, {"start": artifact(start), "data": artifact(material)}, run, out)
    else:
        task = {"task": str(material), "verifier": "exact"}
        grpo_config = grpo.Config(
            model="start", tasks=[task, "boxes"], weights=[4, 1], steps=6, prompts=3, group=4, lr=1e-3,
            max_new_tokens=60, part_tokens=256, kl=0.1, temperature=1.0, save_every=1e-6,
        )  # fmt: skip
        grpo.run(grpo_config, {"start": artifact(start)}, run, out)
