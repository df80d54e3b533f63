"""A task of the user's own: a JSONL file (or a folder of them) of questions and answers, and a verifier's name.

A row is `{"question": ..., "answer": ...}`, and may have `"level"` (a name or number), `"trace"` (a worked solution
for the cold start), `"split"` ("train" or "test") and `"meta"` (an object that is kept beside every verdict). Without
a split a fifth of the questions, by their hash, are held out. Rows that cannot be used are set aside with their reason.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError, TaskError
from schoolhouse.tasks.task import (
    PLAIN_FORM,
    SPLITS,
    Example,
    Form,
    Split,
    Verdict,
    check_request,
    example_id,
    judge_form,
    judge_reply,
    question_conversation,
    rng_for,
    split_of,
)
from schoolhouse.tasks.verify import OPEN, Verifier, complaint, load_verifier
from schoolhouse.text.records import BadRow, Conversation, ReadJsonl

ONLY_LEVEL = "all"
_KEYS = {"question", "answer", "level", "trace", "split", "meta"}


@dataclass(frozen=True)
class JsonlTask:
    """Questions from a file, judged by a verifier; `set_aside` are the rows that could not be used."""

    name: str
    levels: tuple[str, ...]
    trace_levels: tuple[str, ...]
    verifier: Verifier
    questions: dict[tuple[Split, str], tuple[Example, ...]]
    set_aside: tuple[BadRow, ...]
    form: Form = PLAIN_FORM
    checked: bool = True  # whether the verifier can tell a right answer from a wrong one

    def examples(self, split: Split, level: str, n: int, seed: int) -> list[Example]:
        """Return n questions in an order drawn from the seed; training starts over once all were used."""
        check_request(self.name, self.levels, split, level, n)
        pool = self.questions.get((split, level), ())
        rng = rng_for(self.name, split, level, seed)
        chosen: list[Example] = []
        while pool and len(chosen) < n:
            chosen += rng.sample(pool, min(len(pool), n - len(chosen)))
            if split == "test":
                break
        return chosen

    def judge(self, example: Example, reply_text: str, *, thinking: bool = True) -> Verdict:
        """Score a reply by the task's verifier; where none can check the answer, by its form alone."""
        if not self.checked:
            return judge_form(reply_text, thinking=thinking, form=self.form)
        return judge_reply(
            reply_text,
            lambda answer: self.verifier(answer, example.answer),
            thinking=thinking,
            form=self.form,
        )

    def conversation(self, example: Example, thinking: bool = True) -> Conversation:
        """Return the prompt that puts the question to a model."""
        return question_conversation(example, thinking, self.form)


def load_jsonl(path: Path, verifier: str, *, name: str | None = None, form: Form = PLAIN_FORM) -> JsonlTask:
    """Read a task from a JSONL file or a folder of them; raise TaskError or DataError when it gives none."""
    judge = load_verifier(verifier)
    task = name or path.stem
    files = question_files(path)
    rows: dict[str, tuple[Split, Example]] = {}
    bad: list[BadRow] = []
    for file in files:
        bad += _read(file, task, verifier, rows)
    questions: dict[tuple[Split, str], list[Example]] = {}
    for split, example in rows.values():
        questions.setdefault((split, example.level), []).append(example)
    for split in SPLITS:
        if not any(key[0] == split for key in questions):
            raise TaskError(
                f"{path} has no question for {split} among {len(rows)} good rows ({len(bad)} set aside"
                f'{f", the first: {bad[0]}" if bad else ""}); add questions, or a "split" to the rows'
            )
    levels = _ordered({example.level: None for _, example in rows.values()})
    traced = {e.level for split, e in rows.values() if e.trace is not None and split == "train"}
    frozen = {key: tuple(examples) for key, examples in questions.items()}
    trace_levels = tuple(level for level in levels if level in traced)
    return JsonlTask(task, levels, trace_levels, judge, frozen, tuple(bad), form, checked=verifier != OPEN)


def question_files(path: Path) -> list[Path]:
    """Return the files of a task: the file itself, or a folder's .jsonl files; raise TaskError if it has none."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise TaskError(f"the folder {path} holds no .jsonl file; put the questions there, one JSON object a line")
    return files


def _read(file: Path, task: str, verifier: str, rows: dict[str, tuple[Split, Example]]) -> list[BadRow]:
    """Add the usable rows of a file to `rows` by question, and return the others."""

    def convert(row: dict[str, Any]) -> tuple[Split, Example]:
        split, example = _example(row, task, verifier)
        if example.question in rows:
            raise DataError("the same question stands in an earlier row")
        rows[example.question] = split, example
        return split, example

    reader = ReadJsonl(file, convert)
    for _ in reader:
        pass
    return reader.bad


def _example(row: dict[str, Any], task: str, verifier: str) -> tuple[Split, Example]:
    unknown = sorted(set(row) - _KEYS)
    if unknown:
        raise DataError(f"unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    held = row.get("answer")
    given = row | {"answer": json.dumps(held)} if verifier == "json" and isinstance(held, dict) else row
    question, answer = _text(row, "question"), _text(given, "answer")
    if question is None or (answer is None and verifier != OPEN):
        raise DataError('a row needs a "question" and an "answer"')
    answer = answer or ""
    wrong = complaint(verifier, answer)
    if wrong:
        raise DataError(wrong)
    level = _text(row, "level") or ONLY_LEVEL
    split = row.get("split") or split_of(question)
    if split not in SPLITS:
        raise DataError(f"the split is {split!r}; it is {' or '.join(SPLITS)}")
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"meta is {type(meta).__name__}, not an object")
    trace = _text(row, "trace")
    return split, Example(example_id(task, level, question), task, level, question, answer, trace, meta)


def _text(row: dict[str, Any], key: str) -> str | None:
    """Return a value as text (numbers as they are written), None if it is absent or blank."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{key} is {type(value).__name__}, not text or a number")
    return str(value).strip() or None


def _ordered(levels: dict[str, None]) -> tuple[str, ...]:
    """Order levels by number where all are numbers, else as they first appear."""

    def numbers() -> Iterator[float]:
        for level in levels:
            yield float(level)

    try:
        return tuple(level for _, level in sorted(zip(numbers(), levels, strict=True)))
    except ValueError:
        return tuple(levels)
