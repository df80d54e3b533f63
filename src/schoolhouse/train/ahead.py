"""Replies sampled beside learning: a copy of the policy answers the questions of later steps in a thread of its own.

The replies of a step come from the weights as they were exactly so many steps before, never older, so that a run is the
same whenever it is repeated or goes on. What a reply is off by, `correction` weighs anew.
Source: asynchronous, one-step-off training, arXiv 2410.18252; with a bound of several steps, AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from schoolhouse.model.transformer import Transformer
from schoolhouse.train.rollout import Questions, Rollouts, Sampler


class Ahead:
    """A sampler of a copy of the model, so many steps ahead. Same face as `Sampler`, but a step asks only once.

    sampler: of `copy`, which gets the weights that `model` has when it is asked; steps: of the course, none behind them
    is asked; `close` ends the thread.
    """

    def __init__(self, sampler: Sampler, copy: Transformer, model: Transformer, ahead: int, steps: int) -> None:
        self._sampler, self._copy, self._model = sampler, copy, model
        self._ahead, self._steps = ahead, steps
        self._thread = ThreadPoolExecutor(1, "replies")
        self._leave = threading.Event()
        self._asked: dict[int, Future[tuple[Rollouts, bool]]] = {}

    def rollouts(self, step: int, level_of: Callable[[str, random.Random], str], attempt: int = 0) -> Rollouts:
        """Those of this step, from the weights of so many steps ago; asks for those of later ones."""
        assert attempt == 0, "what is asked anew would wait behind later steps"
        weights = None
        for later in range(step, min(step + self._ahead + 1, self._steps)):
            if later not in self._asked:
                weights = weights or _weights(self._model)
                questions = self._sampler.questions(later, level_of)
                self._asked[later] = self._thread.submit(self._answer, questions, weights)
        with self._sampler.waiting():
            found, is_new = self._asked.pop(step).result()
        if is_new:
            self._sampler.count(found)
        return found

    def _answer(self, questions: Questions, weights: dict[str, Tensor]) -> tuple[Rollouts, bool]:
        """The replies and whether they were sampled now."""
        is_new = not questions.path.exists()
        if is_new:
            with torch.no_grad():
                for name, held in _tensors(self._copy):
                    held.copy_(weights[name])
        return self._sampler.replies(questions, self._leave), is_new

    def settle(self) -> None:
        """Wait until all that was asked lies on disk, where a resumed run finds it: its weights will be gone."""
        for job in self._asked.values():
            job.result()

    def close(self) -> None:
        """Drop what was asked for and end the thread, at the next token."""
        self._leave.set()
        self._thread.shutdown(cancel_futures=True)


def _tensors(model: Transformer) -> itertools.chain[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _weights(model: Transformer) -> dict[str, Tensor]:
    return {name: held.detach().clone() for name, held in _tensors(model)}
