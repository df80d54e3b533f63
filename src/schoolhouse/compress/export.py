"""The stage `compress.gguf`: a checkpoint as one GGUF file, for llama.cpp and whatever is built on it.

The file holds weights, tokenizer and chat template. It counts as made only after llama.cpp has read it and said, prompt
by prompt, what we say with the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from schoolhouse.compress.replay import need_llama_cpp, replay
from schoolhouse.compress.replay_prompts import PROMPTS
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import Stopped
from schoolhouse.core.run import Run
from schoolhouse.model.gguf_out import write_gguf
from schoolhouse.model.weights import load_config
from schoolhouse.text.chat import SYSTEM_FILE
from schoolhouse.text.gguf_vocab import to_gguf

FILE = "model.gguf"
"""The exported model within its artifact."""


class Config(StageConfig):
    """What to export: the checkpoint that a stage made, and how its weights are stored."""

    model: Ref
    kind: Literal["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"] = "q8_0"
    replay: int = Field(len(PROMPTS), ge=0, le=len(PROMPTS))


def check(config: Config) -> None:
    """Raise RecipeError if the file is to be replayed and there is no llama.cpp to do it."""
    need_llama_cpp(config.replay)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write model.gguf; `out.meta` gets its size, counts, rounding error, source, and what the replay compared.

    Raises ModelError for a model that GGUF cannot say, and if llama.cpp says anything else than we do.
    """
    check(config)
    made = inputs[config.model]
    rows = load_config(made.path).vocab_size
    extra = _about(made) | to_gguf(made.path, rows)

    def progress(done: int, total: int) -> None:
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while exporting; the same command starts this stage anew")
        if done % 64 == 0:
            run.log.step(done, total)

    facts = write_gguf(made.path, out.path / FILE, config.kind, extra, progress)
    if (made.path / SYSTEM_FILE).is_file():
        shutil.copyfile(made.path / SYSTEM_FILE, out.path / SYSTEM_FILE)
    out.meta |= facts | {"kind": config.kind, "made_from": made.id, "replay": None}
    _tell(facts, config, run)
    if config.replay:
        seen = replay(out.path / FILE, made.path, config.kind, config.replay, run)
        out.meta["replay"] = seen
        run.log.info(
            f"llama.cpp agrees: {seen['tokens']} greedy tokens after {seen['prompts']} prompts, "
            f"{seen['near_ties']} of them at near ties"
        )
    else:
        run.log.warn("replay = 0: nobody has checked that llama.cpp says what the checkpoint says")


def _about(made: Artifact) -> dict[str, Any]:
    """Name and licence as GGUF files state them, as far as the checkpoint's artifact says them."""
    meta = made.meta
    stage = " ".join(str(meta[key]) for key in ("recipe", "stage") if key in meta)
    about = {"general.name": str(meta.get("title") or stage or made.id)}
    licence = meta.get("licence")
    if isinstance(licence, Mapping) and licence.get("id"):
        about["general.license"] = str(licence["id"]).lower()
    return about


def _tell(facts: Mapping[str, Any], config: Config, run: Run) -> None:
    run.log.info(
        f"{FILE}: {facts['file_bytes'] / 1e6:.0f} MB, {facts['tensors_in_kind']} of {facts['tensors']} tensors in "
        f"{config.kind}, rounding error {facts['relative_error']:.2%} of the weights"
    )
    if facts["tensors_in_f16_instead"]:
        run.log.warn(
            f"{facts['tensors_in_f16_instead']} tensors are stored in F16: their rows do not fill blocks of 32"
        )
    if facts["prediction_layers_left_out"]:
        run.log.warn(
            f"{facts['prediction_layers_left_out']} layers that predict further tokens are left out: "
            "llama.cpp has no use for them"
        )
