"""Documents or conversations of an earlier stage, read alike: what each says, whose it is and where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import (
    CONVERSATIONS,
    BadRow,
    Conversation,
    ReadJsonl,
    write_conversations,
)
from schoolhouse.text.sourced import Document, write_documents


@dataclass(frozen=True)
class Row:
    """A document or a conversation. parts: the text, or what each message says, those of the system left out.

    person: whose it is; document: the id of what it was made from, a document's own.
    """

    id: str
    parts: tuple[str, ...]
    person: str | None
    document: str
    file: str
    place: str
    facts: Mapping[str, Any]
    record: Document | Conversation

    @property
    def text(self) -> str:
        """All of it, with a blank line between messages."""
        return "\n\n".join(self.parts)


class Rows:
    """The rows of a folder, read again whenever they are iterated over; `bad` are lines that could not be read then."""

    def __init__(self, folder: Path) -> None:
        held = [name for name in (DOCUMENTS, CONVERSATIONS) if (folder / name).is_file()]
        if len(held) != 1:
            what = "both" if held else "neither of both"
            raise DataError(f"{folder} holds {what}, {DOCUMENTS} and {CONVERSATIONS}: name a stage that makes one.")
        self.name = held[0]
        self.path = folder / self.name
        self.bad: list[BadRow] = []

    def __iter__(self) -> Iterator[Row]:
        if self.name == DOCUMENTS:
            documents = ReadJsonl(self.path, Document.from_row)
            yield from map(_of_document, documents)
            self.bad = documents.bad
        else:
            conversations = ReadJsonl(self.path, Conversation.from_row)
            yield from (_of_conversation(row, number) for number, row in enumerate(conversations, 1))
            self.bad = conversations.bad

    def write(self, folder: Path, rows: Iterable[Row]) -> None:
        """Write rows of these into another folder, as they came: the same files, for documents Parquet, too."""
        if self.name == DOCUMENTS:
            write_documents(folder, (row.record for row in rows if isinstance(row.record, Document)))
        else:
            held = (row.record for row in rows if isinstance(row.record, Conversation))
            write_conversations(folder / CONVERSATIONS, held)


def _of_document(document: Document) -> Row:
    facts = {"kind": document.kind, "language": document.language, **document.facts}
    source = document.source
    return Row(document.id, (document.text,), document.person, document.id, source.file, source.place, facts, document)


def _of_conversation(conversation: Conversation, number: int) -> Row:
    meta = conversation.meta
    source, facts = meta.get("source"), meta.get("facts")
    origin = source if isinstance(source, dict) else {"file": source}
    id = str(meta.get("id") or f"conversation {number}")
    person = meta.get("person")
    return Row(
        id=id,
        parts=tuple(m.content for m in conversation.messages if m.role != "system"),
        person=None if person is None else str(person),
        document=str(meta.get("document") or id),
        file=str(origin.get("file") or CONVERSATIONS),
        place=str(origin.get("place") or f"conversation {number}"),
        facts={**meta, **facts} if isinstance(facts, dict) else meta,
        record=conversation,
    )
