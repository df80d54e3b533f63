"""The stage `prepare.coverage`: who is in the data and who is not, and whether outcomes or errors differ by group.

Rows are counted by their facts, those that do not say included. A rate has its interval, and a difference is flagged
where it is no chance among all that were looked at. Values that fewer than five persons share are never named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.prepare.counting.card import card
from schoolhouse.prepare.counting.columns import MISSING, NAMED, RARE, Column, Table, counted, persons_of
from schoolhouse.prepare.counting.rates import Grouping, Rate, flagged, rates_of, said
from schoolhouse.prepare.rows import Row, Rows
from schoolhouse.text.records import ReadJsonl
from schoolhouse.text.sourced import HELD_OUT

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

COVERAGE = "coverage.json"
_ITEMS = "items.jsonl"  # the verdicts of an exam
_LEFT_OPEN = 0.05  # share of rows that do not say, from which it is warned of
_SHOWN = 5  # warnings in the log, and combinations in one of them


class Config(StageConfig):
    """What `prepare.coverage` counts."""

    data: Ref  # documents or conversations of an earlier stage, what it holds out included
    groups: list[str] = Field(min_length=1)  # facts to count by, such as sex, age_group, language, ward; or kind
    outcome: str | None = None  # a fact whose values are compared between groups, such as code or triage
    exam: Ref | None = None  # an exam whose questions know their group or their document: errors by group
    pairs: bool = False  # also every two groups together
    thin: int = Field(default=50, ge=0)  # rows below which a group is warned of
    thin_share: float = Field(default=0.01, ge=0, le=1)  # share of the rows below which it is, too


def check(config: Config) -> None:
    """Raise RecipeError before anything starts for a group that is named twice or is the outcome, too."""
    for name in config.groups:
        if config.groups.count(name) > 1:
            raise RecipeError(f"groups names {name!r} twice; once is enough.")
    if config.outcome in config.groups:
        raise RecipeError(f"outcome {config.outcome!r} is among the groups, too: take it out of one of them.")


@dataclass(frozen=True)
class Cell:
    """How much there is of one group."""

    group: str
    value: str
    rows: int
    share: float
    persons: int
    held_out: int
    thin: bool
    crossed: bool  # two groups together


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write coverage.json and a page that says the same in words.

    Raises DataError for a group that no row has, and for an exam none of whose questions knows its group.
    """
    items = _items(inputs[config.exam]) if config.exam is not None else []
    table, about = _read(config, inputs[config.data], items)
    columns = _columns(config, table)
    cells = [cell for column in columns for cell in _cells(config, column, table)]
    rates = flagged(_outcomes(config, table, columns))
    errors = flagged(_errors(config, items, about, table))
    warnings = [
        *_uncovered(config, cells, bool(table.held.any())),
        *map(said, (r for r in rates + errors if r.flagged)),
    ]
    found = {
        "rows": len(table), "held_out": int(table.held.sum()), "persons": len(np.unique(table.persons)),
        "questions": len({item["id"] for item in items}), "verdicts_without_group": about.count(None),
        "warnings": warnings, "cells": [asdict(cell) for cell in cells], "rates": [asdict(rate) for rate in rates],
        "errors": [asdict(rate) for rate in errors],
    }  # fmt: skip
    (out.path / COVERAGE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out.path / "README.md").write_text(card(config, found, cells, rates, errors), encoding="utf-8")
    out.meta.update({key: found[key] for key in ("rows", "held_out", "persons")}, warnings=len(warnings))
    run.log.info(f"{len(table):,} rows by {', '.join(config.groups)}: {len(warnings)} warnings")
    for warning in warnings[:_SHOWN]:
        run.log.warn(warning)


def _items(exam: Artifact) -> list[dict[str, Any]]:
    """The verdicts of an exam."""
    reader: ReadJsonl[dict[str, Any]] = ReadJsonl(exam.file(_ITEMS), lambda row: row)
    items = list(reader)
    if reader.bad or not items:
        raise DataError(f"{reader.path}: {len(items)} verdicts and {len(reader.bad)} bad rows: nothing can be counted")
    return items


def _read(config: Config, data: Artifact, items: list[dict[str, Any]]) -> tuple[Table, list[dict[str, Any] | None]]:
    """The rows as columns, and what is known of the question of each verdict; None where its group is not."""
    table = Table.of(config.groups, config.outcome)
    metas = [meta if isinstance(meta := item.get("meta"), dict) else {} for item in items]
    wanted = {meta.get("document") for meta in metas} - {None}
    known: dict[str, dict[str, Any]] = {}
    for is_held, row in _rows(data):
        owner = f"document/{row.document}" if row.person is None else f"person/{row.person}"
        table.add(row.facts, owner, held=is_held)
        if row.document in wanted:
            known[row.document] = {"person": row.person} | {k: row.facts.get(k) for k in config.groups}
    table.close()
    about: list[dict[str, Any] | None] = []
    for meta in metas:
        held = known.get(str(meta.get("document")), {})
        values = held | {key: value for key, value in meta.items() if value is not None or key not in held}
        about.append(values if any(name in values for name in config.groups) else None)
    if items and about.count(None) == len(items):
        raise DataError(
            f"no question of the exam says {' or '.join(config.groups)}, and none is of a document that is here: "
            'give its rows a "meta" with them (prepare.lessons does, with groups), or leave exam out.'
        )
    return table, about


