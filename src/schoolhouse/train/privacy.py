"""How much a training that clips each example's slope and adds noise can tell of any one example: epsilon, as numbers.

Pure arithmetic, and the accountant only. What it promises holds for examples that are drawn by chance for every step,
each by itself with the same probability (Poisson sampling), and neighbours that differ by one example more or less. One
example is one person's only where no person has more than one; k examples of a person cost about k times the epsilon.
Source: arXiv 1607.00133, algorithm 1 (the training that this is of); arXiv 1908.10530, section 3.3 (its Renyi
divergence); arXiv 2004.00010, proposition 12 (from that to epsilon and delta).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.errors import RecipeError

_WHOLE = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
_PARTS = tuple(1 + tenth / 10 for tenth in range(1, 100))
ORDERS: tuple[float, ...] = tuple(sorted({*map(float, _WHOLE), *_PARTS}))
"""Orders of the divergence that are looked at. The best is taken: each alone gives a true bound."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e6
_CLOSE = 1e-6  # relative, of the noise that is found


def divergence(order: float, sampling_rate: float, noise: float) -> float:
    """Renyi divergence of one step, of an order above 1, in nats: an upper bound, exact for whole orders.

    noise: standard deviation over the norm to which an example's slope is clipped. Between whole orders the logarithm
    of the moment, which is convex, is taken from its chord; sampling never makes a step worse than it is without.
    Source: arXiv 1908.10530, section 3.3, the sum for whole orders; arXiv 1702.07476, table II, for a rate of 1.
    """
    if sampling_rate == 0:
        return 0.0
    unsampled = order / (2 * noise * noise)
    if sampling_rate == 1:
        return unsampled
    low = math.floor(order)
    between = order - low
    moment = (1 - between) * _log_moment(low, sampling_rate, noise)
    if between:
        moment += between * _log_moment(low + 1, sampling_rate, noise)
    return min(unsampled, moment / (order - 1))


def epsilon(steps: int, sampling_rate: float, noise: float, delta: float) -> float:
    """The epsilon, at a delta, of so many steps; infinite without noise. Raises RecipeError for numbers that are none.

    sampling_rate: the chance with which an example is part of a step; noise: standard deviation over the clipping norm.
    Source: arXiv 2004.00010, proposition 12, at the best of `ORDERS`; divergences of steps add up.
    """
    _check(steps, sampling_rate, delta)
    if not noise >= 0:
        raise RecipeError(f"noise is {noise:g}: it is a standard deviation over the clipping norm, 0 or more.")
    if steps == 0 or sampling_rate == 0:
        return 0.0
    if noise == 0:
        return math.inf
    bounds = (
        steps * divergence(order, sampling_rate, noise)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    return max(0.0, min(bounds))


def noise_for(wanted: float, steps: int, sampling_rate: float, delta: float) -> float:
    """The least noise with which so many steps stay within an epsilon, to a part in a million, rounded up.

    Raises RecipeError for an epsilon that no noise reaches.
    """
    _check(steps, sampling_rate, delta)
    if not wanted > 0:
        raise RecipeError(f"epsilon is {wanted:g}: ask for one above 0.")
    low, high = _LEAST_NOISE, _LEAST_NOISE
    while epsilon(steps, sampling_rate, high, delta) > wanted:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise RecipeError(f"no noise keeps {steps} steps within an epsilon of {wanted:g} at delta {delta:g}.")
    while high - low > _CLOSE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if epsilon(steps, sampling_rate, middle, delta) <= wanted else (middle, high)
    return high


def _check(steps: int, sampling_rate: float, delta: float) -> None:
    if steps < 0:
        raise RecipeError(f"{steps} steps: there are 0 or more.")
    if not 0 <= sampling_rate <= 1:
        raise RecipeError(f"sampling_rate is {sampling_rate:g}: it is a chance, from 0 to 1.")
    if not 0 < delta < 1:
        raise RecipeError(f"delta is {delta:g}: take a chance between 0 and 1, well below one over the examples.")


def _log_moment(order: int, rate: float, noise: float) -> float:
    """Logarithm of the mean of ((1 - rate) + rate * likelihood ratio) ** order; 0 for the order 1."""
    if order == 1:
        return 0.0
    k = np.arange(order + 1)
    terms = _log_choices(order) + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) / (2 * noise**2)
    most = terms.max()
    return float(most + math.log(np.exp(terms - most).sum()))


@functools.cache
def _log_choices(order: int) -> NDArray[np.float64]:
    """Logarithms of the ways to choose 0, 1, ... of so many."""
    return np.array(
        [math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1) for k in range(order + 1)]
    )
