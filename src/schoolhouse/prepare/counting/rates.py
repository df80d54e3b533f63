"""How often something is so in each group, and whether that differs from the other rows by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.shares import Estimate, difference, holm, share
from schoolhouse.prepare.counting.columns import Codes, Column

Floats = NDArray[np.float64]
SURE = 0.05  # the p-value of all tests together below which a difference is flagged
_FEW = 5  # of each kind that must be expected on both sides before they are compared (Cochran 1954)


@dataclass(frozen=True)
class Rate:
    """How often something is so in one group, and how that differs from all other rows.

    rows: that were looked at; worth: as how many independent ones they count. p_value: of all tests together (Holm);
    None where there is too little to compare, or where the other of two groups says the same.
    """

    what: str
    group: str
    value: str
    rows: int
    worth: float
    rate: float
    low: float
    high: float
    points: float | None = None  # more than the others have
    points_low: float | None = None
    points_high: float | None = None
    p_value: float | None = None
    flagged: bool = False


@dataclass(frozen=True)
class Sums:
    """Rows and hits of a group, and the sums over its persons that their spread follows from."""

    rows: int
    persons: int
    hits: float
    hits_hits: float
    hits_rows: float
    rows_rows: float


class Grouping:
    """The rows of a table by a column and by person, worked out once for many outcomes. over: rows that count."""

    def __init__(self, column: Column, over: NDArray[np.bool_], persons: Codes) -> None:
        self.column, self._over = column, over
        people = int(persons.max(initial=0)) + 1
        pairs, self._pair = np.unique(column.codes[over].astype(np.int64) * people + persons[over], return_inverse=True)
        self._group, self._person = pairs // people, pairs % people
        self._rows = np.bincount(self._pair, minlength=len(pairs)).astype(float)

    def sums(self, hit: NDArray[np.bool_]) -> list[tuple[Sums, Sums]]:
        """Of each label, and of all others together. hit: (rows,), those that do not count included."""
        person, n = self._person, self._rows
        x = np.bincount(self._pair, weights=hit[self._over], minlength=len(n))
        all_x, all_n = np.bincount(person, weights=x), np.bincount(person, weights=n)
        rest_x, rest_n = all_x[person] - x, all_n[person] - n  # what the same persons have elsewhere

        own = self._by_label([n, np.ones_like(n), x, x * x, x * n, n * n])
        totals = [all_n.sum(), (all_n > 0).sum(), all_x.sum(), (all_x**2).sum(), all_x @ all_n, (all_n**2).sum()]
        # A person of the group counts among the others with what they have there; everybody else counts in full.
        lost = self._by_label([
            n, rest_n == 0, x, all_x[person] ** 2 - rest_x**2, all_x[person] * all_n[person] - rest_x * rest_n,
            all_n[person] ** 2 - rest_n**2,
        ])  # fmt: skip
        others = np.array(totals)[:, None] - lost
        return [(_sums(mine), _sums(theirs)) for mine, theirs in zip(own.T, others.T, strict=True)]

    def _by_label(self, values: Sequence[NDArray[Any]]) -> Floats:
        """Each of the values of the pairs, summed over each label. Returns (values, labels)."""
        labels = len(self.column.labels)
        return np.stack([np.bincount(self._group, one.astype(float), minlength=labels) for one in values])


def _sums(values: Floats) -> Sums:
    rows, persons, *rest = values
    return Sums(round(rows), round(persons), *map(float, rest))


def rates_of(what: str, grouping: Grouping, hit: NDArray[np.bool_]) -> Iterator[Rate]:
    """The rate of `hit` in each group that has rows; p-values are those of each test alone."""
    column = grouping.column
    present = [(label, *sums) for label, sums in zip(column.labels, grouping.sums(hit), strict=True) if sums[0].rows]
    for number, (label, own, others) in enumerate(present):
        mine = worth(own)
        rate = Rate(what, column.name, label, own.rows, mine.n, mine.value, *mine.interval)
        twice = len(present) == 2 and number == 1  # the first one's comparison is this one's, turned round
        if twice or not others.rows:
            yield rate
            continue
        theirs = worth(others)
        pooled = (mine.value * mine.n + theirs.value * theirs.n) / (mine.n + theirs.n)
        if min(mine.n, theirs.n) * min(pooled, 1 - pooled) < _FEW:
            yield rate
            continue
        gap = difference(mine, theirs)
        low, high = gap.interval
        points, points_low, points_high = (100 * end for end in (gap.value, low, high))
        yield replace(rate, points=points, points_low=points_low, points_high=points_high, p_value=gap.p_value)


def worth(sums: Sums) -> Estimate:
    """A share over rows of which several may be one person's, with the number of independent rows that they are worth.

    Where all rows say the same each person counts once. Needs at least one row.
    Source: Rao and Scott 1992, "A simple method for the analysis of clustered binary data", section 2.
    """
    n, people, value = sums.rows, sums.persons, sums.hits / sums.rows
    if people == n:
        return share(sums.hits, n)
    if people < 2 or value in (0.0, 1.0):
        return share(value * people, people)
    beyond = sums.hits_hits - 2 * value * sums.hits_rows + value * value * sums.rows_rows
    design = people / (people - 1) * beyond / (n * value * (1 - value))
    independent = n / max(1.0, design)
    return share(value * independent, independent)


def flagged(rates: Iterable[Rate]) -> list[Rate]:
    """The same with p-values that all count together, and what is no chance marked."""
    found = list(rates)
    tested = [place for place, rate in enumerate(found) if rate.p_value is not None]
    together = holm([rate.p_value for rate in found if rate.p_value is not None])
    for place, p_value in zip(tested, together, strict=True):
        found[place] = replace(found[place], p_value=p_value, flagged=p_value < SURE)
    return found


def said(rate: Rate) -> str:
    """A flagged difference as a sentence."""
    assert rate.points is not None, "only what was compared is flagged"
    more = "more" if rate.points > 0 else "less"
    ends = sorted(abs(end or 0.0) for end in (rate.points_low, rate.points_high))
    return (
        f"{rate.what}: {rate.rate:.1%} of {rate.rows} rows with {rate.group} {rate.value}, "
        f"{abs(rate.points):.1f} points {more} than of the others ({ends[0]:.1f} to {ends[1]:.1f})"
    )
