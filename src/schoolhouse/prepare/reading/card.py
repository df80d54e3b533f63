"""What `prepare.read` counts, and the card that tells it: no name of a file or a person, only how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from schoolhouse.prepare.reading.formats import FORMATS
from schoolhouse.prepare.reading.items import SetAside, Source
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import SOURCES
from schoolhouse.text.sourced import TABLE, Document

SET_ASIDE = "set_aside.jsonl"


@dataclass
class Tally:
    """What was read so far. keep: where each row goes that says what was set aside."""

    keep: Callable[[Mapping[str, Any]], None] = lambda row: None
    files: Counter[str] = field(default_factory=Counter)  # by format
    documents: Counter[str] = field(default_factory=Counter)  # by format
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    persons: set[str] = field(default_factory=set)
    without_person: int = 0
    bytes: int = 0
    characters: int = 0

    def begin(self, source: Source) -> None:
        """Count a file."""
        self.files[_format(source)] += 1
        try:
            self.bytes += source.path.stat().st_size
        except OSError:
            return  # it is gone, which is said where it was to be read

    def add(self, source: Source, document: Document) -> None:
        """Count a document."""
        self.documents[_format(source)] += 1
        self.kinds[document.kind] += 1
        self.characters += len(document.text)
        if document.person is None:
            self.without_person += 1
        else:
            self.persons.add(document.person)

    def set_aside(self, source: Source, aside: SetAside) -> None:
        """Count and keep what could not be read."""
        self.reasons[aside.reason] += 1
        self.keep({"file": source.name, "place": aside.place, "reason": aside.reason})

    def facts(self) -> dict[str, Any]:
        """The figures for the manifest."""
        return {
            "documents": self.documents.total(), "files": dict(self.files), "by_format": dict(self.documents),
            "kinds": dict(self.kinds), "characters": self.characters, "bytes": self.bytes,
            "persons": len(self.persons), "without_person": self.without_person,
            "set_aside": dict(self.reasons), "notes": dict(self.notes),
        }  # fmt: skip


def _format(source: Source) -> str:
    return FORMATS[source.path.suffix.lower()].name


def card(facts: Mapping[str, Any], most: int | None) -> str:
    """The data card of what was read; `most` as the recipe has it."""
    is_cut = facts["documents"] == most
    lines = [
        "# Documents of your files",
        "",
        f"{facts['documents']:,} documents, {facts['characters']:,} characters, in `{DOCUMENTS}` and the same in",
        f"`{TABLE}`. Each names its file, its place in it and the file's SHA-256 (`{SOURCES}` lists them).",
        "Nothing of them was changed: names and all else that the files hold is still in them.",
        *([f"This is a first look: reading ended after {most:,} documents, as `most` asks."] if is_cut else []),
        "",
        "| format | files | documents |",
        "|---|---|---|",
        *(f"| {name} | {count:,} | {facts['by_format'].get(name, 0):,} |" for name, count in facts["files"].items()),
        "",
        "## Persons",
        "",
        *_person_lines(facts),
        "",
        "## Set aside",
        "",
        f"Each with its file, its place and the reason in `{SET_ASIDE}`.",
        "",
        *([f"- {count:,}: {reason}" for reason, count in facts["set_aside"].items()] or ["- nothing"]),
        "",
        "## What else to know",
        "",
        *(f"- {count:,} {words}" for words, count in facts["notes"].items()),
        f"- Documents by kind: {', '.join(f'{kind} {count:,}' for kind, count in facts['kinds'].items())}",
        "- Hidden files are left out, and links that lead out of the folder.",
        "",
    ]
    return "\n".join(lines)


def _person_lines(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    if facts["persons"]:
        known = facts["documents"] - facts["without_person"]
        lines.append(f"- {known:,} documents belong to {facts['persons']:,} persons, by the keys of the source.")
    if facts["without_person"]:
        lines += [
            f"- Of {facts['without_person']:,} documents no person is known. If they are somebody's, say whose: with",
            "  `person` in `tables`, the column of a table, or with `person_from`, a part of the path.",
        ]
    return lines
