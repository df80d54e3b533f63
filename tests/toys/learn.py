"""A long computation in steps: it saves after each, goes on after a kill, and ends early when its time is spent."""

import hashlib
import json
import time

from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import Stopped, TrainError
from schoolhouse.core.faults import fail_point


class Config(StageConfig):
    source: Ref
    steps: int = 10
    pause_s: float = 0.0
    fail: str | None = None


def run(config, inputs, run, out):
    saved = run.scratch / "state.json"
    if saved.exists():
        state = json.loads(saved.read_text())
    else:
        state = {"step": 0, "digest": inputs[config.source].file("source.bin").read_bytes().hex()[:32]}
    while state["step"] < config.steps:
        reason = run.should_stop()
        if reason == "interrupted":
            raise Stopped("stopped")
        if reason == "budget":
            out.meta["ended"] = "budget"
            break
        if config.fail == "error":
            raise TrainError("the loss is not a number")
        if config.fail == "memory":
            raise MemoryError
        time.sleep(config.pause_s)
        state["step"] += 1
        state["digest"] = hashlib.sha256(f"{run.seed} {state}".encode()).hexdigest()
        part = saved.with_suffix(".part")
        part.write_text(json.dumps(state))
        fail_point("toy.checkpoint")
        part.replace(saved)
        run.meter.add(tokens=10)
        run.log.step(state["step"], config.steps, loss=1 / state["step"], tok_s=1234.5)
    out.meta["steps"] = state["step"]
    (out.path / "config.json").write_text("{}")
    (out.path / "weights.bin").write_bytes(bytes.fromhex(state["digest"]) * 100)
