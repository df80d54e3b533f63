"""Pretraining: a network from nothing, or a base model that reads on in texts of another field or language.

The loss is that of the next token, and with prediction layers that of the tokens after it. Reading on makes a model
forget: a share of the rows can be replayed from other texts, and what a byte of held-out text costs is measured on both
before and after.

Source: arXiv 2412.19437, sections 2.2, 3.3 and 4.2 (further tokens, fp8, balance); arXiv 2502.16982 (Muon).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Duration, Ref, StageConfig, did_you_mean
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.family import TOKENS
from schoolhouse.model.fp8_linear import train_in_fp8
from schoolhouse.model.grow import grow_vocabulary
from schoolhouse.model.presets import PRESETS, preset
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.text.bpe import PIECES
from schoolhouse.text.documents import Documents
from schoolhouse.text.tokenizer import Tokenizer, read_json
from schoolhouse.train.balance import Balancing
from schoolhouse.train.corpus import Part, Rows, bits_per_byte, make_part, predicted
from schoolhouse.train.fit import SAVE_EVERY_S, Batch, Course, fit
from schoolhouse.train.optimizer import Kind, Optimizer
from schoolhouse.train.result import keep_model, training_bytes

GLANCE_TOKENS = 32_768  # held-out tokens that are read between the steps
MOST_TOKENS = 1_000_000  # held-out tokens that are read at the end
FORGOTTEN = 0.05  # share by which a byte of the replayed texts may become dearer before it is called forgetting
BITS = "bits_per_byte"


class Config(StageConfig):
    """What `train.pretrain` reads: packed documents, and a preset to begin from nothing or a model to read on."""

    data: Ref
    preset: str | None = None
    model: Ref | None = None
    mtp: int = Field(default=0, ge=0, le=8)  # prediction layers of a fresh mixture, each for one token further on
    mtp_weight: float = Field(default=0.3, ge=0)
    replay: Ref | None = None
    replay_share: float = Field(default=0.25, ge=0, lt=1)
    epochs: float = Field(default=1.0, gt=0)
    length: int = Field(default=512, ge=16)  # tokens of a row
    batch_tokens: int = Field(default=4096, ge=64)  # of a step; in minutes many small steps beat few large ones
    part_tokens: int = Field(default=4096, ge=64)  # computed at once; sets the memory of the activations
    lr: float = Field(default=4e-3, gt=0)  # learning rate at its peak; found at `nano`, a larger network may want less
    warmup: float = Field(default=0.02, ge=0, lt=1)
    hold: float = Field(default=0.0, ge=0, lt=1)
    floor: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    optimizer: Kind = "muon"
    fp8: bool = False  # linear layers multiply with operands in fp8, as DeepSeek V3 was trained; simulated on a CPU
    bias_speed: float = Field(default=0.02, ge=0)  # what a step moves an expert's bias by; V3: 0.001, in longer courses
    sequence_loss: float = Field(default=1e-4, ge=0)
    measure_every: int = Field(default=50, ge=1)  # steps between two glances at held-out text
    save_every: Duration = SAVE_EVERY_S


def check(config: Config) -> None:
    """Raise RecipeError before anything starts for settings that do not fit together."""
    if (config.preset is None) == (config.model is None):
        raise RecipeError("Name one of preset (a network from nothing) and model (a base that reads on).")
    if config.preset is not None and config.preset not in PRESETS:
        raise RecipeError(
            f"preset is {config.preset!r}; there are {', '.join(PRESETS)}{did_you_mean(config.preset, PRESETS)}"
        )
    if config.model is not None and config.mtp:
        raise RecipeError("mtp gives a fresh network prediction layers; a base model keeps those that it has.")
    if config.preset is not None and config.mtp and "-" in config.preset:
        raise RecipeError(f"mtp is {config.mtp}, the preset {config.preset!r} is dense: set mtp to 0.")
    if config.part_tokens < config.length or config.batch_tokens < config.length:
        raise RecipeError(
            f"length is {config.length}: part_tokens ({config.part_tokens}) and batch_tokens ({config.batch_tokens}) "
            "must hold a row."
        )


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the stage takes at most, estimated."""
    if config.model is not None:
        params = inputs_meta.get(config.model, {}).get("num_params", 0)
    else:
        vocabulary = inputs_meta.get(config.data, {}).get("vocab_size", 0)
        params = preset(config.preset or "", max(vocabulary, 1), {}, config.mtp).num_params()
    return training_bytes(params, config.part_tokens)


