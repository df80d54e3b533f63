"""The stage `prepare.read`: a folder of your own files becomes documents, each with its file, its place and its person.

What cannot be read is set aside with the reason; nothing else of the folder is held up by it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import Field, field_validator, model_validator

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import BudgetError, DataError, RecipeError, Stopped
from schoolhouse.core.machine import usable_cores
from schoolhouse.prepare.reading.ahead import Part, read_ahead, read_here
from schoolhouse.prepare.reading.card import SET_ASIDE, Tally, card
from schoolhouse.prepare.reading.files import Listing, list_files, matches, sha256, sources_of
from schoolhouse.prepare.reading.formats import FORMATS, format_of, need_packages
from schoolhouse.prepare.reading.items import WHOLE, Note, SetAside, Source, Table, known_encoding
from schoolhouse.prepare.reading.tables import columns_early
from schoolhouse.text.records import SOURCES, append_row
from schoolhouse.text.sourced import Document, Origin, document_id, write_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

RAW = "raw"
_SAY_EVERY_S = 10.0
_LOOK_AT = 20  # files of a pattern whose columns are looked at before anything starts


class Config(StageConfig):
    """What `prepare.read` reads, and how tables become texts."""

    source: str | None = None  # a folder of your files, or one file
    data: Ref | None = None  # instead of a source: a stage that left files in its folder `raw`
    tables: dict[str, Table] = Field(default_factory=dict)  # how to read files, by a pattern of names, see below
    person_from: str | None = None  # whose a file is by its path: a pattern such as `"^(?P<person>[^/]+)/"`
    encoding: str | None = None  # of files that are neither UTF-8 nor UTF-16, such as `"cp1252"`; guessed without it
    most: int | None = Field(default=None, ge=1)  # stop after so many documents, for a first look; all without it

    @model_validator(mode="after")
    def _one_source(self) -> Config:
        if (self.source is None) == (self.data is None):
            raise ValueError("give either source, a path, or data, an earlier stage")
        return self

    @field_validator("person_from")
    @classmethod
    def _has_person(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and "person" not in re.compile(pattern).groupindex:
                raise ValueError('name the part that says whose a file is, as in "^(?P<person>[^/]+)/"')
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, name: str | None) -> str | None:
        return known_encoding(name)


def check(config: Config) -> None:
    """Raise RecipeError before anything starts: no such path, nothing to read there, a column that no file has."""
    if config.source is not None:
        _sources(config, Path(config.source).expanduser())


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: the names and bytes of the files."""
    if config.source is None:
        return ""
    listing = list_files(Path(config.source).expanduser())
    lines = [f"{name} {sha256(path)}" for name, path in listing.files]
    lines += [f"{suffix} {count}" for suffix, count in sorted(listing.unread.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def documents(config: Config, root: Path, tally: Tally | None = None) -> Iterator[Document]:
    """The documents of a folder or file, one after the other in this process; no more is read than is taken.

    Raises RecipeError as `check` does.
    """
    found = _documents(read_here(_sources(config, root)[1]), tally or Tally())
    yield from itertools.islice(found, config.most)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write documents.jsonl, documents.parquet, sources.jsonl, set_aside.jsonl and the data card."""
    root = inputs[config.data].path / RAW if config.data is not None else Path(config.source or "").expanduser()
    listing, sources = _sources(config, root)
    workers = min(run.machine.threads or usable_cores(), len(sources))
    with (
        (out.path / SET_ASIDE).open("w", encoding="utf-8") as file,
        (out.path / SOURCES).open("w", encoding="utf-8") as listed,
    ):
        tally = Tally(lambda row: append_row(file, row))
        for suffix, count in sorted(listing.unread.items()):
            tally.notes[f"files that were not read, {suffix}"] = count
        if listing.links:
            tally.notes["links that were not followed"] = listing.links
        beat = _Beat(run, tally, len(sources))
        ahead = read_ahead(sources, workers, lambda: run.meter.phase("wait"), beat.look)
        with run.meter.phase("read"), contextlib.closing(ahead) as parts:  # its processes end with it
            found = _documents(_listed(beat.beside(parts), listed), tally)
            write_documents(out.path, itertools.islice(found, config.most))
    if not tally.documents:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in tally.reasons.most_common(3))
        raise DataError(f"nothing could be read of {len(sources):,} files: {reasons}.")
    facts = tally.facts()
    out.meta.update(facts)
    (out.path / "README.md").write_text(card(facts, config.most), encoding="utf-8")
    waited = run.meter.phases.get("wait", 0.0) / max(run.meter.phases["read"], 1e-9)
    run.log.info(
        f"{facts['documents']:,} documents of {tally.files.total():,} files, "
        f"{tally.reasons.total():,} places set aside; "
        f"{workers} readers, the writer waited for them {waited:.0%} of the time"
    )
    _warn(facts, run)


def _sources(config: Config, root: Path) -> tuple[Listing, list[Source]]:
    """The files to read; raise RecipeError where the recipe and the files do not fit."""
    if not root.exists():
        raise RecipeError(f"{root}: there is no such file or folder")
    listing = list_files(root)
    known = ", ".join(FORMATS)
    if root.is_file() and format_of(root.name) is None:
        raise RecipeError(f"{root}: nothing reads {root.suffix or 'a file without a suffix'}; what is read: {known}")
    if not listing.files:
        links = "; links that lead out of it are not followed" if listing.links else ""
        raise RecipeError(f"{root} holds no file that can be read{links}; what is read: {known}")
    need_packages({path.suffix.lower() for _, path in listing.files})
    sources = sources_of(listing, config.tables, config.person_from, config.encoding)
    if config.person_from is not None and not any(source.person for source in sources):
        raise RecipeError(f"person_from {config.person_from!r} matches the path of none of {len(sources):,} files")
    for pattern, table in config.tables.items():
        _check_table(pattern, table, [source for source in sources if source.table is table], listing)
    return listing, sources


def _check_table(pattern: str, table: Table, sources: list[Source], listing: Listing) -> None:
    if not sources:
        taken = any(matches(name, pattern) for name, _ in listing.files)
        why = "an earlier pattern takes all of its files" if taken else "no file fits it"
        raise RecipeError(f"tables: {pattern!r}: {why}")
    if not table.maps_columns:
        return
    without = [source for source in sources if not FORMATS[source.path.suffix.lower()].is_table]
    if without:
        raise RecipeError(f"tables: {pattern!r} names columns, but {len(without):,} of its files are no tables")
    for source in sources[:_LOOK_AT]:
        try:
            columns = columns_early(source)
        except (OSError, ValueError, RecursionError):  # what is wrong with the file is set aside when it is read
            continue
        missing = sorted(table.columns() - columns) if columns else []
        if missing:
            # Nothing else of the file is quoted: the first row of a table without a head is somebody's.
            near = difflib.get_close_matches(missing[0], columns or (), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {len(columns or ())} others"
            raise RecipeError(f"tables: {pattern!r}: a file that fits it has no column {missing[0]!r}{hint}")


def _listed(parts: Iterable[Part], file: TextIO) -> Iterator[Part]:
    """The parts; each file is written down with its hash when its first part comes."""
    at = None
    for part in parts:
        if part.source is not at:
            at = part.source
            append_row(file, {"file": at.name, "sha256": part.sha256})
        yield part


def _documents(parts: Iterable[Part], tally: Tally) -> Iterator[Document]:
    """Documents of parts in their order. A file with the bytes of an earlier one, and so its ids, is set aside."""
    seen: dict[str, str] = {}  # hash of a file -> the name of the first file that has it
    at = None
    for part in parts:
        source = part.source
        is_copy = bool(part.sha256) and seen.setdefault(part.sha256, source.name) != source.name
        if source is not at:
            at = source
            tally.begin(source)
            if is_copy:
                tally.set_aside(source, SetAside(WHOLE, "the same bytes as another file"))
        for item in [] if is_copy else part.items:
            if isinstance(item, Note):
                tally.notes[item.words] += 1
            elif isinstance(item, SetAside):
                tally.set_aside(source, item)
            else:
                origin = Origin(source.name, item.place, part.sha256)
                document = Document(
                    document_id(origin), item.text, origin, item.kind, item.person, item.language, item.facts
                )
                tally.add(source, document)
                yield document


class _Beat:
    """Says how far it is, and stops when asked to, whether documents come or are waited for."""

    def __init__(self, run: Run, tally: Tally, total: int) -> None:
        self._run, self._tally, self._total = run, tally, total
        self._said_at = time.monotonic()

    def look(self) -> None:
        """Raise Stopped after an interrupt, BudgetError when the time is spent; say something now and then."""
        reason = self._run.should_stop()
        done = self._tally.files.total()
        if reason == "interrupted":
            raise Stopped(f"stopped at file {done:,} of {self._total:,}; the same command reads them anew")
        if reason == "budget":
            raise BudgetError(
                f"the time was spent at file {done:,} of {self._total:,}; grant more (--set budget.time=...)"
            )
        if time.monotonic() - self._said_at >= _SAY_EVERY_S:
            self._said_at = time.monotonic()
            figures = {"documents": self._tally.documents.total(), "MB": self._tally.bytes / 1e6}
            self._run.log.step(done, self._total, **figures)

    def beside(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts, with a look before each."""
        for part in parts:
            self.look()
            yield part


def _warn(facts: Mapping[str, Any], run: Run) -> None:
    for reason, count in Counter(facts["set_aside"]).most_common(3):
        run.log.warn(f"{count:,} set aside: {reason} (each with its place in {SET_ASIDE})")
    for words, count in facts["notes"].items():
        if "by a guess" in words or "not read" in words:
            run.log.warn(f"{count:,} {words}")
    if facts["without_person"]:
        run.log.warn(f"of {facts['without_person']:,} documents no person is known; see README.md")
