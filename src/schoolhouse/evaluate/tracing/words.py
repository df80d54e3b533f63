"""Words that a text shares with rows: the longest run of them, and the share of the text's runs of five.

Words are compared without case, punctuation and width of letters; a run never crosses the border of a message.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from schoolhouse.core.errors import DataError

GRAM = 5
"""Words of the shortest run that counts; of a shorter text all of its words."""

Gram = tuple[str, ...]

# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: there a character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_ASCII = re.compile("[A-Za-z0-9]+")


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    if text.isascii():  # the same, sooner
        return _ASCII.findall(text.lower())
    return [_plain(word) for word in _word().findall(text)]


def places(text: str) -> list[tuple[int, int]]:
    """Where each of these words begins and ends in the text."""
    return [found.span() for found in _word().finditer(text)]


@functools.lru_cache(maxsize=1 << 16)
def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()


@functools.cache
def _word() -> re.Pattern[str]:
    """Letters and digits in a row with the marks that belong to them: many scripts write their vowels as marks."""
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}][{re.escape(marks)}]*)+")


class Asked:
    """A text that is looked for. Raises DataError for one without a word.

    n: words of its runs; rows: how many rows held each of them so far.
    """

    def __init__(self, text: str) -> None:
        self.words = words(text)
        if not self.words:
            raise DataError("the text holds no word to look for; give what the model said.")
        self.n = min(GRAM, len(self.words))
        self.rows: Counter[Gram] = Counter()
        self._at: dict[Gram, list[int]] = {}
        for place, gram in enumerate(_grams(self.words, self.n)):
            self._at.setdefault(gram, []).append(place)
        self._matcher = SequenceMatcher(None, "", self.words, autojunk=False)

    def shared(self, said: Sequence[str]) -> set[Gram]:
        """Which of the text's runs of n words stand in some words."""
        return self._at.keys() & _grams(said, self.n)

    def share(self, shared: set[Gram]) -> float:
        """Which share of the text's different runs of n words these are."""
        return len(shared) / len(self._at)

    def at_most(self, shared: set[Gram]) -> int:
        """What the longest run cannot be longer than, if these are the shared ones: cheap to tell."""
        held = sorted(place for gram in shared for place in self._at[gram])
        longest = streak = 0
        for before, place in zip([-2, *held], held, strict=False):
            streak = streak + 1 if place == before + 1 else 1
            longest = max(longest, streak)
        return longest + self.n - 1 if held else 0

    def longest(self, said: Sequence[str]) -> tuple[int, int, int]:
        """The longest shared run: where it begins in some words, where in the text, and how many words it has."""
        self._matcher.set_seq1(said)
        found = self._matcher.find_longest_match()
        return found.a, found.b, found.size

    def rarest(self, start: int, size: int) -> int:
        """How many rows held the rarest n words of a run of the text, from word `start` on."""
        return min(self.rows[gram] for gram in _grams(self.words[start : start + size], self.n))

    def found(self) -> tuple[int, int]:
        """How many of the text's different runs of n words stood in any row, and how many there are."""
        return len(self.rows), len(self._at)


def _grams(said: Sequence[str], n: int) -> zip[Gram]:
    return zip(*(said[i:] for i in range(n)), strict=False)
