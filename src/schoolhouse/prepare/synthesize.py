"""The stage `prepare.synthesize`: further documents that say the same as those that are there, each with its origin.

Two ways: operators that cannot change what a document says (`prepare/operators.py`), and other words by a model, that
`get.replies` was asked for with a lesson about each document. Of the model's words only those stay that hold every
number and every named fact of the original. Facts are carried over as they are; held-out documents are never varied.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.prepare.operators import OPERATORS, Operator
from schoolhouse.text.records import REPLIES, read_rows
from schoolhouse.text.reply import parse_reply
from schoolhouse.text.sourced import HELD_OUT, Document, read_documents, write_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LENGTHS = 0.5, 2.0  # of the original's, between which other words for it lie


class Config(StageConfig):
    """What `prepare.synthesize` makes of documents."""

    data: Ref  # documents, from a stage that makes them
    operators: list[Operator] = Field(default=[])  # what is done to a document that keeps what it says
    each: int = Field(default=1, ge=1)  # further documents of each one, by the operators in turn
    replies: Ref | None = None  # other words for documents, of a stage `get.replies` that was given an open lesson
    keep: list[str] = Field(default=[])  # facts that must stand in those words where they stand in the original


def check(config: Config) -> None:
    """Raise RecipeError before anything starts if there is nothing to do, or a key without effect."""
    if not config.operators and config.replies is None:
        raise RecipeError("neither operators nor replies are given: there is nothing to make.")
    if config.keep and config.replies is None:
        raise RecipeError(
            "keep is set, and nobody gives other words: operators keep all facts. Give replies, or leave it out."
        )
    if "each" in config.model_fields_set and not config.operators:
        raise RecipeError("each is set, and there are no operators: give some, or leave it out.")


@dataclass
class _Count:
    """What was made, and why the rest was not."""

    made: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the documents with their variants behind them, the held-out ones as they are, and a data card."""
    folder, count = inputs[config.data].path, _Count()
    words = _words(inputs[config.replies]) if config.replies is not None else {}
    total = write_documents(out.path, _varied(config, folder, words, run.seed, count))
    if (folder / HELD_OUT).is_dir():
        (out.path / HELD_OUT).mkdir()
        write_documents(out.path / HELD_OUT, read_documents(folder / HELD_OUT))
    for name in words:
        count.left_out["of a document that is not there, or held out"] += len(words[name])
    made = sum(count.made.values())
    if not made:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in count.left_out.most_common(3))
        raise DataError(f"no further document could be made of {total} ({reasons}).")
    out.meta.update(documents=total, made=dict(count.made), left_out=dict(count.left_out))
    (out.path / "README.md").write_text(_card(total, count), encoding="utf-8")
    run.log.info(f"{total} documents, {made} of them made here; {sum(count.left_out.values())} tries were left out")


def _varied(
    config: Config, folder: Path, words: dict[str, list[tuple[str, str]]], seed: int, count: _Count
) -> Iterator[Document]:
    for document in read_documents(folder):
        yield document
        seen = {_plain(document.text)}
        for text, how in [*_operated(config, document, seed, count), *_said(config, document, words, count)]:
            kind = how.split()[0]
            if _plain(text) in seen:
                count.left_out[f"{kind}: nothing changed"] += 1
                continue
            seen.add(_plain(text))
            count.made[kind] += 1
            id = hashlib.sha256(f"{document.id}/{how}".encode()).hexdigest()[:16]
            yield replace(document, id=id, text=text, history=(*document.history, f"varied from {document.id}: {how}"))


def _operated(config: Config, document: Document, seed: int, count: _Count) -> Iterator[tuple[str, str]]:
    for number in range(config.each if config.operators else 0):
        name = config.operators[number % len(config.operators)]
        rng = random.Random(f"{seed}/{document.id}/{name}/{number}")
        text = OPERATORS[name](document.text, rng)
        if problem(document, text, document.facts):
            count.left_out[f"{name}: {problem(document, text, document.facts)}"] += 1
        else:
            yield text, f"{name} (number {number}, seed {seed})"


def _said(
    config: Config, document: Document, words: dict[str, list[tuple[str, str]]], count: _Count
) -> Iterator[tuple[str, str]]:
    for number, (text, finish_reason) in enumerate(words.pop(document.id, [])):
        answer = parse_reply(text).answer
        if finish_reason != "stop" or not answer:
            count.left_out["reply: cut off or not in the form"] += 1
            continue
        wrong = problem(document, answer, config.keep)
        if wrong:
            count.left_out[f"reply: {wrong}"] += 1
        else:
            yield answer, f"reply {number} of the stage {config.replies}"


def problem(document: Document, text: str, keep: Any) -> str | None:
    """Why a text cannot stand for a document's, None if it may: the same numbers, facts and about the same length.

    keep: names of facts that must stand in it if they stand in the original.
    """
    low, high = _LENGTHS
    if not low * len(document.text) <= len(text) <= high * len(document.text):
        return "much shorter or longer"
    if Counter(_NUMBER.findall(text)) != Counter(_NUMBER.findall(document.text)):
        return "other numbers"
    before, now = document.text.casefold(), text.casefold()
    for name in keep:
        value = document.facts.get(name)
        if isinstance(value, str) and value and value.casefold() in before and value.casefold() not in now:
            return f"the fact {name} is gone"
    return None


def _words(replies: Artifact) -> dict[str, list[tuple[str, str]]]:
    """What was said of each document, by its id. Raises DataError for replies to something else."""
    rows = read_rows(replies.file(REPLIES))
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows.good:
        about = (row.get("meta") or {}).get("document")
        if about is None:
            raise DataError("the replies are not about documents: ask a lesson of prepare.lessons with verifier open.")
        found.setdefault(about, []).extend((said["text"], said["finish_reason"]) for said in row["replies"])
    if rows.bad or not found:
        raise DataError(f"{replies.file(REPLIES)}: {len(rows.bad)} bad rows among {len(rows.bad) + len(rows.good)}")
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _card(total: int, count: _Count) -> str:
    made = [f"| {kind} | {n} |" for kind, n in sorted(count.made.items())]
    left = [f"- {reason}: {n}" for reason, n in sorted(count.left_out.items())]
    return "\n".join([
        "# Documents and others that say the same", "",
        f"{total} documents; each that was made here follows its original, and names it in `history`.", "",
        "| made by | documents |", "|---|---|", *made, "",
        "Tries that were left out:", "", *(left or ["- none"]), "",
        "Numbers, the facts that the recipe names and the rough length were compared; nobody has read them.", "",
    ])  # fmt: skip
