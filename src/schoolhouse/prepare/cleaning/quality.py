"""What makes a text unfit to learn from: small rules, each with a name and a number of its own.

The numbers are those of published filters: Gopher (arXiv 2112.11446, section A1.1, of repetition its table A1) and C4
(arXiv 1910.10683, section 2.2). They were found on pages of the web: short notes and tables of values want others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import Field

from schoolhouse.core.config import Strict
from schoolhouse.prepare.cleaning.shingles import UNSPACED, hashes, ngrams

_TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_ALONE = re.compile(f"[{UNSPACED}]")
_SENTENCE = re.compile(r"[\n.!?]+")
_BULLETS = ("•", "‣", "▪", "●", "○", "*", "-", "\u2013")
_ELLIPSES = ("...", "…")
_ENOUGH = 50  # words from which shares of n-grams mean something: the shortest text that they were published for
_TOP = (2, 3, 4)
_AGAIN = (5, 6, 7, 8, 9, 10)

# UTF-8 that was read as Latin-1 or Windows-1252: its first byte became a letter, each further one a sign. Signs that
# stand behind accented letters in good texts, too (a quote, a dash, a hard space), may not come first.
_BYTES = bytes(b for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
_SIGNS = "".join(map(chr, range(0x80, 0xC0))) + _BYTES.decode("cp1252")
_FIRST = "".join(
    sign for sign in _SIGNS if sign not in "\u00a0\u00ab\u00bb\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022"
)
_MOJIBAKE = re.compile(
    f"\ufffd|[\u00c2-\u00d6\u00d8-\u00df][{_FIRST}]|[\u00e0-\u00ef][{_FIRST}][{_SIGNS}]"
    f"|[\u00f0-\u00f4][{_FIRST}][{_SIGNS}]{{2}}"
)

POLICY = [
    "lorem ipsum", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    "enable javascript",
]  # fmt: skip


class Quality(Strict):
    """The numbers of the rules; 0 for a least and 1 for a most let every text pass."""

    min_words: int = Field(default=50, ge=0)  # fewer are too short (Gopher)
    max_words: int = Field(default=100_000, ge=1)  # more are too long (Gopher)
    min_word_length: float = Field(default=3, ge=0)  # characters of a word, on average, at least (Gopher)
    max_word_length: float = Field(default=10, ge=1)  # and at most (Gopher)
    letters: float = Field(default=0.8, ge=0, le=1)  # least share of words with a letter in them (Gopher)
    symbols: float = Field(default=0.1, ge=0)  # most `#`, and most ellipses, a word (Gopher)
    bullets: float = Field(default=0.9, ge=0, le=1)  # most lines that begin with a bullet (Gopher)
    ellipses: float = Field(default=0.3, ge=0, le=1)  # most lines that end with an ellipsis (Gopher)
    repeated_lines: float = Field(default=0.3, ge=0, le=1)  # most lines that stood before (Gopher)
    repeated_line_letters: float = Field(default=0.2, ge=0, le=1)  # most characters in such lines (Gopher)
    top_ngrams: list[float] = Field(
        default=[0.2, 0.18, 0.16], min_length=3, max_length=3
    )  # most characters in the commonest 2, 3, 4 words in a row, of texts of 50 words and more (Gopher)
    repeated_ngrams: list[float] = Field(
        default=[0.15, 0.14, 0.13, 0.12, 0.11, 0.1], min_length=6, max_length=6
    )  # most characters in 5, 6, ... 10 words in a row that stood before, of the same texts (Gopher)
    broken: float = Field(default=0.001, ge=0, le=1)  # most characters lost or garbled by a wrong encoding
    boilerplate: float = Field(default=0.3, ge=0, le=1)  # most sentences with a phrase of `phrases`
    phrases: list[str] = Field(default=POLICY)  # what only boilerplate says (C4's, beside others)


@dataclass(frozen=True)
class Seen:
    """A text and what several rules look at in it, worked out once."""

    text: str

    @cached_property
    def tokens(self) -> list[str]:
        """What stands between spaces; single characters in scripts that have none."""
        return _TOKEN.findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        """Tokens with a letter or a digit in them."""
        return [token for token in self.tokens if any(map(str.isalnum, token))]

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]


Rule = Callable[[Seen, Quality], str | None]


def too_short(seen: Seen, quality: Quality) -> str | None:
    """Fewer words than `min_words`."""
    n = len(seen.words)
    return f"{n} words" if n < quality.min_words else None


def too_long(seen: Seen, quality: Quality) -> str | None:
    """More words than `max_words`."""
    n = len(seen.words)
    return f"{n} words" if n > quality.max_words else None


def odd_words(seen: Seen, quality: Quality) -> str | None:
    """Words that are too short or too long on average to be those of a language."""
    lengths = [len(word) for word in seen.words if not _ALONE.match(word)]
    if not lengths:
        return None
    mean = sum(lengths) / len(lengths)
    fits = quality.min_word_length <= mean <= quality.max_word_length
    return None if fits else f"{mean:.1f} characters a word"


def few_letters(seen: Seen, quality: Quality) -> str | None:
    """Too many words without a letter: numbers, rulers, symbols."""
    held = sum(any(map(str.isalpha, token)) for token in seen.tokens)
    return _below(held, len(seen.tokens), quality.letters, "of the words have a letter")


def symbols(seen: Seen, quality: Quality) -> str | None:
    """Too many `#`, or too many ellipses, for so many words."""
    most = max(seen.text.count("#"), sum(map(seen.text.count, _ELLIPSES)))
    return _above(most, len(seen.words), quality.symbols, "as many # or ellipses as words")


def bullets(seen: Seen, quality: Quality) -> str | None:
    """Nearly all lines are items of a list."""
    return _above(_count(seen.lines, str.startswith, _BULLETS), len(seen.lines), quality.bullets, "of lines are items")


def ellipses(seen: Seen, quality: Quality) -> str | None:
    """Too many lines that were cut short."""
    return _above(_count(seen.lines, str.endswith, _ELLIPSES), len(seen.lines), quality.ellipses, "of lines are cut")


def repeated_lines(seen: Seen, quality: Quality) -> str | None:
    """Too many lines, or too much of the text in lines, that stood before."""
    before: set[str] = set()
    again: list[str] = []
    for line in seen.lines:
        if line in before:
            again.append(line)
        before.add(line)
    letters = sum(map(len, seen.lines))
    return _above(len(again), len(seen.lines), quality.repeated_lines, "of lines stood before") or _above(
        sum(map(len, again)), letters, quality.repeated_line_letters, "of the text stands in lines that stood before"
    )


def repeated_words(seen: Seen, quality: Quality) -> str | None:
    """Too much of the text in the same words in a row."""
    if len(seen.words) < _ENOUGH:
        return None
    tokens = [token.casefold() for token in seen.tokens]
    ids, ends = hashes(tokens), np.cumsum([0, *map(len, tokens)])
    for n, most in zip(_TOP, quality.top_ngrams, strict=True):
        _, first, counts = np.unique(ngrams(ids, n), return_index=True, return_counts=True)
        commonest = first[counts == counts.max()]
        held = int((ends[commonest + n] - ends[commonest]).max() * counts.max()) if counts.max() > 1 else 0
        found = _above(held, int(ends[-1]), most, f"of the text is the same {n} words")
        if found:
            return found
    for n, most in zip(_AGAIN, quality.repeated_ngrams, strict=True):
        grams = ngrams(ids, n)
        again = np.ones(len(grams), dtype=bool)
        again[np.unique(grams, return_index=True)[1]] = False
        covered = np.convolve(again, np.ones(n, dtype=np.int64)) > 0  # each character once, however often it stands in
        found = _above(int(np.diff(ends)[covered].sum()), int(ends[-1]), most, f"of the text is {n} words again")
        if found:
            return found
    return None


def broken(seen: Seen, quality: Quality) -> str | None:
    """Characters that a wrong encoding lost (U+FFFD) or garbled: UTF-8 that was read as Latin-1 or Windows-1252."""
    lost = len(_MOJIBAKE.findall(seen.text))
    return _above(lost, len(seen.text), quality.broken, "of characters are lost or garbled")


def boilerplate(seen: Seen, quality: Quality) -> str | None:
    """Too many sentences that say what stands on every page."""
    sentences = [sentence.casefold() for sentence in _SENTENCE.split(seen.text) if sentence.strip()]
    phrases = [phrase.casefold() for phrase in quality.phrases]
    held = sum(any(phrase in sentence for phrase in phrases) for sentence in sentences)
    return _above(held, len(sentences), quality.boilerplate, "of sentences are boilerplate")


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        too_short, too_long, broken, odd_words, few_letters, symbols, bullets, ellipses, repeated_lines,
        repeated_words, boilerplate,
    )
}  # fmt: skip
"""By name, in the order in which a text is held against them."""


def unfit(text: str, quality: Quality) -> tuple[str, str] | None:
    """The first rule that a text breaks and what was found, in words without the text; None for a text that is fit."""
    seen = Seen(text)
    for name, rule in RULES.items():
        found = rule(seen, quality)
        if found is not None:
            return name, found
    return None


def _count(lines: Sequence[str], test: Callable[[str, tuple[str, ...]], bool], marks: tuple[str, ...]) -> int:
    return sum(test(line, marks) for line in lines)


def _above(part: int, whole: int, most: float, what: str) -> str | None:
    return f"{part / whole:.1%} {what}" if whole and part / whole > most else None


def _below(part: int, whole: int, least: float, what: str) -> str | None:
    return f"{part / whole:.1%} {what}" if whole and part / whole < least else None
