"""Whether the claim of a recipe holds: checks with their numbers, and a sentence. It never rounds in its favour.

A claim is about a model that was taught by reinforcement learning, and about the best of its controls: at every level
and mean the control that did best there stands for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from schoolhouse.core.config import Ref, Strict
from schoolhouse.evaluate.compare import Estimate, Interval, disjoint, mean_of_levels, paired_difference, share

MAY_FALL = 0.05
"""By how much the better model may be worse where the control was taught by traces: what is lost to greedy luck."""


class Claim(Strict):
    """What a recipe says about a model of its exam.

    `better` beats each of `than` in `task` by so many points at each of `levels`, and by `mean_points` on the mean of
    `mean_levels`, the 95% intervals apart; in the tasks of `also` it is better by any amount that is no chance. Without
    `than` it is compared with the models that stand before it in the exam.
    """

    better: Ref
    than: list[Ref] = Field(default=[])
    task: str
    levels: dict[str, float] = Field(default={})
    mean_levels: list[str] = Field(default=[])
    mean_points: float = Field(default=0.0, ge=0)
    also: list[str] = Field(default=[])


@dataclass(frozen=True)
class Check:
    """One part of a claim: what was wanted, what was found, and in words why it failed where it did."""

    what: str
    better: Estimate | None
    control: Estimate | None
    control_name: str
    wanted_points: float | None
    gained_points: float | None
    met: bool
    reason: str
    interval_points: Interval | None = None  # of the gain, where it was counted pair by pair


@dataclass(frozen=True)
class Verdict:
    """All checks of a claim; it is met if each of them is."""

    met: bool
    better: str
    controls: list[str]
    control_note: str
    sentence: str
    checks: list[Check]

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return asdict(self)


Counts = Mapping[str, Mapping[str, Any]]
"""Level to its counts, as exam.json holds them for one model, mode and task."""


def judge(claim: Claim, exam: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> Verdict:
    """Hold a claim against an exam. What cannot be tested counts as failed, with the reason."""
    controls, note = _controls(claim, exam)
    checks = [_level_check(claim, exam, controls, level, points) for level, points in claim.levels.items()]
    if claim.mean_levels:
        checks.append(_mean_check(claim, exam, controls))
    taught = exam["tasks"].get(claim.task, {}).get("trace_levels", [])
    if taught:
        checks.append(_kept_check(claim, exam, items, controls, taught))
    checks += [_also_check(claim, items, controls, task) for task in claim.also]
    met = bool(checks) and all(check.met for check in checks)
    return Verdict(met, claim.better, controls, note, _sentence(claim, checks, met), checks)


def _controls(claim: Claim, exam: Mapping[str, Any]) -> tuple[list[str], str]:
    if claim.than:
        return list(claim.than), f"compared with the best of: {', '.join(claim.than)}"
    names = list(exam["models"])
    before = names[: names.index(claim.better)] if claim.better in names else []
    listed = ", ".join(before) or "none"
    return before, f"the recipe trained no control; compared with the best of the models before it: {listed}"


def _counts(exam: Mapping[str, Any], model: str, task: str) -> Counts:
    counts: Counts = exam["models"].get(model, {}).get("thinking", {}).get(task, {})
    return counts


def _level_check(claim: Claim, exam: Mapping[str, Any], controls: list[str], level: str, points: float) -> Check:
    def at(model: str) -> Estimate | None:
        counts = _counts(exam, model, claim.task).get(level)
        return share(counts["correct"], counts["n"]) if counts else None

    return _apart(f"{claim.task} {level}", at(claim.better), {name: at(name) for name in controls}, points)


def _mean_check(claim: Claim, exam: Mapping[str, Any], controls: list[str]) -> Check:
    def mean(model: str) -> Estimate | None:
        counts = _counts(exam, model, claim.task)
        if any(level not in counts for level in claim.mean_levels):
            return None
        return mean_of_levels([(counts[level]["correct"], counts[level]["n"]) for level in claim.mean_levels])

    what = f"{claim.task}, mean of {' and '.join(claim.mean_levels)}"
    return _apart(what, mean(claim.better), {name: mean(name) for name in controls}, claim.mean_points)


def _apart(what: str, better: Estimate | None, controls: Mapping[str, Estimate | None], points: float) -> Check:
    """The better model against the control that did best, by points and by intervals that do not touch."""
    known = {name: estimate for name, estimate in controls.items() if estimate is not None}
    if better is None or not known:
        missing = "the model" if better is None else "a control"
        return Check(
            what, better, None, "", points, None, False, f"not tested: the exam has no replies of {missing} here"
        )
    name = max(known, key=lambda n: known[n].value)
    control = known[name]
    gained = 100 * (better.value - control.value)
    reasons = []
    if gained < points - 1e-9:
        reasons.append(f"{points:g} points were claimed, {gained:.1f} were gained")
    if better.value > control.value and not disjoint(better.interval, control.interval):
        reasons.append("the 95% intervals overlap")
    if better.value <= control.value and points <= 0:
        reasons.append("it is not better at all")
    return Check(what, better, control, name, points, gained, not reasons, "; ".join(reasons))


def _kept_check(
    claim: Claim,
    exam: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    controls: list[str],
    taught: Sequence[str],
) -> Check:
    """The levels that traces had taught must not have been forgotten."""
    what = f"{claim.task}, taught levels kept ({', '.join(taught)})"
    pairs = {name: _pairs(items, claim.better, name, claim.task, taught) for name in controls}
    pairs = {name: pair for name, pair in pairs.items() if pair[0]}
    if not pairs:
        return Check(what, None, None, "", None, None, False, "not tested: the exam asked nothing at these levels")
    name = max(pairs, key=lambda n: sum(pairs[n][1]))
    own, other = pairs[name]
    difference = paired_difference(own, other)
    met = difference.value >= -MAY_FALL
    reason = "" if met else f"it fell by {-100 * difference.value:.1f} points, more than {100 * MAY_FALL:g}"
    return _paired_check(what, own, other, name, difference.value, difference.interval, met, reason)


def _also_check(claim: Claim, items: Sequence[Mapping[str, Any]], controls: list[str], task: str) -> Check:
    """Another task must have risen: its paired interval over the best control lies above 0."""
    what = f"{task}, all levels"
    pairs = {name: _pairs(items, claim.better, name, task, None) for name in controls}
    pairs = {name: pair for name, pair in pairs.items() if pair[0]}
    if not pairs:
        return Check(what, None, None, "", 0.0, None, False, "not tested: the exam asked nothing in this task")
    name = max(pairs, key=lambda n: sum(pairs[n][1]) / len(pairs[n][1]))
    own, other = pairs[name]
    difference = paired_difference(own, other)
    met = difference.interval.low > 0
    reason = (
        ""
        if met
        else "the gain may be chance: its 95% interval reaches 0"
        if difference.value > 0
        else "it did not rise"
    )
    return _paired_check(what, own, other, name, difference.value, difference.interval, met, reason, wanted=0.0)


def _paired_check(
    what: str,
    own: list[bool],
    other: list[bool],
    name: str,
    gain: float,
    interval: Interval,
    met: bool,
    reason: str,
    wanted: float | None = None,
) -> Check:
    points = Interval(100 * interval.low, 100 * interval.high)
    better, control = share(sum(own), len(own)), share(sum(other), len(other))
    return Check(what, better, control, name, wanted, 100 * gain, met, reason, points)


def _pairs(
    items: Sequence[Mapping[str, Any]], first: str, second: str, task: str, levels: Sequence[str] | None
) -> tuple[list[bool], list[bool]]:
    """Right or not on the questions that both models were asked, thinking."""
    results: dict[str, dict[str, bool]] = {first: {}, second: {}}
    for row in items:
        is_asked = row["mode"] == "thinking" and row["task"] == task and (levels is None or row["level"] in levels)
        if is_asked and row["model"] in results:
            results[row["model"]][row["id"]] = bool(row["correct"])
    common = [key for key in results[first] if key in results[second]]
    return [results[first][k] for k in common], [results[second][k] for k in common]


def _sentence(claim: Claim, checks: Sequence[Check], met: bool) -> str:
    failed = [check for check in checks if not check.met]
    if not checks:
        return f"The claim about {claim.better} names no level to test it at."
    first = next((check for check in checks if check.wanted_points is not None), checks[0])  # a gain, if one is claimed
    numbers = ""
    if first.better is not None and first.control is not None:
        numbers = (
            f": {first.better.value:.0%} against {first.control.value:.0%} of {first.control_name} at {first.what}"
        )
    if met:
        return f"{claim.better} beats every control by at least what was claimed{numbers}."
    if len(failed) == 1:
        return f"{claim.better} does not hold its claim at {failed[0].what}: {failed[0].reason}."
    return f"{claim.better} fails {len(failed)} of {len(checks)} checks of its claim{numbers}."
