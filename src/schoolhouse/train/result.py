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


def keep_model(model: Transformer, like: Path, steps: int, run: Run, out: Draft) -> None:
    """Write the checkpoint with the companions of `like`, the metrics and the facts."""
    save_model(model, out.path, like=like)
    metrics = run.scratch / METRICS
    if metrics.exists():
        shutil.copyfile(metrics, out.path / METRICS)
        last = metrics.read_text(encoding="utf-8").splitlines()[-1:]
        out.meta["last"] = json.loads(last[0]) if last else {}
    out.meta |= {"steps": steps, "runtime": run.runtime.describe(), "num_params": model.config.num_params()}
