"""What a model was made from: every artifact of its lineage, and which of their files it learnt from.

Manifests name what an artifact was made from, and the settings that name each of these say what it was for. Where an
artifact is no longer in the store, the ledger still knows its stage and what it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schoolhouse.core.artifact import Artifact, Store
from schoolhouse.core.errors import ArtifactError
from schoolhouse.core.ledger import Ledger
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.preferences import RATINGS
from schoolhouse.text.records import CONVERSATIONS

REDACTS = "prepare.redact"
SAMPLES, BESIDE = "train.sample", "beside"
TASKS = "tasks"
_ROWS = (CONVERSATIONS, DOCUMENTS, RATINGS)
_READS = {
    "train.sft": (CONVERSATIONS,), "train.record": (CONVERSATIONS,), "train.pretrain": (DOCUMENTS,),
    "train.prefer": (RATINGS,), "train.reward": (RATINGS,),
}  # fmt: skip
# What a stage names without taking over any of it: to compare with, to find names by, to cut into pieces by.
_ASIDE = {
    ("prepare.clean", "against"), ("prepare.clean", "against_data"), ("prepare.coverage", "exam"),
    ("prepare.redact", "tagger"), ("prepare.pack", "tokenizer"), ("prepare.tokenizer", "base"),
}  # fmt: skip
_MODELS = ("get", "train.pretrain", "train.sft", "train.grpo", "train.prefer", "train.reward", "train.distill")
_WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Edge:
    """One artifact that another was made from. roles: the settings that name it; is_learnt: what it holds goes on."""

    id: str
    name: str
    roles: tuple[str, ...]
    is_learnt: bool


@dataclass(frozen=True)
class Node:
    """One artifact of a lineage. artifact: None where it is not to be had, and then `problem` says why; as_model: a
    stage named it as a model, of which nothing else may be known.
    """

    id: str
    artifact: Artifact | None
    kind: str
    stage: str
    recipe: str
    config: Mapping[str, Any]
    edges: tuple[Edge, ...]
    problem: str | None = None
    as_model: bool = False

    @property
    def meta(self) -> Mapping[str, Any]:
        """The facts of its manifest."""
        return self.artifact.meta if self.artifact is not None else {}

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Its files with their SHA-256 and bytes."""
        return self.artifact.manifest["files"] if self.artifact is not None else {}

    @property
    def is_model(self) -> bool:
        """Whether it is a checkpoint."""
        if self.artifact is None:
            return self.as_model or self.kind in _MODELS or self.kind.startswith("compress.")
        return is_model(self.artifact)

    @property
    def title(self) -> str:
        """The stage's name with what made it, for people."""
        return f"{self.stage} ({self.kind})" if self.kind else self.stage


