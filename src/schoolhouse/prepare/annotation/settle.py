"""What labels decide: documents that are settled, wait for more or are in conflict; and how far people agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from schoolhouse.text.agreement import Agreement, cohen_kappa, krippendorff_alpha, span_f1, word_f1
from schoolhouse.text.labels import Label, LabelSchema, Span, Value

Settle = Literal["all", "majority"]
Said = Mapping[str, Mapping[str, Value]]
"""What was said of each document, by annotator."""


@dataclass
class Settled:
    """Documents by what their labels come to. values: what is agreed; conflicts, waiting: the labels by annotator."""

    values: dict[str, Value] = field(default_factory=dict)
    conflicts: dict[str, dict[str, Value]] = field(default_factory=dict)
    waiting: dict[str, dict[str, Value]] = field(default_factory=dict)


def by_document(labels: Iterable[Label]) -> dict[str, dict[str, Value]]:
    """The labels of each document by annotator."""
    found: dict[str, dict[str, Value]] = {}
    for label in labels:
        found.setdefault(label.id, {})[label.annotator] = label.value
    return found


def settle(labels: Said, needed: Mapping[str, int], rule: Settle, adjudicator: str | None) -> Settled:
    """Decide each document: by its adjudicator, else by all, or by more than half, of as many as are needed."""
    settled = Settled()
    for name, said in labels.items():
        values = {annotator: value for annotator, value in said.items() if annotator != adjudicator}
        if adjudicator is not None and adjudicator in said:
            settled.values[name] = said[adjudicator]
            continue
        if len(values) < needed[name]:
            settled.waiting[name] = values
            continue
        value, most = Counter(_same(v) for v in values.values()).most_common(1)[0]
        if most == len(values) or (rule == "majority" and most > len(values) / 2):
            settled.values[name] = next(v for v in values.values() if _same(v) == value)
        else:
            settled.conflicts[name] = values
    return settled


def _same(value: Value) -> Value:
    """What is equal when it says the same: case and spaces of an answer count for nothing."""
    return " ".join(value.casefold().split()) if isinstance(value, str) else value


def agreements(schema: LabelSchema, labels: Said, adjudicator: str | None, seed: int) -> dict[str, Agreement]:
    """Every measure of agreement that fits the kind, by what it is called. The adjudicator, who saw the others, is none
    of the people.
    """
    said = [{who: v for who, v in of.items() if who != adjudicator} for of in labels.values()]
    said = [of for of in said if len(of) > 1]
    if schema.kind == "spans":
        return _of_spans(schema, said, seed)
    rows = [[_same(v) for v in of.values()] for of in said]
    found = {"Krippendorff's alpha": krippendorff_alpha(rows, seed)}
    if schema.kind == "free":
        return found | {"F1 of words": word_f1([[str(v) for v in row] for row in rows], seed)}
    for one, other in combinations(sorted({who for of in said for who in of}), 2):
        both = [(_same(of[one]), _same(of[other])) for of in said if one in of and other in of]
        if both:
            found[f"Cohen's kappa, {one} and {other}"] = cohen_kappa([a for a, _ in both], [b for _, b in both], seed)
    for name in schema.names:
        has = [[name in _classes(v) for v in of.values()] for of in said]
        found[f"alpha of {name!r} or not"] = krippendorff_alpha(has, seed)
    return found


def _of_spans(schema: LabelSchema, said: Sequence[Mapping[str, Value]], seed: int) -> dict[str, Agreement]:
    rows = [[_spans(v) for v in of.values()] for of in said]
    found = {"F1 of spans": span_f1(rows, False, seed), "F1 of spans that overlap": span_f1(rows, True, seed)}
    for kind in schema.names:
        found[f"F1 of {kind!r}"] = span_f1(
            [[[s for s in spans if s.type == kind] for spans in row] for row in rows], False, seed
        )
    return found


def _spans(value: Value) -> list[Span]:
    return [span for span in value if isinstance(span, Span)]


def _classes(value: Value) -> Sequence[str]:
    return [value] if isinstance(value, str) else [str(name) for name in value]
