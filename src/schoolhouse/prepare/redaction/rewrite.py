"""The second pass: a document with surrogates for what was found, and nothing else of it that names somebody."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from schoolhouse.prepare.redaction.keys import Secret, sealed
from schoolhouse.prepare.redaction.language import Language
from schoolhouse.prepare.redaction.people import People
from schoolhouse.prepare.redaction.search import Found, Search, fact_head, know_facts
from schoolhouse.prepare.redaction.spans import Span, settle
from schoolhouse.prepare.redaction.surrogates import Put, Style, Surrogates
from schoolhouse.text.sourced import Document, Fact, Origin

_PLACE = re.compile(r"(?:(?:whole file|[a-z]+ \d{1,9})(?:, |$))*")
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_ID = re.compile(r"\b[0-9a-f]{16}\b")  # of another document, as `text/sourced.py` makes them
_OLDEST = 90
_AGE = re.compile(r"(?:^|[_.\s])age(?:$|[_.\s])", re.IGNORECASE)


@dataclass(frozen=True)
class Redacted:
    """A document as it may be handed on, and what was replaced in it."""

    document: Document
    puts: tuple[Put, ...]
    facts: Mapping[str, tuple[Put, ...]]


class Rewriter:
    """Replaces in documents what was found in them."""

    def __init__(self, searcher: Search, people: People, secret: Secret, style: Style) -> None:
        self._searcher = searcher
        self._people = people
        self._secret = secret
        self._makers = {
            code: Surrogates(secret, style, language) for code, language in searcher.finder.languages.items()
        }

    def rewrite(self, document: Document, found: Found, missed: Sequence[Span] = ()) -> Redacted:
        """One document. missed: places of its text that a person marked besides what was found."""
        rules = self._searcher.rules_of(document)
        maker = self._makers[rules.code]
        whose = document.person or document.id
        people = self._people if document.person is not None else self._alone(document, found, rules, missed)
        spans = people.spread(whose, document.text, settle(document.text, [*found.spans, *missed]), rules)
        text, puts = maker.replace(document.text, spans, whose, latest=people.latest(whose))
        facts: dict[str, Fact] = {}
        fact_puts: dict[str, tuple[Put, ...]] = {}
        for key, value in document.facts.items():
            facts[key], changed = self._fact(maker, people, whose, key, value, (found.facts or {}).get(key, ()), rules)
            if changed:
                fact_puts[key] = changed
        source = hidden_origin(self._secret, document.source)
        history = tuple(self._line(maker, people, whose, line, document.source, rules) for line in document.history)
        new = replace(
            document, id=hidden_id(self._secret, document.id), text=text, facts=facts, history=history,
            source=source, person=pseudonym(self._secret, document.person),
        )  # fmt: skip
        return Redacted(sealed(new, self._secret, self._searcher.by), tuple(puts), fact_puts)

    def _alone(self, document: Document, found: Found, rules: Language, missed: Sequence[Span]) -> People:
        """What is known of a document that is nobody's: what stands in it."""
        people = People()
        people.learn(document.id, document.text, [*found.spans, *missed], rules)
        know_facts(people, document.id, document, found, self._searcher)
        return people

    def _fact(
        self,
        maker: Surrogates,
        people: People,
        whose: str,
        key: str,
        value: Fact,
        spans: Sequence[Span],
        rules: Language,
    ) -> tuple[Fact, tuple[Put, ...]]:
        if isinstance(value, bool) or value is None or key in self._searcher.keep:
            return value, ()
        if isinstance(value, (int, float)):
            if spans and isinstance(value, int):
                new, puts = maker.replace(str(value), spans, whose)
                return (int(new) if new.isdigit() else new), tuple(puts)
            return (_OLDEST if _AGE.search(key) and _OLDEST <= value < _OLDEST + 50 else value), ()
        spans = people.spread(whose, value, spans, rules)
        new, puts = maker.replace(value, spans, whose, head=fact_head(key), latest=people.latest(whose))
        return new, tuple(puts)

    def _line(self, maker: Surrogates, people: People, whose: str, line: str, source: Origin, rules: Language) -> str:
        """A line of the history: words of the program, but for file names, ids and what is known of the person."""
        line = line.replace(source.file, hidden_origin(self._secret, source).file)
        line = _ID.sub(lambda found: hidden_id(self._secret, found[0]), line)
        return maker.replace(line, people.spread(whose, line, [], rules), whose)[0]


def hidden_id(secret: Secret, id: str) -> str:
    """An id of 16 hex digits that follows from another and from the key."""
    return secret.digest("document", id).hex()[:16]


def pseudonym(secret: Secret, person: str | None) -> str | None:
    """What a person is called instead."""
    return None if person is None else f"P-{secret.digest('person', person).hex()[:12]}"


def hidden_origin(secret: Secret, source: Origin) -> Origin:
    """Where a document came from, for those who have the key: file names may hold names.

    The file's hash is hidden as well: of a short text with one unknown name in it all candidates could be tried.
    """
    ending = _ENDING.search(PurePosixPath(source.file).name)
    file = secret.digest("file", source.file).hex()[:12] + (ending[0].lower() if ending else "")
    place = source.place if _PLACE.fullmatch(source.place) else f"place {secret.number('place', source.place) % 10**9}"
    return Origin(file, place, secret.digest("sha256", source.sha256).hex())
