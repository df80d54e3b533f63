"""The RL doctor: each cause of a flat reward is named, a healthy run is not blamed."""

import pytest

from schoolhouse.train.doctor import diagnose

HEALTHY = {
    "reward": 0.5, "accuracy": 0.5, "format": 1.0, "truncated": 0.0, "groups": 16, "signal_groups": 8, "entropy": 0.05,
    "sampler_gap": 0.01, "clipped": 0.01, "level": {"boxes": "3-2"},
}  # fmt: skip


def steps(count=30, **changes):
    return [HEALTHY | changes for _ in range(count)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 0.1}, "Only 10% of the replies have the form"),
        ({"truncated": 0.4}, "40% of the replies were cut off"),
        ({"signal_groups": 1, "accuracy": 0.97}, "too easy"),
        ({"signal_groups": 1, "accuracy": 0.01}, "too hard"),
        ({"entropy": 0.001}, "entropy is 0.0010"),
        ({"sampler_gap": 0.5}, "differ by 0.50"),
        ({"clipped": 0.5}, "Lower lr"),
    ],
)
def test_each_cause_is_named(changes, words):
    assert words in " ".join(diagnose(steps(**changes)))


def test_a_healthy_rise_is_not_blamed():
    rows = [HEALTHY | {"reward": 0.2 + 0.01 * i} for i in range(40)]
    (only,) = diagnose(rows)
    assert only.startswith("Reward went from 0.2")
    assert "flat" not in only


def test_a_flat_reward_is_called_flat_but_not_while_levels_are_climbed():
    assert "it is flat" in diagnose(steps())[-1]
    climbed = [*steps(15), *steps(15, level={"boxes": "4-3"})]
    assert "climbed" in diagnose(climbed)[-1]


def test_a_run_without_a_step_says_so():
    assert "No step was taken" in diagnose([])[0]
