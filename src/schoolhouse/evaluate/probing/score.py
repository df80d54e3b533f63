"""How likely a network holds given texts: log-probabilities of their learnt tokens, many texts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from schoolhouse.evaluate.probing.ask import Watch
from schoolhouse.evaluate.probing.talk import Text
from schoolhouse.kernels.grid import filler
from schoolhouse.model.packed import Packed
from schoolhouse.model.transformer import Transformer

PART_TOKENS = 2048  # computed at once


@torch.no_grad()
def text_logprobs(model: Transformer, texts: Sequence[Text], watch: Watch) -> list[list[float]]:
    """Log-probability in nats of every learnt token of each text."""
    out: list[list[float]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))  # neighbours in size: attention pads to one
    for cut in _cuts([len(texts[i].ids) for i in order]):
        watch(cut[0], len(texts))
        part = [texts[order[i]] for i in cut]
        sources, start = [], 0
        for text in part:
            sources += [start + place - 1 for place in text.places]
            start += len(text.ids)
        ids = [token for text in part for token in text.ids]
        targets = [text.ids[place] for text in part for place in text.places]
        fill = filler(start)
        device = _device(model)
        context = Packed([len(text.ids) for text in part] + [fill] * (fill > 0), device=device)
        found = _logprobs(model, ids + [0] * fill, context, sources, targets)
        for i, scores in zip(cut, found.split([len(text.places) for text in part]), strict=True):
            out[order[i]] = scores.tolist()
    return out


@torch.no_grad()
def variant_logprobs(model: Transformer, groups: Sequence[Sequence[Text]], watch: Watch) -> list[list[float]]:
    """Log-probability in nats of each variant of a text, but for what all variants of its group have in common before
    they part; so it says which is likelier, and by how much. What they share is computed once.
    """
    out: list[list[float]] = [[] for _ in groups]
    for size in dict.fromkeys(map(len, groups)):
        same = [i for i, group in enumerate(groups) if len(group) == size]
        shared = {i: _shared(groups[i]) for i in same}
        sizes = [shared[i] + sum(len(text.ids) - shared[i] for text in groups[i]) for i in same]
        for cut in _cuts(sizes):
            watch(cut[0], len(same))
            part = [same[i] for i in cut]
            found = _scored([(groups[i], shared[i]) for i in part], model)
            for i, scores in zip(part, found, strict=True):
                out[i] = scores
    return out


def _shared(group: Sequence[Text]) -> int:
    """Tokens with which all variants begin; each keeps one of its own."""
    most = min(len(text.ids) for text in group) - 1
    first = group[0].ids
    return next((i for i in range(most) if any(text.ids[i] != first[i] for text in group)), most)


def _scored(groups: Sequence[tuple[Sequence[Text], int]], model: Transformer) -> list[list[float]]:
    """See `variant_logprobs`; each group with the tokens that its variants share. All have equally many variants."""
    start = sum(shared for _, shared in groups)
    ids = [token for group, shared in groups for token in group[0].ids[:shared]]
    sources: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    end = 0
    for group, shared in groups:
        end += shared
        for text in group:
            places = [place - shared for place in text.places if place >= shared]
            sources += [end - 1 if place == 0 else start + place - 1 for place in places]
            targets += [text.ids[place + shared] for place in places]
            counts.append(len(places))
            ids += text.ids[shared:]
            start += len(text.ids) - shared
    fill = filler(start)
    sizes = [[len(text.ids) - shared for text in group] for group, shared in groups]
    sizes[-1][-1] += fill
    context = Packed([shared for _, shared in groups], sizes, _device(model))
    found = _logprobs(model, ids + [0] * fill, context, sources, targets).split(counts)
    sums = [float(scores.double().sum()) for scores in found]
    width = len(groups[0][0])
    return [sums[i : i + width] for i in range(0, len(sums), width)]


def _logprobs(
    model: Transformer, ids: Sequence[int], context: Packed, sources: Sequence[int], targets: Sequence[int]
) -> Tensor:
    device = _device(model)
    hidden = model.hidden(torch.tensor(ids, device=device)[None], context).squeeze(0)  # (N, D)
    at = torch.tensor(sources, dtype=torch.int64, device=device)
    return model.logprobs(hidden.index_select(0, at), torch.tensor(targets, dtype=torch.int64, device=device))[0].cpu()


def _device(model: Transformer) -> torch.device:
    return next(model.parameters()).device


def _cuts(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Indices in their order, as many together as fit into a part, at least one."""
    held: list[int] = []
    tokens = 0
    for i, size in enumerate(sizes):
        if held and tokens + size > PART_TOKENS:
            yield held
            held, tokens = [], 0
        held.append(i)
        tokens += size
    if held:
        yield held
