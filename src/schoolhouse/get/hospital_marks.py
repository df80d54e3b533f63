"""Personal data that is marked where it's planted, so that the truth about a file is written beside the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_OPEN, _THEN, _CLOSE = "\ue000", "\ue001", "\ue002"  # of the private use area: no text has them
_MARK = re.compile(f"{_OPEN}([A-Za-z]+){_THEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
WHOLE = "whole file"
KINDS = ("name", "date", "phone", "email", "id", "address", "organisation", "age")


def mark(kind: str, value: object) -> str:
    """A value that is personal, as a part of a text that `unmark` takes apart."""
    assert kind in KINDS
    return f"{_OPEN}{kind}{_THEN}{value}{_CLOSE}"


def unmark(text: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The text as a file has it, and start, end and kind of what was marked, in code points."""
    parts: list[str] = []
    spans = []
    at = length = 0
    for found in _MARK.finditer(text):
        plain = text[at : found.start()]
        length += len(plain)
        value = found[2]
        spans.append((length, length + len(value), found[1].lower()))
        parts += [plain, value]
        length += len(value)
        at = found.end()
    return "".join([*parts, text[at:]]), spans


@dataclass
class Planted:
    """Gathers what was planted, a row for each value.

    file, place: where it stands, named as `prepare.read` names them; part: which column, paragraph, header or message
    of that place; start, end: where in the part; person: whose document it is, not always whose value. keep: where
    rows go; counts: of each kind.
    """

    keep: Callable[[Mapping[str, Any]], None]
    counts: Counter[str] = field(default_factory=Counter)

    def clean(self, text: str, file: str, place: str, part: str, person: str | None) -> str:
        """Take the marks out of a text that is to stand at a place of a file, and remember them."""
        plain, spans = unmark(text)
        at = {"file": file, "place": place, "part": part, "person": person}
        for start, end, kind in spans:
            self.keep(at | {"type": kind, "text": plain[start:end], "start": start, "end": end})
            self.counts[kind] += 1
        return plain
