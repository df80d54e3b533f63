"""Conversations and JSONL files: what the stages read and write, with bad rows set aside instead of lost."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from schoolhouse.core.errors import DataError

CONVERSATIONS = "conversations.jsonl"  # the file of a stage that makes conversations
REPLIES = "replies.jsonl"  # the file of a stage that asked for replies which nobody has judged yet
ENDPOINT_TERMS = "endpoint_terms"  # the fact of a stage that asked an endpoint: under which terms it replied
SOURCES = "sources.jsonl"  # which files a stage read from outside, each {"file", "sha256"}, in the order of reading
ROLES = ("system", "user", "assistant")

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: who speaks and what they say."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A conversation from its first message on; `meta` travels with it and is never shown to a model."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def plus(self, role: str, content: str) -> "Conversation":
        """Return this conversation with one more message at its end."""
        return Conversation((*self.messages, Message(role, content)), self.meta)

    def to_row(self) -> dict[str, Any]:
        """Return the conversation as a JSON row (the `messages` layout that most tools read)."""
        row: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        if self.meta:
            row["meta"] = dict(self.meta)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Conversation":
        """Read a JSON row; raise DataError that says what is wrong with it."""
        rows = row.get("messages")
        if not isinstance(rows, list) or not rows:
            raise DataError('no "messages": a conversation needs a list of at least one {"role", "content"}')
        return cls(tuple(_message(number, m) for number, m in enumerate(rows, 1)), _meta(row))


def _message(number: int, row: object) -> Message:
    if not isinstance(row, dict):
        raise DataError(f"message {number} is {type(row).__name__}, not an object with role and content")
    role, content = row.get("role"), row.get("content")
    if role not in ROLES:
        raise DataError(f"message {number} has the role {role!r}; known roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"message {number} has no text in its content")
    return Message(role, content)


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"meta is {type(meta).__name__}, not an object")
    return meta


@dataclass(frozen=True)
class BadRow:
    """A line that could not be used: the file, the line number from 1, and the reason in words."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass
class Rows(Generic[T]):
    """Rows of a JSONL file: those that could be read, and those set aside with their reasons."""

    good: list[T] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def extend(self, other: "Rows[T]") -> None:
        """Take over the rows of another file."""
        self.good.extend(other.good)
        self.bad.extend(other.bad)


class ReadJsonl(Generic[T]):
    """Stream a JSONL file row by row; iteration yields good rows while `bad` fills with the others.

    `convert` turns a JSON object into what is wanted and raises ValueError (DataError is one) with the reason when it
    cannot. A file that cannot be opened is a DataError; a line that cannot be read never is.
    """

    def __init__(self, path: Path, convert: Callable[[dict[str, Any]], T]) -> None:
        self.path = path
        self.convert = convert
        self.bad: list[BadRow] = []

    def __iter__(self) -> Iterator[T]:
        self.bad.clear()
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(f"cannot open {self.path}: {error.strerror}. Give the path of a JSONL file.") from error
        with file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = self._row(line, first=number == 1)
                except ValueError as error:
                    self.bad.append(BadRow(str(self.path), number, str(error)))
                    continue
                yield row

    def _row(self, line: bytes, *, first: bool) -> T:
        try:
            row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 (byte {error.start} of the line)") from error
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise DataError("not usable: nested too deeply") from error
        if not isinstance(row, dict):
            raise DataError(f"a row must be an object, this is {type(row).__name__}")
        return self.convert(row)


def _same(row: dict[str, Any]) -> dict[str, Any]:
    return row


def read_rows(path: Path) -> Rows[dict[str, Any]]:
    """Read a whole JSONL file as JSON objects, bad lines set aside with line and reason."""
    reader = ReadJsonl(path, _same)
    good = list(reader)
    return Rows(good, reader.bad)


def read_conversations(path: Path) -> Rows[Conversation]:
    """Read a JSONL file of conversations, bad lines set aside with line and reason."""
    reader = ReadJsonl(path, Conversation.from_row)
    good = list(reader)
    return Rows(good, reader.bad)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON objects one a line in UTF-8; return how many."""
    count = 0
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            append_row(file, row)
            count += 1
    return count


def append_row(file: TextIO, row: Mapping[str, Any]) -> None:
    """Write one JSON object as a line."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write conversations one a line, and as a table beside the file; return how many."""
    from schoolhouse.text.tables import ASKED, write_twice  # pyarrow is slow to load, and few write

    return write_twice(path, (conversation.to_row() for conversation in conversations), ASKED, packed="meta")
