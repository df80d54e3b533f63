"""What the probes' numbers are worth: areas under curves, rates at few false alarms, means of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.shares import CONFIDENCE, Difference, Estimate, Interval, share

_FLIPS = 10_000  # random signs: p-values down to 1e-4
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def area(inside: Sequence[float], outside: Sequence[float]) -> Estimate:
    """The chance that one of the first scores higher than one of the second, ties half; 0.5 tells nothing apart.

    n counts both. Source: variance by DeLong 1988 (fast form: Sun and Xu 2014); where it is 0, that is for scores
    that do not overlap, the interval is Newcombe's 2006 (part 2, method 5), which does not shrink to a point there.
    Raises ValueError without scores on both sides.
    """
    m, n = len(inside), len(outside)
    if not m or not n:
        raise ValueError(f"{m} and {n} scores: an area needs some on both sides")
    both = np.array([*inside, *outside], dtype=np.float64)
    ranks = _midranks(both)
    first = (ranks[:m] - _midranks(both[:m])) / n  # of each inside: the share outside that it beats
    second = 1 - (ranks[m:] - _midranks(both[m:])) / m
    value = float(first.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (first, second) if len(part) > 1)
    if min(m, n) < 2 or variance < 1e-12:
        return Estimate(value, _score_interval(value, m, n), m + n)
    half = _Z * math.sqrt(variance)
    return Estimate(value, Interval(max(0.0, value - half), min(1.0, value + half)), m + n)


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    middle: NDArray[np.float64] = (ends - (count - 1) / 2)[place]
    return middle


def _score_interval(value: float, m: int, n: int) -> Interval:
    """Those areas from which the one that was seen is not too far away, by the variance at each of them."""
    half = (m + n) / 2 - 1

    def too_far(area: float) -> bool:
        spread = area * (1 - area) * (1 + half * ((1 - area) / (2 - area) + area / (1 + area))) / (m * n)
        return (area - value) ** 2 > _Z * _Z * spread

    def end(far: float) -> float:
        near = value
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if too_far(middle) else (middle, far)
        return near

    return Interval(end(0.0), end(1.0))


def rate_at(inside: Sequence[float], outside: Sequence[float], false_rate: float) -> Estimate:
    """Share of the first that score above all but at most `false_rate` of the second, with its Wilson interval.

    The interval does not count that the threshold itself is an estimate.
    Source: arXiv 2112.03570, section III (true positives at a low rate of false ones).
    """
    ordered = sorted(outside, reverse=True)
    threshold = ordered[int(false_rate * len(ordered))]
    return share(sum(score > threshold for score in inside), len(inside))


def mean_difference(first: Sequence[float], second: Sequence[float], seed: int) -> Difference:
    """How much larger the first numbers are than the second, pair by pair, on average.

    The p-value counts how often random signs of the differences give a mean as far from 0; the interval is the
    bootstrap's, by percentiles. Source: Fisher 1935, section 21; Efron and Tibshirani 1993, chapter 13.
    Raises ValueError if the lists differ in length or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} numbers: pairs need the same items, at least one")
    apart = np.array(first, dtype=np.float64) - np.array(second, dtype=np.float64)
    rng = np.random.default_rng(seed)
    value = float(apart.mean())
    signs = rng.integers(0, 2, (_FLIPS, len(apart)), dtype=np.int8) * 2 - 1
    beyond = int((np.abs(signs @ apart) >= abs(value) * len(apart) * (1 - 1e-9)).sum())
    drawn = apart[rng.integers(0, len(apart), (_FLIPS, len(apart)))].mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Difference(value, Interval(float(low), float(high)), (beyond + 1) / (_FLIPS + 1), len(apart))
