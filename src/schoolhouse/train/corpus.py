"""Rows of documents to pretrain on: cut from shuffled documents laid end to end, no document seeing another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schoolhouse.kernels.grid import filler
from schoolhouse.model.packed import Packed
from schoolhouse.model.transformer import Transformer
from schoolhouse.text.documents import Documents

Piece = NDArray[np.uint32]
"""Ids of a document, or of the part of one that a row holds."""


class Rows:
    """Rows of one length out of documents, shuffled anew in each epoch. Where it stands is three numbers."""

    def __init__(self, documents: Documents, length: int, seed: int) -> None:
        self._documents, self._length, self._seed = documents, length, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))
        self._at = (0, 0, 0)  # epoch, place in its order, token of that document

    def next(self) -> list[Piece]:
        """The pieces of the next row, `length` tokens together."""
        pieces: list[Piece] = []
        room = self._length
        while room:
            epoch, place, token = self._at
            piece = self._documents[self._document(epoch, place)][token : token + room]
            pieces.append(piece)
            room -= len(piece)
            if room:
                last = place + 1 == len(self._documents)
                self._at = (epoch + 1, 0, 0) if last else (epoch, place + 1, 0)
            else:
                self._at = (epoch, place, token + len(piece))
        return [piece for piece in pieces if len(piece)]

    def _document(self, epoch: int, place: int) -> int:
        if self._order[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._documents))
            self._order = (epoch, order)
        return int(self._order[1][place])

    def state(self) -> list[int]:
        """Where the next row begins."""
        return list(self._at)

    def restore(self, state: Sequence[int]) -> None:
        """Go back there."""
        epoch, place, token = state
        self._at = (epoch, place, token)


@dataclass(frozen=True)
class Targets:
    """What is predicted at one depth: from which tokens of the row, which ids, and what each of them counts."""

    sources: Tensor
    ids: Tensor
    share: float


@dataclass(frozen=True)
class Part:
    """Pieces in one row: ids (1, N), and the targets of the next token and of those further on."""

    ids: Tensor
    context: Packed
    depths: Sequence[Targets]
    texts: Sequence[int]


def predicted(pieces: Sequence[Piece], depths: int) -> list[int]:
    """How many tokens pieces have to predict at each depth; depth 0 is the next token."""
    return [sum(max(0, len(piece) - 1 - depth) for piece in pieces) for depth in range(depths)]


def make_part(pieces: Sequence[Piece], shares: Sequence[float], device: torch.device) -> Part:
    """Lay pieces end to end. shares: what a token counts at each depth."""
    texts = [len(piece) for piece in pieces]
    ids = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
    starts = np.cumsum([0, *texts[:-1]])
    depths = []
    for depth, share in enumerate(shares):
        ranges = [np.arange(at, at + max(0, n - 1 - depth)) for at, n in zip(starts, texts, strict=True)]
        sources = torch.from_numpy(np.concatenate(ranges))
        depths.append(Targets(sources.to(device), ids[sources + 1 + depth].to(device), share))
    fill = filler(len(ids))
    ids = torch.cat((ids, ids.new_zeros(fill)))[None].to(device)
    return Part(ids, Packed([*texts, *[fill] * (fill > 0)], device=device), depths, texts)


def bits_per_byte(model: Transformer, documents: Documents, length: int, most_tokens: int, part_tokens: int) -> float:
    """What a byte of text costs the model, in bits, over the first documents; its end token is not counted.

    A document longer than `length` is read in windows, each begun by the last token of the one before. It compares
    models of different vocabularies, as a loss per token does not.
    """
    nats = torch.zeros((), dtype=torch.float64)
    size = 0
    device = model.head_weight.device
    with torch.inference_mode():
        for windows, text_bytes in _windows(documents, length, most_tokens, part_tokens):
            part = make_part(windows, [1.0], device)
            hidden = model.hidden(part.ids, part.context)[0]
            logprobs, _ = model.logprobs(hidden[part.depths[0].sources], part.depths[0].ids)
            nats -= logprobs.double().sum().cpu()
            size += text_bytes
    return float(nats) / math.log(2) / size if size else float("nan")


def _windows(
    documents: Documents, length: int, most_tokens: int, part_tokens: int
) -> Iterator[tuple[list[Piece], int]]:
    """Windows of whole documents, some of them together, with the bytes of their text."""
    held: list[Piece] = []
    tokens = size = total = 0
    for number in range(len(documents)):
        if total >= most_tokens:
            break
        ids: Piece = documents[number][:-1]
        windows = [ids[at : at + length] for at in range(0, max(1, len(ids) - 1), length - 1)]
        if held and tokens + len(ids) > part_tokens:
            yield held, size
            held, tokens, size = [], 0, 0
        held += windows
        tokens, total = tokens + len(ids), total + len(ids)
        size += int(documents.bytes[number])
    if held:
        yield held, size
