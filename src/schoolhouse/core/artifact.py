"""Finished work as immutable folders that appear whole or not at all, and name what they were made from."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import ArtifactError, MachineError
from schoolhouse.core.faults import fail_point

_MANIFEST = "manifest.json"
_SEAL = "manifest_sha256"
_DRAFTS = ".drafts"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def artifact_id(kind: str, config: Mapping[str, Any], parents: Sequence[str], seed: int) -> str:
    """Return the 16 hex digits that name the result of a stage: a hash of all that decides it."""
    text = json.dumps([kind, config, list(parents), seed], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """One finished folder; nobody writes into it again."""

    id: str
    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The stage that made it, like `train.sft`."""
        return str(self.manifest["kind"])

    @property
    def parents(self) -> list[str]:
        """The ids of the artifacts it was made from."""
        return list(self.manifest["parents"])

    @property
    def meta(self) -> Mapping[str, Any]:
        """The facts that the stage wrote down: figures, sources, the meter."""
        meta: Mapping[str, Any] = self.manifest["meta"]
        return meta

    def file(self, name: str) -> Path:
        """Return the path of one of its files; raises `ArtifactError` if it has no file of that name."""
        if name not in self.manifest["files"]:
            held = ", ".join(sorted(self.manifest["files"])) or "nothing"
            raise ArtifactError(f"artifact {self.id} ({self.kind}) has no file {name!r}; it holds {held}")
        return self.path / name

    def verify(self) -> None:
        """Read every byte again; raises `ArtifactError` that lists each file that was changed, lost or added."""
        try:
            written = (self.path / _MANIFEST).read_bytes()
        except OSError as error:
            raise ArtifactError(f"artifact {self.id}: its manifest cannot be read: {error}") from None
        if written != _render(dict(self.manifest)):
            raise ArtifactError(f"artifact {self.id}: {self.path / _MANIFEST} was changed")
        listed: Mapping[str, Mapping[str, Any]] = self.manifest["files"]
        found = {name for name in _files(self.path) if name != _MANIFEST}
        wrong = [f"{name} was lost" for name in sorted(set(listed) - found)]
        wrong += [f"{name} was added" for name in sorted(found - set(listed))]
        for name in sorted(found & set(listed)):
            path = self.path / name
            if path.stat().st_size != listed[name]["bytes"] or _sha256(path) != listed[name]["sha256"]:
                wrong.append(f"{name} was changed")
        if wrong:
            raise ArtifactError(
                f"artifact {self.id} ({self.kind}) in {self.path} is not what was made: {'; '.join(wrong)}. "
                "Delete the folder and run the recipe again to make it anew."
            )


@dataclass
class Draft:
    """A folder in the making: files go into `path`, facts into `meta`."""

    path: Path
    meta: dict[str, Any]


