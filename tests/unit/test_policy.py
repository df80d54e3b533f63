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
    mismatch_weight,
    most_telling,
    overlong_penalty,
    policy_loss,
    reply_means,
)

REWARDS = st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(policy)
    assert result.attempted >= 1
    assert result.failed == 0


@given(REWARDS, st.sampled_from(["centred", "scaled", "leave-one-out"]))
def test_every_group_sums_to_zero_and_keeps_its_order(rewards, kind):
    rewards = torch.tensor(rewards)
    advantages = group_advantages(rewards, kind)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(len(rewards)), rtol=0, atol=1e-5)
    assert ((rewards[:, :, None] > rewards[:, None]) == (advantages[:, :, None] > advantages[:, None])).all()


def test_scaled_advantages_have_unit_deviation_and_plain_ones_the_rewards_own():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [10, 10, 0, 0]])
    torch.testing.assert_close(group_advantages(rewards).std(1), rewards.std(1))
    torch.testing.assert_close(group_advantages(rewards, "scaled").std(1), torch.ones(3), rtol=1e-3, atol=0)


def test_equal_rewards_teach_nothing():
    rewards = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.1, 0.1, 0.1], [0, 0, 1]])
    assert has_signal(rewards).tolist() == [False, False, False, True]
    for kind in ("centred", "scaled", "leave-one-out"):
        advantages = group_advantages(rewards, kind)[:3].flatten()
        for ratio in ("token", "reply", "weight"):
            logprobs = draw(9).requires_grad_()
            loss_of(logprobs, draw(9, seed=1), advantages, torch.tensor([4, 5]), ratio).sum().backward()
            assert logprobs.grad.abs().max() < 1e-6


def loss_of(logprobs, old, advantages, lengths, kind="token", clip_low=0.2, clip_high=0.28):
    log_ratio = logprobs - old
    if kind == "reply":
        log_ratio = reply_means(log_ratio, lengths)
    return policy_loss(logprobs, log_ratio, advantages, kind=kind, clip_low=clip_low, clip_high=clip_high)


def test_leaving_one_out_compares_with_the_others():
    rewards = draw(3, 5)
    others = torch.stack([rewards[:, [j for j in range(5) if j != i]].mean(1) for i in range(5)], 1)
    torch.testing.assert_close(group_advantages(rewards, "leave-one-out"), rewards - others)
    pair = torch.tensor([[1.0, 0.0]])
    assert group_advantages(pair, "leave-one-out").tolist() == [[1.0, -1.0]]


def test_long_replies_lose_up_to_one():
    lengths = torch.tensor([[1, 80, 90, 100, 120]])
    assert overlong_penalty(lengths, 100, 20).tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]


def test_a_group_of_one_has_no_baseline():
    with pytest.raises(TrainError, match="group is 1"):
        group_advantages(torch.ones(3, 1))


@pytest.mark.parametrize("kind", ["token", "weight"])
def test_the_first_step_is_reinforce(kind):
    logprobs, advantages, lengths = draw(7).requires_grad_(), draw(7, seed=1), torch.tensor([3, 4])
    losses = loss_of(logprobs, logprobs.detach(), advantages, lengths, kind)
    loss = aggregate(losses, lengths, total_tokens=7, replies=2, longest=9)
    if kind == "token":
        assert float(loss.detach()) == pytest.approx(-float(advantages.mean()), abs=1e-6)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 7)


def test_the_ratio_of_a_reply_is_the_geometric_mean_of_its_tokens():
    logprobs, old, lengths = draw(7).requires_grad_(), draw(7, seed=1), torch.tensor([3, 4])
    advantages = torch.tensor([0.7, -0.3]).repeat_interleave(lengths)
    losses = loss_of(logprobs, old, advantages, lengths, "reply", clip_low=0.9, clip_high=99.0)
    loss = aggregate(losses, lengths, total_tokens=7, replies=2, longest=9, by="reply")
    first, second = (part.mean().exp() for part in (logprobs - old).split([3, 4]))
    expected = -(0.7 * first + -0.3 * second) / 2
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logprobs)[0])


def test_a_reply_that_strayed_is_clipped_whole():
    logprobs, lengths = torch.tensor([0.5, 0.1, 0.0, 0.01]).requires_grad_(), torch.tensor([2, 2])
    losses = loss_of(logprobs, torch.zeros(4), torch.ones(4), lengths, "reply")
    losses.sum().backward()
    assert (logprobs.grad == 0).tolist() == [True, True, False, False]
    log_ratio = reply_means(logprobs.detach(), lengths)
    assert int(clipped_share(log_ratio, torch.ones(4), kind="reply", clip_low=0.2, clip_high=0.28)) == 2


