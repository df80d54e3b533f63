"""Whether one model is better than another on the same items. No tensors, no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from schoolhouse.core.shares import Difference, Estimate, Interval, share, wilson_interval


def mean_of_levels(counts: Sequence[tuple[int, int]]) -> Estimate:
    """Mean of several levels' shares, each level counting the same whatever its items. counts: (correct, n) pairs.

    Source: the square-and-add rule of Zou and Donner 2008 (MOVER) over Wilson limits. Raises ValueError for no levels.
    """
    if not counts:
        raise ValueError("the mean of no levels: name at least one")
    shares = [share(correct, n) for correct, n in counts]
    value = sum(s.value for s in shares) / len(shares)
    below = math.sqrt(sum((s.value - s.interval.low) ** 2 for s in shares)) / len(shares)
    above = math.sqrt(sum((s.interval.high - s.value) ** 2 for s in shares)) / len(shares)
    return Estimate(value, Interval(max(0.0, value - below), min(1.0, value + above)), sum(n for _, n in counts))


def disjoint(a: Interval, b: Interval) -> bool:
    """True if the intervals do not even touch."""
    return a.high < b.low or b.high < a.low


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Compare two models on the same items, item by item. Raises ValueError if the lists differ in length or are empty.

    Source: interval by Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10; p-value by the exact two-sided McNemar test.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} results: pairs need the same items, at least one")
    n = len(first)
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    both, only_first, only_second = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    neither = n - both - only_first - only_second
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    low1, high1 = wilson_interval(both + only_first, n)
    low2, high2 = wilson_interval(both + only_second, n)
    phi = _correlation(both, only_first, only_second, neither)
    below = _side(p1 - low1, high2 - p2, phi)
    above = _side(high1 - p1, p2 - low2, phi)
    value = p1 - p2
    interval = Interval(max(-1.0, value - below), min(1.0, value + above))
    return Difference(value, interval, mcnemar(only_first, only_second), n)


def _side(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """The items' phi coefficient, drawn towards 0 by Newcombe's correction where it is positive."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(0.0, product - (both + only_first + only_second + neither) / 2)
    return product / math.sqrt(margins)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that the items on which only one is right fall so unevenly by chance."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n if n <= 1000 else _binomial_tail(n, fewer)
    return min(1.0, 2 * tail)


def _binomial_tail(n: int, k: int) -> float:
    """P(X <= k) for n fair coins, by the normal curve with continuity: 2**n leaves the range of floats."""
    return NormalDist(n / 2, math.sqrt(n) / 2).cdf(k + 0.5)
