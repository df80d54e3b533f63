"""Tables and lists of records: JSON lines, JSON, CSV and Parquet. A row is a document, or a resource of FHIR."""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from schoolhouse.prepare.reading.fhir import resource_items
from schoolhouse.prepare.reading.items import (
    WHOLE,
    Item,
    Note,
    Piece,
    SetAside,
    Source,
    Table,
    Unreadable,
    need_memory,
    template_parts,
    text_columns,
)
from schoolhouse.prepare.reading.texts import LONGEST, encoding_of, lines_of, open_text, read_whole
from schoolhouse.text.sourced import Fact

TEXTS = ("text", "note", "notes", "note_text", "content", "body", "report", "narrative", "transcript", "transcription")
_SPEAKER, _WORDS = ("role", "speaker", "from"), ("content", "text", "value")
_TALKS = ("messages", "conversations")
_DELIMITERS = ",;\t|"
_BATCH = 256  # rows of Parquet held at once
_TOO_LONG = "longer than 64 million characters: no row"


class Rows:
    """Makes documents of the rows of one file, and says once what it took their text from."""

    def __init__(self, source: Source) -> None:
        self.table = source.table or Table()
        self._told: set[str] = set()

    def items(self, row: object, place: str) -> Iterator[Item]:
        """The document of a row, or why there is none."""
        if not isinstance(row, Mapping):
            yield SetAside(place, "a row must be an object")
        elif self.table.text is not None:
            yield from self._mapped(row, place, self.table.text)
        elif isinstance(row.get("resourceType"), str):
            yield from resource_items([(None, row)], place)
        elif any(_is_talk(row.get(name)) for name in _TALKS):
            yield from self._talk(row, place)
        else:
            yield from self._unmapped(row, place)

    def _mapped(self, row: Mapping[str, Any], place: str, text: str) -> Iterator[Item]:
        used = text_columns(text)
        missing = next((name for name in used if name not in row), None)
        if missing is not None:
            yield SetAside(place, f"no column {missing!r}")
            return
        if "{" in text:
            filled = [(plain, as_text(row[name]) if name else "") for plain, name in template_parts(text)]
            is_empty = not any(value.strip() for _, value in filled)
            words = "" if is_empty else "".join(plain + value for plain, value in filled)
        else:
            words = as_text(row[text])
        yield from self._piece(row, place, words, used, "text")

    def _unmapped(self, row: Mapping[str, Any], place: str) -> Iterator[Item]:
        name = next((name for wanted in TEXTS for name in row if name.lower() == wanted), None)
        if name is not None:
            yield from self._once(f"files with their text in the column `{name}`")
            yield from self._piece(row, place, as_text(row[name]), [name], "text")
            return
        yield from self._once("files without a column of text: each row became lines of `name: value`")
        shown = {name: as_text(value) for name, value in row.items() if name != self.table.person}
        words = "\n".join(f"{name}: {value}" for name, value in shown.items() if value.strip())
        yield from self._piece(row, place, words, list(shown), "record")

    def _talk(self, row: Mapping[str, Any], place: str) -> Iterator[Item]:
        name = next(name for name in _TALKS if _is_talk(row.get(name)))
        said = []
        for number, message in enumerate(row[name], 1):
            speaker = next((message[key] for key in _SPEAKER if isinstance(message.get(key), str)), None)
            words = next((_content(message[key]) for key in _WORDS if message.get(key) is not None), None)
            if speaker is None or words is None:
                yield SetAside(place, f"message {number} has no speaker or no words")
                return
            said.append(f"{speaker}: {words.strip()}")
        yield from self._piece(row, place, "\n".join(said), [name], "dialogue")

    def _piece(self, row: Mapping[str, Any], place: str, text: str, used: Sequence[str], kind: str) -> Iterator[Item]:
        person = None
        if self.table.person is not None:
            person = as_text(row.get(self.table.person)).strip() or None
            if person is None:
                yield Note("rows without a person")
        if self.table.facts is not None:
            kept: Iterable[str] = self.table.facts
        else:
            kept = (name for name in row if name not in used and name != self.table.person)
        facts = {name: as_fact(row[name]) for name in kept if name in row}
        said = {name: value for name, value in facts.items() if value is not None and value != ""}
        yield Piece(text.strip(), place, kind, person, facts=said)

    def _once(self, words: str) -> Iterator[Note]:
        if words not in self._told:
            self._told.add(words)
            yield Note(words)


def _is_talk(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def _content(value: object) -> str | None:
    """The words of a message: a text, or a list of parts of which some are texts."""
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str)) or None
    return value if isinstance(value, str) else None


def as_fact(value: object) -> Fact:
    """A cell as one value of a fact; None where it holds none, or more than one."""
    if isinstance(value, Decimal):
        value = float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else None


