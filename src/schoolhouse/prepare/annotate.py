"""The stage `prepare.annotate`: a queue of documents for people to label, and what their labels so far come to.

Run it again when labels were added: what a light learner makes of them decides what is asked next. A part of every
batch is drawn by chance among held-out documents, so that the exam is not made of what was hard to learn.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError, Stopped
from schoolhouse.core.shares import Estimate
from schoolhouse.prepare.annotation import card as annotate_card
from schoolhouse.prepare.annotation.active import Order, Pick, need_scipy
from schoolhouse.prepare.annotation.labelled import Held, asked_of, export, replies_of
from schoolhouse.prepare.annotation.settle import Said, Settle, Settled, agreements, by_document, settle
from schoolhouse.prepare.annotation.taught import Taught, grams_of
from schoolhouse.tasks.task import SPLITS, Split, split_of
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.labels import (
    LABELS,
    QUEUE,
    SCHEMA,
    Asked,
    Labels,
    LabelSchema,
    SchemaOrFile,
    label_files,
    labelled_ids,
    read_labels,
    written,
)
from schoolhouse.text.preferences import is_held_out
from schoolhouse.text.records import write_rows
from schoolhouse.text.sourced import HELD_OUT, Document, read_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

AGREEMENT, CONFLICTS, SET_ASIDE = "agreement.json", "conflicts.jsonl", "set_aside.jsonl"
_BYTES = 200_000  # of a document in the pool, a long one


class Config(StageConfig):
    """What `prepare.annotate` asks, of what, and whom."""

    data: Ref  # documents, from a stage that makes them
    ask: SchemaOrFile  # what is asked, see below: a table, or the path of a TOML or JSON file
    labels: str | None = None  # the labels so far: a JSONL file, or a folder with one for each annotator
    order: Order = "margin"  # what is asked first: what a learner is least sure of, what is unlike the rest, or chance
    batch: int = Field(default=100, ge=1)  # documents to ask next, beside those that wait for another annotator
    exam: float = Field(default=0.2, ge=0, le=1)  # share of them drawn by chance among held-out documents
    annotators: int = Field(default=2, ge=1)  # how many label each document of the overlap
    overlap: float = Field(default=0.2, ge=0, le=1)  # share of the documents that so many label; the others one
    settle: Settle = "all"  # whether all must say the same, or the majority decides
    adjudicator: str | None = None  # the annotator whose label decides, and who is none of those that are compared
    pool: int = Field(default=5000, ge=1)  # documents that are weighed for the queue, drawn by chance


def check(config: Config) -> None:
    """Raise RecipeError, DataError or MachineError before anything starts for an order or file that cannot be used."""
    _files(config)
    if config.order != "random":
        need_scipy()
    if config.batch > config.pool:
        raise RecipeError(f"batch is {config.batch} of a pool of {config.pool}; give a pool several times as large.")
    if config.ask.kind == "free" and config.order not in ("diversity", "random"):
        raise RecipeError(
            f'order is {config.order!r}: free answers have no classes to be unsure of; take "diversity" or "random".'
        )


def fingerprint(config: Config) -> str:
    """Return the hash of the labels: further ones make another queue."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(config)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, Any]]) -> int:
    """What the n-grams of the pool take."""
    return 0 if config.order == "random" else config.pool * _BYTES


def _files(config: Config) -> list[Path]:
    return label_files(Path(config.labels)) if config.labels is not None else []


