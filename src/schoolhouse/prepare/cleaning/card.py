"""The data card of `prepare.clean`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from schoolhouse.prepare.cleaning.duplicates import NUMBERS, WORDS, bands_and_rows
from schoolhouse.text.sourced import HELD_OUT

if TYPE_CHECKING:
    from schoolhouse.prepare.clean import Config
    from schoolhouse.prepare.cleaning.decontaminate import Evaluations

SET_ASIDE = "set_aside.jsonl"
EXAM = "evaluation"  # the reason of a row that holds what is examined


def most_common(reasons: Counter[str]) -> str:
    """The four reasons that come most often, with their counts."""
    return ", ".join(f"{name} {n:,}" for name, n in reasons.most_common(4)) or "none"


def card(
    config: Config, file: str, counts: Mapping[str, int], found: Counter[str], evaluations: Evaluations, was_held: bool
) -> str:
    """The page. found: rows by the reason for which they are set aside; was_held: an earlier stage chose who is out."""
    reasons = [f"| {name} | {n:,} | {n / counts['read']:.1%} |" for name, n in found.most_common()]
    examined = [
        f"| {name} | {n:,} | {evaluations.short[name]:,} | {found[f'{EXAM}: {name}']:,} |"
        for name, n in evaluations.texts.items()
    ]
    chosen = (
        "as an earlier stage had chosen" if was_held else f"a share of {config.held_out:g} of the persons (of the "
        "documents that are nobody's), chosen by a keyed hash"
    )  # fmt: skip
    rules = config.quality.model_dump(exclude={"phrases"})
    return "\n".join([
        "# Cleaned data", "",
        f"- `{file}`: {counts['documents']:,} rows to learn from, unchanged and in their order",
        f"- `{HELD_OUT}/{file}`: {counts['held_out']:,} rows held out, {chosen}",
        f"- `{SET_ASIDE}`: {counts['set_aside']:,} rows of {counts['read']:,}, each with its place and the reason", "",
        *(["| set aside as | rows | share |", "|---|---|---|", *reasons, ""] if reasons else []),
        *(["| not to be learnt | texts | too short to be found inside others | rows set aside |", "|---|---|---|---|",
           *examined, ""] if examined else []),
        "- No person has rows on both sides.",
        f"- {_alike(config.similar)}",
        f"- A row holds a text that is examined where {config.overlap:.0%} of the n-grams ({config.ngram} words) of "
        "the smaller one are in the other, too. Paraphrases and translations are not found.",
        "- Numbers of the rules: " + ", ".join(f"{key} {value}" for key, value in rules.items()) + ".",
        f"- Languages: {', '.join(config.languages) or 'any'}.", "",
    ])  # fmt: skip


def _alike(similar: float) -> str:
    if similar == 1:
        return "Of rows with the same words the first is kept, whoever's it is. Similar rows were not looked for."
    bands, rows = bands_and_rows(similar)
    off, missed = 1.96 * math.sqrt(similar * (1 - similar) / NUMBERS), (1 - similar**rows) ** bands
    return (
        f"Of rows that have {similar:.0%} of their {WORDS}-word shingles in common the first is kept, whoever's it is. "
        f"That is an estimate by MinHash, off by up to {off:.2f} 19 times in 20, and of pairs exactly at the threshold "
        f"{missed:.1%} are missed."
    )
