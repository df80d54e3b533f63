"""A document as `prepare` hands it on: a text with where it came from, whose it is, and what was done to it.

On disk it is a line of JSON and a row of Parquet with the same columns. A file of such lines is also one of plain
documents (`documents.read_texts`), for both keep their text under "text".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from schoolhouse.core.errors import DataError
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import ReadJsonl
from schoolhouse.text.tables import TEXT, table_of, write_twice

TABLE = table_of(Path(DOCUMENTS)).name
HELD_OUT = "held_out"  # the folder in an artifact's with documents that nothing may learn from
_SCHEMA = pa.schema(
    [(name, TEXT) for name in ("id", "text", "kind", "person", "language", "facts")]
    + [("source", pa.struct([(name, TEXT) for name in ("file", "place", "sha256")]))]
    + [("history", pa.list_(TEXT))]
)

Fact = str | int | float | bool | None


@dataclass(frozen=True)
class Origin:
    """Where a document was read: the file's name below its source, the place in it (`line 3`, `page 2`), the SHA-256 of
    the file.
    """

    file: str
    place: str
    sha256: str


@dataclass(frozen=True)
class Document:
    """One text. person: whose it is, by the source's own key, later by a pseudonym; None where it is nobody's. facts:
    what the source says of it in fields. history: what was done to it since it was read, a line each.
    """

    id: str
    text: str
    source: Origin
    kind: str = "text"
    person: str | None = None
    language: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "id": self.id, "text": self.text, "kind": self.kind, "person": self.person, "language": self.language,
            "facts": dict(self.facts), "source": vars(self.source), "history": list(self.history),
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Document:
        """Read a JSON object; raise DataError that says what is wrong with it."""
        text, source, facts = row.get("text"), row.get("source"), row.get("facts", {})
        if not isinstance(text, str) or not isinstance(row.get("id"), str):
            raise DataError('a document needs "id" and "text", both texts')
        if not isinstance(source, dict) or set(source) != {"file", "place", "sha256"}:
            raise DataError('a document needs "source" with file, place and sha256')
        if not isinstance(facts, dict):
            raise DataError(f'"facts" is {type(facts).__name__}, not an object')
        named = {name: row.get(name) for name in ("person", "language")}
        history = tuple(row.get("history", ()))
        return cls(row["id"], text, Origin(**source), row.get("kind", "text"), **named, facts=facts, history=history)


def document_id(origin: Origin) -> str:
    """16 hex digits that follow from a document's place alone: the same wherever and whenever it is read."""
    return hashlib.sha256(f"{origin.sha256}/{origin.place}".encode()).hexdigest()[:16]


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Write documents.jsonl and documents.parquet into a folder, as a stream; return how many."""
    return write_twice(folder / DOCUMENTS, (document.to_row() for document in documents), _SCHEMA, packed="facts")


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents of a folder, as a stream. Raises DataError, at the end, if lines of its file could not be read."""
    reader = ReadJsonl(folder / DOCUMENTS, Document.from_row)
    yield from reader
    if reader.bad:
        raise DataError(f"{folder / DOCUMENTS}: {len(reader.bad)} bad rows, the first: {reader.bad[0]}")
