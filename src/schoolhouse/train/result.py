"""What every method of training leaves behind: a checkpoint that others can load, and the curve that led to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from schoolhouse.core.artifact import Draft
from schoolhouse.core.run import Run
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import save_model
from schoolhouse.train.fit import METRICS

PROCESS_BYTES = 600 << 20  # torch and the interpreter
PARAM_BYTES = 20  # bf16 weight and gradient, fp32 master and two moments; a quarter more for the heap's gaps, measured
ACTIVATION_SHARE = 0.008  # bytes of activations a token and parameter: 1.05 MB a token for 135M, measured


def training_bytes(num_params: int, part_tokens: int) -> int:
    """Memory that training takes, modelled: weights, optimizer and the activations of one part."""
    return PROCESS_BYTES + PARAM_BYTES * num_params + int(ACTIVATION_SHARE * num_params * part_tokens)


def keep_model(model: Transformer, like: Path, steps: int, run: Run, out: Draft) -> None:
    """Write the checkpoint with the companions of `like`, and what `keep_curve` does."""
    save_model(model, out.path, like=like)
    keep_curve(model, steps, run, out)


def keep_curve(model: Transformer, steps: int, run: Run, out: Draft) -> None:
    """Write the metrics and the facts."""
    metrics = run.scratch / METRICS
    if metrics.exists():
        shutil.copyfile(metrics, out.path / METRICS)
        last = metrics.read_text(encoding="utf-8").splitlines()[-1:]
        out.meta["last"] = json.loads(last[0]) if last else {}
    out.meta |= {"steps": steps, "runtime": run.runtime.describe(), "num_params": model.config.num_params()}
