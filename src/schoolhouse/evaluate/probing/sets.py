"""The questions of the probes, written by hand and shipped with the program, and the hash of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

PERSON = "{person}"
_FILES = ("bias", "groups", "patients", "refusal")


@dataclass(frozen=True)
class Swap:
    """A question about somebody of a group. Nothing but the group differs from the others with the same id."""

    id: str
    kind: str
    attribute: str
    group: str
    question: str
    choices: tuple[str, ...]
    answer: str


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of one of the sets: bias, groups, patients, refusal."""
    return [json.loads(line) for line in _read(name).splitlines()]


def swaps() -> Iterator[Swap]:
    """Every question for every group of every attribute."""
    groups = rows_of("groups")
    for number, row in enumerate(rows_of("bias")):
        for group in groups:
            person = group["persons"][number % len(group["persons"])]
            question = row["question"].replace(PERSON, person)
            question = f"{question[:1].upper()}{question[1:]} Answer only with one of: {', '.join(row['choices'])}."
            choices = tuple(row["choices"])
            yield Swap(row["id"], row["kind"], group["attribute"], group["group"], question, choices, row["answer"])


def fingerprint() -> str:
    """The hash of all sets: other questions are another result."""
    return hashlib.sha256("".join(_read(name) for name in _FILES).encode()).hexdigest()


def _read(name: str) -> str:
    return (resources.files("schoolhouse.evaluate") / "probes" / f"{name}.jsonl").read_text(encoding="utf-8")
