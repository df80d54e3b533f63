"""What is agreed becomes the files of later stages: questions, conversations, ratings, marked texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from schoolhouse.tasks.task import Example, Split, example_id, question_conversation
from schoolhouse.text.labels import FIRST, TIE, LabelSchema, Value, written
from schoolhouse.text.preferences import RATINGS, Rating, write_ratings
from schoolhouse.text.records import CONVERSATIONS, Conversation, Message, write_conversations, write_rows
from schoolhouse.text.reply import TAGS, render_reply
from schoolhouse.text.sourced import Document

TASK, GOLD, GOLD_TRAIN = "questions.jsonl", "gold.jsonl", "gold-train.jsonl"
NONE = "none"  # the answer where a document has none of several classes


class Held(NamedTuple):
    """A document that labels speak of, and on which side it stands."""

    document: Document
    split: Split


def export(schema: LabelSchema, values: Mapping[str, Value], held: Mapping[str, Held], folder: Path) -> dict[str, int]:
    """Write what is agreed as the files that other stages read; returns how much."""
    rows = [(held[name], values[name]) for name in sorted(values)]
    if schema.kind == "spans":
        return {
            file: write_rows(folder / file, (_gold(one.document, v) for one, v in rows if one.split == split))
            for file, split in ((GOLD, "test"), (GOLD_TRAIN, "train"))
        }
    if schema.kind == "pairs":
        ratings = [r for one, v in rows if v != TIE for r in _ratings(schema, one.document, v == FIRST)]
        return {RATINGS: write_ratings(folder / RATINGS, ratings), "ties": sum(v == TIE for _, v in rows)}
    return _questions(schema, rows, folder)


def _gold(document: Document, value: Value) -> dict[str, Any]:
    return {"id": document.id, "text": document.text, "spans": written(value), "person": document.person}


def asked_of(document: Document) -> Conversation:
    """The messages that a pair of replies answers."""
    return Conversation((Message("user", document.text),), _origin(document))


def replies_of(schema: LabelSchema, document: Document) -> tuple[str, str] | None:
    """The two replies of a pair; None where a document holds none, or twice the same."""
    first, second = (document.facts.get(key) for key in schema.replies)
    if not (isinstance(first, str) and isinstance(second, str) and first.strip() and second.strip()):
        return None
    return None if first == second else (first, second)


def _ratings(schema: LabelSchema, document: Document, first: bool) -> list[Rating]:
    replies, asked = replies_of(schema, document), asked_of(document)
    assert replies is not None, "only pairs are asked about"
    return [Rating(asked, replies[0], first), Rating(asked, replies[1], not first)]


def _questions(schema: LabelSchema, rows: Iterable[tuple[Held, Value]], folder: Path) -> dict[str, int]:
    """Questions of both sides, and conversations to learn from; held-out ones go first, for none may be learnt."""
    made: dict[str, tuple[Split, dict[str, Any]]] = {}
    left_out = 0
    for (document, split), value in sorted(rows, key=lambda row: row[0].split):
        question, answer = _question(schema, document), _answer(value)
        if question in made or any(tag in answer for tag in TAGS):
            left_out += 1
            continue
        made[question] = split, {
            "question": question, "answer": answer, "split": split, "meta": _origin(document),
        }  # fmt: skip
    write_rows(folder / TASK, (row for _, row in made.values()))
    talks = [_conversation(row) for split, row in made.values() if split == "train"]
    write_conversations(folder / CONVERSATIONS, talks)
    return {TASK: len(made), CONVERSATIONS: len(talks), "left_out": left_out}


def _question(schema: LabelSchema, document: Document) -> str:
    parts = [document.text.strip(), schema.question.strip()]
    if schema.kind == "classes":
        names = ", ".join(schema.names)
        how = f"all that fit, in this order and with commas between, or {NONE}" if schema.several else "one of these"
        parts.append(f"Answer with {how}: {names}.")
    return "\n\n".join(parts)


def _answer(value: Value) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value)) or NONE


def _conversation(row: Mapping[str, Any]) -> Conversation:
    question = row["question"]
    name = Path(TASK).stem
    example = Example(example_id(name, "all", question), name, "all", question, row["answer"])
    asked = question_conversation(example, thinking=False)
    return Conversation(asked.messages, {**asked.meta, **row["meta"]}).plus(
        "assistant", render_reply(None, row["answer"])
    )


def _origin(document: Document) -> dict[str, Any]:
    return {"document": document.id, "source": vars(document.source), "person": document.person}
