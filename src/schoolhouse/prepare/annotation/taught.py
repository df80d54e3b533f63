"""Labels as what a learner is taught, and what it would have people asked next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.shares import Estimate, share
from schoolhouse.prepare.annotation.active import Known, Order, Pick, ask_next, counted, grams, learn, weighed
from schoolhouse.prepare.annotation.labelled import Held, replies_of
from schoolhouse.prepare.annotation.settle import Said
from schoolhouse.tasks.task import Split
from schoolhouse.text.labels import FIRST, SECOND, TIE, LabelSchema, Span, Value
from schoolhouse.text.sourced import Document

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Looked = list[NDArray[np.int32]]  # the n-grams of a text, or of both replies of a pair
_WORTH = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}


def grams_of(schema: LabelSchema, document: Document) -> Looked:
    """N-grams of the text, or of both replies."""
    replies = replies_of(schema, document) if schema.kind == "pairs" else None
    return [grams(text) for text in replies or (document.text,)]


@dataclass(frozen=True)
class Taught:
    """What was said so far, held-out documents included; what is settled counts before what is said."""

    schema: LabelSchema
    held: Mapping[str, Held]
    said: Said
    settled: Mapping[str, Value]

    def ask(self, order: Order, pool: list[Looked], count: int, seed: int) -> tuple[list[Pick], Estimate | None]:
        """The next of the pool, and how many held-out documents of one class each the learner guesses."""
        learnt, test = (self._of(split) for split in ("train", "test"))
        rows = _rows([*pool, *(grams_of(self.schema, self.held[name].document) for name in (*learnt, *test))])
        ends = len(pool), len(pool) + len(learnt)
        pairs = self.schema.kind == "pairs"
        names = [FIRST] if pairs else self.schema.names
        targets = np.array([self._target(name) for name in learnt]).reshape(len(learnt), len(names))
        one = self.schema.kind == "classes" and not self.schema.several
        known = Known(rows[ends[0] : ends[1]], targets, names, one=one, bias=not pairs)
        picks = ask_next(order, rows[: ends[0]], known, count, seed)
        if not one or not known.teaches or not test:
            return picks, None
        guesses = learn(known).guess(rows[ends[1] :]).argmax(axis=1)
        said = [int(self._target(name).argmax()) for name in test]
        return picks, share(int((guesses == said).sum()), len(said))

    def _of(self, split: Split) -> list[str]:
        return [name for name in sorted(self.said) if self.held[name].split == split]

    def _target(self, name: str) -> NDArray[np.float64]:
        """Classes, types of span that occur, or whether the first reply is better, as the mean over the annotators."""
        said = [self.settled[name]] if name in self.settled else list(self.said[name].values())
        if self.schema.kind == "pairs":
            return np.array([np.mean([_WORTH[str(value)] for value in said])])
        return np.asarray(np.mean([_named(value, self.schema.names) for value in said], axis=0))


def _named(value: Value, names: Sequence[str]) -> list[bool]:
    held = {value} if isinstance(value, str) else {v.type if isinstance(v, Span) else v for v in value}
    return [name in held for name in names]


def _rows(looked: Sequence[Looked]) -> csr_array:
    """Weighed rows of texts; of pairs the first reply's less the second's."""
    if not looked or len(looked[0]) == 1:
        return weighed(counted(one for (one,) in looked))
    sides: Iterable[NDArray[np.int32]] = [side[k] for k in (0, 1) for side in looked]
    both = weighed(counted(sides))
    return (both[: len(looked)] - both[len(looked) :]).tocsr()
