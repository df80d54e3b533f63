"""Why a reinforcement-learning run does not learn, in plain words, from its metrics alone.

Each rule looks at the last steps and names a cause, its figure, and what to change in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

WINDOW = 20  # steps that a verdict rests on
Metrics = Sequence[Mapping[str, Any]]


def diagnose(metrics: Metrics) -> list[str]:
    """Sentences on a GRPO run, the gravest first; at least one. metrics: the lines of its metrics.jsonl."""
    if not metrics:
        return ["No step was taken: the stage's time was spent before the first rollout ended. Give it more time."]
    window = metrics[-WINDOW:]
    found = [sentence for rule in RULES if (sentence := rule(window)) is not None]
    return [*found, _trend(metrics)]


def mean(window: Metrics, name: str) -> float:
    """Mean of a figure over those steps that have it."""
    values = [float(row[name]) for row in window if name in row]
    return sum(values) / len(values) if values else 0.0


def _format_never_met(window: Metrics) -> str | None:
    share = mean(window, "format")
    if share >= 0.5:
        return None
    return (
        f"Only {share:.0%} of the replies have the form of one <think> and one <answer>: right answers go unseen. "
        "Give the cold start (train.sft) more epochs or traces."
    )


def _cut_off(window: Metrics) -> str | None:
    share = mean(window, "truncated")
    if share <= 0.1:
        return None
    return (
        f"{share:.0%} of the replies were cut off before their answer. Raise max_new_tokens or start on easier levels."
    )


def _no_signal(window: Metrics) -> str | None:
    groups = sum(row.get("groups", 0) for row in window)
    share = sum(row.get("signal_groups", 0) for row in window) / groups if groups else 0.0
    if share >= 0.2:
        return None
    right = mean(window, "accuracy")
    if right > 0.9:
        return (
            f"Only {share:.0%} of the groups have mixed rewards and {right:.0%} of the replies are right: "
            "the questions are too easy. Add harder levels to the task, or lower level_up."
        )
    return (
        f"Only {share:.0%} of the groups have mixed rewards and {right:.0%} of the replies are right: "
        "the questions are too hard for sampling to find an answer. Start on easier levels, raise group, or give the "
        "cold start more traces."
    )


def _entropy_gone(window: Metrics) -> str | None:
    rows = [row for row in window if "entropy" in row]
    entropy = mean(rows, "entropy")
    if not rows or entropy >= 0.01:
        return None
    return (
        f"The policy's entropy is {entropy:.4f} nats a token: it says the same each time and tries nothing. "
        "Raise temperature or clip_high, lower lr, or give the cold start fewer epochs."
    )


def _sampler_apart(window: Metrics) -> str | None:
    gap = mean(window, "sampler_gap")
    if gap <= 0.1:
        return None
    return (
        f"Sampler and trainer differ by {gap:.2f} nats a token: the replies learnt from are not the policy's own. "
        "Use one number type for both (machine.dtype)."
    )


def _too_wild(window: Metrics) -> str | None:
    clipped = mean(window, "clipped")
    if clipped <= 0.2:
        return None
    return f"{clipped:.0%} of the tokens lie outside of the clip: the steps are too long. Lower lr."


RULES: tuple[Callable[[Metrics], str | None], ...] = (
    _format_never_met,
    _cut_off,
    _no_signal,
    _entropy_gone,
    _sampler_apart,
    _too_wild,
)


def _trend(metrics: Metrics) -> str:
    """Whether the reward moved at all; a ladder that climbs lowers it, so that a new level counts as a rise."""
    part = max(1, min(WINDOW, len(metrics) // 3))
    first, last = mean(metrics[:part], "reward"), mean(metrics[-part:], "reward")
    levels = [str(row["level"]) for row in (metrics[0], metrics[-1]) if "level" in row]
    climbed = len(levels) == 2 and levels[0] != levels[1]
    moved = f"Reward went from {first:.2f} to {last:.2f} over {len(metrics)} steps"
    if climbed:
        return f"{moved} while the ladder was climbed from {levels[0]} to {levels[1]}."
    if last - first < 0.03:
        return (
            f"{moved}, and no level was gained: it is flat. Without another cause above, raise lr or give it more time."
        )
    return f"{moved}."
