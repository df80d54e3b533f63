"""Rows that models learn from, whatever their kind, as a stream: what they say, and where they say it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.tasks.task import split_of
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.preferences import RATINGS, is_held_out
from schoolhouse.text.records import CONVERSATIONS, Conversation

_SAYS = {"system": "system message", "user": "question", "assistant": "reply"}
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Part:
    """One text of a row. what: `document`, `question`, `reply`, `answer`, ..."""

    what: str
    text: str


@dataclass(frozen=True)
class Row:
    """A row with its number in its file. document: the id of the document that it is or was made from; question: what
    it asks, and code: the term of a code system that it asks about, by which that document can be found where the row
    does not name it; is_sampled: a model of the lineage wrote the reply.
    """

    number: int
    id: str
    parts: tuple[Part, ...]
    document: str | None = None
    question: str | None = None
    code: str | None = None
    source: Mapping[str, Any] | None = None
    history: tuple[str, ...] = ()
    is_sampled: bool = False


@dataclass
class Reader:
    """The rows of one file, in their order. After the last: how many were read, set aside, and the file's SHA-256."""

    path: Path
    kind: str  # the name of the file as its stage calls it
    rows: int = 0
    set_aside: int = 0
    first_bad: str = ""
    sha256: str = ""
    _read: Callable[[dict[str, Any], int], Row | None] = field(init=False)

    def __post_init__(self) -> None:
        kinds = {CONVERSATIONS: _conversation, DOCUMENTS: _document, RATINGS: _rating}
        self._read = kinds.get(self.kind, _question)

    def __iter__(self) -> Iterator[Row]:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if not line.strip():
                    continue
                try:
                    row = self._read(_object(line), number)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    self.set_aside += 1
                    self.first_bad = self.first_bad or f"line {number} ({type(error).__name__})"
                    continue
                if row is not None:
                    self.rows += 1
                    yield row
        self.sha256 = digest.hexdigest()


def find_row(path: Path, is_it: Callable[[dict[str, Any]], bool], holds: str = "") -> tuple[int, dict[str, Any]] | None:
    """The first row of a file that `is_it`, with its number; None if there is none, and lines are no rows to read.

    holds: a text that stands in the row, so that the others need hardly be looked at.
    """
    needle = json.dumps(holds, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if needle in line and is_it(row := _object(line)):
                    return number, row
            except (ValueError, TypeError, AttributeError, RecursionError):
                continue
    return None


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(row, dict):
        raise DataError("not an object")
    return row


def _document(row: dict[str, Any], number: int) -> Row:
    source = row.get("source")
    if isinstance(source, str):  # of get.text: the file, and what stands beside it
        source = {"file": source, **{key: row[key] for key in ("place",) if key in row}}
    id = row.get("id")
    part = Part("document", _text(row["text"]))
    history = tuple(row.get("history", ()))
    return Row(number, str(id or f"row {number}"), (part,), id, source=source, history=history)


def _conversation(row: dict[str, Any], number: int) -> Row:
    talk = Conversation.from_row(row)
    parts = tuple(Part(_SAYS[m.role], m.content) for m in talk.messages if m.role != "system")
    asked = next((m.content for m in talk.messages if m.role == "user"), None)
    return _made(number, talk.meta, parts, asked)


def _rating(row: dict[str, Any], number: int) -> Row | None:
    talk = Conversation.from_row(row)
    if is_held_out(talk):
        return None
    parts = [Part(_SAYS[m.role], m.content) for m in talk.messages if m.role != "system"]
    liked = row.get("rating") == "up"
    parts += [
        Part(what, _text(row[key]))
        for key, what in (
            ("reply", "liked reply" if liked else "disliked reply"),
            ("chosen", "liked reply"),
            ("rejected", "disliked reply"),
        )
        if key in row
    ]
    asked = next((m.content for m in talk.messages if m.role == "user"), None)
    return _made(number, talk.meta, tuple(parts), asked)


def _question(row: dict[str, Any], number: int) -> Row | None:
    asked = _text(row["question"]).strip()
    if (row.get("split") or split_of(asked)) != "train":
        return None
    shown = ("question", asked), ("answer", row.get("answer")), ("worked solution", row.get("trace"))
    parts = tuple(Part(what, str(text)) for what, text in shown if text is not None)
    return _made(number, row.get("meta") or _NONE, parts, asked)


def _made(number: int, meta: Mapping[str, Any], parts: tuple[Part, ...], asked: str | None) -> Row:
    source, document, code = (meta.get(key) for key in ("source", "document", "code"))
    if isinstance(source, str):
        source = {"file": source}
    id = str(meta.get("id") or f"row {number}")
    return Row(
        number, id, parts, None if document is None else str(document), asked, None if code is None else str(code),
        source, is_sampled=bool(meta.get("sampled")),
    )  # fmt: skip


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DataError("no text")
    return value
