"""The accountant of differentially private training: published numbers, and what must hold for all numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schoolhouse.core.errors import RecipeError
from schoolhouse.train.privacy import ORDERS, divergence, epsilon, noise_for

steps = st.integers(1, 3000)
rates = st.floats(1e-4, 1.0)
noises = st.floats(0.4, 20.0)
deltas = st.floats(1e-9, 0.1)


@pytest.mark.parametrize(
    ("examples", "batch", "noise", "epochs", "delta", "published"),
    [(60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595), (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444842)],
)
def test_it_gives_the_numbers_of_tensorflow_privacy(examples, batch, noise, epochs, delta, published):
    # The repository tensorflow/privacy, compute_dp_sgd_privacy_test.py, Test0 and Test1: best at whole orders.
    found = epsilon(epochs * examples // batch, batch / examples, noise, delta)
    assert found == pytest.approx(published, rel=1e-9)


def test_it_gives_the_epsilons_of_a_published_privacy_statement():
    # The same file's statement: 10,000 examples, 64 a step, noise 2.0 with microbatches, which halve what it is worth.
    assert epsilon(5, 1.0, 1.0, 1e-6) == pytest.approx(13.376, abs=6e-4)
    assert 1.6155 <= epsilon(782, 0.0064, 1.0, 1e-6) <= 1.02 * 1.616  # the best order is no whole one


def test_it_is_never_below_the_exact_bound_of_opacus_and_close_above_it():
    # The repository pytorch/opacus, accountants_test.py: noise 1.5, rate 0.04, 2,250 steps, delta 1e-5.
    published = 7.32911117143
    assert published <= epsilon(2250, 0.04, 1.5, 1e-5) <= 1.001 * published


def test_without_sampling_it_is_the_plain_gaussian():
    # tensorflow/privacy, the same file: noise 0.7, two passes, no sampling.
    assert epsilon(2, 1.0, 0.7, 1e-5) == pytest.approx(10.8602036, abs=1e-6)
    assert divergence(3.5, 1.0, 2.0) == pytest.approx(3.5 / 8)


@pytest.mark.parametrize(("order", "published"), [(5, 2.18075656e-03), (50, 2.38460375e-02), (100, 1.67416308e02)])
def test_divergences_of_whole_orders_are_those_that_google_published(order, published):
    # The repository google/differential-privacy, rdp_privacy_accountant_test.py: noise 2.5, rate 0.01, 50 steps.
    assert 50 * divergence(order, 0.01, 2.5) == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(("order", "published"), [(1.5, 6.70579741e-04), (2.5, 1.08548710e-03)])
def test_between_whole_orders_the_bound_is_above_the_divergence(order, published):
    assert published < 50 * divergence(order, 0.01, 2.5) < 1.4 * published


@settings(max_examples=40)
@given(steps, rates, noises, deltas)
def test_more_steps_a_higher_rate_less_noise_and_a_smaller_delta_never_cost_less(count, rate, noise, delta):
    here = epsilon(count, rate, noise, delta)
    assert here >= 0
    slack = 1e-9 * (1 + here)
    assert epsilon(2 * count, rate, noise, delta) >= here - slack
    assert epsilon(count, min(1.0, 1.5 * rate), noise, delta) >= here - slack
    assert epsilon(count, rate, 1.3 * noise, delta) <= here + slack
    assert epsilon(count, rate, noise, delta / 3) >= here - slack


@given(rates, noises)
def test_a_divergence_grows_with_its_order_and_sampling_only_helps(rate, noise):
    found = [divergence(order, rate, noise) for order in (2, 3, 5, 10, 20, 40)]
    assert found == sorted(found)
    assert all(d <= order / (2 * noise**2) * (1 + 1e-9) for d, order in zip(found, (2, 3, 5, 10, 20, 40), strict=True))


@settings(max_examples=15)
@given(st.integers(1, 3000), st.floats(0.001, 0.2), st.floats(0.3, 10.0))
def test_the_noise_that_is_found_keeps_the_epsilon_and_no_less_would(count, rate, wanted):
    noise = noise_for(wanted, count, rate, 1e-5)
    assert epsilon(count, rate, noise, 1e-5) <= wanted
    if noise > 0.051:
        assert epsilon(count, rate, noise * (1 - 1e-4), 1e-5) > wanted


def test_nothing_learnt_costs_nothing_and_no_noise_promises_nothing():
    assert epsilon(0, 0.1, 1.0, 1e-5) == epsilon(100, 0.0, 1.0, 1e-5) == 0.0
    assert divergence(2, 0.0, 1.0) == 0.0
    assert epsilon(1, 0.1, 0.0, 1e-5) == math.inf
    assert min(ORDERS) > 1


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-1, 0.1, 1.0, 1e-5), "-1 steps"),
        ((1, 1.1, 1.0, 1e-5), "sampling_rate is 1.1"),
        ((1, 0.1, -1.0, 1e-5), "noise is -1"),
        ((1, 0.1, math.nan, 1e-5), "noise is nan"),
        ((1, 0.1, 1.0, 0.0), "delta is 0"),
        ((1, 0.1, 1.0, 1.0), "delta is 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(numbers, words):
    with pytest.raises(RecipeError, match=words):
        epsilon(*numbers)


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(RecipeError, match="epsilon is 0"):
        noise_for(0.0, 10, 0.1, 1e-5)
    with pytest.raises(RecipeError, match="no noise keeps 10 steps"):
        noise_for(1e-9, 10, 1.0, 1e-12)
