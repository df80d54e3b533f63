import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.evaluate.compare import Interval, disjoint, mcnemar, mean_of_levels, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_numbers(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 600), st.integers(0, 600))
def test_wilson_holds_the_share_and_is_symmetric(a, b):
    correct, n = min(a, b), max(a, b)
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= correct / n <= high
    mirrored = wilson_interval(n - correct, n)
    assert (low, high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_wilson_covers_the_truth_95_times_in_100():
    draw = random.Random(0)
    for truth in (0.05, 0.5, 0.9):
        trials = [sum(draw.random() < truth for _ in range(50)) for _ in range(2000)]
        hits = sum(low <= truth <= high for low, high in (wilson_interval(k, 50) for k in trials))
        assert 0.92 < hits / 2000 < 0.985


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="no levels"):
        mean_of_levels([])


def test_paired_difference_gives_the_published_interval():
    # Newcombe 1998, table III: 36 both, 12 only the first, 2 only the second, 0 neither.
    first = [True] * 48 + [False] * 2
    second = [True] * 36 + [False] * 12 + [True] * 2
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert difference.p_value == pytest.approx(2 * sum(math.comb(14, i) for i in range(3)) / 2**14)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_paired_difference_turns_its_sign_with_its_arguments(pairs):
    first, second = zip(*pairs, strict=True)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.interval.low <= there.value <= there.interval.high
    assert (back.value, *back.interval) == pytest.approx((-there.value, -there.interval.high, -there.interval.low))
    assert 0 <= there.p_value <= 1


def test_mcnemar_exact_and_large_agree():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar(530, 471) == pytest.approx(mcnemar(529, 471), rel=0.2)


def test_mean_of_levels_is_tighter_than_its_levels_and_weighs_them_alike():
    one = wilson_interval(60, 100)
    mean = mean_of_levels([(60, 100)] * 4)
    assert mean.value == pytest.approx(0.6)
    assert mean.interval.high - mean.interval.low == pytest.approx((one.high - one.low) / 2)
    assert mean_of_levels([(100, 100), (0, 10)]).value == pytest.approx(0.5)
    assert mean_of_levels([(60, 100)]).interval == pytest.approx(one)


def test_disjoint():
    assert disjoint(Interval(0.1, 0.2), Interval(0.3, 0.4))
    assert disjoint(Interval(0.3, 0.4), Interval(0.1, 0.2))
    assert not disjoint(Interval(0.1, 0.3), Interval(0.3, 0.4))
