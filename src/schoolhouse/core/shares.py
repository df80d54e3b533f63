"""Shares of counted things: their intervals, and whether two of them differ by more than chance.

Shares near 0 and 1 are what a claim lives on, where the textbook interval fails; score intervals hold there. Counts may
be numbers with a fraction: what correlated counts are worth is seldom whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its interval, and the number of items behind it."""

    value: float
    interval: Interval
    n: float


@dataclass(frozen=True)
class Difference:
    """How much larger the first share is than the second, with its interval and the p-value that they are the same."""

    value: float
    interval: Interval
    p_value: float
    n: float


def wilson_interval(correct: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a share. Nothing is known without items: (0, 1) for n = 0. Raises ValueError if it is no count.

    Source: Wilson 1927; checked against the numbers of Newcombe 1998, "Two-sided confidence intervals for the single
    proportion".
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no share: count right answers among the items")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    # At the ends the formula meets 0 and 1 exactly; rounding must not put them outside.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return Interval(low, high)


def share(correct: float, n: float) -> Estimate:
    """A share of right answers with its interval; 0 of 0 is 0 with the interval (0, 1)."""
    return Estimate(correct / n if n else 0.0, wilson_interval(correct, n), n)


def difference(first: Estimate, second: Estimate) -> Difference:
    """Compare the shares of two groups that have nothing in common. Raises ValueError if one of them is empty.

    Source: interval by Newcombe 1998, "Interval estimation for the difference between independent proportions", method
    10; p-value by the z-test with the pooled share, for groups in which five of each kind are to be expected.
    """
    if not first.n or not second.n:
        raise ValueError(f"{first.n:g} and {second.n:g} items: both groups need some")
    value = first.value - second.value
    below = math.hypot(first.value - first.interval.low, second.interval.high - second.value)
    above = math.hypot(first.interval.high - first.value, second.value - second.interval.low)
    n = first.n + second.n
    pooled = (first.value * first.n + second.value * second.n) / n
    spread = math.sqrt(pooled * (1 - pooled) * (1 / first.n + 1 / second.n))
    p_value = math.erfc(abs(value) / spread / math.sqrt(2)) if spread else 1.0
    return Difference(value, Interval(max(-1.0, value - below), min(1.0, value + above)), p_value, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of many tests as they count together: below 0.05 by chance in 1 of 20 such families.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
