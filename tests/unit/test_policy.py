"""The identities of GRPO, each of its pieces by itself."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.core.errors import TrainError
from schoolhouse.train import policy
from schoolhouse.train.policy import (
    aggregate,
    clipped_share,
    group_advantages,
    has_signal,
    kl_penalty,
    most_telling,
    policy_loss,
)

REWARDS = st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(policy)
    assert result.attempted >= 1
    assert result.failed == 0


@given(REWARDS, st.booleans())
def test_every_group_sums_to_zero_and_keeps_its_order(rewards, scale):
    rewards = torch.tensor(rewards)
    advantages = group_advantages(rewards, scale=scale)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(rewards)), rtol=0, atol=1e-5)
    assert ((rewards[:, :, None] > rewards[:, None]) == (advantages[:, :, None] > advantages[:, None])).all()


def test_scaled_advantages_have_unit_deviation_and_plain_ones_the_rewards_own():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [10, 10, 0, 0]])
    torch.testing.assert_close(group_advantages(rewards).std(1), rewards.std(1))
    torch.testing.assert_close(group_advantages(rewards, scale=True).std(1), torch.ones(3), rtol=1e-3, atol=0)


def test_equal_rewards_teach_nothing():
    rewards = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.1, 0.1, 0.1], [0, 0, 1]])
    assert has_signal(rewards).tolist() == [False, False, False, True]
    for scale in (False, True):
        advantages = group_advantages(rewards, scale=scale)[:3].flatten()
        logprobs = draw(9).requires_grad_()
        policy_loss(logprobs, draw(9, seed=1), advantages).sum().backward()
        assert logprobs.grad.abs().max() < 1e-6


def test_a_group_of_one_has_no_baseline():
    with pytest.raises(TrainError, match="group is 1"):
        group_advantages(torch.ones(3, 1))


def test_the_first_step_is_reinforce():
    logprobs, advantages = draw(7).requires_grad_(), draw(7, seed=1)
    loss = aggregate(
        policy_loss(logprobs, logprobs.detach(), advantages), torch.tensor([3, 4]), total_tokens=7, replies=2
    )
    assert float(loss.detach()) == pytest.approx(-float(advantages.mean()), abs=1e-6)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.27, 1.0, -1.27, -1.27),
        (1.40, 1.0, -1.28, 0.0),  # clipped: likely enough
        (0.50, 1.0, -0.50, -0.50),  # never held back from coming back
        (0.81, -1.0, 0.81, 0.81),
        (0.50, -1.0, 0.80, 0.0),  # clipped: unlikely enough
        (1.50, -1.0, 1.50, 1.50),
    ],
)
def test_the_clip_is_higher_above(ratio, advantage, loss, slope):
    old, advantages = torch.zeros(1), torch.tensor([advantage])
    logprobs = torch.tensor([ratio]).log().requires_grad_()
    got = policy_loss(logprobs, old, advantages, clip_low=0.2, clip_high=0.28)
    assert float(got.detach()) == pytest.approx(loss, abs=1e-5)
    got.sum().backward()
    assert float(logprobs.grad) == pytest.approx(slope, abs=1e-5)  # d ratio / d log ratio is the ratio
    assert int(clipped_share(logprobs.detach(), old, advantages, 0.2, 0.28)) == (slope == 0.0)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=9))
def test_the_kl_estimate_is_never_negative(differences):
    reference = torch.tensor(differences)
    assert (kl_penalty(torch.zeros_like(reference), reference) >= 0).all()
    assert (kl_penalty(reference, reference) == 0).all()


def test_the_kl_estimate_is_right_on_average():
    p, q = torch.log_softmax(draw(6).double(), 0), torch.log_softmax(draw(6, seed=1).double(), 0)
    assert float((p.exp() * kl_penalty(p, q)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()))


def test_the_ways_of_averaging_differ_on_unequal_lengths_only():
    losses = draw(8)
    equal, unequal = torch.tensor([4, 4]), torch.tensor([2, 6])
    by_token, by_reply = (
        [float(aggregate(losses, n, total_tokens=8, replies=2, per_reply=way)) for n in (equal, unequal)]
        for way in (False, True)
    )
    assert by_token[0] == by_token[1] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert by_reply[0] == pytest.approx(by_token[0], abs=1e-6)
    assert by_reply[1] == pytest.approx(float((losses[:2].mean() + losses[2:].mean()) / 2), abs=1e-6)
    assert abs(by_reply[1] - by_token[1]) > 1e-3


@pytest.mark.parametrize("per_reply", [False, True])
def test_the_parts_of_a_batch_add_up(per_reply):
    losses, lengths = draw(10), [1, 4, 3, 2]
    whole = aggregate(losses, torch.tensor(lengths), total_tokens=10, replies=4, per_reply=per_reply)
    parts = [
        aggregate(losses[:5], torch.tensor(lengths[:2]), total_tokens=10, replies=4, per_reply=per_reply),
        aggregate(losses[5:], torch.tensor(lengths[2:]), total_tokens=10, replies=4, per_reply=per_reply),
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@given(REWARDS, st.integers(2, 4))
def test_the_most_telling_replies_are_distinct_and_tell_as_much_as_any(rewards, keep):
    rewards = torch.tensor(rewards)
    picked = most_telling(rewards, keep)
    assert picked.shape == (len(rewards), keep)
    assert all(len(set(row)) == keep for row in picked.tolist())
    chosen = rewards.gather(1, picked)
    assert torch.equal(has_signal(chosen), has_signal(rewards))
    assert torch.equal(chosen.amax(1), rewards.amax(1))
    two_valued = (rewards == 1).float()
    spread = two_valued.gather(1, most_telling(two_valued, keep)).var(1, correction=0)
    for subset in torch.combinations(torch.arange(4), keep):
        assert (spread >= two_valued[:, subset].var(1, correction=0) - 1e-6).all()
