"""The stage `prepare.lessons`: facts of documents become questions with answers that can be checked.

A lesson is a template: "{text} Which code fits?" with the answer "{code}". Of documents to learn from it makes
conversations for `train.sft` and training questions for `train.grpo`, of held-out ones the questions of an exam, each
with where it came from. Dialogues become conversations as they were held.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig, Strict, did_you_mean
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.tasks.task import SPLITS, Example, Split, example_id, question_conversation, split_of
from schoolhouse.tasks.verify import OPEN, complaint, load_verifier
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import CONVERSATIONS, Conversation, Message, write_conversations, write_rows
from schoolhouse.text.reply import render_reply
from schoolhouse.text.sourced import HELD_OUT, Document, read_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_TEXT, _OPENING = "text", "opening"


class Lesson(Strict):
    """One kind of question. Templates are words with the name of a fact between braces, `{text}`, or `{opening}`:
    what the user of a dialogue says before the assistant's first line.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")  # of the task, and of the file of questions NAME.jsonl
    ask: str  # template of the question
    answer: str  # template of the answer
    think: str | None = None  # template of the way to it; without it the answer is taught bare
    level: str = "all"  # template of the level's name
    verifier: str = "exact"  # how an answer is checked
    kind: str | None = None  # documents of this kind; of every kind without it
    where: dict[str, str | int | bool] = Field(default={})  # what documents say in these facts


class Talk(Strict):
    """Whose lines of a dialogue (`Name: words`) are the user's, and whose are to be learnt."""

    user: str  # the name before the lines that are asked
    assistant: str  # the name before the lines that are learnt
    system: str | None = None  # what the model is told before them
    kind: str = "dialogue"  # documents of this kind


class Config(StageConfig):
    """What `prepare.lessons` makes of documents."""

    data: Ref  # documents, from a stage that makes them
    lessons: list[Lesson] = Field(default=[])  # each makes a file of questions, see below
    talk: Talk | None = None  # dialogues that become conversations
    groups: list[str] = Field(default=[])  # facts that go beside every question, for counting by group
    most: int | None = Field(default=None, ge=1)  # training questions of a lesson at most, the first ones


def check(config: Config) -> None:
    """Raise RecipeError or TaskError before anything starts for templates that cannot be filled in."""
    if not config.lessons and config.talk is None:
        raise RecipeError(
            "neither lessons nor talk is given, so nothing is made: write lessons = [{ name, ask, answer }]."
        )
    names = [lesson.name for lesson in config.lessons]
    for name, lesson in zip(names, config.lessons, strict=True):
        load_verifier(lesson.verifier)
        if name == Path(CONVERSATIONS).stem or names.count(name) > 1:
            raise RecipeError(f"a lesson is called {name!r}, and so is another file: choose another name.")
        for key in ("ask", "answer", "think", "level"):
            for wanted in _fields(getattr(lesson, key) or "", f"lessons.{name}.{key}"):
                if wanted == _OPENING and config.talk is None:
                    raise RecipeError(f"lessons.{name}.{key} holds {{opening}}: give talk, which says who opens.")
                if key == "answer" and wanted == _TEXT:
                    raise RecipeError(f"lessons.{name}.answer holds {{text}}: a whole document is no answer.")


