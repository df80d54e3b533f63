"""Where a model's answer may come from: all data of its lineage, and the rows that share words with a text.

Only rows that a model of the lineage learnt from are searched and shown, as they were learnt: behind redaction nothing
is looked at. Files are read as streams; memory is that of the text's runs of words and of the rows that are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schoolhouse.core.artifact import Artifact, Store
from schoolhouse.evaluate.tracing.lineage import Lineage, Node, task_tables, walk
from schoolhouse.evaluate.tracing.origin import Origin, Place, Questions, origin_of
from schoolhouse.evaluate.tracing.rows import Reader, Row
from schoolhouse.evaluate.tracing.words import Asked, places, words
from schoolhouse.tasks.gym import PREFIX
from schoolhouse.tasks.load import BUILT_IN

_BESIDE = 12  # words that are shown before and behind a shared run
_FURTHER = 3  # rows of the same document that are named beside the best one


@dataclass
class Hit:
    """A row that shares words with the text. run: words of the longest shared run; share: of the text's runs of n words
    that stand in the row; span: what stands before the run, the run, what stands behind it; rarest: how many rows hold
    the rarest n words of it; further: other rows of the same document.
    """

    place: Place
    row: Row
    readers: Sequence[Node]
    share: float
    part: str
    start: int
    run: int
    span: tuple[str, str, str]
    further: list[Place] = field(default_factory=list)
    rarest: int = 0
    origin: Origin | None = None


@dataclass(frozen=True)
class Search:
    """What a text was compared with, and what was found. n: words of the shortest run that counts."""

    words: int
    n: int
    found: tuple[int, int]  # of the text's different runs of n words those that stand in some row, and all
    rows: int
    alike: int  # rows that share a run of n words or more
    set_aside: int
    hits: Sequence[Hit]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Trace:
    """Everything that was found out about a model, and about a text if one was given."""

    lineage: Lineage
    questions: Sequence[Questions]
    made_up: Mapping[str, Sequence[Node]]  # tasks whose questions the program makes up, with the stages that asked
    search: Search | None


def trace(root: Artifact, store: Store, ledger: Path | None, text: str | None, most: int) -> Trace:
    """Walk the lineage of a model, and look for a text in all that it learnt. Raises DataError for a text of no words.

    ledger: the file that knows artifacts which the store no longer has; most: rows that are shown at most.
    """
    asked = None if text is None else Asked(text)
    lineage = walk(root, store, ledger)
    questions, made_up = _tasks(lineage)
    search = None if asked is None else _search(lineage, questions, asked, most)
    return Trace(lineage, questions, made_up, search)


def _tasks(lineage: Lineage) -> tuple[list[Questions], dict[str, list[Node]]]:
    """The files of questions outside of the store, and the tasks that the program makes up, of all that was learnt."""
    outside: dict[str, list[Node]] = {}
    made_up: dict[str, list[Node]] = {}
    for node in [*lineage.models, *lineage.data]:
        for table in task_tables(node):
            name = str(table.get("task"))
            if table.get("of") is None:
                of_program = name in BUILT_IN or name.startswith(PREFIX)
                stages = (made_up if of_program else outside).setdefault(name, [])
                if node not in stages:
                    stages.append(node)
    return [Questions(Path(name), tuple(nodes)) for name, nodes in outside.items()], made_up


def _search(lineage: Lineage, questions: Sequence[Questions], asked: Asked, most: int) -> Search:
    best, warnings = _Best(asked, most), list[str]()
    for (id, name), readers in lineage.taught.items():
        node = lineage.nodes[id]
        assert node.artifact is not None, "only files that are there are searched"
        reader = Reader(node.artifact.path / name, Path(name).name)
        where = f"{name} of {node.title}, artifact {id}"
        if not reader.path.is_file():
            warnings.append(f"{where}: the file was lost; it was not searched")
            continue
        best.take(reader, node, name, readers)
        if reader.sha256 != node.files[name].get("sha256"):
            warnings.append(f"{where}: it was changed since it was made, and is no longer what was learnt")
        if reader.set_aside:
            warnings.append(f"{where}: {reader.set_aside} rows cannot be read, the first: {reader.first_bad}")
    for outside in questions:
        readers = [node for node in outside.stages if node.is_model]
        for path in outside.files if readers else ():
            best.take(Reader(path, path.name), None, str(path), readers)
    for hit in best.hits:
        hit.rarest = asked.rarest(hit.start, hit.run)
        hit.origin = origin_of(lineage, questions, hit.place, hit.row)
    return Search(len(asked.words), asked.n, asked.found(), best.rows, best.alike, best.set_aside, best.hits, warnings)


class _Best:
    """The rows most like a text: the longest run first, then the largest share. Of a document the best row counts."""

    def __init__(self, asked: Asked, most: int) -> None:
        self._asked, self._most = asked, most
        self.hits: list[Hit] = []
        self.rows = self.alike = self.set_aside = 0

    def take(self, reader: Reader, node: Node | None, file: str, readers: Sequence[Node]) -> None:
        """Compare every row of a file."""
        for row in reader:
            said = [words(part.text) for part in row.parts]
            shared = [self._asked.shared(one) for one in said]
            held = set[tuple[str, ...]]().union(*shared)
            if held:
                self.alike += 1
                self._asked.rows.update(held)
                self._offer(row, said, shared, self._asked.share(held), Place(node, file, row.number, row.id), readers)
        self.rows += reader.rows
        self.set_aside += reader.set_aside

    def _offer(
        self, row: Row, said: list[list[str]], shared: list[set[tuple[str, ...]]], share: float, place: Place,
        readers: Sequence[Node],
    ) -> None:  # fmt: skip
        same = next((hit for hit in self.hits if _is_same(hit.row, row)), None)
        bar = same or (self.hits[-1] if len(self.hits) == self._most else None)
        worst = (bar.run, bar.share) if bar is not None else (0, 0.0)
        if (max(map(self._asked.at_most, shared)), share) > worst:
            found = [self._asked.longest(one) if grams else (0, 0, 0) for one, grams in zip(said, shared, strict=True)]
            index = max(range(len(found)), key=lambda i: found[i][2])
            at, start, size = found[index]
            if (size, share) > worst:
                part = row.parts[index]
                hit = Hit(place, row, readers, share, part.what, start, size, _cut(part.text, at, size))
                if same is not None:
                    hit.further = [*same.further, same.place][:_FURTHER]
                self.hits = [other for other in self.hits if other is not same] + [hit]
                self.hits = sorted(self.hits, key=lambda h: (-h.run, -h.share))[: self._most]
                return
        if same is not None and len(same.further) < _FURTHER:
            same.further.append(place)


def _is_same(one: Row, other: Row) -> bool:
    """Whether two rows were made from one document, or say the same where none is known."""
    if one.document is not None or other.document is not None:
        return one.document == other.document
    return one.parts == other.parts


def _cut(text: str, at: int, size: int) -> tuple[str, str, str]:
    """Some words before a run of words, the run, and some behind it, as they stand in the text."""
    found = places(text)
    start, end = found[at][0], found[at + size - 1][1]
    before, behind = found[max(0, at - _BESIDE)][0], found[min(len(found), at + size + _BESIDE) - 1][1]
    return text[before:start], text[start:end], text[end:behind]
