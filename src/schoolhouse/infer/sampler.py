"""From logits to a token: one pass over the vocabulary, whatever the batch.

The vocabulary is cut into blocks. Their sums tell in which block the token lies, and only that block is searched, so
that a token costs an exponential and a sum a word, no sort and no random number a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.native import library, takes

BLOCK = 128  # words


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. Temperature 0 takes the likeliest token every time.

    seed: two requests with the same seed and logits draw the same tokens, whatever else is in the batch.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0


def uniforms(seeds: Iterable[int], steps: Iterable[int]) -> Tensor:
    """One number in (0, 1) for each (seed, step): (B,) float64, by the SplitMix64 mixer.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, figure 17.
    """
    mask = (1 << 64) - 1
    out = []
    for seed, step in zip(seeds, steps, strict=True):
        z = ((seed << 20) + step + 1) * 0x9E3779B97F4A7C15 & mask  # + 1: the mixer maps 0 to 0
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        out.append(((z ^ (z >> 31)) >> 11) * 2.0**-53 + 2.0**-54)
    return torch.tensor(out, dtype=torch.float64)


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row. logits: (B, V); temperature, top_p, draws (uniform in (0, 1)): (B,).

    Returns ids (B,) int64 and their log-probabilities (B,) float32 under softmax(logits / temperature), the whole of it
    where top_p cuts; rows of temperature 0 take the likeliest token and report its log-probability at temperature 1.
    Raises ModelError if a row's logits are not numbers.
    """
    rows, words = logits.shape
    temperature, top_p, draws = (x.to(logits.device) for x in (temperature, top_p, draws))
    greedy = temperature == 0
    if takes(logits) and logits.stride(1) == 1 and bool((greedy | (top_p >= 1)).all()):
        return _sample_by_kernel(logits, temperature.where(~greedy, 1.0), greedy, draws)
    blocks = -(-words // BLOCK)
    weights = torch.empty(rows, blocks * BLOCK, dtype=torch.float32, device=logits.device)
    weights[:, words:] = 0
    body = weights[:, :words]
    body.copy_(logits)
    body.sub_(logits.amax(dim=-1, keepdim=True).float())
    if bool((temperature[~greedy] != 1).any()):
        body.div_(temperature.where(~greedy, 1.0)[:, None])
    body.exp_()
    by_block = weights.view(rows, blocks, BLOCK)
    sums = by_block.sum(-1)  # (B, blocks)
    total = sums.sum(-1)  # (B,)
    _check(total)
    allowed = _nucleus(body, top_p, total) if bool((top_p[~greedy] < 1).any()) else None
    if allowed is not None:
        by_block = torch.nn.functional.pad(body * allowed, (0, blocks * BLOCK - words)).view(rows, blocks, BLOCK)
        sums = by_block.sum(-1)
    block, rest = _draw_block(sums, draws)
    ids = block * BLOCK + _draw_word(by_block[torch.arange(rows, device=logits.device), block], rest)
    if bool(greedy.any()):
        best = by_block.amax(-1).argmax(-1)
        inside = by_block[torch.arange(rows, device=logits.device), best].argmax(-1)
        ids = torch.where(greedy, best * BLOCK + inside, ids)
    return ids, (weights.gather(1, ids[:, None]).squeeze(1) / total).log()


def _sample_by_kernel(logits: Tensor, temperature: Tensor, greedy: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The same where nothing is cut: only the sums of the blocks and the words of one block are held."""
    rows, words = logits.shape
    native, blocks = library(), -(-words // BLOCK)
    assert native is not None, "takes says whether there are kernels"
    slopes = (1.0 / temperature).float()
    tops, best = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    sums = torch.empty(rows, blocks)
    native.weigh_words(
        logits.data_ptr(), logits.stride(0), slopes.data_ptr(), tops.data_ptr(), best.data_ptr(), sums.data_ptr(), rows,
        words,
    )  # fmt: skip
    total = sums.sum(-1)
    _check(total)
    if bool(greedy.all()):
        return best, -total.log()
    block, rest = _draw_block(sums, draws)
    places = block[:, None] * BLOCK + torch.arange(BLOCK)  # (B, BLOCK)
    near = logits.gather(1, places.clamp(max=words - 1)).float()
    within = ((near - tops[:, None]) * slopes[:, None]).exp_().where(places < words, 0.0)
    ids = torch.where(greedy, best, block * BLOCK + _draw_word(within, rest))
    chosen = logits.gather(1, ids[:, None]).squeeze(1).float()
    return ids, (chosen - tops) * slopes - total.log()


def _check(total: Tensor) -> None:
    if not bool(torch.isfinite(total).all()):
        raise ModelError("The network's output is not a number: its weights are damaged, or its training ran away.")


def _draw_block(sums: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative sums (B, blocks) at `draws`: the block of each row, and what is left of the draw in it."""
    rows = torch.arange(len(draws), device=draws.device)
    ends = sums.double().cumsum(-1)  # (B, blocks)
    target = draws * ends[:, -1]
    block = torch.searchsorted(ends, target[:, None]).squeeze(1).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, ends[rows, (block - 1).clamp_(min=0)], 0.0)
    return block, target - before


def _draw_word(within: Tensor, rest: Tensor) -> Tensor:
    """The word of a block with these weights (B, BLOCK) at which the draw's rest (B,) ends."""
    within = within.double()
    word = torch.searchsorted(within.cumsum(-1), rest[:, None]).squeeze(1).clamp_(max=within.shape[1] - 1)
    # Rounding may point at a word of weight 0 at the block's end: its likeliest word stands in.
    held = within.gather(1, word[:, None]).squeeze(1)
    return torch.where(held > 0, word, within.argmax(-1))


def _nucleus(weights: Tensor, top_p: Tensor, total: Tensor) -> Tensor:
    """1.0 for the fewest likeliest words whose probability reaches top_p, else 0.0. Source: arXiv 1904.09751."""
    ordered, order = weights.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = (before < (top_p * total)[:, None]) | (top_p >= 1)[:, None]  # rounding cuts nothing from a whole row
    kept[:, 0] = True
    return torch.zeros_like(weights).scatter_(1, order, kept.float())
