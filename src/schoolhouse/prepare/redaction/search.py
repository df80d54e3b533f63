"""The first pass over documents: what is personal in each text and fact, kept as places, never as words.

It is what takes time, so that its results are written as they come, and a run that was stopped goes on behind them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from schoolhouse.prepare.redaction.engine import Finder, finder_version
from schoolhouse.prepare.redaction.keys import Secret, is_sealed
from schoolhouse.prepare.redaction.language import Language, load_languages
from schoolhouse.prepare.redaction.people import KNOWN, People
from schoolhouse.prepare.redaction.rules import RULES
from schoolhouse.prepare.redaction.spans import Span, settle
from schoolhouse.text.records import append_row
from schoolhouse.text.sourced import Document, Fact

_LABELLED = 0.9  # how sure a rule has to be that a bare number of a fact is an id


Look = Callable[[Iterable[Document]], Iterable[tuple[Document, "Found"]]]
"""Searches documents, in their order."""


@dataclass(frozen=True)
class Found:
    """What one document holds: spans of its text, and of its facts by their keys. done: what to do with it."""

    spans: tuple[Span, ...] = ()
    facts: Mapping[str, tuple[Span, ...]] | None = None
    done: str = "replace"  # or "sealed" (it was redacted before), "aside" (no rules for its language)

    def to_row(self) -> dict[str, Any]:
        """As a JSON object of places."""
        facts = {key: [_pack(span) for span in spans] for key, spans in (self.facts or {}).items()}
        return {"done": self.done, "spans": [_pack(span) for span in self.spans], "facts": facts}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Found:
        """Read it back."""
        facts = {key: tuple(map(_unpack, spans)) for key, spans in row["facts"].items()}
        return cls(tuple(map(_unpack, row["spans"])), facts, row["done"])


def _pack(span: Span) -> list[Any]:
    return [span.start, span.end, span.type, span.score, sorted(span.by)]


def _unpack(row: Sequence[Any]) -> Span:
    return Span(row[0], row[1], row[2], frozenset(row[4]), row[3])


@dataclass(frozen=True)
class Search:
    """How documents are searched: the finder, the facts that name somebody and those that name nobody, the language of
    documents that state none.
    """

    finder: Finder
    identifiers: frozenset[str]
    keep: frozenset[str]
    language: str
    secret: Secret
    by: str

    def language_of(self, document: Document) -> str:
        """The language of a document, without its country."""
        return (document.language or self.language).replace("_", "-").split("-")[0].lower()

    def rules_of(self, document: Document) -> Language:
        """The rules of a document's language."""
        return self.finder.languages[self.language_of(document)]

    def look(self, document: Document) -> Found:
        """What is personal in one document."""
        if is_sealed(document, self.secret, self.by):
            return Found(done="sealed")
        language = self.language_of(document)
        if language not in self.finder.languages:
            return Found(done="aside")
        facts = {key: self._fact(key, value, language) for key, value in document.facts.items() if key not in self.keep}
        return Found(tuple(self.finder.find(document.text, language)), {k: v for k, v in facts.items() if v})

    def _fact(self, key: str, value: Fact, language: str) -> tuple[Span, ...]:
        """The places in a fact's value, written as text. A bare number is an id only where its key says so."""
        if value is None or isinstance(value, (bool, float)):
            return ()
        words = str(value)
        head = fact_head(key)
        spans = [
            replace(span, start=max(0, span.start - len(head)), end=span.end - len(head))
            for span in self.finder.find(head + words, language)
            if span.end > len(head)
        ]
        if key in self.identifiers:
            kind = spans[0].type if spans and spans[0].start == 0 and spans[0].end == len(words) else kind_of(words)
            spans = settle(words, [*spans, Span(0, len(words), kind, frozenset([KNOWN]), 0.5)])
        if isinstance(value, int):
            known = key in self.identifiers
            whole = [s for s in spans if RULES in s.by and s.score >= _LABELLED and s.type in ("id", "phone")]
            return (Span(0, len(words), "id", frozenset([KNOWN if known else RULES]), 1.0),) if known or whole else ()
        return tuple(spans)