def as_text(value: object) -> str:
    """A cell in words. A whole number that a column with gaps made a fraction is whole again."""
    if isinstance(value, list | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    fact = as_fact(value)
    if isinstance(fact, bool):
        return "true" if fact else "false"
    if isinstance(fact, float) and fact.is_integer() and abs(fact) < 2**53:
        fact = int(fact)
    return "" if fact is None else str(fact)


def read_jsonl(source: Source) -> Iterator[Item]:
    """A JSON object a line, as a stream."""
    encoding = encoding_of(source.path, source.encoding)
    yield from encoding.notes()
    rows = Rows(source)
    with open_text(source.path, encoding) as file:
        for number, line in lines_of(file):
            place = f"line {number}"
            if line is None:
                yield SetAside(place, _TOO_LONG)
            elif line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    yield SetAside(place, "not JSON")
                except RecursionError:
                    yield SetAside(place, "nested too deeply")
                else:
                    yield from rows.items(row, place)


def read_json(source: Source) -> Iterator[Item]:
    """A JSON file, held as a whole: a FHIR bundle or resource, a conversation, one record or a list of them."""
    need_memory(source.path, 12)
    text, encoding = read_whole(source)
    yield from encoding.notes()
    try:
        root = json.loads(text)
    except ValueError as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"not JSON{line}") from None
    del text
    if isinstance(root, list):
        rows = Rows(source)
        if any(isinstance(row, dict) and isinstance(row.get("resourceType"), str) for row in root):
            yield from resource_items([(None, row) for row in root], WHOLE)
            return
        for number, row in enumerate(root, 1):
            yield from rows.items(row, f"item {number}")
    elif isinstance(root, dict) and "resourceType" not in root and not any(_is_talk(root.get(n)) for n in _TALKS):
        if any(_is_talk(value) for value in root.values()):
            raise Unreadable("its records lie below its top: write them as a list or as JSON lines")
        yield from Rows(source).items(root, "item 1")
    else:
        yield from Rows(source).items(root, WHOLE)


def read_csv(source: Source) -> Iterator[Item]:
    """A table whose first row names its columns, as a stream; rows count from 1 with that one, as in a spreadsheet."""
    encoding = encoding_of(source.path, source.encoding)
    yield from encoding.notes()
    rows = Rows(source)
    with open_text(source.path, encoding) as file:
        cells = _cells(_bounded(lines_of(file)), _delimiters(source))
        names = _names(next(cells, (0, [])))
        need_columns(rows.table, names)
        for number, row in cells:
            place = f"row {number}"
            if isinstance(row, str):
                yield SetAside(place, row)
            elif len(row) != len(names):
                yield SetAside(place, "more or fewer cells than the first row")
            else:
                yield from rows.items(dict(zip(names, row, strict=True)), place)


def _delimiters(source: Source) -> str:
    return "\t" if source.path.suffix.lower() == ".tsv" else _DELIMITERS


def _bounded(lines: Iterator[tuple[int, str | None]]) -> Iterator[str]:
    for _, line in lines:
        if line is None:
            raise Unreadable("a line that is " + _TOO_LONG)
        yield line


def _cells(lines: Iterator[str], delimiters: str) -> Iterator[tuple[int, list[str] | str]]:
    """Rows with their number from 1, each a list of cells or the reason why it is none; empty ones are left out.

    The delimiter is the one of `delimiters` that cuts the first row into most cells, or what a line `sep=;` says.
    """
    csv.field_size_limit(LONGEST)
    number, first = 0, ""
    for first in lines:
        if first.strip():
            break
        number += 1
    if first.lower().startswith("sep=") and len(first.strip()) == 5:
        number, delimiters, first = number + 1, first[4], next(lines, "")
    delimiter = max(delimiters, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ended = "unexpected end" in str(error)
            yield number, "a quote that is never closed: all behind it is lost" if ended else "quotes that do not fit"
            continue
        if row:
            yield number, row


def _names(head: tuple[int, list[str] | str]) -> list[str]:
    """The names of columns: stripped, numbered where they have none, told apart where two are the same."""
    cells = head[1]
    if isinstance(cells, str):
        raise Unreadable("its first row does not name columns: " + cells)
    names: list[str] = []
    for number, cell in enumerate(cells, 1):
        name = cell.strip() or f"column {number}"
        while name in names:
            name += f" ({number})"
        names.append(name)
    return names


def need_columns(table: Table, names: Iterable[str]) -> None:
    """Raise Unreadable if a table that was read lacks a column that the recipe names."""
    missing = sorted(table.columns() - set(names))
    if missing:
        raise Unreadable(f"no column {missing[0]!r}")


def read_parquet(source: Source) -> Iterator[Item]:
    """The rows of a Parquet file, as a stream; of a row group that is damaged what follows is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = Rows(source)
    try:
        file = pq.ParquetFile(source.path)
    except pa.ArrowInvalid:
        raise Unreadable("no Parquet file") from None
    with file:
        need_columns(rows.table, file.schema_arrow.names)
        start = 1
        for group in range(file.num_row_groups):
            number = start
            start += file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    for row in batch.to_pylist():
                        yield from rows.items(row, f"row {number}")
                        number += 1
            except MemoryError:
                raise
            except (pa.ArrowException, OSError, ValueError):
                yield SetAside(f"rows {number} to {start - 1}", "a damaged row group")


def columns_early(source: Source) -> set[str] | None:
    """The columns of a table as far as its beginning tells; None where that says nothing."""
    suffix = source.path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return set(pq.read_schema(source.path).names)
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return None
    with open_text(source.path, encoding_of(source.path, source.encoding)) as file:
        if suffix in (".csv", ".tsv"):
            return set(_names(next(_cells(_bounded(lines_of(file)), _delimiters(source)), (0, []))))
        rows = [json.loads(line) for (_, line), _ in zip(lines_of(file), range(100), strict=False) if line]
    return {name for row in rows if isinstance(row, dict) for name in row}
