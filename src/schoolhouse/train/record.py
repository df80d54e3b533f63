"""The stage `train.record`: what a master holds likely at every learnt token of some conversations, on disk.

A master's whole distributions are 100 kB a token; its likeliest tokens are a few hundred bytes, and hold nearly all of
it. `train.sft` learns from them as often as it likes, and the master need not be there any more.
Source: arXiv 1503.02531, section 2 (soft targets); the bucket for the rest keeps the apprentice from overconfidence,
arXiv 2503.16870, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.kernels.divergence import BLOCK_ROWS
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train.fit import even_cuts
from schoolhouse.train.recorded import RECORD, vocabulary_sha256
from schoolhouse.train.sft import Part, make_part, places_of, render_all


class Config(StageConfig):
    """What `train.record` reads: a master, and conversations."""

    model: Ref  # the master
    data: Ref  # a stage that left conversations
    top: int = Field(default=32, ge=1)  # likeliest tokens that are kept of each place
    max_tokens: int = Field(default=1024, ge=16)  # of one conversation; longer ones are an error
    part_tokens: int = Field(default=4096, ge=64)  # computed at once


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated."""
    return (600 << 20) + 2 * inputs_meta.get(config.model, {}).get("num_params", 0)


@torch.no_grad()
def likeliest(model: Transformer, part: Part, top: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities (M, K) of the likeliest tokens at each learnt place of a part."""
    hidden = model.hidden(part.ids, part.context).squeeze(0).index_select(0, part.sources)  # (M, D)
    found = []
    for start in range(0, len(hidden), BLOCK_ROWS):
        logits = model.head(hidden[start : start + BLOCK_ROWS]).float().log_softmax(-1)
        found.append(logits.topk(top, dim=-1))
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write record.safetensors. Raises DataError for conversations that cannot be learnt from."""
    source: Path = inputs[config.model].path
    chat = ChatFormat.load(source)
    rows = render_all(inputs[config.data], chat, config.max_tokens)
    model = load_model(source, run.runtime.dtype, run.runtime.device).requires_grad_(False)
    if config.top > model.config.vocab_size:
        raise RecipeError(f"top is {config.top}, the vocabulary has {model.config.vocab_size} tokens: keep fewer.")
    ids: list[Tensor] = [torch.empty(0)] * len(rows)
    logprobs: list[Tensor] = [torch.empty(0)] * len(rows)
    done = 0
    for cut in even_cuts([len(row.ids) for row in rows], config.part_tokens):
        if run.should_stop() == "interrupted":
            raise Stopped("Stopped; the same command begins the record anew.")
        part = make_part([rows[i] for i in cut], 1, run.runtime.device)
        lengths = [len(places_of(rows[i])) for i in cut]
        best, chance = (x.cpu().split(lengths) for x in likeliest(model, part, config.top))
        for place, index in enumerate(cut):
            ids[index], logprobs[index] = best[place].int(), chance[place]
        done += len(cut)
        run.log.step(done, len(rows))
    targets = torch.tensor([row.ids[i] for row in rows for i in places_of(row)], dtype=torch.int32)
    stored = {"targets": targets, "ids": torch.cat(ids), "logprobs": torch.cat(logprobs)}
    save_file(stored, out.path / RECORD)
    (out.path / RECORD).chmod(0o644)
    held = float(stored["logprobs"].exp().sum(-1).mean())
    tokens = sum(len(row.ids) for row in rows)
    run.meter.add(tokens=tokens, flops=tokens * model.config.flops_per_token(0))
    out.meta |= {"tokens": len(targets), "top": config.top, "held": held, "vocabulary_sha256": vocabulary_sha256(chat)}
    size = (out.path / RECORD).stat().st_size
    run.log.info(f"{len(targets)} tokens, {size / 1e6:.1f} MB; the likeliest {config.top} hold {held:.1%} on average")
