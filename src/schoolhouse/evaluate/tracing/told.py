"""A trace for people: tables of what a model learnt from, and the rows that share words with a text, the best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from schoolhouse.core.log import Log
from schoolhouse.text.redaction import META, told

_FILES = 6  # of an artifact; --json has all
_SOURCES = 5
_LONGEST = 600  # characters of a run that are shown


def tell(found: Mapping[str, Any], log: Log) -> None:
    """Print what `trace_facts.facts` found."""
    model = found["model"]
    recipe = f" of recipe {model['recipe']}" if model["recipe"] else ""
    log.result(f"{_title(model)}{recipe}, artifact {model['artifact']}")
    if found["learnt_from"]:
        log.result(_data(found["learnt_from"]))
        log.result(_files(found["learnt_from"]))
    log.result(_models(found["models"]))
    for line in _said(found):
        log.result(line)
    if found["search"] is None:
        log.result('\nto see which rows are like an answer, give it as well: schoolhouse trace MODEL "the answer"')
        return
    _tell_search(found["search"], log)
    log.result("\nWhat this can show")
    for line in found["meaning"]:
        log.result(f"- {line}")


def _title(named: Mapping[str, Any]) -> str:
    return f"{named['stage']} ({named['kind']})" if named["kind"] else str(named["stage"])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _data(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("What it learnt from, the nearest first", "stage", "artifact", "holds", "learnt by", "licence")
    for row in rows:
        holds = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in row["counts"].items())
        holds = "not in the store" if row["problem"] else holds
        table.add_row(_title(row), row["artifact"], holds, ", ".join(row["learnt_by"]), str(row["licence"] or ""))
    return table


def _files(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Their files", "stage", "file", "SHA-256")
    for row in rows:
        files = list(row["files"].items())
        for name, held in files[:_FILES]:
            table.add_row(row["stage"], name, held["sha256"])
        further = len(files) - len(files[:_FILES])
        if further:
            table.add_row(row["stage"], f"and {further:,} more (--json lists them)", "")
        if row["files_without_name"]:
            named = f"{row['files_without_name']:,} files as they came: names may be somebody's"
            table.add_row(row["stage"], named, "in the artifact's manifest.json")
    return table


def _models(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("The models behind it, itself the first", "stage", "artifact", "used as", "licence")
    for row in rows:
        used = ", ".join(f"{use['as']} of {use['by']}" for use in row["used_as"])
        title = f": {row['title']}" if row.get("title") else ""
        table.add_row(_title(row) + title, row["artifact"], used, str(row["licence"] or ""))
    return table


def _said(found: Mapping[str, Any]) -> Iterator[str]:
    """What else is known, and what is not, a line each."""
    yield ""
    if not found["learnt_from"] and not found["made_up_by_the_program"] and not found["questions_outside_the_store"]:
        yield "There are no data in its lineage: nothing was taught here."
    for row in found["missing"]:
        yield f"{_title(row)}, artifact {row['artifact']}: {row['problem']}"
    for row in found["models"]:
        if "learnt_before" in row:
            card = f" ({row['card']})" if row["card"] else ""
            yield f"{_title(row)}: {row['learnt_before']}{card}"
    for name, stages in found["made_up_by_the_program"].items():
        yield f"{name}: questions that the program makes up, asked by {', '.join(stages)}"
    for row in found["questions_outside_the_store"]:
        now = "looked at as it is now" if row["is_there_now"] else "it is not there any more"
        yield f"{row['file']}: questions outside of the store, asked by {', '.join(row['asked_by'])}; {now}"
    for row in found["learnt_from"]:
        yield from _statements(row)
        yield from _sources(row)
    if found["only_compared_with"]:
        yield f"Only looked at or compared with: {', '.join(_title(row) for row in found['only_compared_with'])}"


def _statements(row: Mapping[str, Any]) -> Iterator[str]:
    for key, said in row["statements"].items():
        if key == META:
            shares = [f"{kind} {told(pair)}" for kind, pair in (said.get("recall") or {}).items()]
            yield f"{row['stage']}: redacted; share that is found of {', '.join(shares) or 'nothing: not measured'}"
        else:
            yield from (f"{row['stage']}, {key}: {line}" for line in said)


def _sources(row: Mapping[str, Any]) -> Iterator[str]:
    sources = row["sources"]
    if sources is None:
        return
    where = f"{sources['listed_in']} of artifact {row['artifact']}, SHA-256 {sources['sha256']}"
    hidden = "; not named here, for they lie behind redaction" if sources["names_hidden"] else ""
    yield f"{row['stage']} read {sources['files']:,} files, each with its SHA-256 in {where}{hidden}"
    for file in sources["first"][:_SOURCES]:
        yield f"  {file['file']}  {file['sha256'] or 'could not be read'}"
    if sources["first"] and sources["files"] > _SOURCES:
        yield f"  and {sources['files'] - _SOURCES:,} more"


def _tell_search(search: Mapping[str, Any], log: Log) -> None:
    n = search["run_words"]
    for line in search["warnings"]:
        log.warn(line)
    log.result(
        f"\n{search['rows_searched']:,} rows were compared with {search['words']:,} words. Of the text's "
        f"{search['runs']:,} different runs of {n} words {search['runs_found']:,} stand somewhere in them; "
        f"{search['rows_alike']:,} rows hold one or more."
    )
    if not search["rows"]:
        log.result(f"No row of what it learnt shares more than {n - 1} words in a row with this text.")
    for number, row in enumerate(search["rows"], 1):
        log.result(_head(number, row, n))
        log.result(_run(row))
        for line in _origin(row):
            log.result(f"   {line}")


def _where(place: Mapping[str, Any]) -> str:
    held = place["artifact"]
    of = f" of {_title(held)}, artifact {held['artifact']}" if held else ", outside of the store, as it is now"
    return f"{place['file']}, row {place['row']}{of}"


def _head(number: int, row: Mapping[str, Any], n: int) -> str:
    return (
        f"\n{number}. {row['run_words']} words in a row, {row['share']:.0%} of the text's runs of {n}: "
        f"{row['part']} of {row['id']}, learnt by {', '.join(row['learnt_by'])}"
    )


def _run(row: Mapping[str, Any]) -> Padding:
    run = row["run"] if len(row["run"]) <= _LONGEST else row["run"][:_LONGEST] + " ..."
    text = Text("... ")
    text.append(" ".join(row["before"].split()) + " [", style="dim")
    text.append(" ".join(run.split()), style="bold")
    text.append("] " + " ".join(row["behind"].split()), style="dim")
    text.append(" ...")
    return Padding(text, (0, 0, 0, 3))


def _origin(row: Mapping[str, Any]) -> Iterator[str]:
    """Where a row comes from, a line each."""
    yield f"in {_where(row)}"
    for step in row["made_from"]:
        yield f"made from {step['id']}: {_where(step)}"
    source, redacted = row["source"], row["redacted_by"]
    if source:
        place = ", ".join(str(source[key]) for key in ("file", "place") if source.get(key))
        digest = f", SHA-256 {source['sha256']}" if source.get("sha256") else ""
        hidden = " (name and SHA-256 stand for the file's own, under the key of the redaction)" if redacted else ""
        yield f"source {place}{digest}{hidden}"
    if row["way"]:
        yield f"way: {' > '.join(_title(node) for node in row['way'])}"
    if row["said_by"]:
        yield f"the reply was written by {_title(row['said_by'])}, artifact {row['said_by']['artifact']}"
    if redacted or row["may_name_people"]:
        yield f"redacted by {redacted}" if redacted else "no stage redacted it: it may name people"
    yield from (f"history: {line}" for line in row["history"])
    yield f"{row['rows_with_its_rarest_words']:,} rows hold the rarest words of this run"
    if row["further_rows"]:
        further = "; ".join(f"{place['file']}, row {place['row']}" for place in row["further_rows"])
        yield f"further rows of the same: {further}"
