"""Rounding by what a network really reads: layer after layer, from its inputs over a few texts of the user's own.

Each decoder layer is shown the texts as the layers before it, rounded already, hand them on. Sums over the inputs of
its linear layers are all that is kept; from them GPTQ or AWQ choose the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from schoolhouse.compress.awq import best_factors, scale_channels, shared_inputs
from schoolhouse.compress.gptq import gptq
from schoolhouse.compress.observe import ask_experts
from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError, ModelError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.model.attention import Causal
from schoolhouse.model.codes import Scheme, quantize_rows
from schoolhouse.model.moe import MixtureOfExperts
from schoolhouse.model.quantization import ends_to_quantize, linears_to_quantize, put
from schoolhouse.model.quantized import Coded, QuantEmbedding, QuantLinear
from schoolhouse.model.transformer import DecoderLayer, Transformer
from schoolhouse.model.weights import load_config, read_config
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import CONVERSATIONS, read_conversations

Method = Literal["gptq", "awq"]


class Schemes(NamedTuple):
    """How linear layers become codes, and how embedding and head do (None: they stay whole)."""

    linears: Scheme
    ends: Scheme | None = None


def schemes_to_make(model: Transformer, schemes: Schemes) -> dict[str, Scheme]:
    """The layers that become codes, and how."""
    inner = {name: schemes.linears for name, _ in linears_to_quantize(model, schemes.linears)}
    ends = {} if schemes.ends is None else dict.fromkeys(ends_to_quantize(model, schemes.ends), schemes.ends)
    return inner | ends


@dataclass
class Seen:
    """Sums over the inputs x (K,) of a linear layer."""

    products: Tensor  # (K, K) fp32, of x x^T
    sizes: Tensor  # (K,) fp32, of |x|
    count: int = 0

    def add(self, x: Tensor) -> None:
        """x: (..., K)."""
        rows = x.flatten(0, -2).float()
        self.products.addmm_(rows.t(), rows)
        self.sizes += rows.abs().sum(0)
        self.count += len(rows)


@torch.no_grad()
def quantize_calibrated(
    model: Transformer, texts: Sequence[Sequence[int]], schemes: Schemes, method: Method, run: Run
) -> Iterator[tuple[float, float]]:
    """Put codes in the place of the model's weights, chosen by `method` from what its layers read in `texts`.

    texts: ids of each. Yields, of each layer, the squares of its weights and of what rounding changed; a layer that no
    text reaches (an expert that nobody asked) is rounded to nearest.
    """
    scheme = schemes.linears
    chosen = dict(linears_to_quantize(model, scheme))
    ids = [torch.tensor([text], device=model.head_weight.device) for text in texts]
    if schemes.ends is not None:
        yield from _quantize_ends(model, ids, schemes.ends, method)
    states = [model.embed(row) for row in ids]  # (1, T, D) each
    depth = len(model.model.layers)
    for number, layer in enumerate(model.model.layers):
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while quantizing; the same command starts this stage anew")
        assert isinstance(layer, DecoderLayer)
        prefix = f"model.layers.{number}."
        own = {name: linear for name, linear in chosen.items() if name.startswith(prefix)}
        predicts = number >= model.config.num_hidden_layers  # further tokens: it reads what no plain pass hands it
        seen = {} if predicts else _watch(model, layer, own, states)
        if method == "awq" and seen:
            _even_out(layer, own, seen, scheme)
            seen = _watch(model, layer, own, states)
        for name, linear in own.items():
            codes, scales = _round(linear, seen.get(name), scheme, method)
            yield _replace(model, name, linear, QuantLinear.from_codes(linear, codes, scales, scheme))
        if not predicts:
            states = [_pass(model, layer, x) for x in states]
        run.log.step(number + 1, depth)


def _quantize_ends(
    model: Transformer, ids: Sequence[Tensor], scheme: Scheme, method: Method
) -> Iterator[tuple[float, float]]:
    """Put codes in the place of embedding and head; as in `quantize_calibrated`.

    The head reads hidden states, which GPTQ can look at. What is looked up is added to the stream as it is, so that
    each of its numbers counts alike. A matrix that is both gets the sum of the two errors, each by its own size.
    """
    ends = ends_to_quantize(model, scheme)
    read = _read_by_head(model, ids) if method == "gptq" and ends else None
    for name, end in ends.items():
        if isinstance(end, nn.Linear):
            codes, scales = _round(end, read, scheme, method)
            yield _replace(model, name, end, QuantLinear.from_codes(end, codes, scales, scheme))
            continue
        if read is not None and model.config.tie_word_embeddings:
            alike = torch.eye(len(read.products), device=read.products.device) * read.products.diagonal().mean()
            codes, scales = gptq(end.weight, read.products + alike, scheme)
        else:
            codes, scales = quantize_rows(end.weight, scheme=scheme)
        yield _replace(model, name, end, QuantEmbedding.from_codes(end, codes, scales, scheme))


def _read_by_head(model: Transformer, ids: Sequence[Tensor]) -> Seen:
    size = model.config.hidden_size
    blank = torch.zeros(size, device=ids[0].device)
    seen = Seen(torch.outer(blank, blank), blank)
    for row in ids:
        seen.add(model.hidden(row, Causal(1, row.shape[1], row.device)))
    return seen


def _replace(model: Transformer, name: str, old: nn.Linear | nn.Embedding, coded: Coded) -> tuple[float, float]:
    """Put codes in the place of a layer: the squares of its weights, and of what rounding changed."""
    exact = old.weight.float()
    change = coded.dequantized().float() - exact
    put(model, name, coded)
    return float(exact.square().sum()), float(change.square().sum())


def unquantized(source: Path) -> dict[str, Any]:
    """A checkpoint's config.json; ModelError if its weights are codes already."""
    raw = read_config(source)
    if "quantization_config" in raw:
        raise ModelError(f"{source}: this checkpoint is quantized already; take the one that it was made from.")
    return raw