@dataclass
class _Found:
    """What one pass over the documents keeps: those that labels speak of, and those that may be asked next.

    fresh: by split, (less its rank by chance, its id, its n-grams), the lowest ranks alone.
    """

    held: dict[str, Held] = field(default_factory=dict)
    fresh: dict[Split, list[tuple[float, str, list[NDArray[np.int32]]]]] = field(
        default_factory=lambda: {"train": [], "test": []}
    )
    counts: Counter[str] = field(default_factory=Counter)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the queue, what is agreed and what is not, rows that were set aside, and the data card.

    Raises DataError if no document can be asked about, Stopped after Ctrl-C.
    """
    schema = config.ask
    files = _files(config)
    found = _gather(config, schema, inputs[config.data].path, labelled_ids(files), run)
    labels = read_labels(files, schema, {name: one.document for name, one in found.held.items()})
    said = by_document(labels.good)
    needed = {name: _needed(name, config) for name in said}
    settled = settle(said, needed, config.settle, config.adjudicator)
    for name in found.held.keys() - said.keys():  # its labels were all set aside
        _offer(config, schema, found, found.held[name], run.seed)
    queue, guessed = _queue(config, schema, found, said, settled, run.seed)
    measures = agreements(schema, said, config.adjudicator, run.seed)
    made = export(schema, settled.values, found.held, out.path)
    _write(out.path, schema, labels, queue, settled, found.held)
    counts = {
        "documents": found.counts["documents"], "labelled": len(said), "settled": len(settled.values),
        "conflicts": len(settled.conflicts), "waiting": len(settled.waiting), "queue": len(queue),
        "set_aside": len(labels.bad), "other_kinds": labels.other, "replaced": labels.replaced,
        "unfit": found.counts["unfit"], "repeated": found.counts["repeated"],
    }  # fmt: skip
    agreed = {name: vars(measure) for name, measure in measures.items()}
    (out.path / AGREEMENT).write_text(json.dumps(agreed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    out.meta.update(counts, files=made, agreement=agreed)
    card = annotate_card.card(config, schema, counts, made, measures, labels, queue, guessed)
    (out.path / "README.md").write_text(card, encoding="utf-8")
    if labels.bad:
        run.log.warn(f"{len(labels.bad)} labels were set aside, the first: {labels.bad[0]}")
    run.log.info(
        f"{counts['labelled']:,} of {counts['documents']:,} documents have labels: {counts['settled']:,} settled, "
        f"{counts['conflicts']:,} in conflict, {counts['waiting']:,} waiting; {counts['queue']:,} to ask"
    )


def _gather(config: Config, schema: LabelSchema, folder: Path, labelled: set[str], run: Run) -> _Found:
    """Read all documents once; of an id that stands twice the first counts."""
    found = _Found()
    seen: set[str] = set()
    for split, document in _documents(folder, schema):
        if document.id in seen:
            found.counts["repeated"] += 1
            continue
        if run.should_stop() == "interrupted":
            raise Stopped(f"stopped after {len(seen):,} documents; the same command begins this stage again")
        seen.add(document.id)
        found.counts["documents"] += 1
        if not document.text.strip() or (schema.kind == "pairs" and replies_of(schema, document) is None):
            found.counts["unfit"] += 1
        elif document.id in labelled:
            found.held[document.id] = Held(document, split)
        else:
            _offer(config, schema, found, Held(document, split), run.seed)
    if found.counts["documents"] == found.counts["unfit"]:
        what = f" with a text and two replies in the facts {' and '.join(schema.replies)}"
        raise DataError(f"{folder} holds no document{what if schema.kind == 'pairs' else ' with a text'}.")
    return found


def _documents(folder: Path, schema: LabelSchema) -> Iterator[tuple[Split, Document]]:
    """Documents with their side: held out by an earlier stage, or else a fifth of all persons.

    Of pairs a fifth of the questions is held out, as `text.preferences` has it, and no earlier stage's.
    """
    held = (folder / HELD_OUT / DOCUMENTS).exists()
    if schema.kind == "pairs":
        for document in read_documents(folder):
            yield "test" if is_held_out(asked_of(document)) else "train", document
        return
    if held:
        yield from (("test", document) for document in read_documents(folder / HELD_OUT))
    for document in read_documents(folder):
        yield "train" if held else split_of(document.person or document.id), document


def _offer(config: Config, schema: LabelSchema, found: _Found, one: Held, seed: int) -> None:
    """Let a document into the draw: the lowest hashes win, so that it is the same whatever else is read."""
    heap, most = found.fresh[one.split], config.pool if one.split == "train" else config.batch
    rank = -_share(f"pool/{seed}/{one.document.id}")
    if len(heap) == most and rank <= heap[0][0]:
        return
    looked = one.split == "train" and config.order != "random"
    entry = rank, one.document.id, grams_of(schema, one.document) if looked else []
    if len(heap) == most:
        heapq.heapreplace(heap, entry)
    else:
        heapq.heappush(heap, entry)


def _needed(name: str, config: Config) -> int:
    """How many annotators a document wants, for ever."""
    return config.annotators if _share(f"overlap/{name}") < config.overlap else 1


def _share(text: str) -> float:
    """A text's hash as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") / 2**64


def _queue(
    config: Config, schema: LabelSchema, found: _Found, said: Said, settled: Settled, seed: int
) -> tuple[list[Asked], Estimate | None]:
    """Those that wait for another annotator first, then the batch; and how often the learner guesses held-out ones."""
    waiting = [
        Asked(name, 1.0, f"has {len(values)} of {_needed(name, config)} labels", _needed(name, config), tuple(values))
        for name, values in sorted(settled.waiting.items())
    ]
    pool, held = (sorted(found.fresh[split], reverse=True) for split in SPLITS)
    test = min(len(held), max(round(config.batch * config.exam), config.batch - len(pool))) if config.exam else 0
    if config.order == "random":
        picks, guessed = [Pick(place, 0.0, "by chance") for place in range(len(pool))[: config.batch - test]], None
    else:
        taught = Taught(schema, found.held, said, settled.values)
        picks, guessed = taught.ask(config.order, [looked for _, _, looked in pool], config.batch - test, seed)
    learnt = [(pool[place][1], score, why) for place, score, why in picks]
    drawn = [(name, 0.0, "held out, by chance") for _, name, _ in held[:test]]
    mixed = [((i + 0.5) / len(part), *row) for part in (learnt, drawn) for i, row in enumerate(part)]
    batch = [Asked(name, score, why, _needed(name, config)) for _, name, score, why in sorted(mixed)]
    return waiting + batch, guessed


def _write(
    folder: Path, schema: LabelSchema, labels: Labels, queue: list[Asked], settled: Settled, held: Mapping[str, Held]
) -> None:
    (folder / SCHEMA).write_text(schema.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    write_rows(folder / QUEUE, (asked.to_row() for asked in queue))
    write_rows(folder / LABELS, (label.to_row() for label in labels.good))
    write_rows(folder / SET_ASIDE, ({"file": bad.path, "line": bad.line, "reason": bad.reason} for bad in labels.bad))
    conflicts = (
        {"id": name, "split": held[name].split, "labels": {who: written(value) for who, value in values.items()}}
        for name, values in sorted(settled.conflicts.items())
    )
    write_rows(folder / CONFLICTS, conflicts)
