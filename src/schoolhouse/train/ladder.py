"""A curriculum by success: the next level of a task opens when the one at the top is mastered.

Source: Reasoning Gym, arXiv 2505.24760, section 5 (level up above 70% over recent steps).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

RECENT = 64  # replies by which a level is judged
LOOKING_BACK = 0.2  # share of prompts from the mastered levels, so that they are not forgotten
LOOKING_AHEAD = 0.3  # share of prompts from the level above the top one: rare successes there teach most


class Ladder:
    """The levels of one task, and how far the policy has climbed.

    levels: from the easiest; start: the first top level; up_at: success rate above which the next one opens.
    """

    def __init__(self, levels: Sequence[str], start: str, up_at: float) -> None:
        self._levels = list(levels)
        self._top = self._levels.index(start)
        self._up_at = up_at
        self._recent: dict[str, deque[float]] = {level: deque(maxlen=RECENT) for level in levels}

    @property
    def top(self) -> str:
        """The hardest level that is open."""
        return self._levels[self._top]

    def draw(self, rng: random.Random) -> str:
        """The level of one prompt: mostly the top one."""
        dice = rng.random()
        if dice < LOOKING_BACK and self._top > 0:
            return self._levels[rng.randrange(self._top)]
        if dice > 1 - LOOKING_AHEAD and self._top + 1 < len(self._levels):
            return self._levels[self._top + 1]
        return self.top

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