class Store:
    """All artifacts below one folder, each in a folder named by its id."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, id: str) -> Artifact | None:
        """Return the finished artifact or `None`; raises `ArtifactError` if its manifest is damaged."""
        path = self.root / id
        try:
            written = (path / _MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            manifest = json.loads(written)
            intact = written == _render(manifest) and manifest["id"] == id
        except (ValueError, KeyError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise ArtifactError(
                f"{path / _MANIFEST} was changed or is damaged; delete {path} and run the recipe again to make it anew"
            )
        return Artifact(id, path, manifest)

    def all(self) -> list[Artifact]:
        """Return every finished artifact, the oldest first; raises `ArtifactError` at a damaged manifest."""
        if not self.root.is_dir():
            return []
        folders = [p for p in self.root.iterdir() if not p.name.startswith(".") and (p / _MANIFEST).is_file()]
        folders.sort(key=lambda p: (p / _MANIFEST).stat().st_mtime_ns)
        return [artifact for p in folders if (artifact := self.get(p.name)) is not None]

    def lineage(self, ids: Iterable[str]) -> Iterator[Artifact]:
        """Yield the artifacts of these ids and all that they were made from, each once, as far as they are here."""
        waiting, seen = list(ids), set[str]()
        while waiting:
            id = waiting.pop(0)
            if id not in seen and (artifact := self.get(id)) is not None:
                yield artifact
                waiting += artifact.parents
            seen.add(id)

    @contextlib.contextmanager
    def create(
        self, id: str, kind: str, parents: Sequence[str], meta: Mapping[str, Any] | None = None
    ) -> Iterator[Draft]:
        """Give a draft folder to write in; when the block ends well, it becomes the artifact in one rename.

        If the block raises, the draft is deleted. If another process finished the same artifact first, that one stays
        and this draft is deleted: both were made from the same config, inputs and seed. A disk that fills up raises
        `MachineError` with the free bytes.
        """
        with say_when_full(self.root):
            drafts = self.root / _DRAFTS
            drafts.mkdir(parents=True, exist_ok=True)
            self.clean()
            name = f"{id}-{secrets.token_hex(4)}"
            with lock_file(drafts / f"{name}.lock"):
                draft = Draft(drafts / name, dict(meta or {}))
                draft.path.mkdir()
                try:
                    yield draft
                    self._seal(draft, id, kind, list(parents))
                finally:
                    shutil.rmtree(draft.path, ignore_errors=True)

    def clean(self) -> None:
        """Delete the drafts of processes that died; a living process holds a lock on its own."""
        for lock_path in (self.root / _DRAFTS).glob("*.lock"):
            try:
                lock = os.open(lock_path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)

    def _seal(self, draft: Draft, id: str, kind: str, parents: list[str]) -> None:
        files = {}
        for name in sorted(_files(draft.path)):
            if name == _MANIFEST:
                raise ArtifactError(f"a stage may not write {_MANIFEST}: it is written when the artifact is finished")
            path = draft.path / name
            files[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
            _fsync(path)
            fail_point("artifact.fsync")
        manifest = {"id": id, "kind": kind, "parents": parents, "meta": draft.meta, "files": files}
        manifest = json.loads(_render(manifest))  # what a reader will get: lists for tuples, strings for keys
        (draft.path / _MANIFEST).write_bytes(_render(manifest))
        fail_point("artifact.manifest")
        _fsync(draft.path / _MANIFEST)
        for folder in {draft.path, *((draft.path / name).parent for name in files)}:
            _fsync(folder)
        fail_point("artifact.rename")
        try:
            draft.path.rename(self.root / id)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self.get(id) is None:
                raise
        fail_point("artifact.renamed")
        _fsync(self.root)


@contextlib.contextmanager
def say_when_full(folder: Path) -> Iterator[None]:
    """Turn an error that means "no space left" into a `MachineError` that names the free bytes of the disk."""
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        # Libraries written in Rust and C++ raise errors of their own, in which only the words tell.
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and not any(
            words in str(error) for words in ("No space left", "os error 28", "disk is full", "File too large")
        ):
            raise
        at = folder
        while not at.exists():
            at = at.parent
        free = shutil.disk_usage(at).free
        raise MachineError(
            f"the disk is full: could not write below {folder}, {free:,} bytes are free. "
            "Nothing half-written was left; make room (or choose another --home) and run the same command again."
        ) from error


@contextlib.contextmanager
def lock_file(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs; the operating system lets go of it when the process dies, however it dies.

    While another process holds it, `waiting` is called five times a second; it may raise to give up.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:  # its last holder may have deleted it between the two lines above
                break
        except BlockingIOError:
            try:
                if waiting is not None:
                    waiting()
            except BaseException:
                os.close(handle)
                raise
            time.sleep(0.2)
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _render(manifest: dict[str, Any]) -> bytes:
    """Write the manifest in its one spelling, with a seal over everything else in it."""
    body = {k: v for k, v in manifest.items() if k != _SEAL}
    plain = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True)
    body[_SEAL] = hashlib.sha256(plain.encode()).hexdigest()
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _files(folder: Path) -> Iterator[str]:
    """Yield every file below `folder` as a relative name with slashes; a link or a device is refused."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtifactError(f"{name} in {folder} is a link or no plain file; an artifact holds only plain files")
        if path.is_file():
            yield name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
