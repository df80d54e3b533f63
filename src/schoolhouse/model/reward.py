"""A decoder that gives a number instead of tokens: how good a reply is. Checkpoints as transformers' classifiers.

Its layout is `...ForSequenceClassification` with one label: the decoder's tensors and `score.weight` (1, D), no head.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from schoolhouse.core.errors import ModelError
from schoolhouse.model.attention import Context
from schoolhouse.model.config import ModelConfig
from schoolhouse.model.layers import Linear
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_kind, read_config, save_model

CAUSAL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"
LABELS = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}


class RewardModel(Transformer):
    """A decoder with `score` instead of a head over the vocabulary."""

    @classmethod
    def causal(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """See `Transformer.causal`. Raises ModelError for the config of another kind of model."""
        named = [str(name) for name in raw.get("architectures") or ["none"]]
        if not named[0].endswith(CLASSIFIER):
            raise ModelError(f"its architecture is {named[0]}: no reward model. Name a stage that ran train.reward.")
        kept = {key: value for key, value in raw.items() if key not in LABELS}
        return kept | {"architectures": [name.replace(CLASSIFIER, CAUSAL) for name in named]}

    def __init__(self, config: ModelConfig) -> None:
        # Tied, so that there is no head to store; prediction layers predict tokens.
        super().__init__(replace(config, tie_word_embeddings=True, head_bias=False, num_nextn_predict_layers=0))
        self.score = Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def of(cls, model: Transformer) -> RewardModel:
        """The decoder of a language model with a score of 0 for everything; the weights are shared with it."""
        with torch.device("meta"):
            made = cls(model.config)
        known = made.state_dict()
        state = {name: tensor for name, tensor in model.state_dict().items() if name in known}
        like: Tensor = state["model.norm.weight"]
        state["score.weight"] = like.new_zeros(1, model.config.hidden_size)
        made.load_state_dict(state, assign=True)
        return made

    def rewards(self, ids: Tensor, context: Context, ends: Tensor) -> Tensor:
        """The reward at each of the places `ends` (R,), where texts end, as (R,) fp32. ids: (1, N)."""
        hidden = self.hidden(ids, context).squeeze(0).index_select(0, ends)  # (R, D)
        return nn.functional.linear(hidden.float(), self.score.weight.float()).squeeze(-1)


def save_reward_model(model: RewardModel, folder: Path, *, like: Path) -> None:
    """Write the checkpoint; `like` is the folder that its decoder came from: see `save_model`."""
    save_model(model, folder, like=like)
    raw = read_config(folder)
    raw["architectures"] = [name.replace(CAUSAL, CLASSIFIER) for name in raw["architectures"]]
    (folder / "config.json").write_text(json.dumps(raw | LABELS, indent=2) + "\n", encoding="utf-8")


def load_reward_model(folder: Path, dtype: torch.dtype, device: torch.device) -> RewardModel:
    """Read what `save_reward_model` wrote. Raises ModelError for a folder that holds another kind of model."""
    return load_kind(RewardModel, folder, dtype, device)
