"""What several recognisers found in a text becomes one answer: whole words, nothing twice, nothing left between."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_JOINED = ("name", "address", "organisation")  # types of which neighbours are one
_GAP = 3  # characters between two spans that are one
_BRIDGE = 24  # characters of an address between two parts that were found
_INNER = "-'\u2019_@"  # characters that stand within a word
_NUMBER = re.compile(r"(?<!\w)\d[\d() .\-/]*\d{2}(?!\w)")
_NUMBER_SCORE = 0.5  # less than what a rule says that knows which number it is


@dataclass(frozen=True)
class Span:
    """A part of a text, from `start` to before `end`. by: the recognisers that found it; score: how sure, 0 to 1."""

    start: int
    end: int
    type: str
    by: frozenset[str]
    score: float

    def inside(self, text: str) -> str:
        """The words that it covers."""
        return text[self.start : self.end]


def grown(text: str, span: Span) -> Span | None:
    """A span that ends where words end; None if there is neither letter nor digit in it.

    A recogniser may see half a word (`Lopez` of `Lopezes`), and blanks and commas at the ends.
    """
    start, end = span.start, span.end
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not text[end - 1].isalnum():
        end -= 1
    if start == end:
        return None
    while start > 0 and _goes_on(text, start - 1, start):
        start -= 1
    while end < len(text) and _goes_on(text, end, end - 1):
        end += 1
    while not text[start].isalnum():
        start += 1
    while not text[end - 1].isalnum():
        end -= 1
    if span.type == "name" and text[start:end].endswith(("'s", "\u2019s")) and end - start > 2:
        end -= 2  # whose it is stays
    return replace(span, start=start, end=end)


def _goes_on(text: str, at: int, beside: int) -> bool:
    """Whether the character at a place belongs to the word that the one beside it belongs to."""
    if text[at].isalnum():
        return text[beside].isalnum() or text[beside] in _INNER
    if text[at] not in _INNER:
        return False
    beyond = at + (at - beside)
    return 0 <= beyond < len(text) and text[beyond].isalnum() and text[beside].isalnum()


def settle(text: str, found: Iterable[Span]) -> list[Span]:
    """Spans in their order that do not overlap and cover all that the given ones cover.

    Of two that overlap the surer one keeps its borders, the rest of the other stays a span of its own, and neighbours
    of one type are joined if no more than a comma or a blank lies between them.
    """
    whole = [span for given in found if (span := grown(text, given)) is not None]
    whole = _united([part for span in whole for part in _parted(text, span)])
    taken: list[Span] = []
    for span in sorted(whole, key=lambda s: (-s.score, s.start - s.end, s.start, s.type)):
        for i, other in enumerate(taken):
            if other.start < span.end and span.start < other.end:
                taken[i] = replace(other, by=other.by | span.by)
        for start, end in _free(span, taken):
            rest = _trimmed(text, replace(span, start=start, end=end))
            if rest is not None:
                taken.append(rest)
    return _joined(text, sorted(taken, key=lambda s: s.start))


def _parted(text: str, span: Span) -> list[Span]:
    """A name without the numbers that a recogniser took for a part of it, which are spans of their own."""
    numbers = list(_NUMBER.finditer(text, span.start, span.end)) if span.type == "name" else []
    if not numbers:
        return [span]
    out = [Span(n.start(), n.end(), "id", span.by, min(span.score, _NUMBER_SCORE)) for n in numbers]
    return [*out, *(replace(span, start=a, end=b) for a, b in _free(span, out) if any(map(str.isalpha, text[a:b])))]


def _united(spans: Sequence[Span]) -> list[Span]:
    """Spans of one type that overlap are one, with all their recognisers. Dates are not: each has a day of its own."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.type, s.start, -s.end)):
        last = out[-1] if out else None
        within = last is not None and last.type == span.type and span.start < last.end
        if last is not None and within and (span.type in _JOINED or span.end <= last.end):
            by, score = last.by | span.by, max(last.score, span.score)
            out[-1] = replace(last, end=max(last.end, span.end), by=by, score=score)
        else:
            out.append(span)
    return out


def _free(span: Span, taken: Sequence[Span]) -> list[tuple[int, int]]:
    """The parts of a span that no other covers."""
    parts = [(span.start, span.end)]
    for other in taken:
        parts = [
            part
            for start, end in parts
            for part in ((start, min(end, other.start)), (max(start, other.end), end))
            if part[0] < part[1]
        ]
    return parts


def _trimmed(text: str, span: Span) -> Span | None:
    """A span without what is no letter or digit at its ends."""
    start, end = span.start, span.end
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not text[end - 1].isalnum():
        end -= 1
    return replace(span, start=start, end=end) if start < end else None


def _joined(text: str, spans: Sequence[Span]) -> list[Span]:
    out: list[Span] = []
    for span in spans:
        last = out[-1] if out else None
        if last is not None and last.type == span.type and span.type in _JOINED:
            between = text[last.end : span.start]
            line_ok = "\n" not in between or span.type == "address"
            near = len(between) <= _GAP and not any(c.isalnum() or c in ";:/|()" for c in between)
            if line_ok and (near or (span.type == "address" and _is_bridge(between))):
                by, score = last.by | span.by, max(last.score, span.score)
                out[-1] = replace(last, end=span.end, by=by, score=score)
                continue
        out.append(span)
    return out


def _is_bridge(between: str) -> bool:
    """Whether only words that are written large and numbers stand between two parts of an address."""
    words = between.replace(",", " ").split()
    one_line = between.count("\n") <= 1 and len(between) <= _BRIDGE
    return one_line and all(word[0].isupper() or word[0].isdigit() for word in words) and "." not in between[-2:]


def covered(spans: Sequence[Span], start: int, end: int, text: str) -> bool:
    """Whether every letter and digit between two places lies in a span."""
    held = [False] * (end - start)
    for span in spans:
        for place in range(max(span.start, start), min(span.end, end)):
            held[place - start] = True
    return all(held[i] or not text[start + i].isalnum() for i in range(end - start))
