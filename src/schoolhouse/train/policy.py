"""The pieces of GRPO as small pure functions. Source: arXiv 2402.03300, section 4.1, and the papers named below."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from schoolhouse.core.errors import TrainError

Advantage = Literal["centred", "scaled", "leave-one-out"]
Ratio = Literal["token", "reply", "weight"]
Averaging = Literal["token", "reply", "constant"]
Distance = Literal["k2", "k3", "unbiased"]


def group_advantages(rewards: Tensor, kind: Advantage = "centred", *, eps: float = 1e-4) -> Tensor:
    """How much better each reply is than others to the same prompt.

    rewards: (P, G) float32, one row a prompt. Returns (P, G); every row sums to 0. "centred" compares with the row's
    mean; "scaled" divides that by the row's standard deviation as the first GRPO did, which blows up prompts that are
    nearly always or never solved; "leave-one-out" compares with the mean of the other replies. Raises TrainError if
    G < 2: a group of one has no baseline.
    Source: arXiv 2402.03300, section 4.1; Dr. GRPO, arXiv 2503.20783, 3.1; RLOO, arXiv 2402.14740.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    group = rewards.shape[1]
    if group < 2:
        raise TrainError(f"group is {group}: GRPO compares replies to one prompt; set group to 2 or more.")
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    if kind == "scaled":
        return centred / (rewards.std(dim=1, keepdim=True) + eps)
    return centred * (group / (group - 1)) if kind == "leave-one-out" else centred


def win_rates(rewards: Tensor) -> Tensor:
    """How likely each of some replies is to be preferred to another of them, on average, by their rewards (G,).

    Only differences of rewards mean something, so that what comes out is the same whatever is added to all.
    Source: R. Bradley and M. Terry, "Rank analysis of incomplete block designs" (1952).
    """
    wins = torch.sigmoid(rewards[:, None] - rewards[None, :])  # (G, G)
    return (wins.sum(dim=1) - 0.5) / max(len(rewards) - 1, 1)  # without itself, which it beats half of the time


def overlong_penalty(lengths: Tensor, most: int, margin: int) -> Tensor:
    """What long replies lose: nothing up to `margin` tokens before `most`, then more and more, 1 at the end.

    lengths: any shape. Source: DAPO, arXiv 2503.14476, 3.4.
    """
    return ((lengths - (most - margin)) / margin).clamp(0.0, 1.0)


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


def reply_means(values: Tensor, lengths: Tensor) -> Tensor:
    """Each token's value becomes its reply's mean. values: (N,), reply after reply; lengths: (replies,) int64."""
    lengths = lengths.to(values.device)
    reply = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    sums = values.new_zeros(len(lengths)).index_add(0, reply, values)
    return (sums / lengths).index_select(0, reply)


def policy_loss(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, *, kind: Ratio, clip_low: float, clip_high: float
) -> Tensor:
    """Loss of each token. All (N,) float32; log_ratio: of the policy to what sampled, by token or `reply_means` of it.

    "token" and "reply" take the smaller of the plain and the clipped, ratio-weighted advantage; a higher upper bound
    lets unlikely tokens grow. "weight" clips what a token weighs and keeps every token's gradient.
    Source: DAPO, arXiv 2503.14476, eq. 8; GSPO, arXiv 2507.18071, 4.1 ("reply"); CISPO, arXiv 2506.13585, 3.1.
    """
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    if kind == "weight":
        return -clipped.detach() * advantages * logprobs
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_share(log_ratio: Tensor, advantages: Tensor, *, kind: Ratio, clip_low: float, clip_high: float) -> Tensor:
    """Number of tokens whose gradient the clip takes away or, by weight, makes smaller or larger."""
    ratio = torch.exp(log_ratio)
    above, below = ratio > 1 + clip_high, ratio < 1 - clip_low
    if kind == "weight":
        return ((above | below) & (advantages != 0)).sum()
    return ((advantages > 0) & above | (advantages < 0) & below).sum()


def mismatch_weight(gap: Tensor, kind: Literal["truncate", "mask"], bounds: tuple[float, float]) -> Tensor:
    """What a token counts where what sampled is not quite the policy that learns. gap: (N,), the log-probability that
    the policy, not yet moved, gives the token, less the sampler's.

    "truncate" weighs by the ratio up to the upper bound (TIS); "mask" by the ratio within both bounds and by 0 beyond
    (MIS, IcePop). Source: IcePop, arXiv 2510.18855; F. Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training" (2025).
    """
    low, high = bounds
    ratio = torch.exp(gap)
    return ratio.clamp(max=high) if kind == "truncate" else ratio * ((ratio >= low) & (ratio <= high))


def kl_penalty(logprobs: Tensor, reference: Tensor, log_ratio: Tensor, kind: Distance) -> Tensor:
    """An estimate of KL(policy || reference) of each token, never negative. (N,).

    "k3" is the first GRPO's; the gradient of "k2", half the squared difference, is that of the true divergence;
    "unbiased" is k3 times the token's ratio to what sampled (`log_ratio`), and so right in value and gradient when
    the policy has moved on. The plain difference would have a gradient of nothing on average.
    Source: arXiv 2402.03300, eq. 4; J. Schulman, "Approximating KL divergence" (2020); DeepSeek-V3.2, arXiv
    2512.02556, 3.1.
    """
    difference = reference - logprobs
    if kind == "k2":
        return difference.square() / 2
    k3 = torch.expm1(difference) - difference
    return k3 if kind == "k3" else torch.exp(log_ratio) * k3


def aggregate(
    token_losses: Tensor, lengths: Tensor, *, total_tokens: int, replies: int, longest: int, by: Averaging = "token"
) -> Tensor:
    """One number from the losses of a part's tokens, such that the parts of a batch add up.

    token_losses: (N,), reply after reply; lengths: (number of replies,) int64, tokens of each. By "token" each of the
    batch weighs the same; by "reply" each reply does, as in the first GRPO, so that long ones are taught less of what
    was wrong; by "constant" the sum is divided by what all replies could hold, `longest` tokens each. total_tokens,
    replies: those of the whole batch.
    Source: DAPO, arXiv 2503.14476, 3.3; arXiv 2402.03300, eq. 3; Dr. GRPO, arXiv 2503.20783, 3.1.
    """
    if by == "token":
        return token_losses.sum() / total_tokens
    if by == "constant":
        return token_losses.sum() / (replies * longest)
    means = torch.stack([part.mean() for part in token_losses.split(lengths.tolist())])
    return means.sum() / replies


_WHOLE: dict[str, Any] = {"learn": "all", "learn_truncated": True}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": _WHOLE | {"advantage": "scaled", "averaging": "reply", "clip_high": 0.2},
    "dapo": _WHOLE | {"advantage": "scaled", "clip_high": 0.28, "overlong": 0.2, "refill": 4},
    "dr-grpo": _WHOLE | {"advantage": "centred", "averaging": "constant", "clip_high": 0.2},
    "rloo": _WHOLE | {"advantage": "leave-one-out", "clip_high": 0.2},
    "gspo": _WHOLE
    | {"advantage": "scaled", "ratio": "reply", "averaging": "reply", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": _WHOLE | {"advantage": "scaled", "ratio": "weight", "clip_low": 1.0, "clip_high": 4.0},
}
"""Published combinations of the pieces above, as keys of `train.grpo`. CISPO's bounds are those of ScaleRL, arXiv
2510.13786: none below, a weight of 5 above.
"""
