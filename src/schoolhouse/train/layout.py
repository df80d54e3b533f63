"""Prompts and their replies in one row, so that each prompt is computed once for all replies to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schoolhouse.kernels.grid import filler
from schoolhouse.model.packed import Packed


@dataclass(frozen=True)
class Laid:
    """Prompts, then their replies, prompt by prompt. N tokens, M of them in R replies."""

    ids: Tensor  # (1, N)
    context: Packed
    sources: Tensor  # (M,) where each reply token is predicted from
    targets: Tensor  # (M,)
    prompts: Sequence[int]  # tokens of each
    lengths: Tensor  # (R,) tokens of each reply
    ends: Tensor  # (R,) where each reply's last token lies

    @property
    def texts(self) -> list[int]:
        """Tokens of each prompt and of each reply, in the order in which they lie."""
        return [*self.prompts, *self.lengths.tolist()]


def lay_out(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Laid:
    """Lay ids of prompts and, equally many for each, of their replies end to end."""
    flat = [reply for row in replies for reply in row]
    sources: list[int] = []
    ends: list[int] = []
    prompt_end, start = 0, sum(map(len, prompts))
    for prompt, row in zip(prompts, replies, strict=True):
        prompt_end += len(prompt)
        for reply in row:
            sources += [prompt_end - 1, *range(start, start + len(reply) - 1)]
            start += len(reply)
            ends.append(start - 1)
    fill = filler(start)  # laid behind the last reply, where nothing looks at it
    ids = [i for p in prompts for i in p] + [i for reply in flat for i in reply] + [0] * fill
    sizes = [[len(reply) for reply in row] for row in replies]
    sizes[-1][-1] += fill
    return Laid(
        torch.tensor(ids, device=device)[None],
        Packed([len(p) for p in prompts], sizes, device),
        torch.tensor(sources, device=device),
        torch.tensor([i for reply in flat for i in reply], device=device),
        [len(p) for p in prompts],
        torch.tensor([len(reply) for reply in flat]),
        torch.tensor(ends, device=device),
    )