@dataclass(frozen=True)
class Terms:
    """All that decides what is found and what is put in its place.

    rules: files beside those that are shipped; tagger: its folder; style: of what is put; identifiers: facts that name
    somebody; keep: those that name nobody; language: of documents that state none.
    """

    rules: tuple[str, ...]
    tagger: Path | None
    style: str
    identifiers: tuple[str, ...]
    keep: tuple[str, ...]
    language: str
    secret: Secret


def open_search(terms: Terms) -> Search:
    """Load all that a search needs."""
    languages = load_languages(terms.rules)
    finder = Finder(languages, terms.tagger)
    version = (
        f"{finder_version(languages, terms.tagger)} {terms.style} {sorted(terms.identifiers)} {sorted(terms.keep)}"
    )
    by = hashlib.sha256(version.encode()).hexdigest()[:16]
    return Search(finder, frozenset(terms.identifiers), frozenset(terms.keep), terms.language, terms.secret, by)


def fact_head(key: str) -> str:
    """A fact's key as it would stand before its value in a text."""
    return f"{key.replace('_', ' ').replace('.', ' ')}: "


def kind_of(value: str) -> str:
    """What a value of a fact that names somebody is, by its looks."""
    if "@" in value:
        return "email"
    return "id" if any(c.isdigit() for c in value) else "name"


def search(
    documents: Iterable[Document], by: str, file: Path, look: Look, each: Callable[[], None]
) -> Iterator[tuple[Document, Found]]:
    """Each document with what it holds, out of a file as far as that goes, else found by `look` and written there.

    by: the rules; each: called for every document; it may raise to stop.
    """
    kept = _kept(file, by)
    with file.open("a", encoding="utf-8") as out:
        if not file.stat().st_size:
            append_row(out, {"by": by})
        for document, found in _pairs(iter(documents), kept, look, out):
            each()
            yield document, found


def _pairs(
    documents: Iterator[Document], kept: Iterator[Found], look: Look, out: TextIO
) -> Iterator[tuple[Document, Found]]:
    for found, document in zip(kept, documents, strict=False):  # kept first: when it ends no document was taken
        yield document, found
    for document, found in look(documents):
        append_row(out, found.to_row())
        yield document, found


def _kept(file: Path, by: str) -> Iterator[Found]:
    """What an earlier run found, if the same rules did; a last line that is half written is cut off."""
    if not file.exists():
        return iter(())
    with file.open("rb") as held:
        first = held.readline()
        if not first.endswith(b"\n") or json.loads(first).get("by") != by:
            file.unlink()
            return iter(())
        whole = sum(len(line) for line in held if line.endswith(b"\n"))
    with file.open("rb+") as held:
        held.truncate(len(first) + whole)
    return _lines(file, len(first), len(first) + whole)


def _lines(file: Path, start: int, end: int) -> Iterator[Found]:
    """The rows between two places of a file, which may grow meanwhile."""
    with file.open("rb") as held:
        held.seek(start)
        while held.tell() < end:
            yield Found.from_row(json.loads(held.readline()))


def learn(people: People, document: Document, found: Found, searcher: Search) -> None:
    """Remember of a document what names its person, for the person's other documents."""
    if document.person is None or found.done != "replace":
        return
    rules = searcher.rules_of(document)
    people.learn(document.person, document.text, found.spans, rules)
    know_facts(people, document.person, document, found, searcher)


def know_facts(people: People, person: str, document: Document, found: Found, searcher: Search) -> None:
    """Remember the names in a document's facts, and the values of those that name somebody."""
    rules = searcher.rules_of(document)
    for key, value in document.facts.items():
        if key in searcher.identifiers and value is not None and not isinstance(value, bool):
            people.know(person, str(value), kind_of(str(value)), rules)
        if isinstance(value, str) and key not in searcher.keep:
            people.learn(person, value, (found.facts or {}).get(key, ()), rules)
