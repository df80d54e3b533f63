"""What every reader of files gives: texts with their place, what was set aside, and what the card should say."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import field_validator

from schoolhouse.core.config import Strict
from schoolhouse.core.errors import DataError
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.text.sourced import Fact

WHOLE = "whole file"
TOO_LARGE = "larger than memory allows: split it, or write it as JSON lines, CSV or Parquet"


@dataclass(frozen=True)
class Piece:
    """One text of a file, at a place such as `line 3`; a document but for its file."""

    text: str
    place: str
    kind: str = "text"
    person: str | None = None
    language: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class SetAside:
    """What could not be read: its place and why. The reason never quotes the file."""

    place: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Words about a file that the card counts, such as attachments that nobody read."""

    words: str


Item = Piece | SetAside | Note


class Table(Strict):
    """How the files that match a pattern are read."""

    text: str | None = None  # the column with the text, or a template of columns such as `"{complaint}\n{findings}"`
    person: str | None = None  # the column that says whose the text is
    kind: str | None = None  # what the documents are called, such as `"note"`
    facts: list[str] | None = None  # the columns to keep as facts; without it all others that hold one value
    language: str | None = None  # of the texts, such as `"de"`

    @field_validator("text")
    @classmethod
    def _template(cls, text: str | None) -> str | None:
        if text is not None:
            template_parts(text)
        return text

    def columns(self) -> set[str]:
        """The columns that this names."""
        named = {self.person} | set(self.facts or ()) | set(text_columns(self.text))
        return {name for name in named if name is not None}

    @property
    def maps_columns(self) -> bool:
        """Whether it says anything that only a table can follow."""
        return bool(self.text or self.person or self.facts)


@functools.cache
def template_parts(text: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs of plain words and the column behind them; raise ValueError if it's none."""
    parts = []
    for words, column, form, conversion in string.Formatter().parse(text):
        if column == "" or form or conversion:
            raise ValueError(f"{text!r} is no template: write columns as {{name}}, with nothing else in the braces")
        parts.append((words, column))
    return tuple(parts)


@functools.cache
def text_columns(text: str | None) -> tuple[str, ...]:
    """The columns that a text is made of: those of a template, or the one that is named."""
    if text is None:
        return ()
    return tuple(column for _, column in template_parts(text) if column is not None) if "{" in text else (text,)


@dataclass(frozen=True)
class Source:
    """One file to read. name: its path below the source, with slashes. person: whose file it is by its path."""

    path: Path
    name: str
    table: Table | None = None
    encoding: str | None = None
    person: str | None = None


class Unreadable(DataError):  # noqa: N818  (the word that a reader says of a file)
    """A file cannot be read, or not any further; the words are the reason."""


def known_encoding(name: str | None) -> str | None:
    """The name, if Python knows an encoding of texts by it; raise ValueError otherwise."""
    if name is not None:
        try:
            "".encode(name)
        except LookupError:
            raise ValueError(f"{name!r} is no encoding; write it like cp1252, iso8859-15 or shift_jis") from None
    return name


def need_memory(path: Path, times: int) -> None:
    """Raise Unreadable if a file, held `times` over, does not fit into the memory that is free."""
    if path.stat().st_size * times > available_memory_bytes():
        raise Unreadable(TOO_LARGE)
