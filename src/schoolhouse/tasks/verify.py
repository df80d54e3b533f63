"""Verifiers by name: is this answer the expected one? Total functions of two strings; none ever raises."""

import re
from fractions import Fraction

# ASCII digits only: a look-alike digit of another script is not what was asked for.
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_LONGEST_NUMBER = 100


def number(answer: str, expected: str) -> bool:
    """Tell whether both texts are the same number ("1,200", "1200.0" and "+1200" are)."""
    value = _value(answer)
    return value is not None and value == _value(expected)


def _value(text: str) -> Fraction | None:
    text = text.strip().removesuffix(".")
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))
