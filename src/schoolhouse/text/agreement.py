"""How far people agree beyond chance: Cohen's kappa, Krippendorff's alpha, F1 of marked spans, with intervals.

Every measure is a function of sums over documents. So a bootstrap, which draws documents anew, only weighs the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from schoolhouse.text.labels import Span

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Agreement:
    """A measure over n documents with a 95% interval by the bootstrap; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable], seed: int = 0) -> Agreement:
    """Agreement of two people on the same documents: 1 if they always agree, 0 if no more than by chance.

    Not defined where both only ever gave one and the same answer.
    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    assert len(first) == len(second), "one answer of each for every document"
    known = {value: k for k, value in enumerate(dict.fromkeys([*first, *second]))}
    sides = [np.eye(len(known))[np.array([known[v] for v in side], dtype=int)] for side in (first, second)]
    equal = np.array([a == b for a, b in zip(first, second, strict=True)], dtype=np.float64)

    def kappa(sums: Floats) -> Floats:
        n = sums[:, :1]
        a, b = np.split(sums[:, 2:] / n, 2, axis=1)
        chance = (a * b).sum(axis=1)
        return np.asarray((sums[:, 1] / n[:, 0] - chance) / (1 - chance))

    return _bootstrap(np.column_stack([np.ones(len(first)), equal, *sides]), kappa, seed)


def krippendorff_alpha(documents: Iterable[Sequence[Hashable]], seed: int = 0) -> Agreement:
    """Agreement of any number of people, each on any of the documents: their answers, those alone in one left out.

    Not defined where only one answer was ever given.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C, nominal data.
    """
    counts = [Counter(answers) for answers in documents if len(answers) > 1]
    known = {value: k for k, value in enumerate(dict.fromkeys(v for found in counts for v in found))}
    table = np.zeros((len(counts), len(known)))
    for row, found in enumerate(counts):
        table[row, [known[value] for value in found]] = list(found.values())
    many = table.sum(axis=1)
    apart = (many**2 - (table**2).sum(axis=1)) / np.maximum(many - 1, 1)

    def alpha(sums: Floats) -> Floats:
        n = sums[:, 1:].sum(axis=1)
        expected = (n**2 - (sums[:, 1:] ** 2).sum(axis=1)) / (n - 1)
        return np.asarray(1 - sums[:, 0] / expected)

    return _bootstrap(np.column_stack([apart, table]), alpha, seed)


def span_f1(documents: Iterable[Sequence[Sequence[Span]]], overlap: bool, seed: int = 0) -> Agreement:
    """F1 of the spans of every two people: of the same type and place, or with `overlap` of any letter in common.

    Chance plays no part, for almost every place in a text is one that nobody marks.
    Source: Hripcsak and Rothschild 2005, "Agreement, the F-measure, and reliability in information retrieval".
    """
    return _shared([_pairwise(people, lambda a, b: _met(a, b, overlap)) for people in documents], seed)


def _met(spans: Sequence[Span], others: Sequence[Span], overlap: bool) -> int:
    """How many spans the other has, too."""
    if not overlap:
        return len(set(spans) & set(others))
    return sum(any(a.type == b.type and a.start < b.end and b.start < a.end for b in others) for a in spans)


def word_f1(documents: Iterable[Sequence[str]], seed: int = 0) -> Agreement:
    """F1 of the words of every two people's answers, whatever their case and order."""
    bags = ([answer.casefold().split() for answer in answers] for answers in documents)
    return _shared([_pairwise(people, lambda a, b: (Counter(a) & Counter(b)).total()) for people in bags], seed)


def _pairwise(people: Sequence[Sequence[Hashable]], met: Callable[..., int]) -> tuple[float, float]:
    """Of every two people, how many things are shared, counted from either side, and how many there are."""
    both = list(combinations(people, 2))
    return sum(met(a, b) + met(b, a) for a, b in both), sum(len(a) + len(b) for a, b in both)


def _shared(rows: list[tuple[float, float]], seed: int) -> Agreement:
    return _bootstrap(np.array(rows, dtype=np.float64).reshape(-1, 2), lambda sums: sums[:, 0] / sums[:, 1], seed)


def _bootstrap(rows: Floats, measure: Callable[[Floats], Floats], seed: int) -> Agreement:
    """rows: what each document adds to the sums; measure: from (R, columns) sums to (R,) values.

    Source: percentile interval, Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    n = len(rows)
    if n == 0:
        return Agreement(None, None, None, 0)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, found = measure(rows.sum(axis=0)[None])[0], measure(drawn @ rows)
    if not np.isfinite(value):
        return Agreement(None, None, None, n)
    low, high = np.percentile(found[np.isfinite(found)], [2.5, 97.5])
    return Agreement(float(value), float(low), float(high), n)
