"""A sample of redacted texts for people to look through, and what their marks say of the texts as they were."""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from schoolhouse.core.errors import DataError
from schoolhouse.prepare.redaction.keys import Secret
from schoolhouse.prepare.redaction.measure import Review, reviewed_shares
from schoolhouse.prepare.redaction.people import People
from schoolhouse.prepare.redaction.report import PAGE
from schoolhouse.prepare.redaction.rewrite import Redacted, Rewriter, hidden_id
from schoolhouse.prepare.redaction.search import Found, Search
from schoolhouse.prepare.redaction.spans import Span
from schoolhouse.prepare.redaction.surrogates import Put, Style
from schoolhouse.text.records import write_rows
from schoolhouse.text.redaction import TYPES
from schoolhouse.text.sourced import Document

REVIEW = "review.jsonl"
_TEMPLATE = "review.html.j2"
REVIEWER = "review"
"""What a person is called among the recognisers."""


class Sample:
    """The texts of which the hash is lowest: a fixed share of any set, whatever order it comes in."""

    def __init__(self, count: int, secret: Secret, seed: int) -> None:
        self._count, self._secret, self._seed = count, secret, seed
        self._heap: list[tuple[int, str, dict[str, Any]]] = []

    def offer(self, redacted: Redacted) -> None:
        """Take a text into the sample, if it belongs there."""
        document = redacted.document
        row = {"id": document.id, "text": document.text, "spans": [_row(put) for put in redacted.puts]}
        if self._count:
            number = self._secret.number("review", f"{self._seed}/{document.id}")
            heapq.heappush(self._heap, (-number, document.id, row))
            if len(self._heap) > self._count:
                heapq.heappop(self._heap)

    def write(self, folder: Path) -> int:
        """Write review.jsonl and the page to mark it on; returns the number of texts."""
        rows = [row for _, _, row in sorted(self._heap, key=lambda held: (-held[0], held[1]))]
        (folder / PAGE).write_text(page(rows), encoding="utf-8")
        return write_rows(folder / REVIEW, rows)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """One HTML file without outside requests, on which people mark what was missed and what was needless.

    rows: of review.jsonl. What the page saves is what the key `reviewed` names.
    """
    source = (resources.files("schoolhouse.prepare.redaction") / _TEMPLATE).read_text(encoding="utf-8")
    script = source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    held = json.dumps({"rows": rows, "types": TYPES}, ensure_ascii=False).replace("<", "\\u003c")  # ends no script
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(count=len(rows), rows=Markup(held), script_hash=digest)


def _row(put: Put) -> dict[str, Any]:
    return {"start": put.start, "end": put.end, "type": put.span.type}


class Marks:
    """What people marked, applied: missed places as places of the original texts, and the shares that follow."""

    def __init__(self, reviews: Mapping[str, Review], searcher: Search, secret: Secret, style: Style) -> None:
        self._reviews = reviews
        self._searcher, self._secret, self._style = searcher, secret, style
        self._seen: list[tuple[Review, list[tuple[int, int, str]]]] = []
        self._missed: dict[str, list[Span]] = {}
        self.stale = 0

    def take(self, pairs: Iterable[tuple[Document, Found]], people: People) -> None:
        """Go through the marked documents, and let people know what was missed in them.

        Raises DataError if none of the marked texts is one that these rules and this key make.
        """
        rewriter = Rewriter(self._searcher, people, self._secret, self._style)
        for document, found in self._marked(pairs):
            review = self._reviews[hidden_id(self._secret, document.id)]
            redacted = rewriter.rewrite(document, found)
            text = redacted.document.text
            ends = [end for _, end, _ in review.missed] + [end for _, end in review.wrong]
            if (review.text is not None and review.text != text) or any(end > len(text) for end in ends):
                self.stale += 1
                continue
            spans = [(put.start, put.end, put.span.type) for put in redacted.puts]
            self._seen.append((review, spans))
            missed = [original(redacted.puts, *place) for place in review.missed]
            self._missed[document.id] = missed
            if document.person is not None:
                people.learn(document.person, document.text, missed, self._searcher.rules_of(document))
        if not self._seen:
            raise DataError(
                f"reviewed: none of the {len(self._reviews)} marked texts is one of this run. Mark a copy of the "
                f"{REVIEW} that this recipe made, with the same key and the same rules."
            )

    def _marked(self, pairs: Iterable[tuple[Document, Found]]) -> Iterator[tuple[Document, Found]]:
        for document, found in pairs:
            if found.done == "replace" and hidden_id(self._secret, document.id) in self._reviews:
                yield document, found

    def missed(self, document: Document) -> Sequence[Span]:
        """The places of a document that people marked as missed."""
        return self._missed.get(document.id, ())

    def shares(self) -> tuple[dict[str, list[int]], list[int]]:
        """Recall by type and precision of the sample, as [hits, of]."""
        return reviewed_shares(self._seen)


def original(puts: Sequence[Put], start: int, end: int, kind: str) -> Span:
    """The span of the original text that became a part of the redacted one."""

    def back(place: int, *, last: bool) -> int:
        shift = 0
        for put in puts:
            if place >= put.end:
                shift = put.span.end - put.end
            elif place > put.start:  # within a surrogate
                return put.span.end if last else put.span.start
        return place + shift

    return Span(back(start, last=False), back(end, last=True), kind, frozenset([REVIEWER]), 1.0)
