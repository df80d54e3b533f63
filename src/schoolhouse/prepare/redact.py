"""The stage `prepare.redact`: documents in which nobody is named any more, with surrogates, and how well that went.

Two passes: the first finds what is personal in each document and keeps only places on disk and, in memory, the names
of each person; the second replaces, so that a name that was found once is replaced in all texts of its person.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig, did_you_mean
from schoolhouse.core.errors import BudgetError, DataError, MachineError, RecipeError, Stopped
from schoolhouse.core.machine import available_memory_bytes, usable_cores
from schoolhouse.prepare.redaction.crew import Crew
from schoolhouse.prepare.redaction.engine import Finder
from schoolhouse.prepare.redaction.keys import secret_of
from schoolhouse.prepare.redaction.language import load_languages, rules_files
from schoolhouse.prepare.redaction.measure import Figures, measure, read_gold, read_reviews, shipped
from schoolhouse.prepare.redaction.people import People
from schoolhouse.prepare.redaction.report import DOUBTFUL, Measured, Tally, card, write_findings
from schoolhouse.prepare.redaction.reversal import REVERSAL, Reversal, skip
from schoolhouse.prepare.redaction.review import Marks, Sample
from schoolhouse.prepare.redaction.rewrite import Rewriter, hidden_id
from schoolhouse.prepare.redaction.search import Found, Search, Terms, learn, open_search, search
from schoolhouse.prepare.redaction.surrogates import Style
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.redaction import META
from schoolhouse.text.sourced import HELD_OUT, Document, read_documents, write_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_SAY_EVERY_S = 10.0
_BYTES = 1200 * 2**20  # measured: spaCy, Presidio and the tagger


class Config(StageConfig):
    """What `prepare.redact` replaces in documents, and how it is measured."""

    data: Ref  # documents, from a stage that makes them
    tagger: Ref | None = None  # a stage of `get.tagger`; without it fewer names are found
    style: Style = "surrogate"  # invented names and moved dates, or "tag" for words such as [NAME-3f9c01]
    language: str = "en"  # of documents that do not state theirs, and of the gold set
    rules: list[str] = Field(default=[])  # rules files of your own, added to those that are shipped
    identifiers: list[str] = Field(default=[])  # facts that name somebody: replaced in all of that person's texts
    keep: list[str] = Field(default=[])  # facts that name nobody, such as codes: they stay as they are
    key_env: str | None = None  # environment variable that holds the key; with it reversal.bin is written
    key_file: str = "~/.config/schoolhouse/redaction.key"  # where the key lies without key_env; made if it is not there
    recall: float = Field(default=0.98, gt=0, le=1)  # the share of names and of ids that has to be found
    gold: str | None = None  # marked texts of your own to measure on; the shipped ones without it
    review: int = Field(default=20, ge=0)  # documents in the sample for people to look through
    reviewed: str | None = None  # that sample with your marks: measured, and what was missed is replaced


def check(config: Config) -> None:
    """Raise before anything starts: a missing package, key, file, or a language without rules."""
    languages = load_languages(config.rules)
    needed = ["presidio_analyzer", *({"spacy"} | {language.spacy for language in languages.values() if language.spacy})]
    needed += ["onnxruntime"] * (config.tagger is not None) + ["cryptography"] * (config.key_env is not None)
    missing = sorted(name for name in needed if not importlib.util.find_spec(name))
    if missing:
        raise MachineError(f"redaction needs {', '.join(missing)}: pip install 'schoolhouse[prepare]'")
    if config.language not in languages:
        raise RecipeError(f"language {config.language!r} has no rules{did_you_mean(config.language, languages)}")
    if both := sorted({*config.identifiers} & {*config.keep}):
        raise RecipeError(f"{both[0]!r} stands in identifiers and in keep: take it out of one of them")
    secret_of(config.key_env, config.key_file)
    for path in filter(None, (config.gold, config.reviewed)):
        if not Path(path).is_file():
            raise RecipeError(f"there is no file {path}; gold and reviewed name JSONL files")
    if config.gold is not None:
        read_gold([Path(config.gold)])
    if config.reviewed is not None:
        read_reviews(Path(config.reviewed))


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: rules, gold set, marks, and which key it is."""
    files = [*rules_files(config.rules), *_gold(config), *(Path(p) for p in [config.reviewed] if p)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256("\n".join([*digests, secret_of(config.key_env, config.key_file).mark]).encode()).hexdigest()


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, object]]) -> int:
    """Bytes that the recognisers take; the names of each person come on top, some hundred bytes for each."""
    return _BYTES


