"""The parts that regular expressions of the rules are built from, and what a rule is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_HIGHEST = 0x250  # of the alphabets that are written in Latin letters; Greek and Cyrillic stand above
LARGE = "".join(chr(c) for c in range(0x41, _HIGHEST) if chr(c).isupper()) + "\u0386-\u03ab\u0400-\u042f\u1e00-\u1eff"
LETTER = r"[^\W\d_]"
WORD = rf"(?:[{LARGE}](?:{LETTER}|['\u2019\-](?={LETTER}))*)"
"""A word that is written large."""
INITIAL = rf"(?:[{LARGE}]\.?(?!{LETTER}))"
BLANK = r"[ \t]+"
NEAR = r"[ \t]{1,2}"
"""Blanks within a name: more of them part columns."""
BREAK = r"(?:[ \t]+|[ \t]*\r?\n[ \t]*)"
"""Blanks, or the end of a line."""
ORDINAL_NUMBER = r"\d{1,2}"

Part = tuple[int, int]
Keep = Callable[[re.Match[str]], Part | None]
"""What part of a match counts; None if it is not what it looks like."""


@dataclass(frozen=True)
class Rule:
    """A form: the type of what it finds, how sure that is, and what part of a match counts."""

    type: str
    score: float
    regex: re.Pattern[str]
    keep: Keep


def rule(type: str, score: float, form: str, keep: Keep | None = None) -> Rule:
    """A rule from its regular expression; the group `x`, if there is one, is what counts."""
    return Rule(type, score, re.compile(form, re.MULTILINE), keep or part)


def part(match: re.Match[str]) -> Part | None:
    """The group `x` of a match, or all of it."""
    return match.span("x") if "x" in match.re.groupindex else match.span()


def any_of(words: Iterable[str]) -> str:
    """A group that matches any of the words, the longest first, whatever blanks stand in them."""
    parts = [
        BLANK.join(re.escape(piece) for piece in word.split()) for word in sorted(set(words), key=len, reverse=True)
    ]
    return f"(?:{'|'.join(parts)})" if parts else r"(?:(?!))"


def name_form(particles: Iterable[str], most: int = 3) -> str:
    """Up to four names and initials, with a nickname and small words (van der) between them."""
    between = rf"(?:(?i:{any_of(particles)}){NEAR})*"
    nick = rf"(?:{NEAR}[\"\u201c(']{WORD}[\"\u201d)'])?"
    return rf"(?:{WORD}|{INITIAL}){nick}(?:{NEAR}{between}(?:{WORD}|{INITIAL})){{0,{most}}}"


def reversed_form(particles: Iterable[str]) -> str:
    """`Surname, First M.`"""
    before = rf"(?:(?i:{any_of(particles)}){BLANK})*"
    return rf"{before}{WORD}(?:[ \t]{WORD})?,[ \t]*{name_form(particles, 2)}"
