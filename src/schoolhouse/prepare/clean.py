"""The stage `prepare.clean`: sets aside what is unfit, repeated or asked in an exam, and holds some persons out.

A row is held against the rules of quality, the languages, the evaluation sets and all rows kept before it, in this
order; the first that it fails is the reason why it is set aside. What remains is divided by person: no person has rows
on both sides, and no two rows that remain are alike. Nothing is changed in what is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, Stopped
from schoolhouse.prepare.cleaning.card import EXAM, SET_ASIDE, card, most_common
from schoolhouse.prepare.cleaning.decontaminate import Evaluations, gather
from schoolhouse.prepare.cleaning.duplicates import Before, bytes_of, need_datasketch
from schoolhouse.prepare.cleaning.quality import Quality, unfit
from schoolhouse.prepare.rows import Row, Rows
from schoolhouse.tasks.load import TaskSpec, tasks_at_hand
from schoolhouse.tasks.load import fingerprint as fingerprint_of
from schoolhouse.text.language import check_language, share_in
from schoolhouse.text.records import append_row
from schoolhouse.text.sourced import HELD_OUT

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

UNREADABLE, LANGUAGE, SAME, ALIKE = "unreadable", "language", "duplicate", "near_duplicate"
_OWN_LANGUAGE = 0.5  # of the letters, in sentences that are not surely of another
_LEARN, _HOLD, _LEAVE = range(3)
_SAY_EVERY = 5_000


class Config(StageConfig):
    """What `prepare.clean` reads, what it sets aside and what it holds out."""

    data: Ref  # documents or conversations of an earlier stage
    held_out: float = Field(
        default=0.1, ge=0, lt=1
    )  # share of the persons (of the documents that are nobody's); where `data` holds some out, those stay
    similar: float = Field(
        default=0.75, gt=0, le=1
    )  # share of 5-word shingles that two near duplicates have in common; 1: only equal words count
    languages: list[str] = Field(default=[])  # two-letter codes, of which each row has to be in one; empty is any
    against: list[TaskSpec] = Field(default=[])  # tasks whose test questions nothing may hold
    against_data: list[Ref] = Field(default=[])  # stages whose held-out rows nothing may hold
    questions: int = Field(default=500, ge=1)  # test questions a level of tasks that make them; a file's are all taken
    ngram: int = Field(default=8, ge=2)  # words in a row by which questions are found
    overlap: float = Field(default=0.7, gt=0, le=1)  # share of a question's n-grams that makes a row one that holds it
    quality: Quality = Quality()  # numbers of the rules, see below


def check(config: Config) -> None:
    """Raise RecipeError or TaskError before anything starts for a language, task or library that is missing."""
    for language in config.languages:
        check_language(language)
    tasks_at_hand(config.against)
    if config.similar < 1:
        need_datasketch()


def fingerprint(config: Config) -> str:
    """Return the hash of the questions that are looked for."""
    return fingerprint_of(config.against)


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """What the kept rows take: hashes and signatures, no texts."""
    meta = inputs_meta.get(config.data, {})
    count = meta.get("documents", meta.get("rows", 0))
    return int(count) * bytes_of(config.similar) if isinstance(count, int) else 0


@dataclass(frozen=True)
class Reason:
    """Why a row is set aside: a name, what was found in words without its text, and of which row or set it speaks."""

    name: str
    found: str
    of: str | None = None


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write what is kept, what is held out, set_aside.jsonl and the data card.

    Raises DataError if nothing is left to learn from, Stopped after Ctrl-C.
    """
    held, rows = _sources(inputs[config.data].path)
    evaluations = gather(config, inputs, run)
    found = _decide(config, held, rows, evaluations, run, out)
    unread, left = sum(len(one.bad) for one in (held, rows) if one), found.held + found.verdicts
    counts = {
        "read": len(left) + unread, "documents": left.count(_LEARN), "held_out": left.count(_HOLD),
        "set_aside": left.count(_LEAVE) + unread,
    }  # fmt: skip
    reasons = found.reasons
    _need_some(counts, reasons, rows)
    rows.write(out.path, _chosen(rows, found.verdicts, _LEARN))
    if counts["held_out"]:
        (out.path / HELD_OUT).mkdir()
        before = _chosen(held, found.held, _HOLD) if held else iter(())
        rows.write(out.path / HELD_OUT, chain(before, _chosen(rows, found.verdicts, _HOLD)))
    out.meta.update(counts, reasons=dict(reasons), evaluations=dict(evaluations.texts))
    (out.path / "README.md").write_text(
        card(config, rows.name, counts, reasons, evaluations, was_held=bool(found.held)), encoding="utf-8"
    )
    run.log.info(
        f"{counts['read']:,} rows: {counts['documents']:,} to learn from, {counts['held_out']:,} held out, "
        f"{counts['set_aside']:,} set aside ({most_common(reasons)})"
    )
    if config.held_out and not counts["held_out"]:
        run.log.warn("nothing is held out: there are too few persons for so small a share; give a larger held_out")
    for name, n in reasons.items():
        if n > counts["read"] / 2:
            run.log.warn(f"{n} of {counts['read']} rows are set aside as {name}: are the numbers right for such texts?")


