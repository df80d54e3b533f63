"""Replies of a probed model, many at once; whoever waits for them may stop them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schoolhouse.infer.engine import Completion, Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.transformer import Transformer

SLOTS = 64

Watch = Callable[[int, int], None]
"""Called with what is done and all there is; raises to stop."""


def replies(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    samplings: Sampling | Sequence[Sequence[Sampling]],
    watch: Watch,
) -> list[list[Completion]]:
    """One list a prompt, one reply a sampling. Raises ModelError where a prompt and its reply do not fit the model."""
    engine = Engine(model, slots=SLOTS)
    try:
        return engine.generate(prompts, samplings, progress=watch)
    finally:
        engine.forget()
