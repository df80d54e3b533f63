"""Where terms come from: ICD-10-CM out of its Python package, ontologies in the OBO format, tables of codes."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TextIO

from schoolhouse.core.config import did_you_mean
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.prepare.ontologies.obo import read_obo
from schoolhouse.prepare.ontologies.terms import Term
from schoolhouse.text.records import BadRow

ICD = "icd-10-cm"
ICD_PACKAGE = "simple-icd-10-cm"
TABLES = (".csv", ".tsv")
OBO = ".obo"
OWN = ("code", "name", "parent", "synonyms", "notes")
"""The columns of a table that are no relations; the first two must be there."""
LIST = "|"  # between several values of a cell

_RANGE = re.compile(r" \([A-Z]\d[0-9A-Z](?:-[A-Z]\d[0-9A-Z])?\)$")
_LONGEST_CELL = 1_000_000


@dataclass
class Read:
    """The terms of a source as they stand there; left_out: what was passed over on purpose, by reason."""

    terms: list[Term] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def read_source(source: str, columns: Mapping[str, str]) -> Read:
    """Read a source that `check_source` has let pass."""
    if source == ICD:
        return _icd()
    path = Path(source)
    if path.suffix.lower() == OBO:
        found = read_obo(path)
        return Read(found.terms, found.bad, {"obsolete terms": found.obsolete} if found.obsolete else {})
    return _table(path, columns)


def check_source(source: str, columns: Mapping[str, str]) -> None:
    """Raise RecipeError or DataError for a source that does not exist, or columns that it has not."""
    if source == ICD:
        if importlib.util.find_spec("simple_icd_10_cm") is None:
            raise RecipeError(f"source {ICD!r} needs the package {ICD_PACKAGE}: pip install 'schoolhouse[prepare]'")
    else:
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"source {source!r}: there is no such file{did_you_mean(source, [ICD])}")
        if path.suffix.lower() not in (OBO, *TABLES):
            raise RecipeError(f"source {source!r}: give {ICD!r}, an {OBO} file or a table ({', '.join(TABLES)}).")
        if path.suffix.lower() in TABLES:
            _check_table(path, columns)
            return
    if columns:
        raise RecipeError(f"columns are given, but {source!r} is no table: leave them out.")


def icd_version() -> str:
    """The package that ICD-10-CM comes from, with its version."""
    return f"{ICD_PACKAGE} {importlib.metadata.version(ICD_PACKAGE)}"


def icd_sha256() -> str:
    """One hash of the files that the package carries."""
    spec = importlib.util.find_spec("simple_icd_10_cm")
    assert spec is not None, "check_source() has found it"
    folders = [Path(folder) / "data" for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.iterdir() if file.suffix in (".txt", ".xml"))
    return hashlib.sha256("\n".join(f"{file.name} {file_sha256(file)}" for file in files).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _icd() -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the way in which the package opens its own files
        import simple_icd_10_cm as icd
    codes = icd.get_all_codes()
    terms = []
    # Some blocks hold one category of the same code (B20): the category is meant.
    for code in dict.fromkeys(codes):
        parent = icd.get_parent(code, prioritize_blocks=icd.get_parent(code) == code)
        name = icd.get_description(code)
        name = _RANGE.sub("", name) if icd.is_chapter(code) or icd.is_block(code) else name
        terms.append(
            Term(
                code, name, (parent,) if parent else (), {}, tuple(icd.get_inclusion_term(code)), _icd_notes(icd, code),
                f"code {code}",
            )
        )  # fmt: skip
    return Read(terms, [], {"blocks that have the code of their only category": len(codes) - len(terms)})


def _icd_notes(icd: ModuleType, code: str) -> tuple[str, ...]:
    parts = {
        "Includes": "get_includes", "Not coded here (excludes 1)": "get_excludes1",
        "Not included here (excludes 2)": "get_excludes2", "Use additional code": "get_use_additional_code",
        "Code first": "get_code_first", "Code also": "get_code_also",
    }  # fmt: skip
    lines = []
    for label, name in parts.items():
        found = getattr(icd, name)(code)
        each = found.splitlines() if isinstance(found, str) else found
        lines += [f"{label}: {line.strip()}" for line in each if line.strip()]
    return tuple(lines)


def _table(path: Path, columns: Mapping[str, str]) -> Read:
    """The rows of a table; those of another width, or that are not UTF-8, are set aside."""
    read = Read()
    with _opened(path) as file:
        rows = _rows(file, path)
        headings = next(rows)[1]
        places = _places(path, headings, columns)
        for line, row in rows:
            problem = _problem(row, len(headings))
            if problem:
                read.bad.append(BadRow(path.name, line, problem))
            else:
                read.terms.append(_term(row, places, f"line {line}"))
    return read


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _rows(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells with the line on which each ends; one that is no row has no cells, and empty lines are left out.

    A tab divides the cells of .tsv files, in which a quote inside of a cell is a quote and no more; in others a comma
    or a semicolon does, whichever the first line has more of.
    """
    csv.field_size_limit(_LONGEST_CELL)
    if path.suffix.lower() == ".tsv":
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter=";" if first.count(";") > first.count(",") else ",", strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = []
        else:
            if not any(cell.strip() for cell in row):
                continue
        yield rows.line_num, row


def _places(path: Path, headings: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Where each column stands by what it is for us. Without `columns` a heading says that itself."""
    heads = [_unquoted(head) for head in headings]
    twice = next((head for head in heads if head and heads.count(head) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice!r}; give one of them another heading.")
    wanted = columns or {head: head for head in heads if head}
    for name, head in wanted.items():
        if head not in heads:
            raise DataError(f"columns: {path} has no column {head!r} for {name!r}{did_you_mean(head, heads)}")
    missing = [name for name in OWN[:2] if name not in wanted]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r} among {', '.join(heads)[:200]}; "
            f'say which it is: columns = {{ code = "...", name = "..." }}'
        )
    return {name: heads.index(head) for name, head in wanted.items()}


def _check_table(path: Path, columns: Mapping[str, str]) -> None:
    with _opened(path) as file:
        headings = next(_rows(file, path), (0, []))[1]
    if not headings:
        raise DataError(f"{path}: its first line must name the columns")
    _places(path, headings, columns)


def _problem(row: list[str], width: int) -> str | None:
    if not row:
        return "quotes that do not fit, or are never closed: then all behind them is lost"
    if len(row) != width:
        return f"{len(row)} cells, where the first line has {width}"
    if any("\udc80" <= sign <= "\udcff" for cell in row for sign in cell):
        return "not UTF-8"
    return None


def _term(row: list[str], places: Mapping[str, int], place: str) -> Term:
    cells = {name: _unquoted(row[at]) for name, at in places.items()}
    lists = {name: tuple(part.strip() for part in cell.split(LIST) if part.strip()) for name, cell in cells.items()}
    relations = {name: values for name, values in lists.items() if name not in OWN and values}
    parents, synonyms, notes = (lists.get(name, ()) for name in OWN[2:])
    return Term(cells["code"], cells["name"], parents, relations, synonyms, notes, place)


def _unquoted(cell: str) -> str:
    """A cell without the quotes around it that some programs write into .tsv files, and without outer spaces."""
    cell = cell.strip()
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
