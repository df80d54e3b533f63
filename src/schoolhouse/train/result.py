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
from schoolhouse.train.lora import ADAPTER, LoraOptimizer
from schoolhouse.train.optimizer import Mover

PROCESS_BYTES = 600 << 20  # torch and the interpreter
PARAM_BYTES = 20  # bf16 weight and gradient, fp32 master and two moments; a quarter more for the heap's gaps, measured
LORA_BYTES = 8  # bf16 weight, its beginning and its slope; a third more for the heap's gaps and the factors
ACTIVATION_SHARE = 0.008  # bytes of activations a token and parameter: 1.05 MB a token for 135M, measured


def training_bytes(num_params: int, part_tokens: int, *, lora: bool = False) -> int:
    """Memory that training takes, modelled: weights, optimizer and the activations of one part."""
    each = LORA_BYTES if lora else PARAM_BYTES
    return PROCESS_BYTES + each * num_params + int(ACTIVATION_SHARE * num_params * part_tokens)


def keep_model(
    model: Transformer, like: Path, steps: int, run: Run, out: Draft, optimizer: Mover | None = None
) -> None:
    """Write the checkpoint with the companions of `like`, of LoRA the difference too, and what `keep_curve` does."""
    save_model(model, out.path, like=like)
    if isinstance(optimizer, LoraOptimizer):
        if not optimizer.save(out.path / ADAPTER, like.name):
            run.log.warn("this family's matrices have other names in PEFT: the whole checkpoint is written, no adapter")
        out.meta["lora"] = optimizer.rank
    keep_curve(model, steps, run, out)


def keep_curve(model: Transformer, steps: int, run: Run, out: Draft) -> None:
    """Write the metrics and the facts."""
    metrics = run.scratch / METRICS
    if metrics.exists():
        shutil.copyfile(metrics, out.path / METRICS)
        last = metrics.read_text(encoding="utf-8").splitlines()[-1:]
        out.meta["last"] = json.loads(last[0]) if last else {}
    out.meta |= {"steps": steps, "runtime": run.runtime.describe(), "num_params": model.config.num_params()}