def test_a_clipped_weight_keeps_the_gradient_of_every_token():
    logprobs = torch.tensor([2.0, 0.5, -0.5, -2.0]).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss_of(logprobs, torch.zeros(4), advantages, None, "weight", clip_low=1.0, clip_high=4.0).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages * logprobs.detach().exp().clamp(max=5.0))
    how = {"kind": "weight", "clip_low": 1.0, "clip_high": 4.0}
    assert int(clipped_share(logprobs.detach(), advantages, **how)) == 1


def test_what_the_sampler_gets_wrong_is_weighed_or_left_out():
    gap = torch.tensor([0.0, 0.5, 3.0, -3.0])
    ratio = gap.exp()
    kept = mismatch_weight(gap, "truncate", (0.5, 2.0))
    torch.testing.assert_close(kept, torch.stack([ratio[0], ratio[1], torch.tensor(2.0), ratio[3]]))
    assert mismatch_weight(gap, "mask", (0.5, 2.0)).tolist() == [1.0, pytest.approx(float(ratio[1])), 0.0, 0.0]


def test_weighing_by_the_ratio_learns_from_another_sampler_as_from_oneself():
    """Over all tokens, each as often as the sampler says it, the weighted gradient is that of the policy's own."""
    policy_, sampler, rewards = draw(6).double(), draw(6, seed=1).double().log_softmax(0), draw(6, seed=2).double()
    logits = policy_.requires_grad_()
    exact = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]
    logprobs = logits.log_softmax(0)
    own = logprobs.detach()
    losses = policy_loss(logprobs, logprobs - own, rewards, kind="token", clip_low=0.2, clip_high=0.28)
    weights = mismatch_weight(own - sampler, "truncate", (0.0, 1e9))
    got = torch.autograd.grad((sampler.exp() * weights * losses).sum(), logits)[0]
    torch.testing.assert_close(-got, exact)


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
    got = loss_of(logprobs, old, advantages, None)
    assert float(got.detach()) == pytest.approx(loss, abs=1e-5)
    got.sum().backward()
    assert float(logprobs.grad) == pytest.approx(slope, abs=1e-5)  # d ratio / d log ratio is the ratio
    how = {"kind": "token", "clip_low": 0.2, "clip_high": 0.28}
    assert int(clipped_share(logprobs.detach() - old, advantages, **how)) == (slope == 0.0)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=9))
def test_no_kl_estimate_is_ever_negative(differences):
    reference = torch.tensor(differences)
    for kind in ("k2", "k3", "unbiased"):
        assert (kl_penalty(torch.zeros_like(reference), reference, reference / 2, kind) >= 0).all()
        assert (kl_penalty(reference, reference, reference / 2, kind) == 0).all()


def test_the_kl_estimates_are_right_on_average_in_value_or_slope():
    logits, q = draw(6).double().requires_grad_(), torch.log_softmax(draw(6, seed=1).double(), 0)
    p = logits.log_softmax(0)
    own, true = p.detach(), (p.exp() * (p - q)).sum()
    slope = torch.autograd.grad(true, logits, retain_graph=True)[0]
    values = {kind: own.exp() * kl_penalty(p, q, p - own, kind) for kind in ("k2", "k3", "unbiased")}
    slopes = {kind: torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for kind, v in values.items()}
    for kind in ("k3", "unbiased"):
        torch.testing.assert_close(values[kind].sum(), true)
    for kind in ("k2", "unbiased"):
        torch.testing.assert_close(slopes[kind], slope)
    assert (slopes["k3"] - slope).abs().max() > 1e-3


def test_the_ways_of_averaging_differ_on_unequal_lengths_only():
    losses = draw(8)
    equal, unequal = torch.tensor([4, 4]), torch.tensor([2, 6])
    by_token, by_reply, by_constant = (
        [float(aggregate(losses, n, total_tokens=8, replies=2, longest=10, by=way)) for n in (equal, unequal)]
        for way in ("token", "reply", "constant")
    )
    assert by_token[0] == by_token[1] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert by_reply[0] == pytest.approx(by_token[0], abs=1e-6)
    assert by_reply[1] == pytest.approx(float((losses[:2].mean() + losses[2:].mean()) / 2), abs=1e-6)
    assert abs(by_reply[1] - by_token[1]) > 1e-3
    assert by_constant == [pytest.approx(float(losses.sum()) / 20, abs=1e-6)] * 2


@pytest.mark.parametrize("way", ["token", "reply", "constant"])
def test_the_parts_of_a_batch_add_up(way):
    losses, lengths = draw(10), [1, 4, 3, 2]
    of_batch = {"total_tokens": 10, "replies": 4, "longest": 6, "by": way}
    whole = aggregate(losses, torch.tensor(lengths), **of_batch)
    parts = [
        aggregate(losses[:5], torch.tensor(lengths[:2]), **of_batch),
        aggregate(losses[5:], torch.tensor(lengths[2:]), **of_batch),
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