def _fields(template: str, place: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(f"{place} is {template!r}: {error}. Write a brace that is meant as one twice.") from None
    for _, name, spec, conversion in parts:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise RecipeError(f"{place} holds {{{name}}}: between braces stands text or a fact's name, no more.")
    return [name for _, name, _, _ in parts if name is not None]


@dataclass
class _Made:
    """The questions of one lesson, and why documents gave none."""

    rows: dict[str, tuple[Split, dict[str, Any]]] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)  # the way to the answer, of held-out questions, too
    counts: Counter[Split] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, split: Split, row: dict[str, Any], way: str, most: int | None) -> None:
        """Keep a question unless it was asked before, or there are enough."""
        held = self.rows.get(row["question"])
        if held is not None:
            same = held[1]["answer"] == row["answer"]
            self.left_out["asked before" if same else "asked before, with another answer"] += 1
        elif most is not None and split == "train" and self.counts["train"] >= most:
            self.left_out["more than most"] += 1
        else:
            self.rows[row["question"]] = split, row
            self.ways[row["question"]] = way
            self.counts[split] += 1


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write a file of questions for each lesson, conversations.jsonl and a data card.

    Raises DataError for a lesson without questions to learn from or held out.
    """
    lessons = {lesson.name: lesson for lesson in config.lessons}
    made = {name: _Made() for name in lessons}
    talks: dict[Split, list[Conversation]] = {split: [] for split in SPLITS}
    known: set[str] = set()
    for split, document in _documents(inputs[config.data].path):
        known |= document.facts.keys()
        for name, lesson in lessons.items():
            if _fits(lesson, document):
                _make(name, lesson, document, split, config, made[name])
        if config.talk is not None and document.kind == config.talk.kind:
            talks[split] += _talk(config.talk, document, config.groups)
    for name, questions in made.items():
        _need_both(lessons[name], questions, known)
        write_rows(out.path / f"{name}.jsonl", (row for _, row in questions.rows.values()))
    if config.talk is not None and not talks["train"]:
        said = f"{config.talk.user}: and then {config.talk.assistant}:"
        raise DataError(f"no document of kind {config.talk.kind!r} has lines that begin with {said}")
    total = write_conversations(out.path / CONVERSATIONS, [*_conversations(made, "train"), *talks["train"]])
    (out.path / HELD_OUT).mkdir()
    held = write_conversations(out.path / HELD_OUT / CONVERSATIONS, [*_conversations(made, "test"), *talks["test"]])
    facts = {name: _counts(questions) for name, questions in made.items()}
    out.meta.update(rows=total, held_out=held, lessons=facts, talks=len(talks["train"]))
    (out.path / "README.md").write_text(_card(lessons, facts, len(talks["train"]), total, held), encoding="utf-8")
    said = "".join(f"; {name}: {c['train']} to learn from, {c['test']} held out" for name, c in facts.items())
    run.log.info(f"{total} conversations, {len(talks['train'])} of them dialogues{said}")


def _documents(folder: Path) -> Iterator[tuple[Split, Document]]:
    """Held-out documents first: a question of theirs is never learnt. A fifth of all persons where there are none."""
    if (folder / HELD_OUT / DOCUMENTS).exists():
        yield from (("test", document) for document in read_documents(folder / HELD_OUT))
        yield from (("train", document) for document in read_documents(folder))
        return
    for wanted in reversed(SPLITS):
        yield from ((wanted, d) for d in read_documents(folder) if split_of(d.person or d.id) == wanted)


def _fits(lesson: Lesson, document: Document) -> bool:
    return (lesson.kind in (None, document.kind)) and all(document.facts.get(k) == v for k, v in lesson.where.items())


def _make(name: str, lesson: Lesson, document: Document, split: Split, config: Config, made: _Made) -> None:
    values = {fact: _written(value) for fact, value in document.facts.items()} | {_TEXT: document.text}
    if config.talk is not None and document.kind == config.talk.kind:
        values[_OPENING] = next((turn.content for turn in _turns(config.talk, document)), "")
    filled: dict[str, str] = {}
    for key in ("ask", "answer", "think", "level"):
        template = getattr(lesson, key) or ""
        missing = [f for f in _fields(template, key) if not values.get(f)]
        if missing:
            made.left_out[f"no {missing[0]}"] += 1
            return
        filled[key] = template.format(**values).strip()
    wrong = complaint(lesson.verifier, filled["answer"])
    if wrong:
        made.left_out[f"not an answer to check: {wrong.split(':')[0]}"] += 1
        return
    row = {
        "question": filled["ask"], "answer": filled["answer"], "level": filled["level"], "split": split,
        "meta": _origin(document, config.groups),
    }  # fmt: skip
    if filled["think"] and split == "train":
        row["trace"] = filled["think"]
    made.add(split, row, filled["think"], config.most)


def _written(value: object) -> str:
    """A fact as words; nothing for one that is not there."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _origin(document: Document, groups: Iterable[str]) -> dict[str, Any]:
    found = {group: document.facts.get(group) for group in groups}
    return {"document": document.id, "source": vars(document.source), "person": document.person, **found}


