"""Rows twice: as lines of JSON, which people and programs read, and as a Parquet table, which databases do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schoolhouse.text.records import append_row

TEXT = pa.string()
ASKED = pa.schema([("messages", pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))), ("meta", TEXT)])
"""The columns of a conversation."""
RATED = pa.schema([*ASKED, ("reply", TEXT), ("rating", TEXT)])
"""The columns of a rating."""

_TOGETHER = 1000  # rows of a row group: what is held in memory


def table_of(path: Path) -> Path:
    """Where the table beside a file of JSON lines lies."""
    return path.with_suffix(".parquet")


def write_twice(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, packed: str) -> int:
    """Write rows into a file of JSON lines and into the table beside it, as a stream; return how many.

    packed: the column of an object with keys of its own, which the table holds as JSON. What is no Unicode (half of a
    surrogate pair) becomes a question mark.
    """
    count, held = 0, list[dict[str, Any]]()
    with path.open("w", encoding="utf-8", errors="replace") as file, pq.ParquetWriter(table_of(path), schema) as table:
        for row in rows:
            append_row(file, row)
            held.append(_clean({**row, packed: json.dumps(row.get(packed, {}), ensure_ascii=False)}))
            count += 1
            if len(held) == _TOGETHER:
                table.write_table(pa.Table.from_pylist(held, schema))
                held = []
        if held or not count:
            table.write_table(pa.Table.from_pylist(held, schema))
    return count


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {key: _clean(held) for key, held in value.items()}
    return [_clean(held) for held in value] if isinstance(value, (list, tuple)) else value
