"""What is known of a person is looked for in all of that person's texts: a name that was found once, a known number.

Only names and the values of the recipe's `identifiers` are held, by person; texts never are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.spans import Span, settle

AGAIN, KNOWN = "again", "known"
"""What finds a name that was found elsewhere, and a value that a fact gives."""

_WORDS = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)")
_UNSURE = {"proper", "spacy"}  # one of them alone, or both of a word that is written small, may be wrong
_LEAST = 4  # letters from which a name is also one where it is written small
_AGAIN_SCORE, _KNOWN_SCORE = 0.55, 0.98


class People:
    """Names, known values and the last year by person."""

    def __init__(self) -> None:
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._values: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._latest: dict[str, int] = {}

    def learn(self, person: str, text: str, spans: Iterable[Span], language: Language) -> None:
        """Remember the names among the spans of a text, and the last year."""
        spans = list(spans)
        self._names[person] |= names_in(text, spans, language)
        dates = " ".join(span.inside(text) for span in spans if span.type == "date")
        self._latest[person] = max([self.latest(person), *map(int, _YEAR.findall(dates))])

    def latest(self, person: str) -> int:
        """The last year in a person's texts, 0 without any: it says how old somebody was who was born in another."""
        return self._latest.get(person, 0)

    def know(self, person: str, value: str, kind: str, language: Language) -> None:
        """Remember a value that a fact gives: a name by its words, anything else as it is written."""
        if kind == "name":
            whole = [Span(0, len(value), kind, frozenset(), 1.0)]
            self._names[person] |= names_in(value, whole, language)
        if len(value.strip()) > 2:
            self._values[person][" ".join(value.split())] = kind

    def spread(self, person: str, text: str, spans: Sequence[Span], language: Language) -> list[Span]:
        """The spans of a text with what is known of the person and was not found in it."""
        names = self._names.get(person, set()) | names_in(text, spans, language)
        more = [*_again(text, names, spans, language), *_known(text, self._values.get(person, {}))]
        return settle(text, [*spans, *more]) if more else list(spans)


def names_in(text: str, spans: Iterable[Span], language: Language) -> set[str]:
    """The words of names, in small letters, that can be looked for elsewhere."""
    name = language.name
    never = {*name.particles, *name.suffixes, *name.titles, *name.doubtful_titles, *language.words.stop}
    never |= {word.lower() for word in name.credentials}
    found = set()
    for span in spans:
        unsure = span.by <= _UNSURE and (len(span.by) == 1 or span.inside(text).islower())
        if span.type == "name" and (not unsure or not span.by):
            for word in _WORDS.findall(span.inside(text)):
                small = word.lower()
                if (
                    len(word) > 1
                    and small not in never
                    and not (language.is_plain(small) and small not in language.ordinary)
                ):
                    found.add(small)
    return found


def _again(text: str, names: set[str], spans: Sequence[Span], language: Language) -> Iterator[Span]:
    """Every place where a name stands. A common word is one only where it is written large within a sentence."""
    if not names:
        return
    held = [(span.start, span.end) for span in spans]
    for match in _WORDS.finditer(text):
        word = match.group()
        small = word.lower()
        bare = small.removesuffix("'s").removesuffix("\u2019s")
        if small not in names and bare not in names:
            continue
        start, end = match.span()
        if any(a <= start and end <= b for a, b in held):
            continue
        common = bare in language.ordinary or language.is_plain(bare)
        if common and not (word[0].isupper() and not _begins(text, start)):
            continue
        if word[0].islower() and (common or len(bare) < _LEAST):
            continue
        yield Span(start, start + len(bare), "name", frozenset([AGAIN]), _AGAIN_SCORE)


def _begins(text: str, start: int) -> bool:
    """Whether a sentence or a line begins at a place."""
    before = text[:start].rstrip(" \t\"'(-*•")
    return not before or before[-1] in ".!?:\n"


def _known(text: str, values: dict[str, str]) -> Iterator[Span]:
    for value, kind in values.items():
        form = r"\s+".join(re.escape(piece) for piece in value.split())
        for match in re.finditer(rf"(?i)(?<!\w){form}(?!\w)", text):
            yield Span(*match.span(), kind, frozenset([KNOWN]), _KNOWN_SCORE)
