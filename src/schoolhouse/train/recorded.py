"""What `train.record` left of a master, read back beside the conversations that it is of, and learnt from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.kernels.divergence import recorded_divergence
from schoolhouse.model.packed import Packed
from schoolhouse.model.transformer import Transformer
from schoolhouse.text.chat import ChatFormat

RECORD = "record.safetensors"


class Recorded(Protocol):
    """A part of a batch whose learnt tokens were recorded."""

    @property
    def ids(self) -> Tensor:
        """(1, N)."""

    @property
    def context(self) -> Packed:
        """How the texts lie in the row."""

    @property
    def sources(self) -> Tensor:
        """(M,) where each learnt token is predicted from."""

    @property
    def share(self) -> float:
        """Of one over the batch's learnt tokens."""

    @property
    def says(self) -> tuple[Tensor, Tensor] | None:
        """Ids and log-probabilities (M, K) of what a master holds likely."""


@dataclass(frozen=True)
class Record:
    """What was recorded of some conversations, one after the other. M learnt tokens, K kept of each."""

    targets: Tensor  # (M,) the tokens that stand there
    ids: Tensor  # (M, K)
    logprobs: Tensor  # (M, K)
    ends: Sequence[int]  # behind the last learnt token of each conversation

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of one conversation."""
        rows = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return self.ids[rows], self.logprobs[rows]


def vocabulary_sha256(chat: ChatFormat) -> str:
    """Which id means which piece."""
    return hashlib.sha256(json.dumps(sorted(chat.tokenizer.vocabulary().items())).encode()).hexdigest()


def read_record(artifact: Artifact, chat: ChatFormat, targets: Sequence[Sequence[int]]) -> Record:
    """The record of an artifact. targets: the learnt tokens of each conversation, as the apprentice's format has them.

    Raises RecipeError for another vocabulary, DataError for a record of other conversations.
    """
    if artifact.meta["vocabulary_sha256"] != vocabulary_sha256(chat):
        raise RecipeError(
            "the record is of a master with another vocabulary: an id would mean another word. Take a master of the "
            "apprentice's family, or let it learn from the conversations alone."
        )
    held = load_file(artifact.file(RECORD))
    flat = torch.tensor([i for row in targets for i in row])
    if not torch.equal(held["targets"].long(), flat):
        raise DataError(
            "the record is of other conversations, or of another chat format: record these with train.record."
        )
    return Record(flat, held["ids"].long(), held["logprobs"], list(accumulate(map(len, targets))))


def recorded_loss(model: Transformer, part: Recorded) -> tuple[Tensor, dict[str, float]]:
    """The mean divergence from what was recorded: an objective of `fit`."""
    assert part.says is not None
    hidden = model.hidden(part.ids, part.context).squeeze(0).index_select(0, part.sources)  # (M, D)
    bias = model.lm_head.bias if model.config.head_bias else None
    cap = model.config.final_logit_softcapping
    return recorded_divergence(hidden, model.head_weight, bias, cap, *part.says).sum() * part.share, {}
