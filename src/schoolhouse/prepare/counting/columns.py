"""What rows say of themselves as columns of small numbers: to count by group without holding any text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import DataError

MISSING = "(missing)"
RARE = "(rare)"
MOST_VALUES = 200  # of a group: more are no groups, and would fill the page
MOST_OUTCOMES = 20_000  # there are some ten thousand codes of diseases
NAMED = 5  # persons that must share a value before it is written anywhere

Codes = NDArray[np.int32]


@dataclass
class Column:
    """One fact of every row: `labels` are its values as words, `codes` the value of each row by number."""

    name: str
    most: int = MOST_VALUES
    labels: list[str] = field(default_factory=list)
    codes: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    _known: dict[str, int] = field(default_factory=dict)
    _read: array[int] = field(default_factory=lambda: array("i"))

    def add(self, value: object) -> None:
        """Take in the next row's value. Raises DataError where there are too many different ones."""
        label = written(value)
        code = self._known.setdefault(label, len(self._known))
        if len(self._known) > self.most:
            raise DataError(
                f"{self.name!r} has more than {self.most} different values: rows cannot be counted by it. Name a fact "
                "with fewer (an age group, not an age)."
            )
        self._read.append(code)

    def close(self, persons: Codes, named: Collection[str] = ()) -> None:
        """All rows were added: values of fewer than NAMED persons lose their names, unless they are `named`."""
        codes = np.array(self._read, dtype=np.int32)
        held = persons_of(Column(self.name, self.most, list(self._known), codes), persons)
        names = [
            label if held[code] >= NAMED or label == MISSING or label in named else RARE
            for label, code in self._known.items()
        ]
        self.labels = sorted(set(names), key=lambda name: (name in (MISSING, RARE), name))
        place_of = {label: place for place, label in enumerate(self.labels)}
        places = np.array([place_of[name] for name in names], dtype=np.int32)
        self.codes = places[codes]


@dataclass
class Table:
    """Rows by their columns. persons: whose each row is, by number; held: whether it is held out."""

    columns: dict[str, Column]
    persons: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    held: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    keys: set[str] = field(default_factory=set)  # that any row had
    _people: dict[str, int] = field(default_factory=dict)
    _read: array[int] = field(default_factory=lambda: array("i"))
    _out: array[int] = field(default_factory=lambda: array("b"))

    @classmethod
    def of(cls, groups: Iterable[str], outcome: str | None = None) -> Table:
        """An empty table."""
        columns = {name: Column(name) for name in groups}
        return cls(columns if outcome is None else columns | {outcome: Column(outcome, MOST_OUTCOMES)})

    def __len__(self) -> int:
        return len(self._read)

    def add(self, values: Mapping[str, Any], person: str, *, held: bool = False) -> None:
        """Take in a row. person: whose it is, or a name of its own."""
        self._out.append(held)
        self._read.append(self._people.setdefault(person, len(self._people)))
        self.keys.update(values)
        for name, column in self.columns.items():
            column.add(values.get(name))

    def close(self, like: Table | None = None) -> None:
        """All rows were added; what has a name in another table has one here. Raises DataError for a column of none."""
        for name in self.columns:
            if name not in self.keys:
                raise DataError(f"no row has a fact {name!r}{did_you_mean(name, self.keys)}")
        self.persons = np.array(self._read, dtype=np.int32)
        self.held = np.array(self._out, dtype=bool)
        for name, column in self.columns.items():
            column.close(self.persons, like.columns[name].labels if like is not None else ())
        self._people.clear()

    def crossed(self, first: str, second: str) -> Column:
        """A column of two others' values together, those that do not occur included."""
        a, b = self.columns[first], self.columns[second]
        labels = [f"{one}, {other}" for one in a.labels for other in b.labels]
        codes = (a.codes * len(b.labels) + b.codes).astype(np.int32)
        return Column(f"{first} and {second}", len(labels), labels, codes)


def written(value: object) -> str:
    """A fact as a label; MISSING for one that is not there."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str | int):
        return "(not a plain value)"
    return str(value).strip() or MISSING


def counted(column: Column, rows: NDArray[np.bool_] | None = None) -> list[int]:
    """How many rows each label has."""
    codes = column.codes if rows is None else column.codes[rows]
    found: list[int] = np.bincount(codes, minlength=len(column.labels)).tolist()
    return found


def persons_of(column: Column, persons: Codes) -> list[int]:
    """How many different persons each label has."""
    people = int(persons.max(initial=0)) + 1
    pairs = np.unique(column.codes.astype(np.int64) * people + persons)
    found: list[int] = np.bincount(pairs // people, minlength=len(column.labels)).tolist()
    return found
