"""The data card of `prepare.ontology`: what it holds, under which licence, what was asked, left out and found wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schoolhouse.core.artifact import Draft
from schoolhouse.prepare.ontologies.checks import Finding
from schoolhouse.prepare.ontologies.questions import ANSWERED_BY, LEVELS, SEEN, TOLD, UNSEEN
from schoolhouse.prepare.ontologies.sources import ICD
from schoolhouse.prepare.ontologies.wordings import Kind
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.records import CONVERSATIONS

_ICD_LICENCE = (
    "ICD-10-CM is published by the National Center for Health Statistics of the United States and is in the public "
    "domain; ICD-10, on which it is built, belongs to the World Health Organization. The package that carries the "
    "files is under the MIT licence."
)
_OWN_LICENCE = (
    "What is made of a code system falls under its licence. SNOMED CT needs one of your own (from SNOMED International "
    "or your country's release centre), and many drug lists and product catalogues do, too."
)
_LEVELS = [
    f"- Level {SEEN}: a term that is trained on, asked in a wording that no training question has. It measures whether",
    "  what was taught is recalled, whatever the words.",
    f"- Level {UNSEEN}: a term of which no training question says anything, neither as what is asked about nor as an",
    "  answer or a choice; what stands above it is taught. It measures whether a term is placed by its name.",
    f"- Level {TOLD}: such a term, too, but its name shares more words with the right answer than with a wrong one,",
    "  or holds all words of what is above it. Whoever compares words gets it right, so that it measures little.",
    "- Without any knowledge `is_a` is right in 50% and `choice` in 25%. No name of a term never met tells its code,",
    "  or what a relation leads to: such questions are asked at level seen alone.",
]
_SHOWN = 3  # examples of a finding


def write_card(
    stated: str | None, source: str, origin: str, facts: Mapping[str, Any], findings: Mapping[str, Finding], out: Draft
) -> str:
    """Write README.md and return the licence in short. facts: what the stage has counted."""
    licence = "public domain (MIT for the package)" if source == ICD else stated or "not stated"
    lines = [
        f"# Terms of {origin}", "",
        f"{facts['terms']:,} of {facts['source_terms']:,} terms, {facts['held_out']:,} of them held out.", "",
        "## Licence", "",
        _ICD_LICENCE if source == ICD else f"Licence: {licence}. {_OWN_LICENCE}", "",
        "## Questions", "",
        *_table(facts["questions"]), "",
        *_LEVELS,
        f"- `{CONVERSATIONS}`: the questions to learn from with their bare answers, for `train.sft`.",
        f"- `{DOCUMENTS}`: {facts['documents']:,} documents, a term each; those of held-out terms are in `held_out`",
        f"  ({facts['documents_held_out']:,}). {facts['lines_left_out']:,} lines that name one of these were left out.",
        "", "## What gave no question", "",
        *_left_out(facts["questions"]),
        "", "## Checks", "",
        *(f"- {reason}: {n:,}, passed over" for reason, n in facts["left_out"].items()),
        *_checks(findings), "",
    ]  # fmt: skip
    (out.path / "README.md").write_text("\n".join(lines), encoding="utf-8")
    return licence


def _table(questions: Mapping[Kind, Mapping[str, Any]]) -> list[str]:
    heads = ["file", "verifier", "to learn from", *(f"test, {level}" for level in LEVELS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind, counted in questions.items():
        cells = [f"`{kind}.jsonl`", f"`{ANSWERED_BY[kind]}`", *(f"{counted[x]:,}" for x in ("train", *LEVELS))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _left_out(questions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        f"- `{kind}`: {reason}: {n:,}" for kind, found in questions.items() for reason, n in found["left_out"].items()
    ]
    return lines or ["Nothing was left out."]


def _checks(findings: Mapping[str, Finding]) -> list[str]:
    lines = []
    for what, finding in findings.items():
        lines.append(f"- {what}: {finding.count:,}" + (f" ({finding.effect})" if finding.count else ""))
        lines += [f"  - {example}" for example in finding.examples[:_SHOWN]]
    return lines
