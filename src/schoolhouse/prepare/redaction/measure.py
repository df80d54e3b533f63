"""How well the finder does, measured on texts in which people or a program marked what is personal.

A gold set are JSONL files of {"id", "text", "spans": [{"start", "end", "type"}], "person", "template", "half"}. Rules
are made with one half of its templates in sight ("dev"); what counts is the other one ("test"). Where no row says which
half it belongs to, templates are halved by their hash; where some do, the others are "dev".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from schoolhouse.core.errors import DataError
from schoolhouse.prepare.redaction.engine import Finder
from schoolhouse.prepare.redaction.keys import secret_from
from schoolhouse.prepare.redaction.people import People
from schoolhouse.prepare.redaction.spans import Span, covered
from schoolhouse.prepare.redaction.surrogates import Put, Surrogates
from schoolhouse.text.records import ReadJsonl
from schoolhouse.text.redaction import TYPES, told

_GOLD = Path(__file__).parents[1] / "gold"

Half = Literal["dev", "test"]
_MUST_GO = ("name", "id", "phone", "email")  # types of which no part may stay; an address keeps its *Street*
_WORDS = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Marked:
    """One text of a gold set: its places of personal data as (start, end, type)."""

    id: str
    text: str
    spans: tuple[tuple[int, int, str], ...]
    person: str
    half: Half


@dataclass
class Figures:
    """What a measurement gave. found: [hits, of] by type; the missed places by text id, start and type."""

    found: dict[str, list[int]] = field(default_factory=lambda: {kind: [0, 0] for kind in TYPES})
    spans: list[int] = field(default_factory=lambda: [0, 0])  # replaced spans that touch something personal, of all
    letters: list[int] = field(default_factory=lambda: [0, 0])  # replaced letters and digits that are personal, of all
    missed: list[tuple[str, int, str]] = field(default_factory=list)
    texts: int = 0

    def add(self, marked: Marked, spans: Sequence[Span], redacted: tuple[str, Sequence[Put]] | None = None) -> None:
        """Count one text: a place is found if every letter and digit of it is covered, whatever type was said.

        redacted: the text with surrogates and where they stand; a place whose words are still there was not found.
        """
        self.texts += 1
        for start, end, kind in marked.spans:
            hit = covered(spans, start, end, marked.text)
            if hit and redacted is not None and kind in _MUST_GO:
                hit = not _stays(marked.text[start:end], kind, *redacted, start, end)
            self.found[kind][0] += hit
            self.found[kind][1] += 1
            if not hit:
                self.missed.append((marked.id, start, kind))
        personal = [False] * len(marked.text)
        for start, end, _ in marked.spans:
            personal[start:end] = [True] * (end - start)
        for span in spans:
            inside = [personal[i] for i in range(span.start, span.end) if marked.text[i].isalnum()]
            self.spans[0] += any(inside)
            self.spans[1] += 1
            self.letters[0] += sum(inside)
            self.letters[1] += len(inside)

    def said(self, kind: str) -> str:
        """Recall of a type, with its count and interval."""
        return told(self.found[kind])

    def to_json(self) -> dict[str, Any]:
        """Recall by type, precision by spans and by letters, each as [hits, of]."""
        return {
            "texts": self.texts, "recall": {kind: pair for kind, pair in self.found.items() if pair[1]},
            "precision_spans": self.spans, "precision_letters": self.letters,
        }  # fmt: skip


def shipped(language: str) -> list[Path]:
    """The files of the gold set that comes with the program for a language; none for most."""
    return sorted(_GOLD.glob(f"{language}*.jsonl"))


def read_gold(paths: Sequence[Path]) -> list[Marked]:
    """The texts of a gold set. Raises DataError for a row that is none, with its line."""
    rows: list[tuple[Marked, bool]] = []
    for path in paths:
        reader = ReadJsonl(path, lambda row: (_marked(row), "half" in row))
        held = list(reader)
        if reader.bad or not held:
            raise DataError(f"{path} is no gold set: {reader.bad[0] if reader.bad else 'it is empty'}")
        rows += held
    some = any(said for _, said in rows)
    return [row if said or not some else replace(row, half="dev") for row, said in rows]


def half_of(template: str) -> Half:
    """On which half a template stands, for ever: by its hash."""
    return "dev" if hashlib.sha256(template.encode()).digest()[0] % 2 else "test"


def _marked(row: Mapping[str, Any]) -> Marked:
    text = row.get("text")
    if not isinstance(text, str) or not isinstance(row.get("spans"), list):
        raise DataError('a row of a gold set needs "text" and "spans"')
    spans = []
    for span in row["spans"]:
        place = span.get("start"), span.get("end"), span.get("type")
        if (
            place[2] not in TYPES
            or not all(isinstance(p, int) for p in place[:2])
            or not 0 <= place[0] < place[1] <= len(text)
        ):
            raise DataError(f"the span {json.dumps(span)} is none: start, end and one of {', '.join(TYPES)}")
        spans.append(place)
    name = str(row.get("id", hashlib.sha256(text.encode()).hexdigest()[:16]))
    half = row.get("half", half_of(str(row.get("template") or name)))
    if half not in ("dev", "test"):
        raise DataError(f'"half" is {half!r}: it is dev or test')
    return Marked(name, text, tuple(spans), str(row.get("person") or name), half)


def measure(finder: Finder, rows: Iterable[Marked], language: str) -> Figures:
    """Find in all rows as the stage does, what one text of a person says helping with the others."""
    rules = finder.languages[language]
    figures, people = Figures(), People()
    held = [(row, finder.find(row.text, language)) for row in rows]
    for row, spans in held:
        people.learn(row.person, row.text, spans, rules)
    maker = Surrogates(secret_from("what is measured hangs on no secret"), "surrogate", rules)
    for row, spans in held:
        known = people.spread(row.person, row.text, spans, rules)
        figures.add(row, known, maker.replace(row.text, known, row.person))
    return figures


def _stays(was: str, kind: str, text: str, puts: Sequence[Put], start: int, end: int) -> bool:
    """Whether a word of a name, or the whole of a number, stands in what was put in its place."""
    new = " ".join(text[put.start : put.end] for put in puts if put.span.start < end and start < put.span.end)
    if kind == "name":
        return bool({*_WORDS.findall(was.casefold())} & {*_WORDS.findall(new.casefold())})
    return _bare(was) in _bare(new)


def _bare(value: str) -> str:
    return "".join(c for c in value.casefold() if c.isalnum())


@dataclass(frozen=True)
class Review:
    """What a person marked in one text of the sample: places that were missed, and surrogates that were needless."""

    id: str
    missed: tuple[tuple[int, int, str], ...]
    wrong: tuple[tuple[int, int], ...]
    text: str | None = None


def read_reviews(path: Path) -> dict[str, Review]:
    """The marked sample by text id. Raises DataError for a row that can't be read, with its line."""
    reader = ReadJsonl(path, _review)
    rows = {review.id: review for review in reader}
    if reader.bad:
        raise DataError(f"reviewed: {len(reader.bad)} bad rows, the first: {reader.bad[0]}")
    if not rows:
        raise DataError(
            f"reviewed: {path} holds no marked text; copy review.jsonl and add missed and wrong to its rows"
        )
    return rows