class Reading:
    """The source of batches: rows of the texts, among them replayed ones; now and then a glance at held-out text."""

    def __init__(self, config: Config, model: Transformer, data: Artifact, replay: Artifact | None, run: Run) -> None:
        self._config, self._model, self._run = config, model, run
        self._held_out = Documents(data.path, "validation")
        documents = Documents(data.path, "train")
        self._rows = Rows(documents, config.length, run.seed)
        self._replayed = None
        if replay is not None:
            self._replayed = Rows(Documents(replay.path, "train"), config.length, run.seed + 1)
        self._share = config.replay_share if replay is not None else 0.0
        self._count = config.batch_tokens // config.length
        own = self._count * (1 - self._share) * config.length
        self.steps = max(1, round(config.epochs * documents.tokens / own))
        self._weights = [1.0]
        further = model.config.num_nextn_predict_layers
        if further and config.mtp_weight:
            self._weights += [config.mtp_weight / further] * further

    def batch(self, step: int) -> Batch:
        """See `Source.batch`."""
        old = int((step + 1) * self._share * self._count) - int(step * self._share * self._count)
        rows = [self._rows.next() for _ in range(self._count - old)]
        if self._replayed is not None:
            rows += [self._replayed.next() for _ in range(old)]
        counts = predicted([piece for row in rows for piece in row], len(self._weights))
        shares = [weight / max(count, 1) for weight, count in zip(self._weights, counts, strict=True)]
        together = self._config.part_tokens // self._config.length
        device = self._run.runtime.device
        parts = [
            make_part([piece for row in rows[i : i + together] for piece in row], shares, device)
            for i in range(0, len(rows), together)
        ]
        return Batch([parts], self._count * self._config.length, self._glance(step), (BITS,))

    def _glance(self, step: int) -> dict[str, float]:
        if step % self._config.measure_every:
            return {}
        with self._run.meter.phase("measure"):
            bits = bits_per_byte(
                self._model, self._held_out, self._config.length, GLANCE_TOKENS, self._config.part_tokens
            )
        return {BITS: bits}

    def state(self) -> dict[str, Any]:
        """Where both kinds of rows stand."""
        return {"rows": self._rows.state(), "replayed": self._replayed.state() if self._replayed else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back there."""
        self._rows.restore(state["rows"])
        if self._replayed is not None and state["replayed"] is not None:
            self._replayed.restore(state["replayed"])


def next_tokens(model: Transformer, part: Part) -> tuple[Tensor, dict[str, float]]:
    """Mean negative log-probability of the next token, and weighted beside it of those further on."""
    hidden = model.hidden(part.ids, part.context)
    states = [hidden]
    if len(part.depths) > 1:
        states += model.further(hidden, part.ids, part.context)
    losses = []
    for state, targets in zip(states, part.depths, strict=True):
        logprobs, _ = model.logprobs(state.squeeze(0).index_select(0, targets.sources), targets.ids)
        losses.append(-logprobs.sum() * targets.share)
    figures = {"next_loss": float(losses[0].detach())} if len(losses) > 1 else {}
    return torch.stack(losses).sum(), figures


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Train on `data` and write a Hugging Face checkpoint with its learning curve and what a byte costs it."""
    data = inputs[config.data]
    replay = inputs[config.replay] if config.replay is not None else None
    if replay is not None and replay.file("tokenizer.json").read_bytes() != data.file("tokenizer.json").read_bytes():
        raise DataError(f"replay {config.replay!r} was packed with another tokenizer than {config.data!r}.")
    model = _begin(config, inputs, run)
    if config.length > model.config.max_position_embeddings:
        raise DataError(
            f"length is {config.length}, the model's context holds {model.config.max_position_embeddings}: lower it."
        )
    if config.fp8:
        run.log.info(f"{train_in_fp8(model)} layers multiply in fp8")
    _say_what(model.config, run)
    reading = Reading(config, model, data, replay, run)
    optimizer = Optimizer(model, kind=config.optimizer, weight_decay=config.weight_decay)
    before = _before(config, model, inputs, run)
    balancing = Balancing(config.bias_speed, config.sequence_loss)
    course = Course(reading.steps, config.lr, config.warmup, config.hold, config.floor, config.save_every, balancing)
    steps = fit(model, reading, next_tokens, optimizer, course, run)
    keep_model(model, data.path, steps, run, out)
    after = _measured(config, model, inputs)
    out.meta[BITS] = {name: {"before": before.get(name), "after": bits} for name, bits in after.items()}
    _tell(before, after, run)


def _begin(config: Config, inputs: Mapping[str, Artifact], run: Run) -> Transformer:
    """The network that is taught: fresh, or a base with rows for the tokens that its vocabulary has grown by."""
    folder = inputs[config.data].path
    tokenizer = Tokenizer.load(folder)
    if config.model is None:
        named = read_json(folder / "generation_config.json")
        ids: dict[str, Any] = {key: named[key] for key in TOKENS if key in named}
        shape = preset(config.preset or "", tokenizer.vocab_size, ids, config.mtp)
        return _fresh(shape, run)
    base = inputs[config.model].path
    grown = read_json(folder / PIECES)
    known = int(grown["first"]) if grown else tokenizer.vocab_size
    _check_same(Tokenizer.load(base), tokenizer, known, config)
    model = load_model(base, run.runtime.dtype, run.runtime.device)
    if grown:
        grow_vocabulary(model, known, grown["pieces"])
        run.log.info(f"{len(grown['pieces']):,} new tokens begin as the mean of their pieces")
    return model


def _fresh(config: ModelConfig, run: Run) -> Transformer:
    """Random weights in the run's number type; what balances the experts stays in fp32."""
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(run.seed))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(run.runtime.dtype)
    return model.to(run.runtime.device).eval()