@dataclass
class _Found:
    """What becomes of each row that could be read, of those held out before and of the others, and why."""

    held: bytearray = field(default_factory=bytearray)
    verdicts: bytearray = field(default_factory=bytearray)
    reasons: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)  # of the kept rows, as `Before` counts them


def _sources(folder: Path) -> tuple[Rows | None, Rows]:
    """The rows that an earlier stage holds out already, if there are any, and the others."""
    rows, held = Rows(folder), Rows(folder / HELD_OUT) if (folder / HELD_OUT).is_dir() else None
    if held is not None and held.name != rows.name:
        raise DataError(f"{folder} holds {rows.name}, and {HELD_OUT} in it {held.name}: both must be of one kind")
    return held, rows


def _decide(config: Config, held: Rows | None, rows: Rows, evaluations: Evaluations, run: Run, out: Draft) -> _Found:
    """Look at each row once; those that are set aside are written as they are found."""
    before, found, owners = Before(config.similar), _Found(), set[str]()
    with (out.path / SET_ASIDE).open("w", encoding="utf-8", errors="replace") as file:
        for row in _watched(held or (), run):
            kept = _kept(config, row, evaluations, before, found, file)
            owners.add(_owner(row))
            found.held.append(_HOLD if kept else _LEAVE)
        for row in _watched(rows, run):
            if not _kept(config, row, evaluations, before, found, file):
                found.verdicts.append(_LEAVE)
                continue
            is_out = _owner(row) in owners if owners else _is_held_out(row, config.held_out, run.seed)
            found.verdicts.append(_HOLD if is_out else _LEARN)
        for one, name in ((held, f"{HELD_OUT}/{rows.name}"), (rows, rows.name)):
            for bad in one.bad if one else ():
                found.reasons[UNREADABLE] += 1
                source = {"file": name, "place": f"line {bad.line}"}
                append_row(file, {"id": None, "source": source, "reason": UNREADABLE, "found": bad.reason})
    return found


def _watched(rows: Iterable[Row], run: Run) -> Iterator[Row]:
    """The rows, with a word now and then; raises Stopped after Ctrl-C."""
    for number, row in enumerate(rows, 1):
        if number % _SAY_EVERY == 0:
            if run.should_stop() == "interrupted":
                raise Stopped(f"stopped after {number:,} rows; the same command begins this stage again")
            run.log.step(number)
        yield row


def _kept(config: Config, row: Row, evaluations: Evaluations, before: Before, found: _Found, file: TextIO) -> bool:
    """Whether a row is kept; otherwise write down why not."""
    reason = _fault(config, row, evaluations) or _twin(row, before, found.ids)
    if reason is None:
        found.ids.append(row.id)
        return True
    found.reasons[f"{EXAM}: {reason.of}" if reason.name == EXAM else reason.name] += 1
    said = {"id": row.id, "source": {"file": row.file, "place": row.place}, "reason": reason.name}
    append_row(file, said | {"found": reason.found} | ({} if reason.of is None else {"of": reason.of}))
    return False


def _fault(config: Config, row: Row, evaluations: Evaluations) -> Reason | None:
    """What is wrong with a row by itself."""
    wrong = unfit(row.text, config.quality)
    if wrong is not None:
        return Reason(*wrong)
    if config.languages:
        share = max(share_in(row.text, language) for language in config.languages)
        if share < _OWN_LANGUAGE:
            return Reason(LANGUAGE, f"{share:.1%} of the letters are in a wanted language")
    met = evaluations.find(row.parts)
    return Reason(EXAM, f"{met.share:.1%} in common", met.name) if met is not None else None


def _twin(row: Row, before: Before, ids: Sequence[str]) -> Reason | None:
    """Which kept row it repeats."""
    twin = before.meet(row.text, len(ids))
    if twin is None:
        return None
    return Reason(SAME if twin.equal else ALIKE, f"{twin.similarity:.1%} alike", ids[twin.number])


def _owner(row: Row) -> str:
    """Whose a row is: a person's, or of the document that it is or was made from."""
    return f"document/{row.document}" if row.person is None else f"person/{row.person}"


def _is_held_out(row: Row, share: float, seed: int) -> bool:
    """Whether a row's owner is held out: by a hash that the seed keys.

    It depends on nothing else, so that more data never move a person from one side to the other.
    """
    owner = _owner(row).encode("utf-8", "replace")
    digest = hashlib.blake2b(owner, digest_size=8, key=str(seed).encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64 < share


def _chosen(rows: Rows, verdicts: Sequence[int], wanted: int) -> Iterator[Row]:
    return (row for row, verdict in zip(rows, verdicts, strict=True) if verdict == wanted)


def _need_some(counts: Mapping[str, int], reasons: Counter[str], rows: Rows) -> None:
    if counts["documents"]:
        return
    first = f" The first unreadable row: {rows.bad[0]}." if rows.bad else ""
    raise DataError(
        f"nothing is left to learn from: of {counts['read']} rows {counts['held_out']} are held out and "
        f"{counts['set_aside']} set aside ({most_common(reasons)}).{first} Change the rules' numbers, or the data."
    )
