"""A curriculum by success: the next level of a task opens when the one at the top is mastered.

Source: Reasoning Gym, arXiv 2505.24760, section 5 (level up above 70% over recent steps).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

RECENT = 64  # replies by which a level is judged
AHEAD = 3  # levels above the top one that are tried: their rare successes teach most
FLOOR = 0.01  # weight of a level that teaches nothing now, so that it is neither forgotten nor given up


class Ladder:
    """The levels of one task, and how far the policy has climbed.

    levels: from the easiest; start: the first top level; up_at: success rate above which the next one opens; group:
    replies to a question.
    """

    def __init__(self, levels: Sequence[str], start: str, up_at: float, group: int) -> None:
        self._levels = list(levels)
        self._top = self._levels.index(start)
        self._up_at = up_at
        self._group = group
        self._recent: dict[str, deque[float]] = {level: deque(maxlen=RECENT) for level in levels}

    @property
    def top(self) -> str:
        """The hardest level that is open."""
        return self._levels[self._top]

    def draw(self, rng: random.Random) -> str:
        """The level of one prompt, by what it promises to teach: the room that is left above its success p, times the
        chance that one of the group's replies is right: (1 - p)(1 - (1 - p)^G). Untried levels count as even odds.

        A group without a right reply, or without a wrong one, teaches nothing; for rare successes this is G times the
        "learnability" p(1 - p) of Rutherford et al., arXiv 2408.15099, section 4, so that a new rung is not starved.
        """
        open_levels = self._levels[: self._top + 1 + AHEAD]
        weights = [self._promise(level) for level in open_levels]
        return rng.choices(open_levels, weights)[0]

    def _promise(self, level: str) -> float:
        seen = self._recent[level]
        # One success and one failure are imagined, so that few tries do not settle the matter.
        rate = (sum(seen) + 1.0) / (len(seen) + 2.0)
        return (1.0 - rate) * (1.0 - (1.0 - rate) ** self._group) + FLOOR

    def record(self, level: str, solved: Sequence[float]) -> None:
        """Note the outcome of a group (1 solved, 0 not) and climb while the top level is mastered."""
        self._recent[level].extend(solved)
        while self._top + 1 < len(self._levels):
            seen = self._recent[self.top]
            if len(seen) < RECENT // 2 or sum(seen) / len(seen) <= self._up_at:
                break
            self._top += 1

    def rates(self) -> dict[str, float]:
        """Recent success rate of each level that was tried."""
        return {level: sum(seen) / len(seen) for level, seen in self._recent.items() if seen}

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"top": self._top, "recent": {level: list(seen) for level, seen in self._recent.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._top = int(state["top"])
        self._recent = {level: deque(seen, maxlen=RECENT) for level, seen in state["recent"].items()}
