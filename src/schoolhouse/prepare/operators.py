"""Ways to write a text otherwise that keep what it says: no number, and no fact, is touched."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Literal

Operator = Literal["abbreviate", "spell-out", "reorder", "lower-case", "typos"]

TYPO_SHARE = 0.03  # of the long words: about what is found in typed clinical notes
_LONG = 6  # letters from which a word is still read with two of them exchanged
_WORD = re.compile(r"[^\W\d_]+")
_FIELD = re.compile(r"^\s*[^\W\d][^:\n]{0,40}:\s*\S")

SHORT: Mapping[str, str] = {
    "blood pressure": "BP", "heart rate": "HR", "respiratory rate": "RR", "oxygen saturation": "SpO2",
    "temperature": "temp", "shortness of breath": "SOB", "history of": "h/o",
    "hypertension": "HTN", "diabetes mellitus": "DM", "urinary tract infection": "UTI", "patient": "pt",
    "year-old": "y/o", "years old": "y/o", "diagnosis": "dx", "treatment": "tx", "prescription": "rx", "symptoms": "sx",
    "without": "w/o", "twice daily": "bid", "three times daily": "tid", "as needed": "prn", "by mouth": "PO",
    "intravenous": "IV", "follow-up": "f/u", "no known drug allergies": "NKDA",
    "within normal limits": "WNL", "complains of": "c/o",
    "bilateral": "b/l", "weight": "wt",
}  # fmt: skip
"""What clinicians write short, where the short form means nothing else. Both ways are wanted: notes come in either."""


def abbreviate(text: str, rng: random.Random) -> str:
    """Write some of the words short that clinicians write short."""
    return _exchange(text, SHORT, rng)


def spell_out(text: str, rng: random.Random) -> str:
    """Write some of the short forms out."""
    return _exchange(text, {short: long for long, short in SHORT.items()}, rng, cased=True)


def _exchange(text: str, table: Mapping[str, str], rng: random.Random, *, cased: bool = False) -> str:
    """Exchange each entry of the table with a chance of three in four, everywhere or nowhere in the text."""
    for old, new in table.items():
        if rng.random() < 0.75:
            flags = 0 if cased else re.IGNORECASE
            text = re.sub(rf"(?<![\w/]){re.escape(old)}(?![\w/])", new, text, flags=flags)
    return text


def reorder(text: str, rng: random.Random) -> str:
    """Shuffle lines `Name: value` that follow one another: a form says the same in any order."""
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and _FIELD.match(lines[end]):
            end += 1
        block = lines[start:end]
        rng.shuffle(block)
        lines[start:end] = block
        start = max(end, start + 1)
    return "\n".join(lines)


def lower_case(text: str, rng: random.Random) -> str:
    """All in small letters, as notes in a hurry are."""
    return text.lower()


def typos(text: str, rng: random.Random) -> str:
    """Exchange two neighbouring letters within some of the long words, one at least."""
    places = []  # of each long word those where an exchange shows
    for word in _WORD.finditer(text):
        inner = range(word.start() + 1, word.end() - 2) if len(word.group()) >= _LONG else ()
        places.append([at for at in inner if text[at] != text[at + 1]])
    long = [found for found in places if found]
    letters = list(text)
    for found in rng.sample(long, min(len(long), max(1, round(TYPO_SHARE * len(long))))):
        at = rng.choice(found)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


OPERATORS: Mapping[str, Callable[[str, random.Random], str]] = {
    "abbreviate": abbreviate, "spell-out": spell_out, "reorder": reorder, "lower-case": lower_case, "typos": typos,
}  # fmt: skip