def _rows(data: Artifact) -> Iterator[tuple[bool, Row]]:
    """Every row, and whether it is held out. Raises DataError at the end if some could not be read."""
    for held, folder in ((False, data.path), (True, data.path / HELD_OUT)):
        if held and not folder.is_dir():
            return
        rows = Rows(folder)
        yield from ((held, row) for row in rows)
        if rows.bad:
            raise DataError(f"{rows.path}: {len(rows.bad)} bad rows, the first: {rows.bad[0]}")


def _columns(config: Config, table: Table) -> list[Column]:
    """What is counted by."""
    alone = [table.columns[name] for name in config.groups]
    return alone + [table.crossed(a, b) for a, b in combinations(config.groups, 2)] if config.pairs else alone


def _cells(config: Config, column: Column, table: Table) -> Iterator[Cell]:
    held, persons = counted(column, table.held), persons_of(column, table.persons)
    crossed = column.name not in config.groups
    for code, (value, rows) in enumerate(zip(column.labels, counted(column), strict=True)):
        part = rows / len(table)
        named = MISSING not in value and RARE not in value
        thin = named and (rows < config.thin or part < config.thin_share)
        yield Cell(column.name, value, rows, part, persons[code], held[code], thin, crossed)


def _outcomes(config: Config, table: Table, columns: Sequence[Column]) -> Iterator[Rate]:
    """How often each value of the outcome occurs in each group: those that `thin` rows have, and not saying it."""
    if config.outcome is None:
        return
    outcome, persons = table.columns[config.outcome], table.persons
    counts = dict(zip(outcome.labels, counted(outcome), strict=True))
    compared = [label for label in outcome.labels if label not in (MISSING, RARE)]
    if len(compared) == 2 and RARE not in counts:  # the one is what the other is not
        compared = ["yes"] if "yes" in compared else compared[:1]
    else:
        compared = [label for label in compared if counts[label] >= config.thin]
    known = outcome.codes != outcome.labels.index(MISSING) if MISSING in counts else np.ones(len(table), dtype=bool)
    for column in columns:
        grouping = Grouping(column, known, persons)
        for label in compared:
            yield from rates_of(f"{outcome.name} {label}", grouping, outcome.codes == outcome.labels.index(label))
        if not known.all():
            yield from rates_of(f"{outcome.name} {MISSING}", Grouping(column, known | True, persons), ~known)


def _errors(
    config: Config, items: Sequence[Mapping[str, Any]], about: Sequence[Mapping[str, Any] | None], table: Table
) -> Iterator[Rate]:
    """How often each model's answers are wrong in each group."""
    sides: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for item, values in zip(items, about, strict=True):
        if values is not None:
            sides.setdefault(f"{item['model']}, {item['mode']}", []).append((item, values))
    for name, pairs in sides.items():
        own = Table.of(config.groups)
        for item, values in pairs:
            absent = dict.fromkeys(config.groups)  # so that a group of which no question knows is no mistake
            own.add(absent | dict(values), str(values.get("person") or values.get("document") or item["id"]))
        own.close(like=table)
        wrong = np.array([not item["correct"] for item, _ in pairs])
        for column in _columns(config, own):
            yield from rates_of(f"{name}: wrong", Grouping(column, np.ones(len(own), dtype=bool), own.persons), wrong)


def _uncovered(config: Config, cells: Sequence[Cell], any_held: bool) -> Iterator[str]:
    """What is thin, not said or not named, in words."""
    few = f"fewer than {config.thin} rows or {config.thin_share:.1%} of all"
    for name in dict.fromkeys(cell.group for cell in cells if cell.crossed):
        own = [cell for cell in cells if cell.group == name]
        thin = sorted((cell for cell in own if cell.thin), key=lambda cell: cell.rows)
        if thin:
            shown = "; ".join(f"{cell.value}: {cell.rows}" for cell in thin[:_SHOWN])
            yield f"{name}: {len(thin)} of {len(own)} combinations have {few} ({shown})"
    for cell in cells:
        if cell.crossed:
            continue
        if cell.thin:
            yield f"{cell.group} {cell.value}: {cell.rows} rows ({cell.share:.1%}), {few}"
        elif any_held and cell.rows and not cell.held_out and cell.value not in (MISSING, RARE):
            yield f"{cell.group} {cell.value}: no row is held out, so that errors there cannot be measured"
        elif cell.value == MISSING and cell.share >= _LEFT_OPEN:
            yield f"{cell.group}: {cell.share:.1%} of the rows do not say"
        elif cell.value == RARE:
            yield f"{cell.group}: {cell.rows} rows have values that fewer than {NAMED} persons share (not named)"
