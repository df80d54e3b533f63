"""From a row that was learnt to the document that it was made from, and to the stages that this went through.

A row names its document, or the question or term by which that is found among the data behind it. Nothing behind
redaction is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schoolhouse.evaluate.tracing.lineage import REDACTS, Lineage, Node, task_tables
from schoolhouse.evaluate.tracing.rows import Row, find_row
from schoolhouse.text.documents import DOCUMENTS

_VARIED = "varied from "


@dataclass(frozen=True)
class Questions:
    """Questions outside of the store, a file or a folder as a recipe names it, and the stages that asked them."""

    path: Path
    stages: tuple[Node, ...]

    @property
    def files(self) -> list[Path]:
        """The files, as far as they are there now."""
        return [self.path] if self.path.is_file() else sorted(self.path.glob("*.jsonl"))


@dataclass(frozen=True)
class Place:
    """A row in a file of an artifact, or of questions outside of the store."""

    node: Node | None
    file: str
    row: int
    id: str


@dataclass
class Origin:
    """Where a row comes from. steps: the rows that it was made from, the nearest first; source: the file and the place
    in it that its document was read from; way: the stages, the nearest first; said_by: whose words a reply is, where a
    model wrote it.
    """

    source: Mapping[str, Any] | None
    history: tuple[str, ...]
    steps: list[Place] = field(default_factory=list)
    way: list[Node] = field(default_factory=list)
    said_by: Node | None = None

    @property
    def redacted_by(self) -> Node | None:
        """The stage that replaced names in what this row was made from."""
        return next((node for node in self.way if node.kind == REDACTS), None)


def origin_of(lineage: Lineage, questions: Sequence[Questions], place: Place, row: Row) -> Origin:
    """Follow a row to the document that it was made from, and a variant to its original."""
    origin, document, code = Origin(row.source, row.history), row.document, row.code
    if place.node is None:
        return origin
    if document is None and code is None and row.question is not None:
        document, code = _by_question(lineage, questions, place.node, row.question, origin)
    if place.file != DOCUMENTS:
        begin, found = _last(origin, place), None
        if document is not None:
            found = _document(lineage, begin, document, lambda held: held["id"] == document)
        elif code is not None:
            found = _document(lineage, begin, code, lambda held: (held.get("facts") or {}).get("code") == code)
        if found is not None:
            origin.steps.append(found[0])
            origin.source = found[1].get("source") or origin.source
            origin.history = tuple(found[1].get("history", ()))
    for line in reversed(origin.history):
        if line.startswith(_VARIED):
            original = line.removeprefix(_VARIED).split(":")[0]
            _step(lineage, origin, _last(origin, place), original)
            break
    if row.is_sampled:
        speakers = [e.id for e in place.node.edges if {"model", "replies"} & set(e.roles)]
        origin.said_by = lineage.nodes[speakers[0]] if speakers else None
    through = [step.node.id for step in origin.steps if step.node is not None]
    origin.way = lineage.way(place.node.id, through, is_sampled=row.is_sampled)
    named = next((step.id for step in reversed(origin.steps) if step.file == DOCUMENTS), document)
    if origin.redacted_by is not None and named is not None and origin.redacted_by.id not in (place.node.id, *through):
        _step(lineage, origin, origin.redacted_by, named)  # its row is that of the document restored
    return origin


def _last(origin: Origin, place: Place) -> Node:
    """The artifact of the last step so far."""
    last = next((step.node for step in reversed(origin.steps) if step.node is not None), place.node)
    assert last is not None, "the place is in an artifact"
    return last


def _step(lineage: Lineage, origin: Origin, begin: Node, id: str) -> None:
    """Go on to a document of an id, if there is one."""
    found = _document(lineage, begin, id, lambda held: held["id"] == id)
    if found is not None:
        origin.steps.append(found[0])


def _by_question(
    lineage: Lineage, questions: Sequence[Questions], node: Node, wanted: str, origin: Origin
) -> tuple[str | None, str | None]:
    """The document, or the term, that a question was made from, by the files of questions that its stage asked."""
    for made, path, name in _asked_by(lineage, questions, node):
        holds = wanted if made is not None else ""  # files from elsewhere may write letters as escapes
        found = find_row(path, lambda held: str(held.get("question", "")).strip() == wanted, holds)
        if found is not None:
            number, row = found
            meta = row.get("meta") or {}
            origin.steps.append(Place(made, name, number, f"row {number}"))
            source = meta.get("source")
            origin.source = source if isinstance(source, Mapping) else origin.source
            document, code = meta.get("document"), meta.get("code")
            return None if document is None else str(document), None if code is None else str(code)
    return None, None


def _asked_by(lineage: Lineage, questions: Sequence[Questions], node: Node) -> Iterator[tuple[Node | None, Path, str]]:
    """The files of questions that the stages behind an artifact asked: of other stages, then outside of the store."""
    above = lineage.above(node.id)
    for stage in above:
        for edge in stage.edges:
            made = lineage.nodes[edge.id]
            names = [str(table["task"]) for table in task_tables(stage) if table.get("of") == edge.name]
            if made.artifact is not None:
                yield from ((made, made.artifact.path / name, name) for name in names if name in made.files)
    for outside in questions:
        if any(stage in above for stage in outside.stages):
            yield from ((None, path, str(path)) for path in outside.files)


def _document(lineage: Lineage, begin: Node, holds: str, is_it: Any) -> tuple[Place, dict[str, Any]] | None:
    """A document among those that an artifact was made from, the nearest first."""
    for node in lineage.above(begin.id):
        if node.artifact is not None and DOCUMENTS in node.files:
            found = find_row(node.artifact.path / DOCUMENTS, is_it, holds)
            if found is not None:
                return Place(node, DOCUMENTS, found[0], str(found[1].get("id"))), found[1]
    return None
