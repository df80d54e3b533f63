"""Reads files in processes of their own, a bounded stretch ahead of whoever takes the result.

A file is read by one worker and handed on in parts, in the order of the files, however many workers there are. A part
waits in memory until it is taken; a worker that is far enough ahead waits, too. A file that ends its worker (a damaged
PDF may take all memory, or for ever) is set aside, and the next one gets a new worker.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from schoolhouse.core.errors import MachineError
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.prepare.reading.files import sha256
from schoolhouse.prepare.reading.formats import read_file
from schoolhouse.prepare.reading.items import TOO_LARGE, WHOLE, Item, Note, Piece, SetAside, Source, Table

FILES_AHEAD = 4  # files that are begun for each worker before their turn
PARTS_AHEAD = 4  # parts of a file that wait
PART_CHARS = 1 << 18  # of text in a part, or one document if that is larger
LIMIT_S = 600  # between two documents of one file
_LEAST_BYTES = 1 << 30
_ITEMS: dict[str, type[Item]] = {"piece": Piece, "aside": SetAside, "note": Note}
_NAMES = {kind: name for name, kind in _ITEMS.items()}


@dataclass(frozen=True)
class Part:
    """Some of what a file holds. sha256: of the file; empty where it could not be read at all."""

    source: Source
    sha256: str
    items: list[Item]


Parts = queue.Queue[Part | BaseException | None]
Waiting = Callable[[], AbstractContextManager[object]]


def read_here(sources: Sequence[Source]) -> Iterator[Part]:
    """Read files one after the other in this process, an item a part: nothing is read that is not taken."""
    for source in sources:
        digest = _digest(source)
        yield Part(source, digest, [])
        for item in read_file(source):
            yield Part(source, digest, [item])


def read_ahead(
    sources: Sequence[Source], workers: int, waiting: Waiting, beat: Callable[[], None]
) -> Generator[Part, None, None]:
    """Read files with `workers` processes. `waiting` is held while nothing is there to take, and `beat` called about
    once a second meanwhile; what it raises ends the reading.
    """
    crew = _Crew()
    begun: deque[Parts] = deque()
    ahead = iter(sources)
    with ThreadPoolExecutor(workers, "reader") as threads:

        def begin(count: int) -> None:
            for source in itertools.islice(ahead, count):
                begun.append(queue.Queue(PARTS_AHEAD))
                threads.submit(crew.read, source, begun[-1])

        try:
            begin(FILES_AHEAD * workers)
            while begun:
                parts = begun.popleft()
                while (part := _next(parts, waiting, beat)) is not None:
                    yield part
                begin(1)
        finally:
            crew.dismiss()


def _next(parts: Parts, waiting: Waiting, beat: Callable[[], None]) -> Part | None:
    """The next part of a file, None behind its last; raises what its thread could not do."""
    part = None
    try:
        part = parts.get_nowait()
    except queue.Empty:
        with waiting():
            while True:
                with contextlib.suppress(queue.Empty):
                    part = parts.get(timeout=1)
                    break
                beat()
    if isinstance(part, BaseException):
        raise part
    return part


class _Crew:
    """The workers: one process for each thread that reads, started at its first file."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def dismiss(self) -> None:
        """End every worker; threads that wait for one or for room go home."""
        self._is_over.set()
        with self._lock:
            for process in self._all:
                process.kill()
                process.wait()
                _close(process)

    def read(self, source: Source, parts: Parts) -> None:
        """Have one file read, put its parts, and None behind the last one."""
        if self._is_over.is_set():
            return
        try:
            self._read(source, parts, self._process())
            self._put(parts, None)
        except BaseException as error:  # to be raised where the parts are taken
            self._put(parts, error)

    def _read(self, source: Source, parts: Parts, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        digest, items, size, last = "", [], 0, WHOLE
        try:
            process.stdin.write(_order(source))
            process.stdin.flush()
            lines: Iterator[bytes] = iter(process.stdout.readline, b"")
            digest = json.loads(next(lines, b""))
            self._put(parts, Part(source, digest, []))
            for line in lines:
                if line == b"null\n":
                    break
                name, fields = json.loads(line)
                items.append(_ITEMS[name](**fields))
                size += len(line)
                last = fields.get("place", last)
                if size >= PART_CHARS:
                    self._put(parts, Part(source, digest, items))
                    items, size = [], 0
            else:
                raise EOFError
        except (BrokenPipeError, EOFError, json.JSONDecodeError):  # the last: a line that was cut off
            items.append(SetAside(WHOLE if last == WHOLE else f"after {last}", self._why_ended(process)))
        self._put(parts, Part(source, digest, items))

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            # -P: a file of the folder one stands in must not be taken for a module
            command = [sys.executable, "-P", "-m", "schoolhouse.prepare.reading.ahead"]
            with self._lock:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # libraries quote broken files there
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                self._all.append(process)
                if self._is_over.is_set():
                    process.kill()
            assert process.stdout is not None
            if process.stdout.readline() != b"true\n" and not self._is_over.is_set():
                raise MachineError(
                    f"A process that reads files could not be started; see what {' '.join(command)} says."
                )
            self._own.process = process
        return process

    def _why_ended(self, process: subprocess.Popen[bytes]) -> str:
        process.kill()
        code = process.wait()
        return (
            f"took more than {LIMIT_S // 60} minutes" if code == -signal.SIGALRM else f"ended its reader: {TOO_LARGE}"
        )

    def _put(self, parts: Parts, part: Part | BaseException | None) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(queue.Full):
                parts.put(part, timeout=0.2)
                return


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _order(source: Source) -> bytes:
    table = source.table.model_dump() if source.table else None
    return json.dumps([os.fspath(source.path), source.name, table, source.encoding, source.person]).encode() + b"\n"


def _digest(source: Source) -> str:
    try:
        return sha256(source.path)
    except OSError:
        return ""  # what is wrong with it comes out when it is read


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """The worker: a line of JSON names a file, its SHA-256 and items are answered a line each, `null` ends them."""
    flushed_at = time.monotonic()

    def say(what: object, now: bool = False) -> None:
        nonlocal flushed_at
        signal.alarm(0)  # to wait until somebody reads on is no fault of the file
        answers.write(json.dumps(what, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        if now or time.monotonic() - flushed_at > 1:
            answers.flush()
            flushed_at = time.monotonic()
        signal.alarm(LIMIT_S)

    say(True, now=True)
    signal.alarm(0)
    for line in orders:
        path, name, table, encoding, person = json.loads(line)
        source = Source(Path(path), name, Table(**table) if table else None, encoding, person)
        say(_digest(source), now=True)
        for item in read_file(source):
            say([_NAMES[type(item)], vars(item)])
        say(None, now=True)
        signal.alarm(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    most = max(_LEAST_BYTES, available_memory_bytes())
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    channel = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, channel)
