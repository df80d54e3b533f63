"""The stage `prepare.ontology`: a code system becomes documents and questions with answers, some terms held out.

Terms have codes, names, parents and relations. What is inconsistent is counted and left out; every kind of question is
a task file of its own, for `train.grpo` and `evaluate.exam`, and what may be learnt is written for `train.sft`, too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import DataError, RecipeError, Stopped
from schoolhouse.prepare.ontologies.card import write_card
from schoolhouse.prepare.ontologies.checks import Finding, check_terms
from schoolhouse.prepare.ontologies.questions import LEVELS, Questions, Row, hold_out
from schoolhouse.prepare.ontologies.sources import ICD, check_source, file_sha256, icd_sha256, icd_version, read_source
from schoolhouse.prepare.ontologies.terms import Ontology, Term, below, key, sample
from schoolhouse.prepare.ontologies.wordings import KINDS, TAUGHT, Kind
from schoolhouse.tasks.task import SPLITS, Example, Split, example_id, question_conversation
from schoolhouse.text.records import CONVERSATIONS, Conversation, append_row
from schoolhouse.text.reply import render_reply
from schoolhouse.text.sourced import Document, Origin, document_id, write_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

CHECKS = "checks.json"
HELD_OUT = "held_out"  # the folder of documents that nothing may learn from
_WORD = re.compile(r"[^\s,;()\[\]\"']+")


class Config(StageConfig):
    """What `prepare.ontology` reads and asks."""

    source: str  # `icd-10-cm`, or a file: an ontology (`.obo`) or a table of codes (`.csv`, `.tsv`)
    title: str | None = None  # what questions call the code system; the file's name without it
    columns: dict[str, str] = Field(default={})  # of a table: heading of `code`, `name`, `parent`, or of a relation
    below: list[str] = Field(default=[])  # codes that are taken with all below them; everything without it
    most: int | None = Field(default=None, ge=1)  # terms at most, in whole families that the seed draws
    ask: list[Kind] = Field(default=list(KINDS), min_length=1)  # kinds of questions
    phrasings: int = Field(default=2, ge=1, le=TAUGHT)  # wordings in which each thing is trained on
    held_out: float = Field(default=0.1, gt=0, le=0.5)  # share of the leaves, and of what is known in another wording
    licence: str | None = None  # of a file of your own, for the card


def check(config: Config) -> None:
    """Raise RecipeError or DataError before anything starts for a source that is not there or cannot be read so."""
    check_source(config.source, config.columns)
    if config.source == ICD and config.licence is not None:
        raise RecipeError(f"source {ICD!r} states its licence itself: take licence out of the recipe.")
    if config.title is not None and not config.title.strip():
        raise RecipeError("title is empty: say what questions shall call the code system, or leave it out.")


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: the package's version and data, or the bytes of the file."""
    return f"{icd_version()} {icd_sha256()}" if config.source == ICD else file_sha256(Path(config.source))


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write a file of questions for each kind, conversations.jsonl, documents, checks.json and a data card.

    Raises DataError if no term can be used, or none gives a question.
    """
    check(config)
    read = read_source(config.source, config.columns)
    whole, findings = check_terms(read)
    if not whole.terms:
        first = next((f"{what}: {f.examples[0]}" for what, f in findings.items() if f.count), "it is empty")
        raise DataError(f"{config.source} holds no term that can be used; {first}")
    _tell(findings, run)
    part = sample(below(whole, config.below), config.most, run.seed)
    held = hold_out(part, config.held_out, run.seed)
    questions = Questions(part, held, _title(config), config.held_out, run.seed)
    counts = _write_questions(config, questions, run, out.path)
    if not counts:
        raise DataError(f"{config.source}: no term gives a question of the kinds {', '.join(config.ask)}; see `ask`.")
    path = Path(config.source)
    origin = (icd_version(), icd_sha256()) if config.source == ICD else (path.name, file_sha256(path))
    documents = _write_documents(part, held, _title(config), origin, out.path)
    (out.path / CHECKS).write_text(
        json.dumps({k: asdict(f) for k, f in findings.items()}, indent=1, ensure_ascii=False)
    )
    facts = {
        "terms": len(part.terms), "held_out": len(held), "source_terms": len(whole.terms), "questions": counts,
        "left_out": read.left_out, "checks": {what: f.count for what, f in findings.items() if f.count}, **documents,
    }  # fmt: skip
    rows = sum(n["train"] for n in counts.values())
    out.meta.update(
        facts, rows=rows, licence=write_card(config.licence, config.source, origin[0], facts, findings, out)
    )
    run.log.info(
        f"{len(part.terms):,} of {len(whole.terms):,} terms, {len(held):,} held out; {rows:,} questions to learn from, "
        + ", ".join(f"{kind} {' + '.join(f'{n[level]:,}' for level in LEVELS)}" for kind, n in counts.items())
        + f" to be examined in ({' + '.join(LEVELS)})"
    )


def _title(config: Config) -> str:
    return config.title or ("ICD-10-CM" if config.source == ICD else Path(config.source).stem)


def _tell(findings: Mapping[str, Finding], run: Run) -> None:
    for what, finding in findings.items():
        if finding.count:
            run.log.warn(f"{what}: {finding.count:,} ({finding.effect}), the first: {finding.examples[0]}")


def _write_questions(config: Config, questions: Questions, run: Run, folder: Path) -> dict[str, dict[str, Any]]:
    """A file for each kind that has any, and all that may be learnt as conversations; returns what was counted."""
    counts: dict[str, dict[str, Any]] = {}
    with (folder / CONVERSATIONS).open("w", encoding="utf-8", errors="replace") as learnt:
        for kind in dict.fromkeys(config.ask):
            if run.should_stop() == "interrupted":
                raise Stopped(f"stopped before the questions {kind}; the same command begins this stage again")
            counted: Counter[str] = Counter()
            path = folder / f"{kind}.jsonl"
            with path.open("w", encoding="utf-8", errors="replace") as file:
                for row in questions.rows(kind, config.phrasings):
                    counted[row.split if row.split == "train" else row.level] += 1
                    append_row(file, row.to_task(kind))
                    if row.split == "train":
                        append_row(learnt, _conversation(kind, row, questions.title).to_row())
            if not counted:
                path.unlink()
                reasons = questions.left_out[kind]
                why = ", ".join(f"{reason}: {n:,}" for reason, n in reasons.most_common(3)) or "the source has none"
                run.log.warn(f"no questions {kind} ({why})")
                continue
            counts[kind] = {name: counted[name] for name in ("train", *LEVELS)}
            counts[kind]["left_out"] = dict(questions.left_out[kind])
    return counts


def _conversation(kind: Kind, row: Row, title: str) -> Conversation:
    """A training question with its bare answer, in the form in which tasks ask for one."""
    example = Example(example_id(kind, row.level, row.question), kind, row.level, row.question, row.said)
    asked = question_conversation(example, thinking=False)
    meta = {**asked.meta, "source": title, "code": row.asked.code}
    return Conversation(asked.messages, meta).plus("assistant", render_reply(None, row.said))


def _write_documents(
    part: Ontology, held: frozenset[str], title: str, origin: tuple[str, str], folder: Path
) -> dict[str, int]:
    """One document a term, those of held-out terms in a folder of their own; lines that name one are left out."""
    left_out = 0
    names = {key(part.terms[code].name) for code in held}

    def documents(wanted: Split) -> Iterator[Document]:
        nonlocal left_out
        for term in part.terms.values():
            if (term.code in held) != (wanted == "test"):
                continue
            lines = _lines(term, part, title)
            kept = lines if wanted == "test" else [line for line in lines if not _names_one(line, held, names)]
            left_out += len(lines) - len(kept)
            place = Origin(origin[0], term.place, origin[1])
            facts = {"code": term.code, "name": term.name, "parent": " | ".join(term.parents) or None}
            yield Document(document_id(place), "\n".join(kept), place, "term", facts=facts)

    (folder / HELD_OUT).mkdir()
    learnt, asked = (
        write_documents(folder if split == "train" else folder / HELD_OUT, documents(split)) for split in SPLITS
    )
    return {"documents": learnt, "documents_held_out": asked, "lines_left_out": left_out}


def _lines(term: Term, part: Ontology, title: str) -> list[str]:
    """What is known of a term, a line each; the first can't be left out, for it names nothing else."""
    lines = [f"{title} {term.code}: {term.name}"]
    lines += [f"Comes under {code}: {part.source[code].name}" for code in part.source[term.code].parents]
    lines += [f"Also: {synonym}" for synonym in term.synonyms]
    for kind, codes in term.relations.items():
        lines += [f"{kind.replace('_', ' ')}: {part.source[code].name} ({code})" for code in codes]
    lines += [f"{kind.replace('_', ' ')}: {word}" for kind, words in term.words.items() for word in words]
    return lines + [line for note in term.notes for line in note.splitlines()]


def _names_one(line: str, held: frozenset[str], names: set[str]) -> bool:
    """Whether a line gives away a held-out term, by its code or as the whole of what stands behind a label."""
    text = line.partition(": ")[2] or line
    bare = re.sub(r"\s*\([^()]*\)\s*$", "", text)
    return key(text) in names or key(bare) in names or any(word.rstrip(".-:") in held for word in _WORD.findall(line))
