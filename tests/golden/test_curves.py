"""Curves of two tiny trainings, kept number by number: whoever changes them means to.

`make golden` writes them anew for the torch that is installed; the file's history then shows what changed.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import torch

from school import artifact, conversation, draft, fp32_run, metrics, write_bytes, write_data, write_pupil
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.train import grpo, sft

VERSION = torch.__version__.split("+")[0]
KEPT = Path(__file__).parent / f"curves-torch-{VERSION}.json"
QUESTIONS = [f"Which box is {name}?" for name in ("first", "last", "left", "right", "top", "old", "new", "big")]
SFT_FIGURES, GRPO_FIGURES = ("loss", "grad_norm", "lr", "tokens"), ("reward", "length", "entropy", "signal_groups")


def curves(folder: Path) -> dict[str, dict]:
    """Twenty steps of SFT from nothing, and six of GRPO from a start that knows the form."""
    torch.set_num_threads(1)
    base = artifact(write_bytes(write_pupil(folder / "base")))
    rows = [conversation(q, colour, SYSTEM_THINKING) for q in QUESTIONS for colour in ("red", "blue")]
    inputs = {"base": base, "rows": write_data(folder / "rows", rows)}
    plain = {"model": "base", "data": "rows", "batch": 8, "lr": 1e-2, "part_tokens": 512}
    first = draft(folder / "first")
    sft.run(sft.Config(**plain, epochs=10, weight_decay=0.1), inputs, fp32_run(folder / "a"), first)
    start = draft(folder / "start")
    sft.run(sft.Config(**plain, epochs=60), inputs, fp32_run(folder / "b"), start)
    questions = folder / "colours.jsonl"
    asked = [{"question": q, "answer": "blue", "split": "train" if i else "test"} for i, q in enumerate(QUESTIONS)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    task = {"task": str(questions), "verifier": "exact"}
    config = grpo.Config(
        model="start",
        tasks=[task],
        steps=6,
        prompts=4,
        group=4,
        learn=4,
        lr=1e-3,
        temperature=1.0,
        max_new_tokens=70,
        part_tokens=512,
        kl=0.1,
    )
    out = draft(folder / "out")
    grpo.run(config, {"start": artifact(start.path)}, fp32_run(folder / "c"), out)
    return {
        "sft": {name: [row[name] for row in metrics(first.path)] for name in SFT_FIGURES},
        "start": {"sha256": hashlib.sha256((start.path / "model.safetensors").read_bytes()).hexdigest()},
        "grpo": {name: [row.get(name, 0.0) for row in metrics(out.path)] for name in GRPO_FIGURES},
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What was kept, and what comes out now."""
    if not KEPT.exists():
        pytest.skip(f"no curves are kept for torch {VERSION}; `make golden` writes them")
    return json.loads(KEPT.read_text()), curves(tmp_path_factory.mktemp("curves"))


def assert_kept(kept, got):
    assert list(got) == list(kept)
    for name, values in got.items():
        assert values == pytest.approx(kept[name], rel=1e-4, abs=1e-4), name


def test_the_loss_curve_is_the_kept_one(pair):
    kept, got = pair
    assert len(got["sft"]["loss"]) == 20
    assert_kept(kept["sft"], got["sft"])


def test_the_reward_figures_are_the_kept_ones(pair):
    kept, got = pair
    if got["start"] != kept["start"]:
        # A sum taken in another order ends, after 120 steps and a rounding to bf16, in a start that draws other words.
        pytest.skip("this processor adds in another order than the one that the figures were kept on")
    assert max(got["grpo"]["reward"]) > 0.4, "figures of nothing would keep nothing"
    assert_kept(kept["grpo"], got["grpo"])


def rounded(values):
    return [round(value, 6) for value in values] if isinstance(values, list) else values


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = curves(Path(scratch))
    blocks = (",\n".join(f'    "{n}": {json.dumps(rounded(v))}' for n, v in f.items()) for f in found.values())
    lines = (f'  "{stage}": {{\n{block}\n  }}' for stage, block in zip(found, blocks, strict=True))
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {KEPT}")
