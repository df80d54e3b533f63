"""Writing TOML and finding the line of a key in it; the standard library only reads TOML."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?\Z")


def _key(name: str) -> str:
    return name if _BARE_KEY.match(name) else _string(name)


def _string(text: str) -> str:
    # JSON's escapes are a subset of TOML's, but for DEL, which TOML wants escaped, and surrogate pairs, which it
    # forbids; characters outside ASCII are written as they are.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # repr reads back to the same bits; nan and inf are spelt the same in TOML
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    raise TypeError(f"TOML cannot hold a {type(value).__name__}: {value!r}")


def dump_toml(tables: Mapping[str, Any], arrays: Mapping[str, list[dict[str, Any]]]) -> str:
    """Write plain values of `tables` at the top and each list in `arrays` as `[[name]]` tables; `None` is left out."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in tables.items() if v is not None]
    for name, rows in arrays.items():
        for row in rows:
            lines += ["", f"[[{_key(name)}]]"]
            lines += [f"{_key(k)} = {_value(v)}" for k, v in row.items() if v is not None]
    return "\n".join(lines) + "\n"


def line_of(source: str, path: tuple[str | int, ...]) -> int | None:
    """Return the line (from 1) on which the value at `path` stands, or of the nearest table around it.

    `path` is like `("stage", 2, "rate")`. The file is read line by line, so a key inside an inline table over several
    lines is reported at the line of the outermost key; `None` if nothing fits.
    """
    best: tuple[int, int] | None = None  # (how many parts fit, line)
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(source.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            name = header.group(2).strip("\"' ")
            table = tuple(part.strip().strip("\"'") for part in name.split("."))
            if header.group(1) == "[[":
                counts[name] = counts.get(name, -1) + 1
                table = (*table, counts[name])
            elif table[0] in counts:  # [stage.sub] belongs to the last [[stage]]
                table = (table[0], counts[str(table[0])], *table[1:])
            here = table
        else:
            found = re.match(r"\s*([\"']?)([^\"'=#]+?)\1\s*=", line)
            if not found:
                continue
            here = (*table, *(part.strip() for part in found.group(2).split(".")))
        depth = len(here)
        if path[:depth] == here and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None
