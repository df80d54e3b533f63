"""What people say of documents: the schema that they are asked by, their labels, and the queue of what to ask next.

A label is a line of JSON `{"id", "annotator", "kind", "value", "seconds", "at"}`; lines are only ever added, and of an
annotator's labels of a document the latest counts. One folder of label files belongs to one schema.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from schoolhouse.core.config import Strict, did_you_mean
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.text.records import BadRow, ReadJsonl, read_rows
from schoolhouse.text.sourced import Document

QUEUE = "queue.jsonl"
LABELS = "labels.jsonl"
SCHEMA = "schema.json"
Kind = Literal["classes", "spans", "pairs", "free"]
FIRST, SECOND, TIE = "first", "second", "tie"
_KEYS = {"id", "annotator", "kind", "value", "seconds", "at"}


class Span(NamedTuple):
    """A marked part of a text: characters from start to before end (Unicode code points), and its type."""

    start: int
    end: int
    type: str


Value = str | tuple[str, ...] | tuple[Span, ...]
"""One class, `first`, `second` or `tie`, or an answer; several classes; spans in their order."""


class LabelSchema(Strict):
    """What people are asked of a document; for a pair it is the question, and two of its facts are the replies."""

    kind: Kind  # what a label is: one of the classes or several, marked spans, the better of two replies, an answer
    question: str = Field(min_length=1)  # what people are asked, and the model that learns from their labels, too
    names: list[str] = Field(default=[])  # the classes, or the types of spans
    several: bool = False  # a document may have several classes, or none
    replies: list[str] = Field(default=["reply_a", "reply_b"], min_length=2, max_length=2)  # facts of a pair's replies
    ties: bool = False  # it may be said of a pair that neither reply is better

    @model_validator(mode="after")
    def _fits(self) -> LabelSchema:
        given = self.model_fields_set
        if self.kind in ("pairs", "free") and self.names:
            raise ValueError(f"names are given, but the kind {self.kind!r} has none: take them out")
        if self.kind == "classes" and len(self.names) < 2:
            raise ValueError(f"classes need at least two names, {len(self.names)} are given")
        if self.kind == "spans" and not self.names:
            raise ValueError("spans need at least one type: write names = [...]")
        for key, kind in (("several", "classes"), ("replies", "pairs"), ("ties", "pairs")):
            if key in given and self.kind != kind:
                raise ValueError(f"{key} is for {kind}; the kind is {self.kind!r}: take it out")
        folded = [name.casefold() for name in self.names]
        for name in self.names:
            if not name or name != " ".join(name.split()) or folded.count(name.casefold()) > 1:
                raise ValueError(f"the name {name!r} is blank, has odd spaces, or stands twice but for its case")
            if self.several and ("," in name or name.casefold() == "none"):
                raise ValueError(f'the name {name!r}: where several may be given it has no comma, and is not "none"')
        return self


def load_schema(path: Path) -> LabelSchema:
    """Read a schema from a TOML or JSON file; raises RecipeError that says what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        row = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise RecipeError(f"cannot read the schema {path}: {error.strerror}. Name a .toml or .json file.") from None
    except ValueError as error:
        raise RecipeError(f"the schema {path} is no valid {path.suffix[1:].upper() or 'JSON'}: {error}") from None
    try:
        return LabelSchema.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        hint = did_you_mean(key, LabelSchema.model_fields) if first["type"] == "extra_forbidden" else ""
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"the schema {path}: {key}{': ' if key else ''}{message}{hint}") from None


def _from_file(given: object) -> object:
    return load_schema(Path(given)) if isinstance(given, str) else given


SchemaOrFile = Annotated[LabelSchema, BeforeValidator(_from_file)]
"""A schema in a recipe: a table, or the path of a TOML or JSON file, which is read when the recipe is."""


@dataclass(frozen=True)
class Label:
    """What one annotator said of one document; seconds: how long it took, at: when it was said."""

    id: str
    annotator: str
    kind: Kind
    value: Value
    seconds: float | None
    at: datetime

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "id": self.id, "annotator": self.annotator, "kind": self.kind, "value": written(self.value),
            "seconds": self.seconds, "at": self.at.isoformat(),
        }  # fmt: skip


def written(value: Value) -> Any:
    """A value as it stands in JSON."""
    if isinstance(value, str):
        return value
    return [item._asdict() if isinstance(item, Span) else item for item in value]


def label_of(row: Mapping[str, Any], schema: LabelSchema, documents: Mapping[str, Document]) -> Label:
    """Read a JSON object against the schema and the document that it is about.

    Raises DataError that says what is wrong with it, never with words of the document.
    """
    unknown = sorted(set(row) - _KEYS)
    if unknown:
        raise DataError(f"unknown keys {', '.join(unknown)}; a label has {', '.join(sorted(_KEYS))}")
    for key in ("id", "annotator"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f'no text under "{key}"')
    if row.get("kind") != schema.kind:
        raise DataError(f"the kind is {row.get('kind')!r}; {schema.kind!r} is asked for")
    document = documents.get(row["id"])
    if document is None:
        raise DataError("there is no document of this id to be asked about")
    value = _value(row.get("value"), schema, document)
    return Label(row["id"], row["annotator"].strip(), schema.kind, value, _seconds(row.get("seconds")), _at(row))