def _gold(config: Config) -> list[Path]:
    return [Path(config.gold)] if config.gold is not None else shipped(config.language)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write redacted documents, findings.json, doubtful.jsonl, review.jsonl, a data card, and reversal.bin if asked.

    Raises DataError for identifiers and kept facts that no document has, and Stopped or BudgetError; then the same
    command goes on.
    """
    secret = secret_of(config.key_env, config.key_file)
    tagger = inputs[config.tagger].path if config.tagger is not None else None
    if tagger is None:
        run.log.warn("no tagger is given: names that only it would find stay in the texts (a stage of get.tagger)")
    rules, identifiers, keep = tuple(config.rules), tuple(config.identifiers), tuple(config.keep)
    terms = Terms(rules, tagger, config.style, identifiers, keep, config.language, secret)
    workers = min(run.machine.threads or usable_cores(), max(1, available_memory_bytes() // _BYTES))
    searcher = open_search(terms)
    with Crew(terms, searcher, workers, lambda: run.meter.phase("wait")) as crew:
        _redact(config, _Passes(config, searcher, run, inputs[config.data].path, crew), tagger is not None, out)


def _redact(config: Config, passes: _Passes, has_tagger: bool, out: Draft) -> None:
    run, searcher = passes.run, passes.searcher
    secret = searcher.secret
    with run.meter.phase("measure"):  # first, so that whoever waits for the rest knows what it will be worth
        figures = _figures(config, searcher.finder)
        _warn(run, _measured(config, figures, None).below())
    with run.meter.phase("find"):
        people = passes.find()
    marks = None
    if config.reviewed is not None:
        marks = Marks(read_reviews(Path(config.reviewed)), searcher, secret, config.style)
        marks.take(passes.again(), people)
        if marks.stale:
            run.log.warn(f"reviewed: {marks.stale} marked texts are not those of this run, and were left out")
    sample = Sample(config.review, secret, run.seed)
    with (out.path / DOUBTFUL).open("w", encoding="utf-8") as file:
        tally = Tally(file)
        with run.meter.phase("replace"):
            count = passes.write(out.path, Rewriter(searcher, people, secret, config.style), tally, sample, marks)
    sample.write(out.path)
    measured = _measured(config, figures, marks)
    write_findings(out.path, tally, measured)
    said = {
        "Style": config.style,
        "Key": f"`{secret.mark}`, from {'the environment' if config.key_env else 'a file'}",
        "Tagger": "yes" if has_tagger else "none", "Languages": ", ".join(sorted(searcher.finder.languages)),
        "Way back": f"`{REVERSAL}`, for whoever has the key" if config.key_env else "none is kept",
    }  # fmt: skip
    (out.path / "README.md").write_text(card(tally, measured, said, count), encoding="utf-8")
    out.meta.update({
        "documents": count, "replaced": tally.types.total() + tally.facts.total(), "set_aside": len(tally.aside),
        "doubtful": tally.doubts.total(), "key": secret.mark, META: measured.to_json(),
    })  # fmt: skip
    _tell(run, count, tally, measured)


def _tell(run: Run, count: int, tally: Tally, measured: Measured) -> None:
    names, ids = measured.test.said("name"), measured.test.said("id")
    run.log.info(f"{count:,} documents, {tally.types.total():,} places replaced; recall of names {names}, of ids {ids}")
    if tally.aside:
        run.log.warn(f"{len(tally.aside):,} documents were set aside: there are no rules for their language")
    _warn(run, measured.below())


def _warn(run: Run, below: Iterable[str]) -> None:
    for line in below:
        run.log.warn(f"NOT WELL ENOUGH REDACTED: {line}. Stages that train refuse these documents.")


def _figures(config: Config, finder: Finder) -> dict[str, Figures]:
    """What measuring on both halves of the gold set gives."""
    rows = read_gold(_gold(config))
    halves = {half: [row for row in rows if row.half == half] for half in ("dev", "test")}
    return {half: measure(finder, part, config.language) if part else Figures() for half, part in halves.items()}


def _measured(config: Config, figures: Mapping[str, Figures], marks: Marks | None) -> Measured:
    reviewed, precision = marks.shares() if marks is not None else (None, [0, 0])
    name = "your own" if config.gold else "the shipped one" if _gold(config) else "none"
    return Measured(figures["test"], figures["dev"], name, reviewed, precision, config.recall)


@dataclass
class _Passes:
    """The passes over the documents of an artifact, in their order."""

    config: Config
    searcher: Search
    run: Run
    source: Path
    crew: Crew
    part: str = "find"  # what this pass is for
    done: int = 0  # its documents so far
    said_at: float = 0.0

    @functools.cached_property
    def total(self) -> int:
        """How many documents there are."""
        count = 0
        for folder in self.folders:
            with (self.source / folder / DOCUMENTS).open("rb") as file:
                count += sum(1 for _ in file)
        return count

    @property
    def folders(self) -> list[Path]:
        """The folders with documents, below that of the artifact: those that are held out are redacted as well."""
        return [Path(), *([Path(HELD_OUT)] if (self.source / HELD_OUT / DOCUMENTS).is_file() else [])]

    def find(self) -> People:
        """Search every document; returns what names each person. Raises DataError for a fact that no document has."""
        keys = {key for folder in self.folders for held in read_documents(self.source / folder) for key in held.facts}
        for name in ("identifiers", "keep"):
            wrong = [key for key in getattr(self.config, name) if key not in keys]
            if wrong:
                raise DataError(f"{name}: no document has the fact {wrong[0]!r}{did_you_mean(wrong[0], keys)}")
        people = People()
        for document, found in self.again():
            learn(people, document, found, self.searcher)
        return people

    def again(self) -> Iterator[tuple[Document, Found]]:
        """Every document with what was found in it; what an earlier pass found is read, not searched again."""
        self.done = 0
        for folder in self.folders:
            yield from self._pairs(folder)

    def _pairs(self, folder: Path) -> Iterator[tuple[Document, Found]]:
        file = self.run.scratch / f"found-{folder.name or 'documents'}.jsonl"
        return search(read_documents(self.source / folder), self.searcher.by, file, self.crew.look, self._look)

    def _look(self) -> None:
        reason = self.run.should_stop()
        if reason == "interrupted":
            raise Stopped(f"stopped at document {self.done:,} of {self.total:,}; the same command goes on there")
        if reason == "budget":
            raise BudgetError(
                f"the time was spent at document {self.done:,} of {self.total:,}; grant more (--set budget.time=...), "
                "it goes on there"
            )
        self.done += 1
        if time.monotonic() - self.said_at >= _SAY_EVERY_S:
            if self.said_at:
                self.run.log.step(self.done, self.total if self.part == "find" else None, part=self.part)
            self.said_at = time.monotonic()

    def write(self, out: Path, rewriter: Rewriter, tally: Tally, sample: Sample, marks: Marks | None) -> int:
        """Rewrite every document; returns how many were written."""
        count = self.done = 0
        self.part = "replace"
        seen: set[str] = set()
        for folder in self.folders:
            (out / folder).mkdir(exist_ok=True)
            with ExitStack() as stack:
                back = stack.enter_context((out / folder / REVERSAL).open("wb")) if self.config.key_env else None
                documents = self._rewritten(self._pairs(folder), rewriter, tally, sample, marks, back, seen)
                count += write_documents(out / folder, documents)
        tally.people = len(seen)
        return count

    def _rewritten(
        self, pairs: Iterable[tuple[Document, Found]], rewriter: Rewriter, tally: Tally, sample: Sample,
        marks: Marks | None, back: BinaryIO | None, seen: set[str],
    ) -> Iterator[Document]:  # fmt: skip
        reversal = Reversal(back, self.searcher.secret) if back is not None else None
        for document, found in pairs:
            if found.done == "aside":
                tally.aside.append(
                    {"id": hidden_id(self.searcher.secret, document.id), "language": str(document.language)}
                )
                continue
            if found.done == "sealed":
                tally.documents["sealed"] += 1
                if back is not None:
                    skip(back)
                yield document
                continue
            redacted = rewriter.rewrite(document, found, marks.missed(document) if marks is not None else ())
            tally.add(redacted)
            sample.offer(redacted)
            if reversal is not None:
                reversal.add(document, redacted)
            if redacted.document.person is not None:
                seen.add(redacted.document.person)
            yield redacted.document
