"""A trace as plain facts: what `schoolhouse trace --json` prints, and what people are shown in tables.

Behind redaction no name of a source file is given, for it may be somebody's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from schoolhouse.evaluate.trace import Hit, Search, Trace
from schoolhouse.evaluate.tracing.lineage import Lineage, Node
from schoolhouse.evaluate.tracing.origin import Place
from schoolhouse.text.records import ENDPOINT_TERMS, SOURCES
from schoolhouse.text.redaction import META

MEANING = (
    "Words that the text shares with a row show what could have taught it; they are no proof that this row did.",
    "The same may have been learnt from rows in other words, or by a model before it came here; text that nothing "
    "taught may share common phrases with rows by chance.",
    "Of a conversation the replies are learnt; a question is read, and no model is taught to say it.",
    "What is shown is what was learnt from: behind redaction names are invented, and no file read before it is shown.",
)
UNKNOWN_BASE = "what it learnt before is not known here; its card, where there is one, says what its makers tell"
FIRST = 20
"""Source files that are listed of a stage; the artifact's sources.jsonl has them all."""

READS = "prepare.read"
_RAW = "raw/"  # the folder of files as they came
_CARD = "README.md"
_COUNTED = (
    "documents", "rows", "held_out", "documents_held_out", "set_aside", "replaced", "doubtful", "ratings", "pairs",
    "persons", "planted", "made", "talks", "questions", "settled", "conflicts", "left_out",
)  # fmt: skip


def facts(trace: Trace) -> dict[str, Any]:
    """Everything of a trace, for JSON."""
    lineage = trace.lineage
    return {
        "model": _named(lineage.root),
        "learnt_from": [_data(lineage, node) for node in lineage.data],
        "models": [_model(lineage, node) for node in lineage.models],
        "only_compared_with": [_named(n) for n in lineage.nodes.values() if n.id not in lineage.learnt],
        "missing": [_named(n) | {"problem": n.problem} for n in lineage.nodes.values() if n.problem is not None],
        "questions_outside_the_store": [
            {"file": str(one.path), "is_there_now": bool(one.files), "asked_by": [n.stage for n in one.stages]}
            for one in trace.questions
        ],
        "made_up_by_the_program": {name: [n.stage for n in nodes] for name, nodes in trace.made_up.items()},
        "search": None if trace.search is None else _search(trace.search),
        "meaning": list(MEANING),
    }


def _named(node: Node) -> dict[str, Any]:
    return {"artifact": node.id, "stage": node.stage, "kind": node.kind, "recipe": node.recipe}


def _data(lineage: Lineage, node: Node) -> dict[str, Any]:
    """What an artifact of data holds, as its manifest says."""
    bare = node.id in lineage.bare
    read = [n for (id, _), models in lineage.taught.items() if id == node.id for n in models]
    named = {name: dict(held) for name, held in node.files.items() if bare or not name.startswith(_RAW)}
    return _named(node) | {
        "learnt_by": list(dict.fromkeys(model.stage for model in read)),
        "made_from": [edge.id for edge in node.edges if edge.is_learnt],
        "files": named,
        "files_without_name": len(node.files) - len(named),
        "counts": _counts(node.meta),
        **_stated(node.meta),
        "sources": _sources(node, bare),
        "problem": node.problem,
    }


def _counts(meta: Mapping[str, Any]) -> dict[str, int]:
    """The counts of a manifest; of one that is told by reasons or kinds their sum."""
    found = {}
    for name in _COUNTED:
        value = meta.get(name)
        if isinstance(value, Mapping) and all(type(n) is int for n in value.values()):
            value = sum(value.values())
        if type(value) is int:
            found[name] = value
    return found


def _stated(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The licence, and what is stated of redaction, privacy and the terms of endpoints."""
    licence = meta.get("licence")
    redaction = meta.get(META)
    lists = {key: meta[key] for key in (ENDPOINT_TERMS, "privacy") if key in meta}
    return {
        "licence": licence.get("id") if isinstance(licence, Mapping) else licence,
        "statements": ({META: redaction} if isinstance(redaction, Mapping) else {}) | lists,
    }


def _sources(node: Node, bare: bool) -> dict[str, Any] | None:
    """The files that a stage read from outside, as far as its artifact lists them."""
    if node.artifact is None or SOURCES not in node.files:
        return None
    with (node.artifact.path / SOURCES).open(encoding="utf-8") as file:
        first = [json.loads(line) for line in islice(file, FIRST)]
        count = len(first) + sum(1 for _ in file)
    return {
        "files": count, "listed_in": SOURCES, "sha256": node.files[SOURCES]["sha256"], "first": first if bare else [],
        "names_hidden": not bare,
    }  # fmt: skip


def _model(lineage: Lineage, node: Node) -> dict[str, Any]:
    """A model of the lineage; of one that came from outside its card and the hashes of its source."""
    uses = [(n, role) for n in lineage.nodes.values() for e in n.edges if e.id == node.id for role in e.roles]
    found = _named(node) | _stated(node.meta) | {
        "used_as": [{"by": user.stage, "as": role} for user, role in uses],
        "made_from": [edge.id for edge in node.edges if edge.is_learnt],
    }  # fmt: skip
    if not found["made_from"] and node.kind != "train.pretrain":
        card = node.artifact.path / _CARD if node.artifact is not None and _CARD in node.files else None
        found |= {
            "title": node.meta.get("title"), "source": node.meta.get("source"),
            "source_sha256": node.meta.get("source_sha256"), "card": None if card is None else str(card),
            "learnt_before": UNKNOWN_BASE,
        }  # fmt: skip
    return found


def _search(search: Search) -> dict[str, Any]:
    found, of = search.found
    return {
        "words": search.words, "run_words": search.n, "runs_found": found, "runs": of,
        "rows_searched": search.rows, "rows_alike": search.alike, "rows_unreadable": search.set_aside,
        "warnings": list(search.warnings), "rows": [_hit(hit) for hit in search.hits],
    }  # fmt: skip


def _hit(hit: Hit) -> dict[str, Any]:
    before, run, behind = hit.span
    origin = hit.origin
    assert origin is not None, "the search looks it up"
    redacted, said_by = origin.redacted_by, origin.said_by
    return {
        **_place(hit.place),
        "learnt_by": [node.stage for node in hit.readers],
        "part": hit.part,
        "run": run, "run_words": hit.run, "before": before, "behind": behind,
        "share": round(hit.share, 4), "rows_with_its_rarest_words": hit.rarest,
        "document": hit.row.document,
        "said_by": None if said_by is None else _named(said_by),
        "made_from": [_place(step) for step in origin.steps],
        "source": None if origin.source is None else dict(origin.source),
        "history": list(origin.history),
        "way": [_named(node) for node in reversed(origin.way)],
        "redacted_by": None if redacted is None else redacted.stage,
        "may_name_people": redacted is None and any(node.kind == READS for node in origin.way),
        "further_rows": [_place(place) for place in hit.further],
    }  # fmt: skip


def _place(place: Place) -> dict[str, Any]:
    held = None if place.node is None else _named(place.node)
    return {"artifact": held, "file": place.file, "row": place.row, "id": place.id}