def _check_same(base: Tokenizer, packed: Tokenizer, known: int, config: Config) -> None:
    if base.vocab_size != known or any(base.token_of(i) != packed.token_of(i) for i in range(known)):
        raise DataError(
            f"data {config.data!r} was packed with another vocabulary than that of model {config.model!r}: "
            "name the model (or a tokenizer grown from it) in prepare.pack."
        )


def _say_what(config: ModelConfig, run: Run) -> None:
    run.log.info(
        f"{config.model_type}: {config.num_params():,} parameters, {config.active_params():,} for each token, "
        f"{config.kv_bytes_per_token():,} bytes of cache a token"
    )


def _before(config: Config, model: Transformer, inputs: Mapping[str, Artifact], run: Run) -> dict[str, float]:
    """What a byte costs a base model before it reads on; measured once, a resumed run reads it again."""
    if config.model is None:
        return {}
    path: Path = run.scratch / "before.json"
    if not path.exists():
        measured = json.dumps(_measured(config, model, inputs))
        part = path.with_name(path.name + ".part")
        part.write_text(measured, encoding="utf-8")
        part.replace(path)
    held: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _measured(config: Config, model: Transformer, inputs: Mapping[str, Artifact]) -> dict[str, float]:
    """Bits per byte of held-out text, of the texts that are learnt and of those replayed."""
    names = {"data": config.data} | ({"replay": config.replay} if config.replay is not None else {})
    return {
        name: bits_per_byte(
            model, Documents(inputs[ref].path, "validation"), config.length, MOST_TOKENS, config.part_tokens
        )
        for name, ref in names.items()
    }


def _tell(before: Mapping[str, float], after: Mapping[str, float], run: Run) -> None:
    for name, bits in after.items():
        was = f"{before[name]:.3f} before, " if name in before else ""
        run.log.info(f"{name}: {was}{bits:.3f} bits per byte of held-out text")
    if "replay" in before and after["replay"] > (1 + FORGOTTEN) * before["replay"]:
        run.log.warn(
            f"The model forgets: a byte of the replayed texts costs {after['replay'] / before['replay'] - 1:.0%} more. "
            "Raise replay_share or lower lr."
        )
    if before and "replay" not in before:
        run.log.info("no replay: what the model forgot of other texts was not measured")