def _conversations(made: Mapping[str, _Made], wanted: Split) -> Iterator[Conversation]:
    """The questions of a side with their answers."""
    for name, questions in made.items():
        for split, row in questions.rows.values():
            if split == wanted:
                yield _conversation(name, row, questions.ways[row["question"]] or None)


def _conversation(name: str, row: Mapping[str, Any], thought: str | None) -> Conversation:
    """The question with its answer, worked where the lesson says how."""
    level, question = row["level"], row["question"]
    example = Example(example_id(name, level, question), name, level, question, row["answer"])
    asked = question_conversation(example, thinking=thought is not None)
    shown = Conversation(asked.messages, {**asked.meta, **row["meta"]})
    return shown.plus("assistant", render_reply(thought, row["answer"]))


def _turns(talk: Talk, document: Document) -> list[Message]:
    """A dialogue from the user's first line to the assistant's last; empty where one of them says nothing."""
    roles = {talk.user: "user", talk.assistant: "assistant"}
    messages: list[Message] = []
    for line in document.text.splitlines():
        name, colon, words = line.partition(":")
        role = roles.get(name.strip()) if colon else None
        if role is None and messages and line.strip():
            messages[-1] = Message(messages[-1].role, f"{messages[-1].content}\n{line.strip()}")
        elif role is not None and messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content}\n{words.strip()}")
        elif role is not None and (messages or role == "user"):
            messages.append(Message(role, words.strip()))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return messages


def _talk(talk: Talk, document: Document, groups: Iterable[str]) -> list[Conversation]:
    """A dialogue as a conversation; none where one of both says nothing."""
    messages = _turns(talk, document)
    if not messages:
        return []
    told = [Message("system", talk.system)] if talk.system is not None else []
    return [Conversation((*told, *messages), _origin(document, groups))]


def _need_both(lesson: Lesson, made: _Made, known: set[str]) -> None:
    empty = [split for split in SPLITS if not made.counts[split]]
    if empty:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in made.left_out.most_common(3)) or "no document fits"
        unknown = [
            f for f in _fields(lesson.ask + lesson.answer, lesson.name) if f not in (_TEXT, _OPENING) and f not in known
        ]
        hint = f" No document has a fact {unknown[0]!r}{did_you_mean(unknown[0], known)}." if unknown else ""
        raise DataError(f"lesson {lesson.name!r} has no question for {empty[0]} ({reasons}).{hint} See its templates.")


def _counts(made: _Made) -> dict[str, Any]:
    return {**{split: made.counts[split] for split in SPLITS}, "left_out": dict(made.left_out)}


def _card(
    lessons: Mapping[str, Lesson], facts: Mapping[str, Mapping[str, Any]], talks: int, total: int, held: int
) -> str:
    rows = [
        f"| `{name}.jsonl` | {lessons[name].verifier} | {c['train']} | {c['test']} | "
        f"{'; '.join(f'{reason}: {n}' for reason, n in sorted(c['left_out'].items()))} |"
        for name, c in facts.items()
    ]
    checked = "open questions are checked by nobody" if any(x.verifier == OPEN for x in lessons.values()) else ""
    return "\n".join([
        "# Lessons from documents", "",
        f"`{CONVERSATIONS}`: {total} conversations to learn from, {talks} of them dialogues as they were held.",
        f"`{HELD_OUT}/{CONVERSATIONS}`: {held} like them of held-out documents, to compare with, not to learn.", "",
        "| questions | checked by | to learn from | held out | documents that gave none |", "|---|---|---|---|---|",
        *rows, "",
        "- Every row names its document and the file and place that this was read from, in `meta`.",
        "- No question of a held-out document is among the conversations, from whatever document.",
        *([f"- {checked[0].upper()}{checked[1:]}."] if checked else []), "",
    ])  # fmt: skip