def read_texts(data: Artifact, source: Path, most: int) -> list[list[int]]:
    """Conversations of a stage as the ids that the model in `source` reads, spread over all of them.

    Raises DataError if there is none, or one that is longer than the model's context.
    """
    rows, chat = read_conversations(data.file(CONVERSATIONS)).good, ChatFormat.load(source)
    texts = [list(chat.render(row).ids) for row in rows[:: max(1, len(rows) // most)][:most]]
    if not texts:
        raise DataError(f"{data.file(CONVERSATIONS)} holds no conversation to look at.")
    longest, room = max(map(len, texts)), load_config(source).max_position_embeddings
    if longest > room:
        raise DataError(f"A conversation has {longest} tokens, the model's context holds {room}: cut the text.")
    return texts


def _pass(model: Transformer, layer: DecoderLayer, x: Tensor) -> Tensor:
    context = Causal(1, x.shape[1], x.device)
    ropes = model.rotary.tables(context.positions, x.dtype)
    out: Tensor = layer(x, ropes, context)
    return out


def _watch(
    model: Transformer, layer: DecoderLayer, own: Mapping[str, nn.Linear], states: Sequence[Tensor]
) -> dict[str, Seen]:
    """What the linear layers of one decoder layer read while it is shown these states."""
    seen: dict[str, Seen] = {}
    with _watching(layer, own, seen):
        for x in states:
            _pass(model, layer, x)
    return seen


@contextmanager
def _watching(layer: DecoderLayer, own: Mapping[str, nn.Linear], seen: dict[str, Seen]) -> Iterator[None]:
    def watcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name not in seen:
                blank = torch.zeros(args[0].shape[-1], device=args[0].device)
                seen[name] = Seen(torch.outer(blank, blank), blank)
            seen[name].add(args[0])

        return watch

    handles = [linear.register_forward_pre_hook(watcher(name)) for name, linear in own.items()]
    handles += [m.register_forward_pre_hook(ask_experts) for m in layer.modules() if isinstance(m, MixtureOfExperts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _even_out(layer: DecoderLayer, own: Mapping[str, nn.Linear], seen: Mapping[str, Seen], scheme: Scheme) -> None:
    names = {id(linear): name for name, linear in own.items()}
    for before, after in shared_inputs(layer, list(own.values())):
        read = seen[names[id(after[0])]]
        scale_channels(before, after, best_factors(after, read.products, read.sizes / read.count, scheme))


def _round(linear: nn.Linear, seen: Seen | None, scheme: Scheme, method: Method) -> tuple[Tensor, Tensor]:
    if seen is None or method == "awq":
        return quantize_rows(linear.weight, scheme=scheme)
    return gptq(linear.weight, seen.products, scheme)
