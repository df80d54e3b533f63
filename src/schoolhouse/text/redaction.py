"""How well personal data were found: recall by type with its interval, and the gate that refuses what is below.

It knows nothing of how they are found (`prepare/redaction`), so that a stage that trains may ask it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.core.shares import share

TYPES = ("name", "date", "phone", "email", "id", "address", "organisation", "url", "ip", "age")
"""What is looked for. `age` is that of somebody who is 90 or older."""

GATED = ("name", "id")
"""The types of which the threshold speaks."""

META = "redaction"
"""Under which key of an artifact's facts the figures stand."""


def told(pair: Iterable[int]) -> str:
    """A share, given as [hits, of], with its count and its 95 % interval."""
    hits, of = pair
    if not of:
        return "not measured"
    found = share(hits, of)
    return f"{found.value:.3f} ({hits} of {of}, {found.interval.low:.3f} to {found.interval.high:.3f})"


def shortfalls(recall: Mapping[str, Iterable[int]], threshold: float) -> list[str]:
    """What lies below a threshold, in words; nothing if all is well. recall: [hits, of] by type.

    A gated type of which there was nothing to find counts as below: nobody knows how well it is found.
    """
    out = []
    for kind in GATED:
        hits, of = recall.get(kind, (0, 0))
        if not of:
            out.append(f"recall of {kind}: nothing to measure it on")
        elif hits / of < threshold:
            out.append(f"recall of {kind}: {told((hits, of))}, below {threshold:g}")
    return out


def gate(metas: Iterable[Mapping[str, Any]]) -> None:
    """Raise DataError if any of these artifacts was redacted less well than its own threshold asks.

    metas: the facts (`Artifact.meta`) of what is to be learnt from and of all that it was made from. Figures of a
    sample that people looked through count as those of the gold set do, for the types of which it held any. What was
    never redacted is let through: whether data are personal is not for this function to know.
    """
    for meta in metas:
        facts = meta.get(META)
        if isinstance(facts, Mapping) and (wrong := below(facts)):
            raise DataError(
                f"the data were redacted, but not well enough to learn from: {'; '.join(wrong)}. Improve the rules or "
                "the tagger (docs/redaction.md), or lower recall in the stage prepare.redact if you answer for it."
            )


def below(facts: Mapping[str, Any]) -> list[str]:
    """What of an artifact's figures lies below its threshold, in words. facts: `Artifact.meta[META]`."""
    threshold = float(facts["threshold"])
    wrong = shortfalls(facts["recall"], threshold)
    for kind, (hits, of) in (facts.get("reviewed") or {}).items():
        if kind in GATED and of and hits / of < threshold:
            wrong.append(f"recall of {kind} in the reviewed sample: {told((hits, of))}, below {threshold:g}")
    return wrong
