"""Documents are searched in processes of their own, a bounded stretch ahead of whoever takes what was found.

What is found does not hang on how many processes there are: each document is searched by itself.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import Any

from schoolhouse.core.errors import MachineError
from schoolhouse.prepare.redaction.search import Found, Search, Terms, open_search
from schoolhouse.text.sourced import Document

Waiting = Callable[[], AbstractContextManager[object]]

_HERE = 64  # documents that are searched in this process: so few are done before another one has started
_TOGETHER, _AHEAD = 16, 4  # documents of one order, and orders that wait for each worker

_search: Search  # of a worker


class Crew:
    """Searches documents. waiting: held while nothing is there to take. To be used as a context manager."""

    def __init__(self, terms: Terms, search: Search, workers: int, waiting: Waiting) -> None:
        self._terms, self._search, self._workers, self._waiting = terms, search, workers, waiting
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def look(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Found]]:
        """Each document with what it holds, in order. Raises MachineError if a process was ended from outside."""
        left = iter(documents)
        for document in itertools.islice(left, None if self._workers == 1 else _HERE):
            yield document, self._search.look(document)
        begun: deque[tuple[list[Document], Future[list[dict[str, Any]]]]] = deque()
        try:
            while True:
                while len(begun) < _AHEAD * self._workers and (some := list(itertools.islice(left, _TOGETHER))):
                    begun.append((some, self._started().submit(_look, [document.to_row() for document in some])))
                if not begun:
                    return
                some, answer = begun.popleft()
                with self._waiting():
                    rows = answer.result()
                yield from zip(some, map(Found.from_row, rows), strict=True)
        except BrokenProcessPool:
            raise MachineError(
                "a process that searches documents was ended, perhaps for want of memory; the same command goes on "
                "from what was found (--set machine.threads=1 searches in one process)"
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _begin, (self._terms,))
        return self._pool


def _begin(terms: Terms) -> None:
    global _search  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    _search = open_search(terms)


def _look(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_search.look(Document.from_row(row)).to_row() for row in rows]