def _value(value: object, schema: LabelSchema, document: Document) -> Value:
    if schema.kind == "spans":
        return _spans(value, schema.names, document.text)
    if schema.kind == "classes" and schema.several:
        if not isinstance(value, list) or len(value) != len(set(map(str, value))):
            raise DataError("the value is no list of different classes")
        for name in value:
            _known(name, schema.names)
        return tuple(name for name in schema.names if name in value)
    if schema.kind == "classes":
        return _known(value, schema.names)
    if schema.kind == "pairs":
        return _known(value, [FIRST, SECOND, *([TIE] if schema.ties else [])])
    if not isinstance(value, str) or not value.strip():
        raise DataError('no text under "value": a free answer needs one')
    return value.strip()


def _known(value: object, names: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise DataError(f"the value is none of {', '.join(names)}")
    return value


def _spans(value: object, types: Sequence[str], text: str) -> tuple[Span, ...]:
    if not isinstance(value, list):
        raise DataError('the value is no list of {"start", "end", "type"}')
    found: set[Span] = set()
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict) or not {"start", "end", "type"} <= set(row) <= {"start", "end", "type", "text"}:
            raise DataError(f'span {number} is no object with "start", "end" and "type"')
        start, end = row["start"], row["end"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise DataError(f"span {number} goes from {start} to {end}; the text has {len(text)} characters")
        if row.get("text", text[start:end]) != text[start:end]:
            raise DataError(f"span {number} names other words than stand there: the text has changed")
        span = Span(start, end, _known(row["type"], types))
        if span in found:
            raise DataError(f"span {number} stands there twice")
        found.add(span)
    return tuple(sorted(found))


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DataError(f'"seconds" is {value!r}, not a number from 0 on')
    return float(value)


def _at(row: Mapping[str, Any]) -> datetime:
    """When a label was made; a time without a zone is taken as UTC."""
    try:
        at = datetime.fromisoformat(row["at"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f'"at" is {row.get("at")!r}; write the time like 2026-11-24T09:30:00Z') from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


@dataclass
class Labels:
    """Labels that count, the latest of each annotator for each document, and what was not used.

    other: rows of another kind; replaced: labels that their annotator gave anew.
    """

    good: list[Label] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    other: int = 0
    replaced: int = 0


def label_files(path: Path) -> list[Path]:
    """The files of labels: the file itself, or a folder's .jsonl files, of which there may be none yet."""
    if path.is_dir():
        return sorted(path.glob("*.jsonl"))
    if not path.is_file():
        raise DataError(f"labels {str(path)!r}: there is no such file or folder; make the folder, or leave labels out")
    return [path]


def labelled_ids(files: Iterable[Path]) -> set[str]:
    """The ids of the documents that label files speak of."""
    return {row["id"] for file in files for row in read_rows(file).good if isinstance(row.get("id"), str)}


def read_labels(files: Iterable[Path], schema: LabelSchema, documents: Mapping[str, Document]) -> Labels:
    """Read label files; rows that cannot be used are set aside with line and reason."""
    labels = Labels()
    latest: dict[tuple[str, str], Label] = {}
    for file in files:
        reader = ReadJsonl(file, lambda row: None if _of_other(row, schema) else label_of(row, schema, documents))
        for label in reader:
            if label is None:
                labels.other += 1
                continue
            key = label.id, label.annotator
            labels.replaced += key in latest
            if key not in latest or label.at >= latest[key].at:
                latest[key] = label
        labels.bad += reader.bad
    labels.good = sorted(latest.values(), key=lambda label: (label.id, label.annotator))
    return labels


def _of_other(row: Mapping[str, Any], schema: LabelSchema) -> bool:
    return row.get("kind") in get_args(Kind) and row.get("kind") != schema.kind


def append_label(path: Path, label: Label) -> None:
    """Add a label to a file, and return when it lies on the disk; a line that a crash cut off stays a line of its own.

    One process at a time may write a file: give each annotator one.
    """
    line = json.dumps(label.to_row(), ensure_ascii=False) + "\n"
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        broken = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if broken else b"") + line.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Asked:
    """A document in the queue. score, reason: why it is there; needed: how many must label it; by: who has."""

    id: str
    score: float
    reason: str
    needed: int
    by: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return vars(self) | {"by": list(self.by)}


def read_queue(path: Path) -> list[Asked]:
    """Read a queue; raises DataError if a line of it cannot be read."""
    reader = ReadJsonl(path, _asked)
    queue = list(reader)
    if reader.bad:
        raise DataError(f"the queue is damaged: {reader.bad[0]}")
    return queue


def _asked(row: Mapping[str, Any]) -> Asked:
    try:
        return Asked(str(row["id"]), float(row["score"]), str(row["reason"]), int(row["needed"]), tuple(row["by"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"no row of a queue: {error}") from None


def queue_for(annotator: str, queue: Iterable[Asked]) -> list[Asked]:
    """What one annotator is to be asked: nothing that they have labelled."""
    return [asked for asked in queue if annotator not in asked.by]
