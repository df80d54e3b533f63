"""What pupils of the example classroom write, right and wrong, and what a good teacher says to it: never the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

from schoolhouse.get.classroom_exercises import SHARE, SUMS, TIMES, Exercise, Work, calculate, shown, worked

RIGHT = "Sahihi"
_INSTEAD = {"+": "-", "-": "+", TIMES: "+", SHARE: "-"}  # the operation that a story is misread as
_MISREAD = 0.3  # of the wrong attempts at a story


@dataclass(frozen=True)
class Attempt:
    """An exercise as a pupil did it. steps, result: the right way and answer; written: what the pupil wrote; review:
    how one looks it through; hint: what the pupil is told, `RIGHT` or what to look at again.
    """

    exercise: Exercise
    steps: str
    result: str
    written: str
    review: str
    hint: str

    @property
    def is_right(self) -> bool:
        """Whether the pupil got it right."""
        return self.hint == RIGHT


def draw_attempt(exercise: Exercise, is_right: bool, draw: random.Random) -> Attempt:
    """An attempt that is right, or wrong in one step or word."""
    return (_sum_attempt if exercise.topic == SUMS else _language_attempt)(exercise, is_right, draw)


def _sum_attempt(exercise: Exercise, is_right: bool, draw: random.Random) -> Attempt:
    right = worked(exercise.steps)
    steps, result = shown(right), str(right[-1][1])
    if is_right:
        review = " ".join(f"{line} Sahihi." for line in _lines(right))
        return Attempt(exercise, steps, result, f"{steps} Jibu: {result}.", review, RIGHT)
    at = draw.randrange(len(right))
    left, value = right[at]
    misread = exercise.is_story and draw.random() < _MISREAD and _misread(left, value)
    wrong = misread or _slip(left, value, draw)
    written = worked(exercise.steps, {at: wrong})
    while min(value for _, value in written) < 0:  # who takes more away than there is sees that something is wrong
        misread, wrong = None, _slip(left, value, draw)
        written = worked(exercise.steps, {at: wrong})
    before = [f"{line} Sahihi." for line in _lines(written)[:at]]
    if misread:
        found, todo = f"swali linataka {left}, si {written[at][0]}.", "soma swali tena"
    else:
        found, todo = f"{left} = {value}, si {written[at][1]}.", f"hesabu tena {left}"
    review = " ".join([*before, f"Hatua {at + 1}: {found}"])
    hint = f"Hatua {at + 1} si sahihi: {todo}"
    return Attempt(exercise, steps, result, f"{shown(written)} Jibu: {written[-1][1]}.", review, hint)


def _lines(rows: list[tuple[str, int]]) -> list[str]:
    return [f"Hatua {number}: {left} = {value}." for number, (left, value) in enumerate(rows, 1)]


def _misread(left: str, value: int) -> Work | None:
    """The step with another operation; None where that gives nothing to write, or the same number."""
    first, operation, second = left.split()
    other = _INSTEAD[operation]
    instead = calculate(int(first), other, int(second))
    if instead < 1 or instead == value:
        return None
    return lambda first, _, second: (other, calculate(first, other, second))


def _slip(left: str, value: int, draw: random.Random) -> Work:
    """The step with a wrong result, near the right one."""
    _, operation, second = left.split()
    near = [value - 2, value - 1, value + 1, value + 2]
    if operation == TIMES:
        near = [value - int(second), value + int(second), *([value - 10, value + 10] if value % 10 == 0 else near)]
    elif value > 20:
        near += [value - 10, value + 10]
    slipped = draw.choice([other for other in near if other > 0 and other != value])
    return lambda *_: (operation, slipped)


def _language_attempt(exercise: Exercise, is_right: bool, draw: random.Random) -> Attempt:
    words = [word.right for word in exercise.words]
    result = " ".join(words)
    if is_right:
        return Attempt(exercise, exercise.why, result, f"{result}.", f"{exercise.why} Yote ni sahihi.", RIGHT)
    at = draw.choice([number for number, word in enumerate(exercise.words) if word.wrong])
    wrong = draw.choice(exercise.words[at].wrong)
    written = " ".join([*words[:at], wrong, *words[at + 1 :]])
    review = f"{exercise.why} {words[at]}, si {wrong}."
    hint = f"Si sahihi: angalia neno {wrong.lower()}, ngeli ya {exercise.noun_class}"
    return Attempt(exercise, exercise.why, result, f"{written}.", review, hint)
