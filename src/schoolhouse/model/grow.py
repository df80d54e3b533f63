"""A network whose vocabulary grows: rows for new tokens, begun where the old model would have read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from schoolhouse.core.errors import ModelError
from schoolhouse.model.transformer import Transformer


@torch.no_grad()
def grow_vocabulary(model: Transformer, first: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give the tokens from id `first` on the mean of their pieces' rows, in the embedding and the head; in place.

    pieces: for each new token the old ids that spell it. Rows that a model has to spare are used; afterwards the
    config's vocab_size is the number of rows. Raises ModelError if there are too few rows for the ids below `first`.
    """
    rows = model.config.vocab_size
    if first > rows:
        raise ModelError(f"The new tokens begin at id {first:,}, the model has {rows:,} rows: it is not their base.")
    size = max(rows, first + len(pieces))
    embedding = model.model.embed_tokens
    embedding.weight = nn.Parameter(_grown(embedding.weight, size, first, pieces))
    embedding.num_embeddings = size
    if not model.config.tie_word_embeddings:
        head = model.lm_head
        head.weight = nn.Parameter(_grown(head.weight, size, first, pieces))
        head.out_features = size
        if head.bias is not None:
            head.bias = nn.Parameter(_grown(head.bias[:, None], size, first, pieces)[:, 0].contiguous())
    model.config = replace(model.config, vocab_size=size)


def _grown(rows: Tensor, size: int, first: int, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(V, D) to (size, D)."""
    out = rows.new_zeros(size, rows.shape[1])
    out[: len(rows)] = rows
    for i, ids in enumerate(pieces, start=first):
        out[i] = rows[list(ids)].float().mean(0).to(rows.dtype)
    return out
