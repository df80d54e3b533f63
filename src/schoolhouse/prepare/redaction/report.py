"""What `prepare.redact` tells: counts, what is doubtful (places, never words), how well it found, and the data card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from schoolhouse.prepare.redaction.measure import Figures
from schoolhouse.prepare.redaction.rewrite import Redacted
from schoolhouse.prepare.redaction.spans import Span
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import append_row
from schoolhouse.text.redaction import TYPES, below, told

FINDINGS, DOUBTFUL, PAGE = "findings.json", "doubtful.jsonl", "review.html"
_LOW = 0.5
_NETWORKS = ({"tagger"}, {"spacy"}, {"proper"})


@dataclass
class Tally:
    """What was counted while documents were rewritten. file: where doubtful places are written, a line each."""

    file: TextIO
    types: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    people: int = 0
    aside: list[dict[str, str]] = field(default_factory=list)

    def add(self, redacted: Redacted) -> None:
        """Count one document, and write its doubtful places: those of the new text, by the new id."""
        self.documents["redacted" if redacted.puts or redacted.facts else "nothing found"] += 1
        told = Counter(redacted.document.text[put.start : put.end] for put in redacted.puts)
        for put in redacted.puts:
            self.types[put.span.type] += 1
            self.sources[" + ".join(sorted(put.span.by))] += 1
            why = doubts(put.span, once=told[redacted.document.text[put.start : put.end]] == 1)
            for reason in why:
                self.doubts[reason] += 1
            if why:
                row = {
                    "id": redacted.document.id,
                    "start": put.start,
                    "end": put.end,
                    "type": put.span.type,
                    "why": why,
                }
                append_row(self.file, row)
        for key_puts in redacted.facts.values():
            for put in key_puts:
                self.facts[put.span.type] += 1

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "documents": dict(self.documents), "replaced": dict(self.types), "replaced_in_facts": dict(self.facts),
            "found_by": dict(self.sources.most_common()), "doubtful": dict(self.doubts), "set_aside": self.aside,
        }  # fmt: skip


def doubts(span: Span, *, once: bool) -> list[str]:
    """Why a person should look at what was replaced at a place; nothing if it is as good as certain."""
    out = ["low score"] if span.score < _LOW else []
    if set(span.by) in _NETWORKS:
        out.append("one network alone")
        if once:
            out.append("mentioned once")
    return out


@dataclass(frozen=True)
class Measured:
    """How well the finder did: on both halves of the gold set, and in the sample that people looked through."""

    test: Figures
    dev: Figures
    gold: str
    reviewed: Mapping[str, Sequence[int]] | None
    reviewed_precision: Sequence[int]
    threshold: float

    def below(self) -> list[str]:
        """What lies below the threshold, in words."""
        return below(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As it stands in the artifact's facts; `recall` is that of the half whose templates no rule was made with."""
        return {
            **self.test.to_json(), "gold": self.gold, "half": "test", "dev": self.dev.to_json(),
            "threshold": self.threshold,
            "reviewed": None if self.reviewed is None else {k: list(v) for k, v in self.reviewed.items()},
            "reviewed_precision": list(self.reviewed_precision) if self.reviewed is not None else None,
        }  # fmt: skip


def write_findings(folder: Path, tally: Tally, measured: Measured) -> None:
    """Write findings.json."""
    found = tally.to_json() | {"redaction": measured.to_json(), "below": measured.below()}
    (folder / FINDINGS).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def card(tally: Tally, measured: Measured, facts: Mapping[str, str], count: int) -> str:
    """The README of redacted documents. facts: what else to tell, by its name."""
    below, replaced = measured.below(), {*tally.types, *tally.facts}
    lines = [
        "# Redacted documents", "",
        f"`{DOCUMENTS}`: {count:,} documents of {tally.people:,} people; names, dates, numbers, places replaced.",
        f"{tally.documents['sealed']:,} of them were redacted before, and passed on as they were.",
        f"{len(tally.aside):,} were set aside, for there are no rules for their language ({FINDINGS} says which).", "",
        *(f"- {name}: {value}" for name, value in facts.items()), "",
        "**Treat these texts as personal all the same.** What no rule and no network found is still in them.", "",
        "## How well it finds", "",
        f"Below the threshold of {measured.threshold:g}: {'; '.join(below)}." if below
        else f"Names and ids reach the threshold of {measured.threshold:g}.", "",
        *_table(measured), "",
        "## What was replaced", "",
        "| type | in texts | in facts |", "|---|---|---|",
        *(f"| {kind} | {tally.types[kind]:,} | {tally.facts[kind]:,} |" for kind in TYPES if kind in replaced),
        "", "| found by | places |", "|---|---|",
        *(f"| {by} | {number:,} |" for by, number in tally.sources.most_common()), "",
        f"`{DOUBTFUL}` lists {sum(tally.doubts.values()):,} doubts about single places, for a look: "
        + (", ".join(f"{reason} {number:,}" for reason, number in tally.doubts.most_common()) or "none") + ".", "",
        f"On `{PAGE}` people mark what was missed and what was needless; it saves a file for the key `reviewed`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(measured: Measured) -> list[str]:
    reviewed = measured.reviewed
    lines = [
        f"Recall: every letter and digit of a place is covered. Gold set: {measured.gold}; the test half are",
        f"{measured.test.texts} texts of templates that no rule was made with, the dev half {measured.dev.texts} more.",
        "In brackets the count and Wilson's interval of 95 %; texts of one template are alike: it is too narrow.",
        "",
        "| type | recall, test half | dev half |" + (" recall, your review |" if reviewed is not None else ""),
        "|---|---|---|" + ("---|" if reviewed is not None else ""),
    ]  # fmt: skip
    for kind in TYPES:
        row = f"| {kind} | {told(measured.test.found[kind])} | {told(measured.dev.found[kind])} |"
        lines.append(row + (f" {told(reviewed.get(kind, (0, 0)))} |" if reviewed is not None else ""))
    figures = measured.test
    lines += [
        "",
        f"Precision on the test half: {told(figures.spans)} of the replaced spans hold something personal, and",
    ]
    lines.append(f"{told(figures.letters)} of the replaced letters and digits are personal.")
    if reviewed is not None:
        lines.append(f"Precision in the review: {told(measured.reviewed_precision)}.")
    return lines