@dataclass(frozen=True)
class Lineage:
    """All artifacts of a lineage by their ids, the nearest first. learnt: those whose content may have been learnt;
    bare: those that some way leads to without redaction.
    """

    root: Node
    nodes: Mapping[str, Node]
    learnt: frozenset[str]
    bare: frozenset[str]

    @cached_property
    def models(self) -> list[Node]:
        """The checkpoints whose weights, or whose words, went on into the model; itself the first."""
        return [node for node in self.nodes.values() if node.is_model and node.id in self.learnt]

    @cached_property
    def data(self) -> list[Node]:
        """Everything else that it was made from, what it was only compared with left out."""
        return [node for node in self.nodes.values() if not node.is_model and node.id in self.learnt]

    @cached_property
    def taught(self) -> Mapping[tuple[str, str], list[Node]]:
        """(artifact, file) of the rows that models of the lineage learnt from, with these models."""
        found: dict[tuple[str, str], list[Node]] = {}
        for reader in self.models:
            for edge in reader.edges:
                if edge.is_learnt and not self.nodes[edge.id].is_model:
                    for place in self._rows_of(edge.id, _wanted(reader, edge), at_once=True):
                        readers = found.setdefault(place, [])
                        if reader not in readers:
                            readers.append(reader)
        return found

    def _rows_of(self, id: str, wanted: Sequence[str], *, at_once: bool) -> Iterator[tuple[str, str]]:
        """The files that hold rows, of an artifact or of what it was made from: packed ids cannot be searched.

        Behind redaction nothing is searched: no model has seen that.
        """
        node = self.nodes[id]
        present = [name for name in wanted if name in node.files]
        if not present and not at_once:
            present = [name for name in _ROWS if name in node.files]
        if present:
            yield from ((id, name) for name in present)
        elif node.kind != REDACTS:
            for edge in node.edges:
                if edge.is_learnt and not self.nodes[edge.id].is_model:
                    yield from self._rows_of(edge.id, wanted, at_once=False)

    def above(self, id: str) -> list[Node]:
        """An artifact and the data that it was made from, the nearest first, as far as redaction lets one look."""
        found: dict[str, Node] = {}
        todo = deque([id])
        while todo:
            node = self.nodes[todo.popleft()]
            if node.id not in found and not node.is_model:
                found[node.id] = node
                if node.kind != REDACTS:
                    todo.extend(edge.id for edge in node.edges if edge.is_learnt)
        return list(found.values())

    def way(self, id: str, through: Sequence[str] = (), *, is_sampled: bool = False) -> list[Node]:
        """The stages from an artifact up to its source, by way of others where there is more than one.

        is_sampled: of a row that a model wrote there, so that the rows beside such ones are not where it comes from.
        """
        found = [self.nodes[id]]
        while onward := [e for e in found[-1].edges if e.is_learnt and not self.nodes[e.id].is_model]:
            if found[-1].kind == SAMPLES:
                onward = [e for e in onward if (BESIDE in e.roles) != is_sampled]
                if not onward:
                    break
            wanted = set(through) - {node.id for node in found}
            leads = [e for e in onward if wanted & {node.id for node in self.above(e.id)}]
            main = [e for e in onward if "data" in e.roles]
            found.append(self.nodes[(leads or main or onward)[0].id])
        return found


def walk(root: Artifact, store: Store, ledger: Path | None = None) -> Lineage:
    """The lineage of an artifact. ledger: the file that knows artifacts which the store no longer has."""
    finder = _Finder(store, ledger)
    nodes = {root.id: _known(root)}
    seen: set[tuple[str, bool, bool]] = set()
    todo = deque([(root.id, True, True)])
    while todo:
        state = todo.popleft()
        if state in seen:
            continue
        seen.add(state)
        id, learnt, bare = state
        if id not in nodes:
            nodes[id] = finder.find(id, [e for n in nodes.values() for e in n.edges if e.id == id])
        node = nodes[id]
        todo.extend((e.id, learnt and e.is_learnt, bare and node.kind != REDACTS) for e in node.edges)
    return Lineage(
        nodes[root.id],
        nodes,
        frozenset(id for id, learnt, _ in seen if learnt),
        frozenset(id for id, _, bare in seen if bare),
    )


def is_model(artifact: Artifact) -> bool:
    """Whether an artifact is a checkpoint, or one file with weights."""
    files = artifact.manifest["files"]
    return "config.json" in files or any(name.endswith(".gguf") for name in files)


