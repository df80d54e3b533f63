"""The pieces of GRPO as small pure functions. Source: arXiv 2402.03300, section 4.1, and the papers named below."""

from __future__ import annotations

import torch
from torch import Tensor

from schoolhouse.core.errors import TrainError


def group_advantages(rewards: Tensor, *, scale: bool = False, eps: float = 1e-4) -> Tensor:
    """How much better each reply is than its group's mean.

    rewards: (P, G) float32, one row a prompt. Returns (P, G); every row sums to 0. `scale` divides a row by its
    standard deviation as the first GRPO did; without it prompts that are nearly always or never solved are not blown
    up. Raises TrainError if G < 2: a group of one has no baseline.
    Source: arXiv 2402.03300, section 4.1; arXiv 2503.20783, 3.1.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    if rewards.shape[1] < 2:
        raise TrainError(f"group is {rewards.shape[1]}: GRPO compares replies to one prompt; set group to 2 or more.")
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    if not scale:
        return centred
    return centred / (rewards.std(dim=1, keepdim=True) + eps)  # (P, G)


def has_signal(rewards: Tensor) -> Tensor:
    """Which groups can teach: those whose rewards differ. (P, G) to (P,) bool. Source: DAPO, arXiv 2503.14476, 3.2."""
    return rewards.amax(dim=1) > rewards.amin(dim=1)


def most_telling(rewards: Tensor, keep: int) -> Tensor:
    """Which replies of each group to learn from: the best and the worst, half and half.

    rewards: (P, G). Returns (P, keep) int64 indices. Of all subsets of this size it has the greatest variance where
    rewards are two-valued. Learning costs more than sampling, so that a group may be larger than what is learnt of it.
    Source: PODS, arXiv 2504.13818, max-variance down-sampling.
    """
    order = rewards.argsort(dim=1, descending=True, stable=True)  # (P, G)
    best = (keep + 1) // 2
    return torch.cat((order[:, :best], order[:, rewards.shape[1] - (keep - best) :]), dim=1)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28
) -> Tensor:
    """Loss of each token: minus the smaller of the plain and the clipped, ratio-weighted advantage.

    All (N,) float32. A higher upper bound lets unlikely tokens grow. Source: DAPO, arXiv 2503.14476, eq. 8.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_share(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Number of tokens whose gradient the clip takes away."""
    ratio = torch.exp(logprobs - old_logprobs)
    return ((advantages > 0) & (ratio > 1 + clip_high) | (advantages < 0) & (ratio < 1 - clip_low)).sum()


def kl_penalty(logprobs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) of each token, never negative. (N,). Source: arXiv 2402.03300, eq. 4."""
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def aggregate(
    token_losses: Tensor, lengths: Tensor, *, total_tokens: int, replies: int, per_reply: bool = False
) -> Tensor:
    """One number from the losses of a part's tokens, such that the parts of a batch add up.

    token_losses: (N,), reply after reply; lengths: (number of replies,) int64, tokens of each. By default each token of
    the batch weighs the same (DAPO, arXiv 2503.14476, 3.3); `per_reply` averages within each reply first, as the first
    GRPO. total_tokens, replies: those of the whole batch.
    """
    if not per_reply:
        return token_losses.sum() / total_tokens
    means = torch.stack([part.mean() for part in token_losses.split(lengths.tolist())])
    return means.sum() / replies