def _review(row: Mapping[str, Any]) -> Review:
    if not isinstance(row.get("id"), str):
        raise DataError('a reviewed row needs the "id" of its text')
    missed = tuple(_places(row.get("missed", []), typed=True))
    return Review(row["id"], missed, tuple(p[:2] for p in _places(row.get("wrong", []), typed=False)), row.get("text"))


def _places(rows: object, *, typed: bool) -> Iterator[tuple[int, int, str]]:
    for row in rows if isinstance(rows, list) else [None]:
        held = row if isinstance(row, dict) else {}
        start, end, kind = held.get("start"), held.get("end"), held.get("type", "name")
        if (
            not isinstance(start, int)
            or not isinstance(end, int)
            or not 0 <= start < end
            or (typed and kind not in TYPES)
        ):
            raise DataError(f"a marked place needs start, end and type (one of {', '.join(TYPES)})")
        yield start, end, kind


def reviewed_shares(
    reviews: Iterable[tuple[Review, Sequence[tuple[int, int, str]]]],
) -> tuple[dict[str, list[int]], list[int]]:
    """Recall by type as [hits, of], and precision, of reviewed texts with the spans that were replaced in them."""
    recall: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    right: Counter[bool] = Counter()
    for review, spans in reviews:
        for start, end, kind in spans:
            wrong = any(a < end and start < b for a, b in review.wrong)
            right[not wrong] += 1
            if not wrong:
                recall[kind][0] += 1
                recall[kind][1] += 1
        for _, _, kind in review.missed:
            recall[kind][1] += 1
    return dict(recall), [right[True], right.total()]
