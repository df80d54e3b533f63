"""A text in pieces for a recogniser that reads a sentence or two at a time, and a memory of the pieces that it read."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from schoolhouse.prepare.redaction.spans import Span

MOST = 400  # characters of a piece
_KEPT = 20_000  # pieces whose findings are remembered: notes repeat their lines
_WRAPPED = 60  # a line as long as this goes on in the next one, unless it ends like a sentence
_SENTENCE = re.compile(r"(?<=[.!?])[ \t]+(?=[^a-z])")


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """Place and text of each piece: lines, wrapped ones together, long ones at the ends of their sentences."""
    start = end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        bare = line.rstrip()
        if len(bare) >= _WRAPPED and bare[-1:] not in ".:;!?" and end - start < MOST and end < len(text):
            continue
        yield from _short(text, start, end)
        start = end
    if start < end:
        yield from _short(text, start, end)


def _short(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    while end - start > MOST:
        window = text[start : start + MOST]
        ends = [found.end() for found in _SENTENCE.finditer(window)]
        cut = ends[-1] if ends else window.rfind(" ") + 1 or MOST
        yield start, text[start : start + cut]
        start += cut
    if text[start:end].strip():
        yield start, text[start:end]


class Remembered:
    """A recogniser of pieces as one of whole texts. It asks once for equal pieces, as long as they are remembered."""

    def __init__(self, ask: Callable[[str], Sequence[Span]]) -> None:
        self._ask = ask
        self._memory: OrderedDict[str, Sequence[Span]] = OrderedDict()

    def find(self, text: str) -> Iterator[Span]:
        """What is found in the pieces of a text, by its place in the text."""
        for start, piece in pieces(text):
            for span in self._found(piece):
                yield replace(span, start=start + span.start, end=start + span.end)

    def _found(self, piece: str) -> Sequence[Span]:
        found = self._memory.pop(piece, None)
        if found is None:
            found = self._ask(piece)
        self._memory[piece] = found
        if len(self._memory) > _KEPT:
            self._memory.popitem(last=False)
        return found