def by_weights(path: Path, store: Store) -> Artifact | None:
    """The newest artifact that holds the weights of a folder, or of one file, by their SHA-256; None if none does."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS)
    made = store.all()
    sizes = {held["bytes"] for artifact in made for held in artifact.manifest["files"].values()}
    if not files or not {file.stat().st_size for file in files} <= sizes:
        return None
    wanted = set()
    for file in files:
        with file.open("rb") as opened:
            wanted.add(hashlib.file_digest(opened, "sha256").hexdigest())
    fitting = [a for a in made if wanted <= {held["sha256"] for held in a.manifest["files"].values()}]
    return fitting[-1] if fitting else None


class _Finder:
    """Looks artifacts up in the store, and those that it lacks in the ledger, which is read once and only then."""

    def __init__(self, store: Store, ledger: Path | None) -> None:
        self._store, self._ledger = store, ledger

    def find(self, id: str, seen_as: Sequence[Edge]) -> Node:
        """An artifact of an id. seen_as: how others name it."""
        try:
            artifact = self._store.get(id)
            problem = f"it is no longer in {self._store.root}"
        except ArtifactError as error:
            artifact, problem = None, str(error)
        if artifact is not None:
            return _known(artifact)
        row = self._booked.get(id)
        if row is None:
            name = next((edge.name for edge in seen_as if edge.name), "unknown")
            as_model = any({"model", "master", "preference"} & set(edge.roles) for edge in seen_as)
            problem += ", and no ledger tells what it was made from"
            return Node(id, None, "", name, "", {}, (), problem, as_model)
        config, inputs = row["config"], row["inputs"]
        edges = _edges(row["kind"], config, inputs, list(inputs.values()))
        return Node(id, None, row["kind"], row["name"], row["recipe"], config, edges, problem)

    @cached_property
    def _booked(self) -> Mapping[str, Mapping[str, Any]]:
        if self._ledger is None or not self._ledger.is_file():
            return {}
        try:
            book = Ledger(f"sqlite:///{self._ledger}")
            recipes = {row["id"]: row["recipe"] for row in book.runs()}
            return {
                row["artifact_id"]: {
                    "kind": row["kind"], "name": row["name"], "recipe": recipes.get(row["run_id"], ""),
                    "config": json.loads(row["config_json"]), "inputs": json.loads(row["inputs_json"]),
                }
                for row in book.stages()
            }  # fmt: skip
        except ArtifactError:
            return {}


def _known(artifact: Artifact) -> Node:
    meta = artifact.meta
    config, inputs = meta.get("config", {}), meta.get("inputs", {})
    edges = _edges(artifact.kind, config, inputs, artifact.parents)
    stage = str(meta.get("stage", artifact.id))
    return Node(artifact.id, artifact, artifact.kind, stage, str(meta.get("recipe", "")), config, edges)


def _edges(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], parents: Sequence[str]) -> tuple[Edge, ...]:
    """What an artifact was made from, by its settings; whose use they do not tell counts as learnt from."""
    named = {id: name for name, id in inputs.items()}
    edges = []
    for id in dict.fromkeys([*inputs.values(), *parents]):
        name = named.get(id, "")
        roles = tuple(key for key, value in config.items() if name and _names(value, name))
        edges.append(Edge(id, name, roles, not roles or any(not _is_aside(kind, role) for role in roles)))
    return tuple(edges)


def _names(value: Any, name: str) -> bool:
    """Whether a setting is a stage's name, or holds it in a list or as the stage that made a task's file."""
    if isinstance(value, Mapping):
        return value.get("of") == name
    if isinstance(value, list):
        return any(_names(one, name) for one in value)
    return bool(value == name)


def _is_aside(kind: str, role: str) -> bool:
    """Whether a setting names something that is only looked at; a compression looks at texts to see what matters."""
    return (kind, role) in _ASIDE or (kind.startswith("compress.") and role == "data")


def _wanted(reader: Node, edge: Edge) -> Sequence[str]:
    """The files of an input that a stage read."""
    if TASKS in edge.roles:
        return [str(table["task"]) for table in task_tables(reader) if table.get("of") == edge.name]
    return _READS.get(reader.kind, _ROWS)


def task_tables(node: Node) -> list[Mapping[str, Any]]:
    """The tasks of a stage's settings, each as a table."""
    tasks = node.config.get(TASKS) or []
    return [task if isinstance(task, Mapping) else {"task": task} for task in tasks]
