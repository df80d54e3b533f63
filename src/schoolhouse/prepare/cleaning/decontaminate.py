"""Texts that a model is going to be examined on, looked for in what it learns from.

A text overlaps an evaluation text if it holds enough of its n-grams of words, or the other way round: their common
n-grams are divided by those of the smaller one. So a question in a long page is found, and a page of a long held-out
document. A message that is an evaluation text word for word is found however short it is.
Source: n-grams without case and punctuation as in GPT-3 (arXiv 2005.14165, appendix C); 8 words and 70% of them as in
PaLM (arXiv 2204.02311, section 8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError
from schoolhouse.prepare.cleaning.shingles import ngrams, word_hashes
from schoolhouse.prepare.rows import Rows
from schoolhouse.tasks.jsonl import JsonlTask
from schoolhouse.tasks.load import complaints, load_tasks
from schoolhouse.text.documents import VALIDATION, read_texts
from schoolhouse.text.sourced import HELD_OUT

if TYPE_CHECKING:
    from schoolhouse.core.run import Run
    from schoolhouse.prepare.clean import Config


@dataclass(frozen=True)
class Overlap:
    """Which evaluation set a text overlaps, and by what share of the smaller one's n-grams."""

    name: str
    share: float


class Evaluations:
    """All evaluation texts by their hashed n-grams. `n`: words of an n-gram; `overlap`: the least share that counts."""

    def __init__(self, n: int, overlap: float) -> None:
        self.n, self.overlap = n, overlap
        self.texts: Counter[str] = Counter()  # by evaluation set
        self.short: Counter[str] = Counter()  # of these, too few words for an n-gram
        self._whole: dict[int, str] = {}
        self._names: list[str] = []  # by text with n-grams
        self._found: list[NDArray[np.uint64]] = []  # their n-grams, until they are sorted
        self._index: tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int64]] | None = None

    def add(self, name: str, texts: Iterable[str]) -> None:
        """Take in an evaluation set."""
        for text in texts:
            ids = word_hashes(text)
            if not len(ids):
                continue
            self.texts[name] += 1
            self._whole.setdefault(_whole(ids), name)
            grams = np.unique(ngrams(ids, self.n))
            if len(grams):
                self._names.append(name)
                self._found.append(grams)
            else:
                self.short[name] += 1
        self._index = None

    def find(self, parts: Iterable[str]) -> Overlap | None:
        """The evaluation set that a text (its messages) overlaps most, the first of several; None if there is none."""
        held = [word_hashes(part) for part in parts]
        for ids in held:
            if len(ids) and _whole(ids) in self._whole:
                return Overlap(self._whole[_whole(ids)], 1.0)
        own = np.unique(ngrams(np.concatenate([*held, np.zeros(0, np.uint64)]), self.n))
        if not self._found or not len(own):
            return None
        if self._index is None:
            self._index = self._sorted()
        grams, texts, sizes = self._index
        first, last = np.searchsorted(grams, own, "left"), np.searchsorted(grams, own, "right")
        hit = last > first
        if not hit.any():
            return None
        met, common = np.unique(
            np.concatenate([texts[a:b] for a, b in zip(first[hit], last[hit], strict=True)]), return_counts=True
        )
        shares = common / np.minimum(sizes[met], len(own))
        best = int(np.argmax(shares))
        return Overlap(self._names[met[best]], float(shares[best])) if shares[best] >= self.overlap else None

    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int64]]:
        """Every n-gram in order, the text that each is of, and how many each text has."""
        sizes = np.array([len(grams) for grams in self._found], dtype=np.int64)
        grams = np.concatenate(self._found)
        texts = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        order = np.argsort(grams, kind="stable")
        return grams[order], texts[order], sizes


def _whole(ids: NDArray[np.uint64]) -> int:
    """One hash of all words of a text."""
    return int(ngrams(ids, len(ids))[0])


def gather(config: Config, inputs: Mapping[str, Artifact], run: Run) -> Evaluations:
    """Everything that a recipe examines: test questions of tasks, and what other stages hold out.

    Of tasks that make their questions those of an exam with the same seed come first. Raises DataError for a stage that
    holds nothing out.
    """
    evaluations = Evaluations(config.ngram, config.overlap)
    tasks = load_tasks(config.against, inputs)
    for complaint in complaints(tasks):
        run.log.warn(complaint)
    for task in tasks:
        for level in task.levels:
            most = len(task.questions.get(("test", level), ())) if isinstance(task, JsonlTask) else config.questions
            evaluations.add(task.name, (example.question for example in task.examples("test", level, most, run.seed)))
    for name in config.against_data:
        evaluations.add(f"held out of {name}", _held_out(inputs[name]))
    for name, n in evaluations.short.items():
        run.log.warn(
            f"{name}: {n} of {evaluations.texts[name]} texts have fewer than {config.ngram} words: they are found only "
            "where a whole message or document is one of them"
        )
    return evaluations


def _held_out(artifact: Artifact) -> Iterator[str]:
    """The texts that another stage holds out."""
    if (artifact.path / HELD_OUT).is_dir():
        held = Rows(artifact.path / HELD_OUT)
        yield from (row.text for row in held)
        if held.bad:
            raise DataError(f"{held.path}: {len(held.bad)} bad rows, the first: {held.bad[0]}")
    elif (artifact.path / VALIDATION).is_file():
        yield from read_texts(artifact.path / VALIDATION)
    else:
        raise DataError(f"{artifact.path} holds nothing out: against_data names stages such as prepare.clean, get.text")
